"""Where samples come from: a pool of deformed torsos for the coarse stage, whole anatomies for the fine stage."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from analysis.training.anatomy import Anatomy
from analysis.training.coarse_samples import coarse_sample, load_coarse_case
from analysis.training.fine_samples import FineTarget, fine_sample
from analysis.training.labelled import LabelledScan, fine_targets, labelled_fine_sample
from analysis.training.paint import TextureBank
from analysis.training.procedural import by_kind
from analysis.training.samples import Sample
from analysis.vbnet import VBNetConfig

TEXTURE_SCALES = (0.6, 1.5, 6.0)  # SD in voxels of the painter's three random fields


def _generator(seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, abs(index), int(index < 0)])


@dataclass(eq=False)
class CoarseSource:
    """Samples from files of `CoarseCase`; validation samples (negative numbers) come from `held_out`."""

    config: VBNetConfig
    painted: Sequence[Path]
    held_out: Sequence[Path]
    labelled: Sequence[Path] = ()
    real_share: float = 0.35
    seed: int = 1
    bank: TextureBank = field(init=False)

    def __post_init__(self) -> None:
        z, y, x = self.config.patch_size
        self.bank = TextureBank((2 * z + 32, 2 * y + 32, 2 * x + 32), TEXTURE_SCALES)

    def __call__(self, index: int) -> Sample:
        rng = _generator(self.seed, index)
        files = self.held_out if index < 0 else self.painted
        if index >= 0 and self.labelled and rng.uniform() < self.real_share:
            files = self.labelled
        case = load_coarse_case(files[int(rng.integers(len(files)))])
        return coarse_sample(case, self.config, rng, self.bank)


@dataclass(eq=False)
class FineSource:
    """Samples from anatomies and from labelled CT; validation is painted only.

    Label maps of people and built torsos give half of the painted samples each; in a kind every vertebra is as likely.
    """

    config: VBNetConfig
    anatomies: Sequence[Anatomy]
    labelled: Sequence[LabelledScan] = ()
    real_share: float = 0.35
    seed: int = 1
    bank: TextureBank = field(init=False)

    def __post_init__(self) -> None:
        z, y, x = self.config.patch_size
        self.bank = TextureBank((z + 32, y + 32, x + 32), TEXTURE_SCALES)
        self._painted = [_targets(kind) for kind in by_kind(self.anatomies)]
        self._real = [(scan, level, c) for scan in self.labelled for level, c in fine_targets(scan)]

    def __call__(self, index: int) -> Sample:
        rng = _generator(self.seed, index)
        if index >= 0 and self._real and rng.uniform() < self.real_share:
            scan, level, centroid = self._real[int(rng.integers(len(self._real)))]
            return labelled_fine_sample(scan, centroid, level, self.config, rng)
        kind = self._painted[int(rng.integers(len(self._painted)))]
        target = kind[int(rng.integers(len(kind)))]
        return fine_sample(target, self.config, rng, self.bank)


def _targets(anatomies: Sequence[Anatomy]) -> list[FineTarget]:
    return [FineTarget(anatomy, level, at) for anatomy in anatomies for level, at in anatomy.centroids().items()]
