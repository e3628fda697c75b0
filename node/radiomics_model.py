"""Which radiomics model is in service, and how a new one takes its place.

The model in service is `models/radiomics.json` in the storage folder, or the file that the configuration names. Every
model that was ever in service stays beside it under its own hash; the database keeps who replaced whom, and why not.
"""

from datetime import datetime
from pathlib import Path

from analysis.classification import Predict, make_predict
from analysis.classification_model import CLASS_NAMES, ClassificationModel, load_model, model_text
from analysis.errors import ConfigError, ModelError
from analysis.radiomics_settings import RadiomicsSettings
from node.config import Config
from node.result_files import write_durably
from storage.cohort import ModelDecision, record_decision
from storage.database import SessionFactory


def models_folder(config: Config) -> Path:
    return config.storage.folder / "models"


def active_model_path(config: Config) -> Path | None:
    """The model in service; None until a site has one."""
    if config.radiomics.model_file is not None:
        return config.radiomics.model_file
    path = models_folder(config) / "radiomics.json"
    return path if path.is_file() else None


def load_predict(config: Config) -> Predict | None:
    """The model in service, ready to be asked.

    Raises
    ------
    ModelError : it is missing, was changed, or was trained with another extraction
    """
    path = active_model_path(config)
    return make_predict(path, config.radiomics.contract.sha256) if path else None


def why_not_activate(model: ClassificationModel, settings: RadiomicsSettings) -> str | None:
    """Why this model must not go into service, with its numbers; None when it may."""
    if model.demonstration:
        return "trained on simulated spines: a demonstration model never goes into service"
    macro = model.training.macro_auc[0]
    if macro < settings.min_macro_auc:
        return f"nested macro AUC {macro:.3f}; at least {settings.min_macro_auc:g} expected"
    each = zip(CLASS_NAMES, model.training.class_auc, strict=True)
    low = [f"{name} {auc[0]:.3f}" for name, auc in each if auc[0] < settings.min_class_auc]
    return f"nested AUC of {', '.join(low)}; at least {settings.min_class_auc:g} expected" if low else None


def activate_model(model: ClassificationModel, config: Config, sessions: SessionFactory, now: datetime) -> Path:
    """Put a model into service if it passes the floor; the earlier one is kept. The decision is recorded either way.

    Raises
    ------
    ModelError : it does not pass
    ConfigError : the configuration names another file, so that this model would not be used
    """
    if config.radiomics.model_file is not None:
        raise ConfigError(
            f"radiomics.model_file: found {config.radiomics.model_file}, expected nothing: the activated model would "
            "not be used"
        )
    folder = models_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"radiomics-{model.sha256[:16]}.json"
    write_durably(kept, model_text(model).encode())
    refusal, active = why_not_activate(model, config.radiomics), folder / "radiomics.json"
    earlier = load_model(active).sha256 if active.is_file() else None
    said = refusal or f"nested macro AUC {model.training.macro_auc[0]:.3f}, floor {config.radiomics.min_macro_auc:g}"
    decision = ModelDecision(
        now, model.sha256, model.name, refusal is None, said, model.training.macro_auc[0], kept, earlier
    )
    with sessions.begin() as session:
        record_decision(session, decision)
    if refusal is not None:
        raise ModelError(f"model {model.sha256[:16]} was not activated: {refusal}")
    write_durably(active, model_text(model).encode())
    return active
