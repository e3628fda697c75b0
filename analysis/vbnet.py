"""VB-Net: a V-Net whose down and up blocks are residual bottlenecks; the network, its configuration and its file.

References
----------
Milletari, Navab, Ahmadi: V-Net, 3DV 2016 (encoder-decoder with residual blocks, strided and transposed convolutions).
Han et al.: Large-scale multi-organ segmentation, SPIE Medical Imaging 2019 (VB-Net: bottleneck blocks, coarse to fine).
He et al.: Deep residual learning, CVPR 2016 (1x1 - 3x3 - 1x1 bottleneck).

Convention: tensors are (batch, channel, slices, rows, columns) with slices toward the head, rows toward the back and
columns toward the patient's left, i.e. ascending LPS. Normalisation is per group of channels and sample (no running
statistics), so training and inference compute the same function. It never stands directly before a softmax: a head is
3x3x3 convolution, normalisation, activation, then a plain 1x1x1 convolution to the classes.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from analysis.errors import ModelError

FORMAT = "qct-vbnet-1"

COARSE_TISSUES = ("background", "vertebral body", "posterior elements", "sacrum", "rib", "other bone")
COARSE_LEVELS = ("cervical",) + tuple(f"T{i}" for i in range(1, 13)) + tuple(f"L{i}" for i in range(1, 6)) + ("L6",)
FINE_TISSUES = (
    "background", "posterior elements", "body cortex", "body cancellous", "other vertebra or sacrum", "rib",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Head:
    """One output of the network: softmax over `classes`, or a single heat map (logits) when there is one class."""

    name: str
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrainingSummary:
    """What made the weights; for the model card and the report, never for a decision."""

    preset: str = "none"
    iterations: int = 0
    data: tuple[str, ...] = ()
    metrics: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class VBNetConfig:
    """Everything that inference must know about a network; travels as JSON inside the weights file.

    hu_knots, value_knots : piecewise linear map from HU to network input, clipped at both ends
    patch_size : voxels (slices, rows, columns) that the network was trained on
    crop_offset_mm : centre of a fine crop minus the target's body centroid, LPS (slices, rows, columns) order
    cue_sd_mm : SD of the Gaussian at the target's centroid in the second input channel (fine stage)
    """

    stage: str
    spacing_mm: float
    in_channels: int
    heads: tuple[Head, ...]
    patch_size: tuple[int, int, int]
    base_channels: int = 16
    max_channels: int = 192
    blocks_per_level: tuple[int, ...] = (1, 2, 2, 2)
    bottleneck: int = 2
    hu_knots: tuple[float, ...] = (-1000.0, -200.0, 400.0, 1500.0)
    value_knots: tuple[float, ...] = (-1.6, -0.8, 1.0, 2.0)
    crop_offset_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    cue_sd_mm: float = 8.0
    training: TrainingSummary = TrainingSummary()

    @property
    def stride(self) -> int:
        """Every side of an input must be a multiple of this."""
        return int(2 ** len(self.blocks_per_level))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels per resolution, from full to lowest."""
        return tuple(min(self.base_channels * 2**i, self.max_channels) for i in range(len(self.blocks_per_level) + 1))


def coarse_config(**changes: Any) -> VBNetConfig:
    """Whole volume at 4 mm: tissue, body centroids, level evidence."""
    heads = (Head("tissue", COARSE_TISSUES), Head("centroid", ("centroid",)), Head("level", COARSE_LEVELS))
    settings: dict[str, Any] = {"spacing_mm": 4.0, "in_channels": 1, "patch_size": (96, 64, 80)}
    return VBNetConfig(stage="coarse", heads=heads, **(settings | changes))


def fine_config(**changes: Any) -> VBNetConfig:
    """One vertebra at 1.2 mm: its posterior elements, body cortex and cancellous bone, neighbours and ribs apart."""
    settings: dict[str, Any] = {
        "spacing_mm": 1.2, "in_channels": 2, "patch_size": (64, 96, 96),
        "crop_offset_mm": (-6.0, 22.0, 0.0),
    }  # fmt: skip
    return VBNetConfig(stage="fine", heads=(Head("tissue", FINE_TISSUES),), **(settings | changes))


