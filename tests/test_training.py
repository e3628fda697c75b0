"""Training: painted CT has the physics it should, samples and runs repeat exactly, and the loss goes down."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.errors import ModelError
from analysis.training.anatomy import BODY, CODE, POSTERIOR, derive_anatomy
from analysis.training.average import main as average
from analysis.training.coarse_samples import CoarseCase, coarse_sample
from analysis.training.curves import draw_curves
from analysis.training.deform import coarse_target, deform
from analysis.training.fine_samples import FineTarget, fine_sample, fine_target
from analysis.training.loop import LoopSettings, RunFolder, Trainer, read_checkpoint, run
from analysis.training.losses import LossWeights, classification_loss, dice_loss, heat_loss
from analysis.training.paint import Scanner, Scene, TextureBank, paint_body, random_scanner, scan, slice_matrices
from analysis.training.presets import PRESETS, preset_of
from analysis.training.samples import IGNORE
from analysis.training.segmentation import iterations_of
from analysis.training.sources import FineSource
from analysis.vbnet import VBNet, coarse_config, fine_config, load_network, save_network
from tests.training_builders import BODY_HEIGHT, FIRST_LEVEL, LAST_LEVEL, SPACING_MM, small_anatomy, small_labels

ANATOMY = small_anatomy()
SMALL_NET = {"base_channels": 8, "max_channels": 16, "blocks_per_level": (1, 1)}
FINE = fine_config(patch_size=(24, 40, 40), **SMALL_NET)
COARSE = coarse_config(patch_size=(24, 24, 24), **SMALL_NET)
FINE_BANK = TextureBank((32, 48, 48), (0.6, 1.5, 6.0))
COARSE_BANK = TextureBank((64, 112, 112), (0.6, 1.5, 6.0))
PRESET = replace(PRESETS["default"], iterations=8, warmup=2)


def scene() -> Scene:
    arrays = (ANATOMY.tissue, ANATOMY.vertebra, ANATOMY.part, ANATOMY.depth)
    return Scene(SPACING_MM, *(torch.from_numpy(a) for a in arrays))


def body_bank() -> TextureBank:
    z, y, x = ANATOMY.tissue.shape
    return TextureBank((z, y, x), (0.6, 1.5, 6.0))


def fine_source(index: int):  # type: ignore[no-untyped-def]
    centroids = ANATOMY.centroids()
    level = sorted(centroids)[abs(index) % len(centroids)]
    target = FineTarget(ANATOMY, level, centroids[level])
    return fine_sample(target, FINE, np.random.default_rng([1, abs(index)]), FINE_BANK)


# --- anatomy --------------------------------------------------------------------------------------------------------


def test_bodies_lie_in_front_of_the_canal_and_posterior_elements_behind() -> None:
    canal_front = np.argwhere(ANATOMY.tissue == CODE["canal"])[:, 1].min()
    body, posterior = (np.argwhere(ANATOMY.part == part) for part in (BODY, POSTERIOR))
    assert body[:, 1].max() < canal_front <= posterior[:, 1].max()
    assert body[:, 0].max() - body[:, 0].min() > 5 * BODY_HEIGHT


def test_discs_fill_the_gaps_between_bodies_and_nothing_else() -> None:
    disc = np.argwhere(ANATOMY.tissue == CODE["disc"])
    body = np.argwhere(ANATOMY.part == BODY)
    assert len(disc) > 1000
    assert (disc.min(axis=0) >= body.min(axis=0)).all()
    assert (disc.max(axis=0) <= body.max(axis=0)).all()


def test_centroids_are_the_middles_of_the_bodies() -> None:
    centroids = ANATOMY.centroids()
    assert sorted(centroids) == list(range(FIRST_LEVEL, LAST_LEVEL + 1))
    steps = np.diff([centroids[level][0] for level in sorted(centroids)])
    assert steps == pytest.approx(-16.0, abs=0.1)


def test_soft_tissue_map_holds_no_bone() -> None:
    assert not np.isin(ANATOMY.soft, [CODE[name] for name in ("vertebra", "rib", "sacrum", "other bone")]).any()


# --- deformation ----------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_body_and_another_seed_another() -> None:
    first, again, other = (deform(ANATOMY, np.random.default_rng(seed), 4.0).anatomy for seed in (1, 1, 2))
    assert np.array_equal(first.tissue, again.tissue)
    assert first.tissue.shape != other.tissue.shape or not np.array_equal(first.tissue, other.tissue)


def test_a_deformed_body_keeps_every_level_in_order() -> None:
    for seed in range(3):
        deformed = deform(ANATOMY, np.random.default_rng(seed), 2.0).anatomy
        heights = [centre[0] for _, centre in sorted(deformed.centroids().items())]
        assert len(heights) >= 4
        assert all(upper > lower for upper, lower in zip(heights[:-1], heights[1:], strict=True))


def test_coarse_targets_keep_the_bones_volume() -> None:
    tissue, level = coarse_target(ANATOMY, 2)
    share = (tissue == BODY).sum() * 8 / (ANATOMY.part == BODY).sum()
    assert share == pytest.approx(1.0, abs=0.1)
    assert set(np.unique(level)) - {0} == set(range(FIRST_LEVEL, LAST_LEVEL + 1))


# --- painting -------------------------------------------------------------------------------------------------------


def test_painted_tissues_lie_where_ct_finds_them() -> None:
    bank = body_bank()
    means = []
    for seed in range(12):
        hu = paint_body(scene(), np.random.default_rng(seed), bank)
        masks = (scene().tissue == CODE["liver"], scene().tissue == CODE["lung"], scene().part == BODY)
        means.append([float(hu[mask].median()) for mask in masks])
        assert float(hu[0, 0, 0]) == -1000.0
    liver, lung, body = np.array(means).T
    assert liver.min() > 15 and liver.max() < 190
    assert lung.max() < -650
    assert body.min() < 130 and body.max() > 220  # densities of old and young patients both occur


def test_bone_has_a_dense_surface() -> None:
    hu = paint_body(scene(), np.random.default_rng(4), body_bank()).numpy()
    body = ANATOMY.part == BODY
    inner = np.zeros_like(body)
    inner[2:-2] = body[2:-2] & body[4:] & body[:-4]
    inner &= np.roll(body, 3, 1) & np.roll(body, -3, 1) & np.roll(body, 3, 2) & np.roll(body, -3, 2)
    assert hu[body & ~inner].mean() > hu[inner].mean() + 40


def test_noise_reaches_the_standard_deviation_asked_for() -> None:
    scanner = Scanner(2.0, 2.0, 20.0, 0.4, 0.3, 0.0)
    noisy = scan(torch.zeros(24, 48, 48), (2.0, 1.0), np.random.default_rng(0), scanner)
    peak = noisy.std(dim=(1, 2)).max().item()  # slices that lie on the grid are not averaged
    assert 10.0 < peak < 26.0


def test_thick_slices_spread_an_edge_along_z_only() -> None:
    hu = torch.zeros(40, 32, 32)
    hu[20:] = 1000.0
    sharp, thick = (
        scan(hu, (1.0, 1.0), np.random.default_rng(1), Scanner(s, s, 0.001, 0.3, 0.01, 0.0))[:, 16, 16]
        for s in (1.0, 5.0)
    )
    width = [int(((profile > 100) & (profile < 900)).sum()) for profile in (sharp, thick)]
    assert width[0] <= 2 < 4 <= width[1]


def test_slicing_keeps_the_mean_of_a_uniform_body() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        average, back = slice_matrices(40, 1.2, random_scanner(rng, (1.0, 2.0)), rng.uniform())
        uniform = back @ average @ torch.full((40, 1), 70.0)
        assert uniform.numpy() == pytest.approx(70.0, abs=1e-3)


# --- samples --------------------------------------------------------------------------------------------------------


def test_a_fine_sample_shows_its_target_at_the_cue() -> None:
    for index in range(4):
        sample = fine_source(index)
        tissue = sample.targets["tissue"]
        body = torch.nonzero((tissue == 2) | (tissue == 3)).float().mean(dim=0)
        cue = torch.nonzero(sample.image[1] == sample.image[1].max()).float().mean(dim=0)
        assert float((body - cue).norm()) * FINE.spacing_mm < 14.0
        assert sample.image.shape == (2, *FINE.patch_size)


def test_samples_repeat_exactly() -> None:
    first, again, other = fine_source(2), fine_source(2), fine_source(3)
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.targets["tissue"], again.targets["tissue"])
    assert not torch.equal(first.image, other.image)


def test_the_cortex_surrounds_the_cancellous_bone() -> None:
    kinds = np.zeros((20, 20, 20), np.uint8)
    kinds[4:16, 4:16, 4:16] = 1
    target = fine_target(kinds)
    assert (target[5:15, 5:15, 5:15] == 3).mean() > 0.7
    assert (target[4, 4:16, 4:16] == 2).all()


def coarse_case() -> CoarseCase:
    target, level = coarse_target(ANATOMY, 2)
    fine = {name: getattr(ANATOMY, name) for name in ("tissue", "vertebra", "part", "depth")}
    return CoarseCase(fine, target, level, np.array(list(ANATOMY.centroids().values())))


def test_a_coarse_sample_peaks_inside_bodies_and_names_only_vertebrae() -> None:
    peaks = 0
    for seed in range(6):
        sample = coarse_sample(coarse_case(), COARSE, np.random.default_rng(seed), COARSE_BANK)
        hot = sample.targets["centroid"] > 0.8
        peaks += int(hot.sum())
        assert bool((sample.targets["tissue"][hot] == BODY).all())
        named = sample.targets["level"] != IGNORE
        assert bool(torch.isin(sample.targets["tissue"][named], torch.tensor([BODY, POSTERIOR])).all())
    assert peaks > 0


# --- losses and loop ------------------------------------------------------------------------------------------------


def test_ignored_voxels_carry_no_gradient() -> None:
    logits = torch.randn(1, 3, 4, 4, 4, requires_grad=True)
    target = torch.randint(0, 3, (1, 4, 4, 4))
    target[:, :2] = IGNORE
    (classification_loss(logits, target, 2.0) + dice_loss(logits, target)).backward()
    assert logits.grad is not None
    assert float(logits.grad[:, :, :2].abs().max()) == 0.0
    assert float(logits.grad[:, :, 2:].abs().max()) > 0.0


def test_perfect_answers_cost_almost_nothing() -> None:
    target = torch.randint(0, 3, (1, 6, 6, 6))
    logits = 30.0 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1).float()
    heat = torch.zeros(1, 6, 6, 6)
    heat[0, 3, 3, 3] = 1.0
    assert classification_loss(logits, target, 0.0).item() < 1e-6
    assert dice_loss(logits, target).item() < 0.01
    assert heat_loss(torch.where(heat > 0, 12.0, -12.0)[:, None], heat).item() < 1e-3


def test_focal_loss_cares_less_for_what_is_already_right() -> None:
    target = torch.zeros(1, 2, 2, 2, dtype=torch.long)
    easy = torch.stack((torch.full((2, 2, 2), 3.0), torch.zeros(2, 2, 2)))[None]
    ratio = [
        classification_loss(easy, target, g).item() / classification_loss(-easy, target, g).item() for g in (0.0, 2.0)
    ]
    assert ratio[1] < 0.01 * ratio[0]


def test_a_few_steps_on_one_crop_lower_the_loss() -> None:
    trainer, sample = Trainer(FINE, replace(PRESET, iterations=100, learning_rate=3e-3)), fine_source(0)
    losses = [trainer.step([sample])["loss"] for _ in range(14)]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole, first, second = (RunFolder(tmp_path / name) for name in ("whole", "part", "part"))
    for folder in (whole, first):
        folder.path.mkdir(exist_ok=True)
    uninterrupted = _run(whole, 4)
    _run(first, 2)
    resumed = _run(second, 4)
    for a, b in zip(uninterrupted.average.parameters(), resumed.average.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [json.loads(line)["iteration"] for line in second.history.read_text().splitlines()] == [1, 2, 3, 4]


def _run(folder: RunFolder, total: int) -> Trainer:
    trainer = Trainer(FINE, PRESET)
    read_checkpoint(trainer, folder)
    run(trainer, fine_source, folder, LoopSettings(total, workers=0), lambda iteration, record: None)
    return trainer


def test_a_run_ends_when_its_time_is_over_and_keeps_what_it_learned(tmp_path: Path) -> None:
    trainer = Trainer(FINE, PRESET)
    settings = LoopSettings(10_000, workers=0, limit_s=1e-6)
    run(trainer, fine_source, RunFolder(tmp_path), settings, lambda iteration, record: None)
    assert trainer.iteration == 1
    assert read_checkpoint(Trainer(FINE, PRESET), RunFolder(tmp_path))
    assert "dice body cancellous" in json.loads(RunFolder(tmp_path).history.read_text().splitlines()[-1])


def test_the_learning_rate_falls_with_the_clock_where_that_is_ahead_of_the_iterations() -> None:
    preset = replace(PRESET, cosine=True, warmup=0, iterations=1000)
    rates = []
    for share_of_time in (0.0, 0.5, 1.0):
        trainer = Trainer(FINE, preset)
        trainer.step([fine_source(0)], share_of_time)
        rates.append(trainer.optimiser.param_groups[0]["lr"] / preset.learning_rate)
    assert rates == pytest.approx([1.0, 0.5, 0.01])


def test_averaged_weights_are_the_mean_of_both_and_different_stages_are_refused(tmp_path: Path) -> None:
    for name, config, seed in (("a", FINE, 1), ("b", FINE, 2), ("coarse", COARSE, 1)):
        torch.manual_seed(seed)
        save_network(tmp_path / name, VBNet(config), config)
    assert average([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "mean")]) == 0
    a, b, mean = (load_network(tmp_path / name).network.state_dict() for name in ("a", "b", "mean"))
    assert all(torch.allclose(mean[name], (a[name] + b[name]) / 2, atol=1e-3) for name in mean)
    with pytest.raises(ModelError, match="of fine, coarse; expected"):
        average([str(tmp_path / "a"), str(tmp_path / "coarse"), "--out", str(tmp_path / "mean")])


def test_the_deep_heads_are_not_part_of_the_network_that_is_saved() -> None:
    trainer = Trainer(FINE, PRESET)
    assert set(trainer.average.state_dict()) == set(VBNet(FINE).state_dict())


def test_the_seed_preset_is_the_published_setting_and_runs_an_epoch_of_one_crop_per_case() -> None:
    seed = preset_of("seed")
    assert (seed.epochs, seed.batch, seed.learning_rate) == (1001, 8, 1e-4)
    assert seed.weights == LossWeights(dice=0.0, focal_gamma=2.0, background=1.0, deep=0.0)
    assert iterations_of(seed, n_cases=16) == 2002
    trainer = Trainer(FINE, seed)
    record = trainer.step([fine_source(0), fine_source(1)])
    assert np.isfinite(record["loss"])
    assert {group["lr"] for group in trainer.optimiser.param_groups} == {1e-4}


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ModelError, match="seed"):
        preset_of("fast")


def test_curves_are_drawn_from_the_history(tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    records = [{"iteration": i, "loss": 1 / i} | ({"dice rib": 0.5} if i == 4 else {}) for i in range(1, 6)]
    history.write_text("".join(json.dumps(record) + "\n" for record in records))
    draw_curves(history, tmp_path / "curves.png", "title")
    assert (tmp_path / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_label_map_without_a_canal_leaves_vertebrae_unsplit() -> None:
    tissue, levels = small_labels()
    tissue[tissue == CODE["canal"]] = 0
    assert not derive_anatomy("none", SPACING_MM, tissue, levels, margin_mm=20.0).part.any()


def test_one_person_among_many_built_torsos_gives_half_of_the_painted_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr("analysis.training.sources.fine_sample", lambda target, *_: drawn.append(target.anatomy.name))
    built = [replace(ANATOMY, name=f"procedural{100 + i}") for i in range(5)]
    source = FineSource(FINE, [replace(ANATOMY, name="a person"), *built])
    for number in range(200):
        source(number)
    assert 80 <= drawn.count("a person") <= 120 and len(set(drawn)) == 6
