"""A simulated cohort trained end to end by `train radiomics`, then asked about a fresh one: writes docs/radiomics.md.

    python -m tests.studies.radiomics_study --out FOLDER [--spines 340] [--fresh 300] [--write] [--demonstration]

Features are kept in FOLDER as CSV, so that a second run only trains. `--write` writes docs/radiomics.md,
`--demonstration` the model that ships, `--table` the small table of the tests.
"""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import track

from analysis.classification import DEMONSTRATION_MODEL, predict
from analysis.classification_model import CLASS_NAMES, ClassificationModel, load_model, probabilities
from analysis.classification_statistics import accuracy, class_aucs, coverage, log_loss, macro_auc
from analysis.feature_names import FEATURE_NAMES
from analysis.feature_selection import SelectionPlan
from analysis.radiomics_settings import RadiomicsSettings
from analysis.results import BmdSummary, Classification, Material, VertebraFeatures
from analysis.training.radiomics import train
from analysis.training.radiomics_cohort import describe_spine
from analysis.training.radiomics_export import ModelIdentity, export_model
from analysis.training.radiomics_table import Cohort, make_cohort, read_features, write_features
from node.config import Config
from node.train_radiomics import train_model, training_plan
from tests.radiomics_builders import LIMITS, TABLE, header_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
FRESH_SEED = 100_000  # far from the seeds of the training
SIGNATURES = ("stepwise", "seed")


def main(
    out: Annotated[Path, typer.Option()],
    spines: int = 340,
    fresh: int = 300,
    write: bool = False,
    demonstration: bool = False,
    table: bool = False,
    signature: Annotated[list[str] | None, typer.Option(help="which to train and report; default: both")] = None,
) -> None:
    """Simulate what is missing, train both signatures by the command's own function, ask, report."""
    out.mkdir(parents=True, exist_ok=True)
    training = _simulated(range(spines), out / "train.csv")
    asked = make_cohort(read_features(_simulated(range(FRESH_SEED, FRESH_SEED + fresh), out / "fresh.csv"), LIMITS))
    if table:
        _write_table(training)
    models = {name: _trained(training, out / name, name) for name in signature or SIGNATURES}
    text = "\n".join(_report(models, make_cohort(read_features(training, LIMITS)), asked))
    typer.echo(text)
    if write:
        (DOCS / "radiomics.md").write_text(text + "\n")
    if demonstration:
        for source, target in (("model.json", ".json"), ("card.md", ".md")):
            DEMONSTRATION_MODEL.with_suffix(target).write_text((out / "seed" / source).read_text())


def _simulated(seeds: range, path: Path) -> Path:
    if not path.is_file():
        rows = [row for seed in track(seeds, f"simulating {path.name}") if (row := describe_spine(seed))]
        write_features(rows, path)
    return path


def _trained(table: Path, folder: Path, signature: str) -> ClassificationModel:
    if not (folder / "model.json").is_file():
        train_model(Config(), folder, table, signature, activate=False)
    return load_model(folder / "model.json")


def _write_table(training: Path, n: int = 120) -> None:
    """The first spines with six digits."""
    with training.open(newline="") as source, TABLE.open("w", newline="") as target:
        rows, writer = csv.reader(source), csv.writer(target)
        header = next(rows)
        first = header.index(FEATURE_NAMES[0])
        writer.writerow(header)
        for _, row in zip(range(2 * n), rows, strict=False):
            writer.writerow([*row[:first], *(f"{float(value):.6g}" for value in row[first:])])


def _report(models: dict[str, ClassificationModel], training: Cohort, asked: Cohort) -> Sequence[str]:
    lines = [
        "# Radiomics on simulated spines",
        "",
        "Written by `python -m tests.studies.radiomics_study --out FOLDER --write`. It shows that the procedure does",
        "what it says; it says nothing about patients. Blocks of simulated marrow",
        "(`analysis/training/radiomics_cohort.py`): density, texture strength and grain, patches, body size, noise,",
        "kernel, pixel size and tilt vary. That less bone goes with coarser, weaker texture is an assumption, so any",
        "gain of texture over mean HU is one as well.",
        "",
        f"Trained on {len(training.patients)} spines ({_counts(training)}): one half fits the model and estimates it,",
        f"the other only calibrates its sets. Then asked about {len(asked.patients)} others ({_counts(asked)}).",
        "Intervals are 95 %: logit-DeLong for AUC, Wilson for proportions. Whether the sets hold what they promise",
        "over many cohorts, and not only for this pair: `radiomics-coverage.md`.",
        "",
        *_side_by_side(models | {"mean HU alone": _mean_hu_model(training)}, asked),
    ]
    for name, model in models.items():
        lines += ["", f"## Signature `{name}`", "", f"Features: {', '.join(model.features)}.", ""]
        if name == "stepwise":
            lines += [*_frequencies(model), ""]
        lines += _states(model, asked)
    return lines


