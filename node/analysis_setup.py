"""Configuration -> what the analysis needs: settings, networks and phantom specifications. Loaded once per process."""

import hashlib
from dataclasses import replace
from datetime import datetime
from functools import cache
from importlib import resources
from pathlib import Path
from zoneinfo import ZoneInfo

from analysis.chain import AnalysisSettings, Toolkit
from analysis.errors import ModelError, PhantomUnusableError
from analysis.results import PhantomSpec
from analysis.segmentation import Networks, SegmentationLimits
from analysis.segmentation import load_networks as read_networks
from node.config import Config
from node.encoded import EncodingSettings
from node.radiomics_model import active_model_path, load_predict

MODELS_FOLDER = Path(str(resources.files("analysis") / "models"))


def make_toolkit(config: Config) -> Toolkit:
    """Settings and loaded networks for the chain.

    Raises
    ------
    ModelError : a weights file or the radiomics model is missing, damaged or does not fit
    """
    networks = load_networks(config.segmentation.models_folder or MODELS_FOLDER)
    settings, predict = analysis_settings(config), load_predict(config)
    return Toolkit(networks, settings, predict, config.phantoms, config.segmentation.backend)


def analysis_settings(config: Config) -> AnalysisSettings:
    return AnalysisSettings(
        protocol=config.protocol,
        segmentation=segmentation_limits(config),
        vertebra=config.vertebra,
        voi=config.voi,
        bmd=config.bmd,
        uncertainties=config.uncertainties,
        size=config.body_size,
        contrast=config.contrast,
        tissues=config.tissues,
        extraction=config.radiomics.contract,
    )


def segmentation_limits(config: Config) -> SegmentationLimits:
    settings = config.segmentation
    return SegmentationLimits(
        min_level_confidence=settings.min_level_confidence,
        device=settings.device,
        precision=settings.precision,
        crops_at_once=settings.crops_at_once,
    )


def encoding_settings(config: Config) -> EncodingSettings:
    """The configured settings with what they owe to the rest of the configuration: a changed limit gives new UIDs."""
    deciding = (
        config.series,
        config.phantoms,
        config.calibration,
        config.calibration_choice,
        analysis_settings(config),
    )
    digest = hashlib.sha256(repr(deciding).encode()).hexdigest()
    active = active_model_path(config) is not None
    return replace(config.results, configuration_digest=digest, radiomics_model_active=active)


@cache
def load_networks(folder: Path) -> Networks:
    """Both stages from one folder; kept for the life of the process."""
    for stage in ("coarse", "fine"):
        if not (folder / f"{stage}.safetensors").is_file():
            raise ModelError(
                f"no {stage}.safetensors in {folder}; the weights that ship with the package expected there"
            )
    return read_networks(folder / "coarse.safetensors", folder / "fine.safetensors")


def find_phantom(config: Config, serial: str | None, acquired: datetime | None) -> PhantomSpec:
    """The registered phantom of this serial that was valid when the scan was made; the latest valid-from wins.

    Raises
    ------
    PhantomUnusableError : UNKNOWN_PHANTOM_SERIAL, the serial is not registered; the scan is kept aside, never guessed
    """
    known = [p for p in config.phantoms if p.serial == serial]
    valid = [p for p in known if p.valid_from is None or acquired is None or p.valid_from <= acquired]
    if not valid:
        registered = ", ".join(sorted({p.serial for p in config.phantoms})) or "none"
        raise PhantomUnusableError(
            "UNKNOWN_PHANTOM_SERIAL",
            f"phantom serial {serial!r} is not registered ({registered}); enter its certificate in phantoms",
        )
    return max(valid, key=lambda p: p.valid_from.timestamp() if p.valid_from else float("-inf"))


def site_timezone(config: Config) -> ZoneInfo:
    return ZoneInfo(config.node.timezone)