def normalise_hu(hu: Tensor, config: VBNetConfig) -> Tensor:
    """HU of any shape -> network input, float32; soft tissue and cancellous bone get most of the range."""
    hu = hu.float()
    value = torch.full_like(hu, config.value_knots[0])
    knots = list(zip(config.hu_knots, config.value_knots, strict=True))
    for (hu_0, value_0), (hu_1, value_1) in zip(knots[:-1], knots[1:], strict=True):
        value += (hu.clamp(hu_0, hu_1) - hu_0) * ((value_1 - value_0) / (hu_1 - hu_0))
    return value


def centroid_cue(config: VBNetConfig, offset_mm: tuple[float, float, float], shape: tuple[int, int, int]) -> Tensor:
    """Gaussian of peak 1 at `offset_mm` (slices, rows, columns) from the centre of a grid of `shape`, float32."""
    cue = torch.ones(shape)
    for axis, (n, offset) in enumerate(zip(shape, offset_mm, strict=True)):
        position_mm = (torch.arange(n) - (n - 1) / 2) * config.spacing_mm - offset
        profile = torch.exp(-0.5 * (position_mm / config.cue_sd_mm) ** 2)
        cue *= profile.view([-1 if i == axis else 1 for i in range(3)])
    return cue


def computes_bfloat16(device: torch.device) -> bool:
    """The card, or a processor with AMX or AVX-512 BF16, computes bfloat16 faster than float32.

    1.5 times as fast on such processors; others only emulate it, more than ten times as slow as float32 in training.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


# --- layers ---------------------------------------------------------------------------------------------------------


def _normalisation(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, channels // 8), channels)


class Pointwise(nn.Conv3d):
    """1x1x1 convolution as one matrix product over the channels, which channels_last_3d needs no copy for."""

    def __init__(self, n_in: int, n_out: int, bias: bool = True) -> None:
        super().__init__(n_in, n_out, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)


class ConvolutionUnit(nn.Sequential):
    """Convolution, group normalisation and, unless told otherwise, ReLU."""

    def __init__(self, n_in: int, n_out: int, kernel: int, activation: bool = True) -> None:
        spatial = nn.Conv3d(n_in, n_out, kernel, padding=kernel // 2, bias=False)
        layers: list[nn.Module] = [
            spatial if kernel > 1 else Pointwise(n_in, n_out, bias=False),
            _normalisation(n_out),
        ]
        if activation:
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class Bottleneck(nn.Module):
    """x -> ReLU(x + 1x1x1(3x3x3(1x1x1(x)))); the 3x3x3 works on channels / reduction."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        reduced = max(8, channels // reduction)
        self.reduce = ConvolutionUnit(channels, reduced, 1)
        self.spatial = ConvolutionUnit(reduced, reduced, 3)
        self.expand = ConvolutionUnit(reduced, channels, 1, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.expand(self.spatial(self.reduce(x))))


class DownBlock(nn.Module):
    """Half the resolution by a strided 2x2x2 convolution, then residual bottlenecks."""

    def __init__(self, n_in: int, n_out: int, n_blocks: int, reduction: int) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv3d(n_in, n_out, 2, stride=2, bias=False), _normalisation(n_out), nn.ReLU(inplace=True)
        )
        self.blocks = nn.Sequential(*(Bottleneck(n_out, reduction) for _ in range(n_blocks)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.down(x))  # type: ignore[no-any-return]  # (B, n_out, D/2, H/2, W/2)


class UpBlock(nn.Module):
    """Twice the resolution by a transposed 2x2x2 convolution, join the skip, then residual bottlenecks."""

    def __init__(self, n_in: int, n_skip: int, n_blocks: int, reduction: int) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.ConvTranspose3d(n_in, n_skip, 2, stride=2, bias=False), _normalisation(n_skip), nn.ReLU(inplace=True)
        )
        self.blocks = nn.Sequential(*(Bottleneck(2 * n_skip, reduction) for _ in range(n_blocks)))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.blocks(torch.cat((self.up(x), skip), dim=1))  # type: ignore[no-any-return]  # (B, 2 n_skip, ...)


