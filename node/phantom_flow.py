"""One phantom series to its calibration, or why there is none: shared by the service and the command line."""

from collections.abc import Iterable
from pathlib import Path

from analysis.chain import analyse_phantom
from analysis.errors import AnalysisError
from analysis.phantom import looks_like_phantom
from analysis.refusals import reason
from analysis.results import Calibration, Reason
from node.analysis_setup import find_phantom, site_timezone
from node.config import Config
from storage.ct_series import CtSeries, load_ct_series

PhantomAnswer = Calibration | tuple[Reason, ...]


def measure_phantom_series(
    paths: Iterable[Path], serial: str | None, config: Config
) -> tuple[PhantomAnswer, CtSeries | None]:
    """The calibration, or why there is none; and the series when it could be read."""
    series = None
    try:
        series = load_ct_series(paths, site_timezone(config), minimum_slices=1)
        spec = find_phantom(config, serial, series.header.acquired)
        return analyse_phantom(series.volume, series.header, spec, config.calibration), series
    except AnalysisError as refusal:
        why = Reason(refusal.code, refusal.text)
        return (why, *_no_phantom_either(why, series, config)), series


def _no_phantom_either(why: Reason, series: CtSeries | None, config: Config) -> tuple[Reason, ...]:
    """An unknown serial that is no serial: the images show no rods of any registered phantom."""
    if why.code != "UNKNOWN_PHANTOM_SERIAL" or series is None or looks_like_phantom(series.volume, config.phantoms):
        return ()
    return (reason("NOT_A_PHANTOM", "no row of rods was found; expected those of a registered phantom"),)
