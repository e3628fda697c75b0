"""From a table or the node's own cohort to a model in service: refusals with numbers, files, floor, trail."""

import csv
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from analysis.classification_model import CLASS_NAMES, load_model
from analysis.errors import ConfigError, ModelError
from analysis.extraction_contract import PAPER_CONTRACT
from analysis.feature_names import FEATURE_NAMES
from analysis.radiomics_settings import RadiomicsSettings
from analysis.results import BmdSummary, Classification
from analysis.training.radiomics_table import class_of, make_cohort, read_features, write_features
from node.config import Config
from node.radiomics_model import active_model_path, load_predict, models_folder
from node.train_radiomics import show_cohort, train_model
from storage.cohort import load_cohort, model_decisions, save_features
from storage.database import sqlite_url
from storage.schema import open_database
from tests.radiomics_builders import LIMITS, TABLE, density, header_of, row_features, tabled_cohort
from tests.result_builders import Grid, make_headers, make_result

NOW = datetime(2026, 3, 2, 10, 0, tzinfo=UTC)
QUICK = RadiomicsSettings(min_patients_per_class=20, outer_folds=3, repeats=1, bootstraps=0)


def config(folder: Path, settings: RadiomicsSettings = QUICK) -> Config:
    base = Config()
    storage = replace(base.storage, folder=folder, database_url=sqlite_url(folder / "node.sqlite"))
    return replace(base, storage=storage, radiomics=settings)


