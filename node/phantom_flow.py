"""One phantom series to its calibration, or why there is none: shared by the service and the command line."""

from collections.abc import Iterable
from pathlib import Path

from analysis.chain import analyse_phantom
from analysis.errors import AnalysisError
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
        series = load_ct_series(paths, site_timezone(config))
        spec = find_phantom(config, serial, series.header.acquired)
        return analyse_phantom(series.volume, series.header, spec, config.calibration), series
    except AnalysisError as refusal:
        return (Reason(refusal.code, refusal.text),), series
