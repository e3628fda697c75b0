"""Whether a texture answer may be believed: the file, the gates, the conformal set, the density that comes first."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from analysis.classification import (
    DEMONSTRATION_MODEL,
    INDETERMINATE,
    NOT_EVALUABLE,
    OK,
    check_against_bmd,
    check_domain,
    make_predict,
    predict,
)
from analysis.classification_model import (
    CLASS_NAMES,
    load_model,
    model_text,
    probabilities,
    seal,
)
from analysis.errors import ModelError
from analysis.extraction_contract import PAPER_CONTRACT, ExtractionContract
from analysis.feature_selection import selected_columns
from analysis.radiomic_features import extract_features
from analysis.results import Classification, RadiomicsPrediction, VertebraFeatures
from analysis.volume import CtVolume
from tests.radiomics_builders import (
    density,
    features_of,
    header_of,
    marrow,
    row_features,
    tabled_cohort,
    trained,
    trained_model,
)


def ask(features: tuple[VertebraFeatures, ...], bmd_mg_cm3: float = 100.0, **changes: object) -> RadiomicsPrediction:
    return predict(trained_model(), features, header_of(**changes), density(bmd_mg_cm3))


def codes(answer: RadiomicsPrediction) -> set[str]:
    return {reason.code for reason in answer.reasons}


@cache
def clear_row(k: int) -> int:
    """The study of class k that the model is surest of, among those inside the domain."""
    cohort, model = tabled_cohort(), trained_model()
    shares = probabilities(model, cohort.values[:, selected_columns(trained().pipeline)])[:, k]
    order = [int(row) for row in np.argsort(-shares) if cohort.classes[row] == k]
    return next(row for row in order if not any(codes_of_domain(row)))


def codes_of_domain(row: int) -> list[str]:
    return [found.code for one in row_features(row) for found in check_domain(trained_model().domain, one)]


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signature", "classifier"), [("seed", "logistic"), ("seed", "forest"), ("stepwise", "logistic")]
)
def test_the_json_model_answers_as_the_trained_pipeline_does(signature: str, classifier: str, tmp_path: Path) -> None:
    model, pipeline = trained_model(signature, classifier), trained(signature, classifier).pipeline
    path = tmp_path / "model.json"
    path.write_text(model_text(model))
    read = load_model(path, ExtractionContract().sha256)
    assert read == model
    values = tabled_cohort().values
    plain = probabilities(replace(read, temperature=1.0), values[:, selected_columns(pipeline)])
    expected = pipeline.predict_proba(values)
    floor = 1 / 2000 if classifier == "forest" else 0.0  # an empty leaf counts as one in two thousand
    np.testing.assert_allclose(plain, expected, atol=1e-12 + 3 * floor)
    if classifier == "logistic":
        np.testing.assert_allclose(plain, expected, rtol=1e-10)


def test_a_model_file_with_one_changed_digit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    content = json.loads(model_text(trained_model()))
    content["classifier"]["intercepts"][0] += 1e-9
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="it was changed or damaged"):
        load_model(path)


def test_a_model_of_another_extraction_is_refused_at_start(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text(model_text(trained_model()))
    with pytest.raises(ModelError, match=r"radiomics\.bins"):
        make_predict(path, PAPER_CONTRACT.sha256)


@pytest.mark.parametrize("text", ["", "[]", '{"schema": "other/1"}', "\x80"])
def test_a_file_that_is_no_model_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match="radiomics model"):
        load_model(path)


@pytest.mark.parametrize(
    "change", [{"sd": (0.0,) * 6}, {"mean": (1.0,)}, {"classes": ("a", "b", "c")}, {"temperature": float("inf")}]
)
def test_a_sealed_model_that_does_not_fit_itself_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    path, model = tmp_path / "model.json", replace(trained_model(), **change)  # type: ignore[arg-type]
    if "temperature" in change:
        with pytest.raises(ValueError, match="not JSON compliant"):
            model_text(model)
        return
    path.write_text(model_text(seal(model)))
    with pytest.raises(ModelError, match="does not fit"):
        load_model(path)


def test_the_demonstration_model_is_labelled_and_fits_the_node_s_extraction() -> None:
    model = load_model(DEMONSTRATION_MODEL, ExtractionContract().sha256)
    assert model.demonstration and model.training.n_patients >= (50, 50, 50)
    card = DEMONSTRATION_MODEL.with_suffix(".md").read_text()
    assert "DEMONSTRATION MODEL" in card and model.sha256 in card


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "bmd"), [(0, 50.0), (2, 160.0)])
def test_a_clear_case_gets_its_class(k: int, bmd: float) -> None:
    answer = ask(row_features(clear_row(k)), bmd)
    assert (answer.state, answer.classification) == (OK, Classification(CLASS_NAMES[k])), answer.reasons
    assert answer.conformal_set == (CLASS_NAMES[k],) and answer.demonstration
    assert sum(share for _, share in answer.probabilities) == pytest.approx(1)


def test_a_class_that_contradicts_the_density_is_indeterminate_and_prints_no_class() -> None:
    answer = ask(row_features(clear_row(2)), 60.0)
    assert answer.state == INDETERMINATE and answer.classification is None
    assert codes(answer) == {"RADIOMICS_CONTRADICTION"}


@pytest.mark.parametrize(("bmd", "agrees"), [(70.0, False), (76.0, True), (122.0, True), (130.0, False)])
def test_a_class_contradicts_only_beyond_twice_the_density_s_uncertainty(bmd: float, agrees: bool) -> None:
    found = list(check_against_bmd(Classification.OSTEOPENIA, density(bmd, u_bmd_mg_cm3=3.0)))
    assert (not found) == agrees


def test_without_limits_for_the_material_the_answer_cannot_be_checked() -> None:
    summary = density(50.0, classification=None)
    answer = predict(trained_model(), row_features(clear_row(0)), header_of(), summary)
    assert answer.state == INDETERMINATE and codes(answer) == {"RADIOMICS_UNDECIDED"}


def test_several_classes_in_the_conformal_set_are_indeterminate() -> None:
    model = trained_model()
    wide = replace(model, conformal=replace(model.conformal, quantiles=(1.0, 1.0, 1.0)))
    answer = predict(wide, row_features(clear_row(0)), header_of(), density(50.0))
    assert answer.state == INDETERMINATE and answer.conformal_set == CLASS_NAMES


def test_no_class_in_the_conformal_set_is_indeterminate() -> None:
    model = trained_model()
    narrow = replace(model, conformal=replace(model.conformal, quantiles=(0.0, 0.0, 0.0)))
    answer = predict(narrow, row_features(clear_row(0)), header_of(), density(50.0))
    assert answer.state == INDETERMINATE and answer.conformal_set == () and "no class" in answer.reasons[0].text


def test_vertebrae_that_differ_are_indeterminate() -> None:
    low, high = row_features(clear_row(0))[0], row_features(clear_row(2))[1]
    answer = ask((low, high), 100.0)
    assert answer.state == INDETERMINATE and "vertebrae differ" in " ".join(r.text for r in answer.reasons)


# --- gates ------------------------------------------------------------------------------------------------------------


def described(change, grid_mm: float = 1.0, seed: int = 500) -> tuple[VertebraFeatures, ...]:
    """Features of both vertebrae after a change of the CT, under the model's contract in name."""
    sha256 = ExtractionContract().sha256
    found = []
    for volume, voi in marrow(seed):
        hu = change(volume.hu.astype(np.float32), voi)
        contract = ExtractionContract(grid_mm=grid_mm, minimum_voxels=100)
        one = extract_features(CtVolume(hu, volume.affine), voi, contract)
        found.append(replace(one, contract_sha256=sha256))
    return tuple(found)


