"""config.yaml -> frozen records; lower layers receive single values of it, never the Config.

Each section is the settings dataclass of the module that it sets: its fields are the keys, its defaults the defaults.
Text in the file may hold `${NAME}` (environment) and `${credential:NAME}` (content of a systemd credential).
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from annotated_types import Ge, Gt, Le
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from analysis.bmd import BmdLimits, BmdUncertainties
from analysis.body_size import SizeRule
from analysis.calibration import CalibrationLimits
from analysis.calibration_choice import ChoiceLimits
from analysis.contrast import ContrastLimits
from analysis.errors import ConfigError
from analysis.internal_check import TissueLimits
from analysis.phantom_types import MINDWAYS_MODEL_3_CT
from analysis.protocol import ProtocolReference
from analysis.qc import QcLimits
from analysis.radiomics_settings import RadiomicsSettings
from analysis.results import PhantomSpec
from analysis.vertebra_checks import VertebraLimits
from analysis.voi_rule import VoiRule
from node.config_file import ConfigFile, Fault, KeyPath, read_config_file
from node.destinations import AeTitle, Destination, Port
from node.encoded import EncodingSettings
from node.receiver_settings import ListenAddress, ReceiverSettings
from node.series_kind import SeriesRules
from storage.completeness import CompletenessRules
from storage.database import sqlite_url
from storage.inbox import DiskLimits
from storage.jobs import RetryRules


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """The node's own place in the network."""

    ae_title: AeTitle = "QCT-NODE"
    bind_address: str = "0.0.0.0"
    port: Port = 11112
    timezone: str = "UTC"  # of the scanners' clocks, for headers without a zone


@dataclass(frozen=True, slots=True)
class StorageSettings:
    folder: Path = Path("/var/lib/qct-node")
    database_url: str = field(default="", repr=False)  # may hold a password
    keep_delivered_days: Annotated[float, Ge(0)] = 30.0
    keep_quarantined_days: Annotated[float, Ge(0)] = 365.0

    @property
    def inbox_folder(self) -> Path:
        """What was received."""
        return self.folder / "inbox"

    @property
    def results_folder(self) -> Path:
        """Encoded results and reports, one folder per study."""
        return self.folder / "results"


@dataclass(frozen=True, slots=True)
class JobSettings:
    """How analyses are run."""

    worker_processes: Annotated[int, Ge(1)] = 1
    cluster: str = ""
    time_limit_s: Annotated[float, Gt(0)] = 900.0
    memory_limit_mb: Annotated[int, Gt(0)] = 8192
    lease_s: Annotated[float, Gt(0)] = 60.0
    stop_grace_s: Annotated[float, Ge(0)] = 20.0
    retries: RetryRules = RetryRules()


@dataclass(frozen=True, slots=True)
class SegmentationSettings:
    """What a site decides about the segmentation; the networks' own figures stay with their code."""

    backend: Literal["vbnet", "totalsegmentator"] = "vbnet"
    models_folder: Path | None = None  # None: the weights that ship with the package
    min_level_confidence: Annotated[float, Ge(0), Le(1)] = 0.9
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    crops_at_once: Annotated[int, Ge(1)] = 2


@dataclass(frozen=True, slots=True)
class LoggingSettings:
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


@dataclass(frozen=True, slots=True)
class MonitoringSettings:
    prometheus_file: Path | None = None


@checked_dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid", strict=False))
class Config:
    """Everything that a site decides."""

    node: NodeSettings = NodeSettings()
    receiving: ReceiverSettings = ReceiverSettings()
    completeness: CompletenessRules = CompletenessRules()
    storage: StorageSettings = StorageSettings()
    disk: DiskLimits = DiskLimits()
    jobs: JobSettings = JobSettings()
    destinations: tuple[Destination, ...] = ()
    series: SeriesRules = SeriesRules()
    phantoms: tuple[PhantomSpec, ...] = (
        PhantomSpec(
            "4541A",
            MINDWAYS_MODEL_3_CT.name,
            MINDWAYS_MODEL_3_CT.material,
            MINDWAYS_MODEL_3_CT.rods,
            MINDWAYS_MODEL_3_CT.rod_diameter_mm,
            MINDWAYS_MODEL_3_CT.rod_pitch_mm,
        ),
    )
    calibration: CalibrationLimits = CalibrationLimits()
    quality_control: QcLimits = QcLimits()
    calibration_choice: ChoiceLimits = ChoiceLimits()
    protocol: ProtocolReference = ProtocolReference()
    contrast: ContrastLimits = ContrastLimits()
    segmentation: SegmentationSettings = SegmentationSettings()
    vertebra: VertebraLimits = VertebraLimits()
    voi: VoiRule = VoiRule()
    bmd: BmdLimits = BmdLimits()
    uncertainties: BmdUncertainties = BmdUncertainties()
    body_size: SizeRule = SizeRule()
    tissues: TissueLimits = TissueLimits()
    radiomics: RadiomicsSettings = RadiomicsSettings()
    results: EncodingSettings = EncodingSettings()
    logging: LoggingSettings = LoggingSettings()
    monitoring: MonitoringSettings = MonitoringSettings()

    @property
    def listen_address(self) -> ListenAddress:
        return ListenAddress(self.node.ae_title, self.node.bind_address, self.node.port)

    @property
    def database_url(self) -> str:
        return self.storage.database_url or sqlite_url(self.database_file)

    @property
    def database_file(self) -> Path:
        """Of SQLite, where no other database is configured."""
        return self.storage.folder / "node.sqlite"


