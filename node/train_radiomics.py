"""`qct-node cohort` and `qct-node train radiomics`: what the node's own cohort holds, and the model made of it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from analysis.classification_model import CLASS_NAMES, ClassificationModel, model_text
from analysis.classification_plots import performance_png, selection_png
from analysis.errors import ConfigError
from analysis.feature_names import FEATURE_NAMES
from analysis.feature_selection import SelectionPlan
from analysis.radiomics_settings import RadiomicsSettings
from analysis.training.radiomics import Progress as Report
from analysis.training.radiomics import TrainedModel, TrainingPlan, tempered, train
from analysis.training.radiomics_card import model_card
from analysis.training.radiomics_export import ModelIdentity, export_model
from analysis.training.radiomics_table import Acquisition, Cohort, StudyFeatures, make_cohort, read_features
from node.config import Config
from node.radiomics_model import activate_model
from node.result_files import write_durably
from storage.cohort import CohortStudy, count_cohort, count_patients, load_cohort, model_decisions
from storage.schema import open_database

CONSOLE = Console()
SIMULATED = "SIMULATED"  # manufacturer of simulated scans


def show_cohort(config: Config) -> None:
    """Patients per scanner, month and class; what is missing for a model; the models so far."""
    with open_database(config.database_url).begin() as session:
        groups, totals, decisions = count_cohort(session), count_patients(session), model_decisions(session)
    table = Table("scanner", "month", *CLASS_NAMES, "no limits", title="patients with features and density")
    for scanner, month in dict.fromkeys((group.scanner, group.month) for group in groups):
        found = {g.classification: g.patients for g in groups if (g.scanner, g.month) == (scanner, month)}
        table.add_row(scanner, month, *(str(found.get(name, 0)) for name in (*CLASS_NAMES, "no limits")))
    CONSOLE.print(table)
    at_least = config.radiomics.min_patients_per_class
    for name in CLASS_NAMES:
        n = totals.get(name, 0)
        missing = f"{at_least - n} more for a model" if n < at_least else "enough for a model"
        CONSOLE.print(f"{name}: {n} patients, {missing} ({at_least} expected)")
    for one in decisions:
        said = "activated" if one.activated else "not activated"
        replaced = f", replaced {one.replaced_sha256[:16]}" if one.activated and one.replaced_sha256 else ""
        CONSOLE.print(f"{one.decided_at:%Y-%m-%d %H:%M} {one.sha256[:16]} {said}: {one.reason}{replaced}", markup=False)


def train_model(config: Config, out: Path, features_csv: Path | None, signature: str, activate: bool) -> None:
    """Train from the node's own cohort or a CSV file; write model, card and plots; activate when asked to.

    Raises
    ------
    ModelError : too few patients per class, no better than chance, or (activate) below the configured floor
    ConfigError : an unknown signature
    """
    plan = training_plan(config.radiomics, signature)
    sessions = open_database(config.database_url) if activate else None  # before the work: it may not be there
    cohort, source = _gather(config, features_csv)
    with _progress() as report:
        trained = train(cohort, plan, report)
    now = datetime.now(UTC)
    identity = ModelIdentity(
        name=f"radiomics {signature} {now:%Y-%m-%d}", source=source, created=now.isoformat(timespec="seconds"),
        demonstration=is_simulated(cohort), limits_mg_cm3=_limits(config),
    )  # fmt: skip
    model = export_model(trained, cohort, config.radiomics.contract, identity)
    write_model(model, trained, cohort, out)
    _show(model, trained, out)
    if sessions is not None:
        path = activate_model(model, config, sessions, now)
        CONSOLE.print(f"in service from the next start: {path}", markup=False)


def training_plan(settings: RadiomicsSettings, signature: str) -> TrainingPlan:
    """The configured plan for one signature."""
    if signature == "stepwise":
        selection = SelectionPlan("stepwise", settings.classifier)
    elif signature == "seed":
        selection = SelectionPlan("seed", settings.classifier)
    else:
        raise ConfigError(f"signature {signature!r} found; 'stepwise' or 'seed' expected")
    return TrainingPlan(
        selection=selection,
        outer_folds=settings.outer_folds,
        repeats=settings.repeats,
        bootstraps=settings.bootstraps,
        conformal_level=settings.conformal_level,
        conformal_confidence=settings.conformal_confidence,
        calibration_share=settings.calibration_share,
        min_patients_per_class=settings.min_patients_per_class,
    )


def is_simulated(cohort: Cohort) -> bool:
    """One simulated study makes a demonstration."""
    return any((one.manufacturer or "").upper() == SIMULATED for one in cohort.acquisitions)


def _limits(config: Config) -> tuple[float, float]:
    return config.bmd.osteoporosis_below_mg_cm3, config.bmd.normal_above_mg_cm3


def _gather(config: Config, features_csv: Path | None) -> tuple[Cohort, str]:
    if features_csv is not None:
        return make_cohort(read_features(features_csv, _limits(config))), f"table {features_csv.name}"
    with open_database(config.database_url).begin() as session:
        studies = load_cohort(session)
    usable = [study for study in studies if study.contract_sha256 == config.radiomics.contract.sha256]
    if len(usable) < len(studies):
        CONSOLE.print(f"{len(studies) - len(usable)} studies left out: features of another extraction contract")
    return make_cohort(_rows(usable)), f"the node's own cohort, {len(usable)} studies"


def _rows(studies: Iterable[CohortStudy]) -> Iterator[StudyFeatures]:
    for study in studies:
        if study.classification is not None:
            yield StudyFeatures(
                study.patient_key,
                study.study_instance_uid,
                study.classification,
                study.bmd_mg_cm3,
                {v.level: tuple(v.features.get(name, float("nan")) for name in FEATURE_NAMES) for v in study.vertebrae},
                {v.level: float(v.n_voxels) for v in study.vertebrae},
                Acquisition(
                    study.manufacturer, study.convolution_kernel, study.kvp, study.slice_thickness_mm,
                    study.spacing_between_slices_mm, study.pixel_spacing_mm,
                ),
            )  # fmt: skip


@contextmanager
def _progress() -> Iterator[Report]:
    """One bar for each stage of the training."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=CONSOLE) as bars:

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield report