def clinical_table(folder: Path, permuted: bool = False) -> Path:
    """The simulated table as if a real scanner had made it; `permuted` gives the classes to other patients."""
    path = folder / "table.csv"
    with TABLE.open(newline="") as source, path.open("w", newline="") as target:
        rows = list(csv.DictReader(source))
        shuffled = np.random.default_rng(1).permutation(len(rows) // 2)
        writer = csv.DictWriter(target, list(rows[0]))
        writer.writeheader()
        for i, row in enumerate(rows):
            known = rows[2 * int(shuffled[i // 2])]["class"] if permuted else row["class"]
            writer.writerow(row | {"manufacturer": "MAKER", "class": known})
    return path


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    studies = read_features(TABLE, LIMITS)
    write_features(studies, tmp_path / "again.csv")
    assert read_features(tmp_path / "again.csv", LIMITS) == studies
    cohort = make_cohort(studies)
    assert cohort.vertebrae.shape == (120, 2, 93) and sum(cohort.patients_per_class) == 120


def test_a_density_stands_in_for_the_class_and_the_voxels_follow_from_the_features(tmp_path: Path) -> None:
    path = tmp_path / "plain.csv"
    with TABLE.open(newline="") as source, path.open("w", newline="") as target:
        rows = list(csv.DictReader(source))
        writer = csv.DictWriter(target, ["patient", "level", "bmd_mg_cm3", *FEATURE_NAMES], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    plain, full = read_features(path, LIMITS), read_features(TABLE, LIMITS)
    assert [study.classification for study in plain] == [study.classification for study in full]
    ratio = [p.n_voxels["L1"] / f.n_voxels["L1"] for p, f in zip(plain, full, strict=True)]
    assert np.allclose(ratio, 1, atol=1e-4)
    assert plain[0].acquisition.kernel is None


def test_the_limits_themselves_are_osteopenia() -> None:
    assert [class_of(bmd, LIMITS) for bmd in (79.9, 80.0, 120.0, 120.1)] == [
        "osteoporosis", "osteopenia", "osteopenia", "normal",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("glcm_MCC", "glcm_M"), "columns missing: glcm_MCC"),
        (lambda text: text.replace("osteopenia", "frail"), "class 'frail'"),
        (lambda text: text.replace(",120.0,", ",many,", 1), ":2: kvp is 'many'"),
    ],
)
def test_a_faulty_table_is_named_by_line_and_column(change, said: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(change(TABLE.read_text()))
    with pytest.raises(ModelError, match=said):
        read_features(path, LIMITS)


def test_a_study_without_one_of_the_levels_is_left_out_and_counted() -> None:
    studies = read_features(TABLE, LIMITS)
    studies[0] = replace(studies[0], values={"L1": studies[0].values["L1"]})
    cohort = make_cohort(studies)
    assert len(cohort.patients) == 119 and cohort.left_out == (f"{studies[0].study}: no features of L2",)


# --- training ---------------------------------------------------------------------------------------------------------


def test_too_few_patients_are_refused_with_the_numbers(tmp_path: Path) -> None:
    few = replace(QUICK, min_patients_per_class=50)
    counts = tabled_cohort().patients_per_class
    with pytest.raises(ModelError, match=f"osteoporosis {counts[0]}, .*at least 50 in each") as refusal:
        train_model(config(tmp_path, few), tmp_path / "out", TABLE, "seed", activate=False)
    assert all(name in str(refusal.value) for name in CLASS_NAMES) and not (tmp_path / "out").exists()


def test_classes_that_know_nothing_of_the_texture_make_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"reaches 0\.5, that is chance"):
        train_model(config(tmp_path), tmp_path / "out", clinical_table(tmp_path, permuted=True), "seed", activate=False)


def test_an_unknown_signature_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'stepwise' or 'seed' expected"):
        train_model(config(tmp_path), tmp_path / "out", TABLE, "other", activate=False)


def test_training_writes_model_card_and_plots(tmp_path: Path) -> None:
    train_model(config(tmp_path), tmp_path / "out", TABLE, "seed", activate=False)
    model = load_model(tmp_path / "out/model.json")
    card = (tmp_path / "out/card.md").read_text()
    assert model.demonstration and "DEMONSTRATION MODEL" in card and model.sha256 in card
    for said in ("mean HU alone", "Mondrian", "CLEAR", "TRIPOD+AI", "Failure modes", model.contract_sha256):
        assert said in card
    for name in ("performance.png", "baseline.png", "selection.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    assert active_model_path(config(tmp_path)) is None and load_predict(config(tmp_path)) is None


# --- activation -------------------------------------------------------------------------------------------------------


def test_activation_puts_a_model_into_service_keeps_the_earlier_one_and_leaves_a_trail(tmp_path: Path) -> None:
    site, table = config(tmp_path), clinical_table(tmp_path)
    train_model(site, tmp_path / "first", table, "seed", activate=True)
    first = load_model(tmp_path / "first/model.json")
    predict = load_predict(site)
    assert predict is not None
    train_model(config(tmp_path, replace(QUICK, outer_folds=4)), tmp_path / "second", table, "seed", activate=True)
    second = load_model(tmp_path / "second/model.json")
    assert load_model(models_folder(site) / "radiomics.json").sha256 == second.sha256 != first.sha256
    with open_database(site.database_url).begin() as session:
        trail = model_decisions(session)
    assert [(one.sha256, one.activated, one.replaced_sha256) for one in trail] == [
        (first.sha256, True, None), (second.sha256, True, first.sha256),
    ]  # fmt: skip
    assert load_model(trail[0].kept_as) == first


def test_a_model_below_the_floor_stays_out_and_the_trail_says_why(tmp_path: Path) -> None:
    site = config(tmp_path, replace(QUICK, min_macro_auc=1.0))
    with pytest.raises(ModelError, match=r"not activated: nested macro AUC 0\.\d+; at least 1 expected"):
        train_model(site, tmp_path / "out", clinical_table(tmp_path), "seed", activate=True)
    assert active_model_path(site) is None
    with open_database(site.database_url).begin() as session:
        (decision,) = model_decisions(session)
    assert not decision.activated and "at least 1 expected" in decision.reason


def test_a_demonstration_model_never_goes_into_service(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="simulated spines"):
        train_model(config(tmp_path), tmp_path / "out", TABLE, "seed", activate=True)
    assert active_model_path(config(tmp_path)) is None


def test_a_node_that_extracts_otherwise_refuses_the_model_in_service(tmp_path: Path) -> None:
    train_model(config(tmp_path), tmp_path / "out", clinical_table(tmp_path), "seed", activate=True)
    with pytest.raises(ModelError, match=r"radiomics\.bins"):
        load_predict(config(tmp_path, replace(QUICK, bins="library")))
    assert PAPER_CONTRACT.sha256 == replace(QUICK, bins="library").contract.sha256


# --- the node's own cohort --------------------------------------------------------------------------------------------


def fill_cohort(site: Config) -> None:
    """Every study of the table as the node would have stored it."""
    cohort = tabled_cohort()
    template = make_result(make_headers(Grid(n_slices=8, rows=16, columns=16)))
    with open_database(site.database_url).begin() as session:
        for row, classification in enumerate(cohort.classes):
            header = header_of(replace(cohort.acquisitions[row], manufacturer="MAKER"), acquired=NOW,
                               study_instance_uid=f"1.2.{row}", series_instance_uid=f"1.2.{row}.1")  # fmt: skip
            summary: BmdSummary = density(float(cohort.bmd_mg_cm3[row]))
            summary = replace(summary, classification=Classification(CLASS_NAMES[classification]))
            result = replace(template, header=header, summary=summary, features=row_features(row))
            save_features(session, result, NOW)


def test_the_node_s_own_cohort_is_shown_and_makes_the_same_model_as_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = config(tmp_path)
    fill_cohort(site)
    show_cohort(config(tmp_path, replace(QUICK, min_patients_per_class=500)))
    shown = capsys.readouterr().out
    osteopenia = tabled_cohort().patients_per_class[1]
    assert f"osteopenia: {osteopenia} patients, {500 - osteopenia} more for a model" in shown and "2026-03" in shown
    train_model(site, tmp_path / "own", None, "seed", activate=True)
    own = load_model(tmp_path / "own/model.json")
    assert own.training.source == "the node's own cohort, 120 studies" and own.acquisition.manufacturers == ("MAKER",)
    show_cohort(site)
    assert "activated" in capsys.readouterr().out


def test_features_of_another_extraction_do_not_enter_a_training(tmp_path: Path) -> None:
    site = config(tmp_path, replace(QUICK, bins="library"))
    fill_cohort(site)
    with open_database(site.database_url).begin() as session:
        assert len(load_cohort(session)) == 120
    with pytest.raises(ModelError, match="no study with features"):
        train_model(site, tmp_path / "own", None, "seed", activate=False)


def test_the_model_file_is_plain_json(tmp_path: Path) -> None:
    train_model(config(tmp_path), tmp_path / "out", TABLE, "seed", activate=False)
    content = json.loads((tmp_path / "out/model.json").read_text())
    assert content["schema"] == "qct-node/radiomics-model/2" and len(content["sha256"]) == 64
