"""What the node and its worker processes say to each other; small and picklable."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AnalysisTask:
    """What a worker needs to know; everything else it finds in the database and on disk."""

    study_instance_uid: str
    version: int


@dataclass(frozen=True, slots=True)
class Fault:
    """An analysis ended in an error nobody foresaw. `where` holds no text of the study, `message` may."""

    error_type: str
    where: str
    message: str


@dataclass(frozen=True, slots=True)
class Ready:
    """The models are loaded."""


@dataclass(frozen=True, slots=True)
class NotReady:
    """The models cannot be loaded."""

    text: str