def write_model(model: ClassificationModel, trained: TrainedModel, cohort: Cohort, out: Path) -> None:
    """model.json, card.md, performance.png, baseline.png and selection.png."""
    out.mkdir(parents=True, exist_ok=True)
    shares, classes = tempered(trained.nested.shares[0], trained.temperature), trained.fitting.classes
    label = "DEMONSTRATION, simulated spines: " if model.demonstration else ""
    files = {
        "model.json": model_text(model).encode(),
        "card.md": model_card(model, trained, cohort).encode(),
        "performance.png": performance_png(shares, classes, f"{label}{model.name}, nested cross-validation"),
        "baseline.png": performance_png(
            trained.baseline.shares[0], classes, f"{label}mean HU alone, nested cross-validation"
        ),
        "selection.png": selection_png(trained.selection_frequency, model.features, f"{label}{model.name}"),
    }
    for name, content in files.items():
        write_durably(out / name, content)


def _show(model: ClassificationModel, trained: TrainedModel, out: Path) -> None:
    table = Table("nested cross-validation", "this model", "mean HU alone", title=model.name)
    table.add_row("macro AUC", str(trained.nested.macro), str(trained.baseline.macro))
    for name, own, baseline in zip(CLASS_NAMES, trained.nested.each_class, trained.baseline.each_class, strict=True):
        table.add_row(f"AUC {name}", str(own), str(baseline))
    table.add_row("accuracy", str(trained.nested.accuracy), str(trained.baseline.accuracy))
    table.add_row("macro AUC of the locked model, held out", str(trained.held_out), "")
    CONSOLE.print(table)
    CONSOLE.print(f"features: {', '.join(model.features)}", markup=False)
    if model.demonstration:
        CONSOLE.print("demonstration model: trained on simulated spines, never a finding", style="yellow")
    CONSOLE.print(f"written to {out}: model.json, card.md, performance.png, baseline.png, selection.png", markup=False)
