"""What a site decides about radiomics. Light to import, so that the configuration can be read without the libraries."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from analysis.extraction_contract import Bins, ExtractionContract, contract_for

ClassifierKind = Literal["logistic", "forest"]


@dataclass(frozen=True, slots=True)
class RadiomicsSettings:
    """The model in service, and what a model must have before it may go into service."""

    model_file: Path | None = None  # None: the model that `train radiomics --activate` put into the storage folder
    bins: Bins = "anchored"
    classifier: ClassifierKind = "logistic"
    min_patients_per_class: Annotated[int, Ge(10)] = 50
    min_macro_auc: Annotated[float, Ge(0.5), Le(1)] = 0.8
    min_class_auc: Annotated[float, Ge(0.5), Le(1)] = 0.7
    conformal_level: Annotated[float, Gt(0.5), Lt(1)] = 0.9
    conformal_confidence: Annotated[float, Ge(0.5), Lt(1)] = 0.9
    calibration_share: Annotated[float, Ge(0.2), Le(0.6)] = 0.5
    outer_folds: Annotated[int, Ge(3)] = 5
    repeats: Annotated[int, Ge(1)] = 5
    bootstraps: Annotated[int, Ge(0)] = 100

    @property
    def contract(self) -> ExtractionContract:
        """The extraction that the node uses and that its model must have been trained with."""
        return contract_for(self.bins)
