"""VB-Net: the shape of the bottleneck, the size of the network, its file, the input shared with training."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from analysis.errors import ModelError
from analysis.vbnet import (
    COARSE_LEVELS,
    Bottleneck,
    TrainingSummary,
    VBNet,
    centroid_cue,
    coarse_config,
    config_from_json,
    config_to_json,
    fine_config,
    load_network,
    normalise_hu,
    save_network,
)

SMALL = {"base_channels": 8, "max_channels": 32, "blocks_per_level": (1, 1)}


def small_network() -> VBNet:
    torch.manual_seed(3)
    return VBNet(fine_config(**SMALL)).eval()


def test_a_bottleneck_is_1_3_1_and_its_ends_match_the_block() -> None:
    convolutions = [m for m in Bottleneck(64, reduction=2).modules() if isinstance(m, nn.Conv3d)]
    assert [c.kernel_size for c in convolutions] == [(1, 1, 1), (3, 3, 3), (1, 1, 1)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [(64, 32), (32, 32), (32, 64)]


def test_a_bottleneck_whose_convolutions_are_zero_is_the_identity_on_activations() -> None:
    block = Bottleneck(16, reduction=2)
    nn.init.zeros_(block.expand[1].weight)
    x = torch.rand(1, 16, 4, 4, 4)
    assert torch.equal(block(x), x)


def test_no_normalisation_stands_directly_before_the_class_logits() -> None:
    network = VBNet(coarse_config())
    assert all(isinstance(head, nn.Conv3d) and head.kernel_size == (1, 1, 1) for head in network.heads.values())


@pytest.mark.parametrize("config", [coarse_config(), fine_config()], ids=["coarse", "fine"])
def test_the_shipped_sizes_stay_a_few_megabytes_in_half_precision(config) -> None:  # type: ignore[no-untyped-def]
    n_parameters = sum(p.numel() for p in VBNet(config).parameters())
    assert 2_000_000 < n_parameters < 4_000_000


def test_every_head_answers_on_the_input_grid() -> None:
    config = coarse_config(**SMALL)
    outputs = VBNet(config)(torch.zeros(1, 1, 8, 12, 16))
    shapes = {name: tuple(output.shape) for name, output in outputs.items()}
    assert shapes == {
        "tissue": (1, 6, 8, 12, 16), "centroid": (1, 1, 8, 12, 16), "level": (1, len(COARSE_LEVELS), 8, 12, 16),
    }  # fmt: skip


def test_an_input_that_cannot_be_halved_often_enough_is_refused_with_the_multiple() -> None:
    with pytest.raises(ModelError, match="multiples of 4"):
        small_network()(torch.zeros(1, 2, 8, 10, 8))


def test_a_saved_network_comes_back_with_its_configuration_and_answers_alike(tmp_path: Path) -> None:
    network = small_network()
    summary = TrainingSummary("default", 12, ("s1", "s2"), (("dice body", 0.5),))
    config = replace(network.config, training=summary)
    sha256 = save_network(tmp_path / "n.safetensors", network, config)
    loaded = load_network(tmp_path / "n.safetensors")
    x = torch.randn(1, 2, 8, 8, 8)
    assert loaded.config == config
    assert loaded.sha256 == sha256
    assert torch.allclose(loaded.network(x)["tissue"], network(x)["tissue"], atol=0.02)


def test_the_configuration_survives_json() -> None:
    for config in (coarse_config(), fine_config(base_channels=12)):
        assert config_from_json(config_to_json(config)) == config


def test_a_missing_weights_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"absent\.safetensors"):
        load_network(tmp_path / "absent.safetensors")


def test_damaged_weights_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    network = small_network()
    save_network(path, network, network.config)
    content = path.read_bytes()
    for damaged in (b"", content[:100], content[: len(content) // 2], b"\xff" * 64 + content[64:]):
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match="damaged"):
            load_network(path)


def test_weights_that_do_not_fit_their_configuration_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    network = small_network()
    save_network(path, network, replace(network.config, base_channels=16))
    with pytest.raises(ModelError):
        load_network(path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    network = small_network()
    with torch.no_grad():
        network.stem[0].weight[0] = float("nan")
    save_network(tmp_path / "n.safetensors", network, network.config)
    with pytest.raises(ModelError, match="finite"):
        load_network(tmp_path / "n.safetensors")


def test_normalisation_is_monotonic_and_flat_outside_its_window() -> None:
    config = coarse_config()
    hu = torch.tensor([-3000.0, -1000.0, -500.0, 0.0, 100.0, 400.0, 1000.0, 1500.0, 3000.0])
    value = normalise_hu(hu, config)
    assert value[0] == value[1] == config.value_knots[0]
    assert value[-1] == value[-2]
    assert bool((value[1:].diff()[:-1] > 0).all())
    assert value[3].item() == pytest.approx(-0.8 + 200 / 600 * 1.8)


def test_the_cue_peaks_where_the_centroid_is() -> None:
    config = fine_config()
    cue = centroid_cue(config, (6.6, -11.4, 0.6), (32, 48, 48))
    peak = [int(i) for i in torch.nonzero(cue == cue.max())[0]]
    assert peak == [21, 14, 24]  # 15.5 + 5.5, 23.5 - 9.5, 23.5 + 0.5
    assert cue.max().item() == pytest.approx(1.0, abs=0.01)


def test_bfloat16_answers_like_float32() -> None:
    network, x = small_network(), torch.randn(1, 2, 16, 16, 16)
    with torch.inference_mode():
        reference = network(x)["tissue"].softmax(1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            fast = network(x)["tissue"].float().softmax(1)
    assert float((reference - fast).abs().max()) < 0.05