def load_config(path: Path) -> Config:
    """Read and check a configuration file.

    Raises
    ------
    ConfigError : every fault, one line each: `file:line key: found, expected`
    """
    file = read_config_file(path)
    config, faults = _validate(file)
    if config is not None:
        faults += list(_contradictions(config))
    if faults:
        raise ConfigError("\n".join(file.line(fault) for fault in sorted(set(faults), key=file.position)))
    assert config is not None
    return config


def load_config_or_default(path: Path | None) -> Config:
    """The given file; else ./config.yaml where there is one; else the defaults."""
    if path is None and not Path("config.yaml").is_file():
        return Config()
    return load_config(path or Path("config.yaml"))


def _validate(file: ConfigFile) -> tuple[Config | None, list[Fault]]:
    try:
        return TypeAdapter(Config).validate_python(file.values), list(file.faults)
    except ValidationError as error:
        return None, [*file.faults, *(file.explain(found, Config) for found in error.errors(include_url=False))]


def _contradictions(config: Config) -> Iterator[Fault]:
    """What each value alone cannot show."""
    for check in CHECKS:
        yield from check(config)


def _check_timezone(config: Config) -> Iterator[Fault]:
    try:
        ZoneInfo(config.node.timezone)
    except (ZoneInfoNotFoundError, ValueError):
        yield Fault(("node", "timezone"), f"found {config.node.timezone!r}, expected a name such as 'Europe/Berlin'")


def _check_peers(config: Config) -> Iterator[Fault]:
    for index, peer in enumerate(config.receiving.peers):
        for place, network in enumerate(peer.addresses):
            try:
                ip_network(network, strict=False)
            except ValueError:
                yield Fault(
                    ("receiving", "peers", index, "addresses", place),
                    f"found {network!r}, expected a network such as '10.1.2.0/24' or one address",
                )


def _check_listening(config: Config) -> Iterator[Fault]:
    tls = config.receiving.tls
    if not tls.enabled:
        return
    if tls.port == config.node.port:
        yield Fault(("receiving", "tls", "port"), f"found {tls.port} as node.port, expected a port of its own")
    for key in ("certificate_file", "key_file"):
        if getattr(tls, key) is None:
            yield Fault(("receiving", "tls", key), "found nothing, expected a PEM file, since TLS is enabled")
    yield from _check_files(tls, ("receiving", "tls"), ("certificate_file", "key_file", "client_ca_file"))


def _check_files(settings: object, section: KeyPath, keys: tuple[str, ...]) -> Iterator[Fault]:
    for key in keys:
        path = getattr(settings, key)
        if path is not None and not path.is_file():
            yield Fault((*section, key), f"found no file at {path}, expected a PEM file")


def _check_cluster(config: Config) -> Iterator[Fault]:
    if config.jobs.cluster and not re.fullmatch(r"(tcp|tls)://[^:/]+:\d+", config.jobs.cluster):
        yield Fault(("jobs", "cluster"), f"found {config.jobs.cluster!r}, expected tcp://HOST:PORT or nothing")


def _check_destinations(config: Config) -> Iterator[Fault]:
    names = [destination.name for destination in config.destinations]
    for index, name in enumerate(names):
        if name in names[:index]:
            yield Fault(("destinations", index, "name"), f"found {name!r} twice, expected a name of its own")
    for index, destination in enumerate(config.destinations):
        tls = destination.tls
        if (tls.certificate_file is None) != (tls.key_file is None):
            yield Fault(("destinations", index, "tls"), "found one of certificate_file and key_file, expected both")
        if tls.enabled:
            section = ("destinations", index, "tls")
            yield from _check_files(tls, section, ("ca_file", "certificate_file", "key_file"))


def _check_phantoms(config: Config) -> Iterator[Fault]:
    serials = [(phantom.serial, phantom.valid_from) for phantom in config.phantoms]
    for index, phantom in enumerate(config.phantoms):
        if serials[index] in serials[:index]:
            yield Fault(
                ("phantoms", index, "serial"),
                f"found {phantom.serial!r} twice with the same valid_from, expected different ones",
            )
        if len(phantom.rods) < 2:
            yield Fault(("phantoms", index, "rods"), f"found {len(phantom.rods)} rods, expected at least 2")


def _check_series(config: Config) -> Iterator[Fault]:
    try:
        groups = re.compile(config.series.phantom_serial_regex).groups
    except re.error as error:
        yield Fault(("series", "phantom_serial_regex"), f"found a pattern that does not compile ({error})")
    else:
        if groups < 1:
            yield Fault(("series", "phantom_serial_regex"), "found no group, expected one in round brackets")


def _check_bmd(config: Config) -> Iterator[Fault]:
    limits = config.bmd
    if limits.osteoporosis_below_mg_cm3 >= limits.normal_above_mg_cm3:
        yield Fault(
            ("bmd", "osteoporosis_below_mg_cm3"),
            f"found {limits.osteoporosis_below_mg_cm3:g}, expected less than normal_above_mg_cm3 "
            f"({limits.normal_above_mg_cm3:g})",
        )


def _check_radiomics(config: Config) -> Iterator[Fault]:
    path = config.radiomics.model_file
    if path is not None and not path.is_file():
        yield Fault(("radiomics", "model_file"), f"found no file at {path}, expected a model by `train radiomics`")


CHECKS: tuple[Callable[[Config], Iterator[Fault]], ...] = (
    _check_timezone, _check_peers, _check_listening, _check_cluster, _check_destinations, _check_phantoms,
    _check_series, _check_bmd, _check_radiomics,
)  # fmt: skip