def _counts(cohort: Cohort) -> str:
    return ", ".join(f"{name} {n}" for name, n in zip(CLASS_NAMES, cohort.patients_per_class, strict=True))


def _mean_hu_model(training: Cohort) -> ClassificationModel:
    """The baseline, trained and calibrated in the same way."""
    plan = replace(training_plan(RadiomicsSettings(), "seed"), selection=SelectionPlan("mean HU"))
    identity = ModelIdentity("mean HU", "simulated spines", "", demonstration=True)
    return export_model(train(training, plan), training, RadiomicsSettings().contract, identity)


def _side_by_side(models: dict[str, ClassificationModel], asked: Cohort) -> list[str]:
    columns = [_column(model, asked) for model in models.values()]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    head = [["", *(f"`{name}`" if name in SIGNATURES else name for name in models)], ["---"] * (len(models) + 1)]
    return [f"| {' | '.join(row)} |" for row in (*head, *rows)]


def _column(model: ClassificationModel, asked: Cohort) -> dict[str, str]:
    """Everything measured of one model, by the name of its row."""
    shares, summary, level = _shares(model, asked), model.training, model.conformal.level
    macro, each = macro_auc([shares], asked.classes), class_aucs(shares, asked.classes)
    held = coverage(shares, asked.classes, model.conformal.quantiles)
    sizes = (1 - shares <= np.array(model.conformal.quantiles)).sum(axis=1)

    def said(numbers: tuple[float, float, float]) -> str:
        return f"{numbers[0]:.3f} ({numbers[1]:.3f}-{numbers[2]:.3f})"

    inside = summary.macro_auc[1] <= macro.value <= summary.macro_auc[2]
    return {
        "nested estimate: macro AUC": said(summary.macro_auc),
        **{f"nested: AUC {n}": said(auc) for n, auc in zip(CLASS_NAMES, summary.class_auc, strict=True)},
        "nested: accuracy": said(summary.accuracy),
        "calibration part: macro AUC": said(summary.held_out_macro_auc),
        "fresh spines: macro AUC": str(macro),
        **{f"fresh: AUC {name}": str(auc) for name, auc in zip(CLASS_NAMES, each, strict=True)},
        "fresh: accuracy": str(accuracy(shares.argmax(axis=1), asked.classes)),
        "fresh: log loss": f"{log_loss(shares, asked.classes):.3f}",
        "the nested interval covers the fresh macro AUC": "yes" if inside else "no",
        f"fresh: sets that hold the true class, {level:.0%} asked for": str(held[0]),
        **{f"of {name}": str(one) for name, one in zip(CLASS_NAMES, held[1:], strict=True)},
        "sets of one class; mean size": f"{(sizes == 1).mean():.0%}; {sizes.mean():.2f}",
    }


def _shares(model: ClassificationModel, cohort: Cohort) -> NDArray[np.float64]:
    return probabilities(model, cohort.values[:, [FEATURE_NAMES.index(name) for name in model.features]])


def _frequencies(model: ClassificationModel, n: int = 15) -> list[str]:
    """The selected set is one draw: how often each feature is selected when the patients are drawn anew."""
    bootstraps = RadiomicsSettings().bootstraps
    rows = [
        f"| {name} | {share:.2f} | {'yes' if name in model.features else ''} |"
        for name, share in model.training.selection_frequency[:n]
    ]
    said = f"Selected in {bootstraps} bootstraps over the patients of the fitting part (the {n} most frequent):"
    return [said, "", "| feature | share of bootstraps | in the model |", "|---|---|---|", *rows]


def _states(model: ClassificationModel, asked: Cohort) -> list[str]:
    """What `predict` answers with all gates, the density of each spine beside it."""
    states, wrong = Counter[str](), 0
    for row in range(len(asked.patients)):
        features = tuple(
            VertebraFeatures(level, FEATURE_NAMES, tuple(map(float, values)), model.contract_sha256, int(n))
            for level, values, n in zip(asked.levels, asked.vertebrae[row], asked.n_voxels[row], strict=True)
        )
        known = Classification(CLASS_NAMES[asked.classes[row]])
        summary = BmdSummary(asked.levels, float(asked.bmd_mg_cm3[row]), 3.0, Material.K2HPO4, known, LIMITS, False, (),
                             None, None, None)  # fmt: skip
        answer = predict(model, features, header_of(asked.acquisitions[row]), summary)
        states[answer.state] += 1
        wrong += answer.classification is not None and answer.classification != known
    said = ", ".join(f"{state} {n}" for state, n in states.most_common())
    return [f"With all gates and the density (u = 3 mg/cm3): {said}; {wrong} of the OK answers name another class."]


if __name__ == "__main__":
    typer.run(main)