def metal(hu: np.ndarray, voi: object) -> np.ndarray:
    z, y, x = (n // 2 for n in hu.shape)
    hu[z - 1 : z + 2, y - 2 : y + 3, x - 2 : x + 3] = 3071
    return hu


def soft_tissue(hu: np.ndarray, voi: object) -> np.ndarray:
    return np.random.default_rng(1).normal(45, 12, hu.shape).astype(np.float32)


def test_a_spine_like_those_of_the_training_passes_the_gates() -> None:
    passed = [ask(features_of(seed)).state != NOT_EVALUABLE for seed in (501, 502, 503, 504)]
    assert sum(passed) >= 3


@pytest.mark.parametrize(
    ("change", "grid_mm"),
    [(metal, 1.0), (soft_tissue, 1.0), (lambda hu, voi: hu + 1024, 1.0), (lambda hu, voi: hu, 2.0)],
    ids=["metal", "soft tissue", "rescale lost", "2 mm grid"],
)
def test_features_from_outside_the_training_are_not_evaluable(change, grid_mm: float) -> None:
    answer = ask(described(change, grid_mm))
    assert answer.state == NOT_EVALUABLE and answer.classification is None and answer.probabilities == ()
    assert codes(answer) & {"RADIOMICS_DOMAIN", "RADIOMICS_INPUT"}


def test_features_of_another_contract_are_not_evaluable() -> None:
    features = tuple(replace(one, contract_sha256=PAPER_CONTRACT.sha256) for one in row_features(0))
    assert codes(ask(features)) == {"RADIOMICS_CONTRACT"}


def test_other_levels_are_not_evaluable() -> None:
    first, second = row_features(0)
    answer = ask((first, replace(second, level="L3")))
    assert answer.state == NOT_EVALUABLE and codes(answer) == {"RADIOMICS_LEVELS"}


def test_a_voi_that_could_not_be_described_keeps_its_reason() -> None:
    volume, voi = marrow()[0]
    broken = extract_features(CtVolume(np.full_like(volume.hu, 100), volume.affine), voi)
    answer = ask((broken, row_features(0)[1]))
    assert answer.state == NOT_EVALUABLE and codes(answer) == {"RADIOMICS_INPUT"}


@pytest.mark.parametrize(
    "change",
    [
        {"kvp": 80.0},
        {"kvp": None},
        {"convolution_kernel": "BONEPLUS"},
        {"convolution_kernel": None},
        {"manufacturer": "GE MEDICAL SYSTEMS"},
        {"slice_thickness_mm": 5.0},
        {"spacing_between_slices_mm": 2.5},
        {"pixel_spacing_mm": (1.5, 1.5)},
        {"contrast_bolus_agent": "IOHEXOL"},
    ],
    ids=str,
)
def test_a_scan_made_in_another_way_is_not_evaluable(change: dict[str, object]) -> None:
    answer = ask(row_features(0), **change)
    assert answer.state == NOT_EVALUABLE and codes(answer) == {"RADIOMICS_ACQUISITION"}


def test_an_acquisition_that_the_training_did_not_know_is_not_checked() -> None:
    model = trained_model()
    unknown = replace(model, acquisition=replace(model.acquisition, kernels=(), kvp=None))
    row = clear_row(0)
    header = header_of(tabled_cohort().acquisitions[row], kvp=None, convolution_kernel="B40f")
    assert predict(unknown, row_features(row), header, density(50.0)).state == OK


def test_nearly_all_of_the_training_lies_in_its_own_domain() -> None:
    """The rule says half a percent by distance and none by range."""
    rows = range(len(tabled_cohort().patients))
    assert sum(bool(codes_of_domain(row)) for row in rows) <= 0.03 * len(rows)
