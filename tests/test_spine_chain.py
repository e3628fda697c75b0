"""The level chain: what is seen of ribs, sacrum and count decides the names; contradictions lower the confidence."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.spine_chain import name_levels, single_step
from analysis.spine_evidence import INDEX, LEVELS, ChainLimits, anchors_disagree, broken_counts
from tests.spine_builders import chain_of, levels_between


def test_ribs_and_sacrum_together_name_every_level_without_any_opinion_of_the_network() -> None:
    names = levels_between("T9", "L5")
    chain = name_levels(chain_of(names, sacrum=1.0, network_shift=None))
    assert chain.names == names
    assert min(chain.confidences) > 0.95
    assert chain.anchors == ("last rib", "sacrum")


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_network_that_errs_by_one_level_does_not_overrule_ribs_and_sacrum(shift: int) -> None:
    names = levels_between("T10", "L5")
    chain = name_levels(chain_of(names, sacrum=1.0, network_shift=shift))
    assert chain.names == names


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_network_that_contradicts_the_last_rib_makes_the_levels_uncertain(shift: int) -> None:
    chain = name_levels(chain_of(levels_between("T9", "L2"), network_shift=shift))
    assert max(chain.confidences) < 0.9


def test_twelve_ribs_counted_from_the_first_to_the_last_name_l1_and_l2_of_a_chest_scan() -> None:
    names = levels_between("C", "L2")
    chain = name_levels(chain_of(names, network_shift=None))
    assert chain.names == names and chain.anchors == ("first rib", "last rib")
    assert min(chain.confidences[-2:]) >= 0.9


def test_a_rib_overlooked_below_the_top_of_the_scan_is_not_taken_for_the_first() -> None:
    chain = name_levels(chain_of(levels_between("T2", "L2"), ribless=("T4",), network_shift=None))
    assert "first rib" not in chain.anchors


def test_the_last_rib_alone_names_the_levels_but_not_with_confidence() -> None:
    """Rudimentary 12th ribs would make the 11th the last: a reader looks, the software abstains."""
    names = levels_between("T8", "L3")
    chain = name_levels(chain_of(names))
    assert chain.names == names
    assert max(chain.confidences) <= ChainLimits().ribs_alone_confidence


def test_a_last_rib_as_short_as_a_twelfth_names_the_levels_without_first_rib_and_sacrum() -> None:
    names = levels_between("T9", "L3")
    chain = name_levels(chain_of(names, network_shift=None, reaches_mm={"T11": 150.0, "T12": 75.0}))
    assert chain.names == names and chain.anchors == ("last rib",)
    assert min(chain.confidences) > 0.95


def test_a_last_rib_as_long_as_an_eleventh_leaves_the_levels_uncertain() -> None:
    """Rudimentary 12th ribs: the last rib seen reaches as far as an 11th does."""
    chain = name_levels(
        chain_of(levels_between("T9", "L3"), ribless=("T12",), network_shift=None, reaches_mm={"T11": 150.0})
    )
    assert max(chain.confidences) < 0.9


def test_a_network_that_names_an_eleventh_rib_the_twelfth_makes_the_levels_uncertain() -> None:
    """It counts ribs too, so where 12th ribs are rudimentary it may well take the 11th, which is long, for the 12th."""
    rudimentary = chain_of(levels_between("T9", "L3"), ribless=("T12",), network_shift=1, reaches_mm={"T11": 145.0})
    chain = name_levels(rudimentary)
    assert chain.names[2] == "T12" and max(chain.confidences) <= ChainLimits().ribs_alone_confidence


def test_a_short_rib_above_the_last_stands_in_for_a_tip_that_is_lost() -> None:
    """An 11th reaches 111 to 176 mm, a 10th about 180: what is too short for a 10th makes the last rib a 12th."""
    names = levels_between("T9", "L3")
    chain = name_levels(chain_of(names, reaches_mm={"T11": 125.0}))
    assert chain.names == names and min(chain.confidences) > 0.9


def test_a_long_rib_above_the_last_leaves_the_levels_uncertain() -> None:
    """It may be a 10th, and the last one an 11th above rudimentary 12th ribs."""
    chain = name_levels(chain_of(levels_between("T9", "L3"), reaches_mm={"T11": 150.0}))
    assert max(chain.confidences) <= ChainLimits().ribs_alone_confidence
    rudimentary = name_levels(chain_of(levels_between("T8", "L3"), ribless=("T12",), reaches_mm={"T10": 180.0}))
    assert max(rudimentary.confidences) < 0.9


def test_a_stub_at_the_last_rib_may_be_a_lumbar_rib_and_is_never_sure() -> None:
    chain = name_levels(chain_of(levels_between("T9", "L3"), network_shift=None, reaches_mm={"T12": 25.0}))
    assert max(chain.confidences) < 0.9


@pytest.mark.parametrize("names", [levels_between("L2", "L4"), levels_between("T3", "T8")])
def test_without_first_rib_last_rib_or_sacrum_no_level_is_sure(names: tuple[str, ...]) -> None:
    chain = name_levels(chain_of(names, ribs=names[0] != "L2"))
    assert chain.anchors == ()
    assert max(chain.confidences) <= ChainLimits().no_anchor_confidence


def test_unseen_twelfth_ribs_make_the_last_rib_an_uncertain_anchor() -> None:
    """Rudimentary 12th ribs: whoever counts from the last rib names every level one too low."""
    names = levels_between("T8", "L2")
    chain = name_levels(chain_of(names, ribless=("T12",), network_shift=None))
    shifted = ("T9", "T10", "T11", "T12", "L1", "L2", "L3")
    assert chain.names in (names, shifted) or max(chain.confidences) < 0.9
    assert max(chain.confidences[-2:]) < 0.9


@pytest.mark.parametrize(
    "names",
    [
        levels_between("T10", "L4"),
        (*levels_between("T10", "L5"), "L6"),
        ("T11", "T12", "T13", *levels_between("L1", "L5")),
    ],
    ids=["four lumbar", "six lumbar", "thirteen ribs"],
)
def test_four_or_six_vertebrae_between_rib_and_sacrum_are_reported_and_never_sure(names: tuple[str, ...]) -> None:
    evidence = chain_of(names, sacrum=1.0)
    chain = name_levels(evidence)
    standard = len([name for name in names if name.startswith("L")]) == 5
    assert chain.anchors_disagree is not standard
    if not standard:
        assert max(chain.confidences) <= ChainLimits().disagreement_confidence


def test_one_vertebra_that_was_not_found_leaves_a_gap_in_the_names_and_not_a_shift() -> None:
    names = levels_between("T10", "L5")
    evidence = chain_of(names, sacrum=1.0, missed=("L3",))
    chain = name_levels(evidence)
    assert chain.names == tuple(name for name in names if name != "L3")
    assert not anchors_disagree(evidence, chain.names)


def test_a_patient_of_any_size_gets_the_same_names() -> None:
    names = levels_between("T10", "L5")
    for scale in (0.85, 1.15):
        evidence = chain_of(names, sacrum=1.0)
        scaled = tuple(
            type(e)(e.centroid_mm * scale, e.network_levels, e.rib_contact, e.sacrum_below) for e in evidence
        )
        assert name_levels(scaled).names == names


def test_probabilities_of_each_vertebra_sum_to_one_and_single_vertebrae_are_allowed() -> None:
    chain = name_levels(chain_of(levels_between("T10", "L5"), sacrum=1.0))
    np.testing.assert_allclose(chain.probabilities.sum(axis=1), 1.0, atol=1e-6)
    alone = name_levels(chain_of(("L3",), ribs=False))
    assert alone.probabilities.shape == (1, len(LEVELS))


def test_transition_rows_are_probabilities_and_go_down_only() -> None:
    step = single_step(ChainLimits())
    assert (step >= 0).all() and (step.sum(axis=1) <= 1 + 1e-12).all()
    assert np.allclose(np.tril(step, -1), 0)


def test_a_vertebra_found_twice_between_the_landmarks_makes_every_level_uncertain() -> None:
    """Two peaks on one vertebra of a thick-slice series would shift every name below by one."""
    seen = chain_of(levels_between("T9", "L4"), network_shift=None, reaches_mm={"T12": 75.0})
    above, twice = seen[4], seen[5]
    middle = replace(twice, centroid_mm=above.centroid_mm + 0.5 * (twice.centroid_mm - above.centroid_mm))
    chain = name_levels((*seen[:5], middle, *seen[5:]))
    assert max(chain.confidences) <= ChainLimits().disagreement_confidence


def test_a_vertebra_overlooked_high_in_the_chest_breaks_the_count_from_the_first_rib_only() -> None:
    names = levels_between("C", "L2")
    with_reach = name_levels(chain_of(names, missed=("T4",), network_shift=None, reaches_mm={"T12": 75.0}))
    assert with_reach.names[-2:] == ("L1", "L2")
    assert min(with_reach.confidences[-2:]) > 0.9


def test_what_lies_above_two_overlooked_vertebrae_is_never_sure() -> None:
    """T3 and T4 of a real chest were not found: T1 and T2 became T3 and T4, with 0.94."""
    names = levels_between("T1", "L2")
    seen = chain_of(names, missed=("T3", "T4"), network_shift=None, reaches_mm={"T12": 75.0})
    chain = name_levels(seen)
    assert max(chain.confidences[:2]) <= ChainLimits().no_anchor_confidence
    assert chain.names[-2:] == ("L1", "L2") and min(chain.confidences[-2:]) > 0.9


def test_two_fractured_neighbours_do_not_break_the_count() -> None:
    seen = list(chain_of(levels_between("T9", "L5"), sacrum=1.0, network_shift=None))
    lost_mm = 0.3 * np.linalg.norm(seen[4].centroid_mm - seen[5].centroid_mm)
    lowered = [replace(v, centroid_mm=v.centroid_mm + np.array([lost_mm, 0, 0])) for v in seen[5:]]
    chain = name_levels((*seen[:5], *lowered))
    assert chain.names == levels_between("T9", "L5") and min(chain.confidences) > 0.9


@pytest.mark.parametrize("end", [0, -1])
def test_a_sliver_of_a_vertebra_at_the_edge_of_the_series_does_not_break_the_count(end: int) -> None:
    """The centroid of what is left of a cut body lies too near to its neighbour."""
    seen = list(chain_of(levels_between("T9", "L3"), network_shift=None, reaches_mm={"T12": 75.0}))
    neighbour = seen[1 if end == 0 else -2]
    near = neighbour.centroid_mm + 0.5 * (seen[end].centroid_mm - neighbour.centroid_mm)
    seen[end] = replace(seen[end], centroid_mm=near, rib_contact=None)
    path = tuple(INDEX[name] for name in levels_between("T9", "L3"))
    assert broken_counts(tuple(seen), path, ChainLimits())
    seen[end] = replace(seen[end], cut=True)
    assert not broken_counts(tuple(seen), path, ChainLimits())
    chain = name_levels(tuple(seen))
    assert chain.names[3:6] == ("T12", "L1", "L2") and min(chain.confidences[3:6]) > 0.9


def test_slices_thicker_than_a_disc_name_no_level_with_confidence() -> None:
    """In slices of 8.5 mm one body was found twice without an odd step: four levels were named wrongly with 0.95."""
    seen = chain_of(levels_between("T9", "L5"), sacrum=1.0, network_shift=None)
    thin, thick = name_levels(seen, slice_mm=5.0), name_levels(seen, slice_mm=8.5)
    assert thin.names == thick.names and min(thin.confidences) > 0.9 and thin.discs_resolved
    assert max(thick.confidences) <= ChainLimits().disagreement_confidence and not thick.discs_resolved
