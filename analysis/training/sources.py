"""Where samples come from: a pool of deformed torsos for the coarse stage, whole anatomies for the fine stage."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from analysis.training.anatomy import Anatomy
from analysis.training.paint import TextureBank
from analysis.training.samples import Sample, coarse_sample, fine_sample, load_coarse_case
from analysis.vbnet import VBNetConfig

TEXTURE_SCALES = (0.6, 1.5, 6.0)  # SD in voxels of the painter's three random fields


@dataclass(eq=False)
class CoarseSource:
    """Samples from files of `CoarseCase`; validation samples (negative numbers) come from files of their own."""

    config: VBNetConfig
    painted: list[Path]
    labelled: list[Path] = field(default_factory=list)
    real_share: float = 0.35
    seed: int = 1
    held_out: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        patch = self.config.patch_size
        self.bank = TextureBank((2 * patch[0] + 32, 2 * patch[1] + 32, 2 * patch[2] + 32), TEXTURE_SCALES)

    def __call__(self, index: int) -> Sample:
        rng = np.random.default_rng([self.seed, abs(index), int(index < 0)])
        files = self.held_out if index < 0 and self.held_out else self.painted
        if index >= 0 and self.labelled and rng.uniform() < self.real_share:
            files = self.labelled
        path = files[int(rng.integers(len(files)))]
        return coarse_sample(load_coarse_case(path), self.config, rng, self.bank)


@dataclass(eq=False)
class FineSource:
    """Samples from anatomies, every vertebra of them equally likely."""

    config: VBNetConfig
    anatomies: list[Anatomy]
    seed: int = 1

    def __post_init__(self) -> None:
        patch = self.config.patch_size
        self.bank = TextureBank((patch[0] + 32, patch[1] + 32, patch[2] + 32), TEXTURE_SCALES)
        self.targets = [(a, level, c) for a in self.anatomies for level, c in a.centroids().items()]

    def __call__(self, index: int) -> Sample:
        rng = np.random.default_rng([self.seed, abs(index), int(index < 0)])
        anatomy, level, centroid = self.targets[int(rng.integers(len(self.targets)))]
        return fine_sample(anatomy, centroid, level, self.config, rng, self.bank)
