"""What fixes the value of a radiomic feature: one versioned, hashed contract, kept with every value and every model."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

Bins = Literal["anchored", "library"]


@dataclass(frozen=True, slots=True)
class ExtractionContract:
    """Everything that changes a feature's value. A model is only valid with the contract that it was trained with."""

    version: str = "qct-voi-1"
    engine: str = "pyradiomics 3.0.1"
    grid_mm: float = 1.0
    interpolation: str = "linear image, linear mask >= 0.5, centre-aligned"
    resegment_hu: tuple[float, float] = (-200.0, 800.0)
    bin_width_hu: float = 25.0
    bin_anchor_hu: float | None = -1000.0  # None: the library's edges, which hang on the minimum of the ROI
    minimum_voxels: int = 1000
    maximum_removed_fraction: float = 0.02
    minimum_slices: int = 2

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


PAPER_CONTRACT = ExtractionContract(version="qct-voi-1-library-bins", bin_anchor_hu=None)


def contract_for(bins: Bins) -> ExtractionContract:
    """Anchored bin edges for new models; the library's, to reproduce features that were published with them."""
    return ExtractionContract() if bins == "anchored" else PAPER_CONTRACT