class VBNet(nn.Module):
    """(B, in_channels, D, H, W) -> {head name: logits (B, classes, D, H, W)}; D, H, W multiples of `config.stride`."""

    def __init__(self, config: VBNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, blocks = config.widths, config.blocks_per_level
        self.stem = ConvolutionUnit(config.in_channels, widths[0], 3)
        self.downs = nn.ModuleList(
            DownBlock(n_in, n_out, n, config.bottleneck)
            for n_in, n_out, n in zip(widths[:-1], widths[1:], blocks, strict=True)
        )
        skips = widths[-2::-1]
        inputs = (widths[-1], *(2 * n for n in skips[:-1]))
        self.ups = nn.ModuleList(
            UpBlock(n_in, n_skip, n, config.bottleneck)
            for n_in, n_skip, n in zip(inputs, skips, blocks[::-1], strict=True)
        )
        self.trunk = ConvolutionUnit(2 * widths[0], widths[0], 3)
        self.heads = nn.ModuleDict({head.name: Pointwise(widths[0], len(head.classes)) for head in config.heads})
        for head in config.heads:
            if len(head.classes) == 1:  # a heat map starts near 0.01 everywhere (Lin et al. 2017, section 4.1)
                nn.init.constant_(self.heads[head.name].bias, -4.6)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.outputs(self.decode(x)[-1])

    def outputs(self, decoded: Tensor) -> dict[str, Tensor]:
        """The heads on the decoder's output of full resolution."""
        y = self.trunk(decoded)
        return {name: head(y) for name, head in self.heads.items()}

    def decode(self, x: Tensor) -> list[Tensor]:
        """The decoder's output at every resolution, lowest first; training also looks at the lower ones."""
        self._check(x)
        features = [self.stem(x)]
        for down in self.downs:
            features.append(down(features[-1]))
        decoded = [features.pop()]
        for up in self.ups:
            decoded.append(up(decoded[-1], features.pop()))
        return decoded[1:]

    def _check(self, x: Tensor) -> None:
        config = self.config
        if x.ndim != 5 or x.shape[1] != config.in_channels or any(n % config.stride for n in x.shape[2:]):
            raise ModelError(
                f"network input has shape {tuple(x.shape)}; expected (batch, {config.in_channels}, slices, rows, "
                f"columns) with multiples of {config.stride}: pad the volume"
            )


# --- file -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class LoadedNetwork:
    """A network ready for inference (float32 weights, eval mode, channels_last_3d) and what identifies it."""

    config: VBNetConfig
    network: VBNet
    sha256: str


def config_to_json(config: VBNetConfig) -> str:
    return json.dumps(asdict(config), sort_keys=True)


def config_from_json(text: str) -> VBNetConfig:
    """Inverse of `config_to_json`; ValueError, KeyError or TypeError when `text` is no such configuration."""
    values = json.loads(text)
    training = values.pop("training")
    values["heads"] = tuple(Head(head["name"], tuple(head["classes"])) for head in values["heads"])
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    summary = TrainingSummary(
        preset=training["preset"],
        iterations=int(training["iterations"]),
        data=tuple(training["data"]),
        metrics=tuple((str(name), float(value)) for name, value in training["metrics"]),
    )
    return VBNetConfig(training=summary, **values)


def save_network(path: Path, network: VBNet, config: VBNetConfig) -> str:
    """Write float16 weights with their configuration to a temporary name, then rename; returns the file's SHA-256."""
    tensors = {name: tensor.detach().half().contiguous().cpu() for name, tensor in network.state_dict().items()}
    content = save_tensors(tensors, metadata={"format": FORMAT, "config": config_to_json(config)})
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(content)
    temporary.replace(path)
    return hashlib.sha256(content).hexdigest()


def load_network(path: Path) -> LoadedNetwork:
    """Read a weights file written by `save_network`.

    Raises
    ------
    ModelError : the file is missing, damaged, of another format, or its tensors do not fit its configuration
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read the network {path}: {error.strerror}; check the configured path") from error
    try:
        tensors = load_tensors(content)
        config = config_from_json(_metadata(content)["config"])
        network = VBNet(config)
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ModelError(
            f"{path} is no {FORMAT} network or is damaged ({type(error).__name__}: {error}); install the file again"
        ) from error
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise ModelError(f"{path} holds weights that are not finite; install the file again")
    network = network.eval().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return LoadedNetwork(config, network, hashlib.sha256(content).hexdigest())


def _metadata(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file: 8 bytes of little-endian header length, then a JSON header."""
    length = int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8 : 8 + length])["__metadata__"]
    if metadata["format"] != FORMAT:
        raise ValueError(f"format {metadata['format']!r}")
    return metadata
