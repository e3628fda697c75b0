"""A training sample, and what the stages' samples have in common.

Sample `i` of a run is a function of (seed, i) alone, so a resumed run sees exactly what an uninterrupted one would.
"""

from dataclasses import dataclass

from torch import Tensor

IGNORE = 255  # label value that carries no supervision


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """image (channels, D, H, W) float32; targets by head: class maps int64 (D, H, W), heat map float32 (D, H, W).

    The heat map is NaN where unknown.
    """

    image: Tensor
    targets: dict[str, Tensor]
