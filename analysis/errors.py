"""Every error of the project, named for what the operator can do.

    QctError
    ├── ConfigError               refuse to start: config.yaml is wrong; the message names key, line, expectation
    ├── AnalysisError             this scan cannot be analysed, and that is final; carries a reason code (refusals.py)
    │   ├── UnusableSeriesError   geometry or pixels: gaps, tilt, mixed spacing, lossy, missing tags
    │   ├── ProtocolError         the scan was made in a way that no calibration covers
    │   ├── PhantomNotFoundError  "not a QCT calibration phantom"
    │   ├── PhantomUnusableError  "a phantom, but unusable because ..."
    │   ├── NoVertebraError       no spine, or no level that may be named
    │   ├── VoiError              no valid VOI in this vertebra
    │   └── NoValidCalibrationError
    ├── EncodingError             a result does not fit its source images; nothing of it is sent
    ├── ModelError                a weights or model file is missing, damaged or does not fit
    ├── DatabaseError             refuse to start: the database is damaged, newer than this version, or away
    └── DeliveryError             the PACS is away or refuses; retried later when transient

A message says what was found, what was expected and what to do. It never holds a patient's name or ID.
"""


class QctError(Exception):
    """Base of every error that this project raises on purpose."""


class ConfigError(QctError):
    """The configuration is wrong; nothing may start."""


class AnalysisError(QctError):
    """This scan cannot be analysed; final.

    Parameters
    ----------
    code : one of the codes in `analysis.refusals.REASONS`, for example "SLICE_GAP"
    text : what was found, what was expected, what to do
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text

    def __reduce__(self) -> tuple[type["AnalysisError"], tuple[str, str]]:
        return type(self), (self.code, self.text)


class UnusableSeriesError(AnalysisError):
    """Geometry or pixels of the series cannot be trusted."""


class ProtocolError(AnalysisError):
    """The scan was made in a way that cannot be measured."""


class PhantomNotFoundError(AnalysisError):
    """The series does not show a QCT calibration phantom."""


class PhantomUnusableError(AnalysisError):
    """The series shows a phantom that cannot be measured."""


class NoVertebraError(AnalysisError):
    """No spine was found, or no level can be named with confidence."""


class VoiError(AnalysisError):
    """No valid VOI fits into this vertebra."""


class NoValidCalibrationError(AnalysisError):
    """No calibration may be used for this scan."""


class ModelError(QctError):
    """A network or classification model is missing, damaged or does not fit."""


class EncodingError(QctError):
    """A result cannot be written as DICOM, or what was written contradicts the source images or the result."""


class DatabaseError(QctError):
    """The database is damaged, was written by a newer version, or cannot be reached; nothing may start."""


class DeliveryError(QctError):
    """An object could not be delivered; `permanent` says whether a retry can help."""

    def __init__(self, text: str, *, permanent: bool) -> None:
        super().__init__(text)
        self.permanent = permanent
