"""Which calibration a patient scan may use: from this site's store, or from the phantom scans given for one run."""

from collections.abc import Callable
from dataclasses import replace

from analysis.calibration_choice import choose_calibration
from analysis.calibration_state import CalibrationSeries
from analysis.errors import NoValidCalibrationError
from analysis.results import Calibration, ChosenCalibration, Reason, SeriesHeader
from node.config import Config
from storage import calibrations
from storage.database import SessionFactory

Choose = Callable[[SeriesHeader], ChosenCalibration]


def choose_from(found: tuple[Calibration, ...], why_none: tuple[Reason, ...], config: Config) -> Choose:
    """Choose among scans given for one run; whoever gives them vouches for the scanner where its serial is absent."""
    limits = replace(config.calibration_choice, may_be_absent=("DeviceSerialNumber", "ManufacturerModelName"))
    keys = tuple(dict.fromkeys(calibration.key for calibration in found))
    series = tuple(
        CalibrationSeries(
            key, tuple(sorted((c for c in found if c.key == key), key=lambda c: c.acquired)), for_this_run=True
        )
        for key in keys
    )

    def choose(header: SeriesHeader) -> ChosenCalibration:
        if not series and why_none:
            said = "; ".join(f"{why.code}: {why.text}" for why in why_none)
            raise NoValidCalibrationError("NO_CALIBRATION", f"no phantom scan could be measured ({said})")
        return choose_calibration(header, series, limits)

    return choose


def choose_stored(sessions: SessionFactory, config: Config) -> Choose:
    def choose(header: SeriesHeader) -> ChosenCalibration:
        with sessions.begin() as session:
            return choose_calibration(header, calibrations.all_series(session), config.calibration_choice)

    return choose
