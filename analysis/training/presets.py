"""Named training settings. `seed` is the published setting of the coarse stage; the others are ours."""

from dataclasses import dataclass

from analysis.errors import ModelError
from analysis.training.losses import LossWeights


@dataclass(frozen=True, slots=True)
class Preset:
    """How to optimise.

    learning_rate : of the convolutions; heads and normalisation take `head_rate` times as much
    epochs : passes in which every case gives one crop; used instead of `iterations` when it is not 0
    ema : decay of the moving average of the weights that is validated and saved, 0 for none
    real_share : share of samples drawn from labelled CT when there is any
    """

    name: str
    iterations: int
    epochs: int = 0
    batch: int = 1
    learning_rate: float = 8e-4
    head_rate: float = 4.0
    weight_decay: float = 1e-4
    warmup: int = 50
    cosine: bool = True
    ema: float = 0.995
    real_share: float = 0.35
    weights: LossWeights = LossWeights()


PRESETS = {
    # Focal loss, Adam, learning rate 1e-4, batch 8, 1001 epochs, as published for the coarse VB-Net.
    "seed": Preset(
        "seed", 0, epochs=1001, batch=8, learning_rate=1e-4, head_rate=1.0, weight_decay=0.0, warmup=0, cosine=False,
        ema=0.0,
        weights=LossWeights(dice=0.0, focal_gamma=2.0, background=1.0, deep=0.0),
    ),
    "default": Preset("default", 2000),
    "long": Preset("long", 20000, batch=2, ema=0.999, warmup=500),
    "finetune": Preset(
        "finetune", 500, learning_rate=5e-4, warmup=20, real_share=0.4, weights=LossWeights(level=1.0, centroid=2.0)
    ),
    "finetune-long": Preset(
        "finetune-long", 20000, batch=2, learning_rate=5e-4, warmup=100, ema=0.998, real_share=0.35,
        weights=LossWeights(level=1.0, centroid=2.0),
    ),
}  # fmt: skip


def preset_of(name: str) -> Preset:
    if name not in PRESETS:
        raise ModelError(f"training preset {name!r} is unknown; expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
