"""Our own last look at what is about to be sent: objects against source headers and against the result.

Everything is read back from the written objects. A problem means that nothing of the result is sent.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from pydicom import Dataset

from analysis.errors import EncodingError
from analysis.results import PatientResult
from node.encoded import EncodedObject, EncodingSettings, ObjectKind
from node.segmentation_checks import check_segmentation
from node.source_headers import IDENTITY_KEYWORDS
from node.sr_checks import check_measurements, check_radiomics, check_report, check_tree

_COPIED = (*IDENTITY_KEYWORDS, "StudyInstanceUID", "SpecificCharacterSet", "TimezoneOffsetFromUTC")
_SEGMENTATIONS = (ObjectKind.SEGMENTATION, ObjectKind.OTHER_VERTEBRAE)


def require_sound(
    objects: Sequence[EncodedObject], headers: Sequence[Dataset], result: PatientResult, settings: EncodingSettings
) -> None:
    """Raises
    ------
    EncodingError : naming every problem found
    """
    problems = check_objects(objects, headers, result, settings)
    if problems:
        raise EncodingError(f"{len(problems)} faults in the written objects, none is sent: {'; '.join(problems)}")


def check_objects(
    objects: Sequence[EncodedObject], headers: Sequence[Dataset], result: PatientResult, settings: EncodingSettings
) -> tuple[str, ...]:
    """Every contradiction between objects, source series and result, in words; empty when there is none."""
    problems: list[str] = []
    for item in objects:
        problems.extend(f"{item.kind}: {text}" for text in _identity_problems(item.dataset, headers[0], settings))
        if item.dataset.Modality == "SR":
            problems.extend(f"{item.kind}: {text}" for text in check_tree(item.dataset))
    problems.extend(_series_problems(objects, headers))
    problems.extend(_order_problems(result))
    segmentations = [item.dataset for item in objects if item.kind in _SEGMENTATIONS]
    for ds in segmentations:
        problems.extend(check_segmentation(ds, headers, result))
    for item in objects:
        problems.extend(_content_problems(item, headers, result, segmentations))
    return tuple(problems)


def _content_problems(
    item: EncodedObject, headers: Sequence[Dataset], result: PatientResult, segmentations: Sequence[Dataset]
) -> tuple[str, ...]:
    if item.kind is ObjectKind.MEASUREMENTS:
        return check_measurements(item.dataset, headers, result, segmentations)
    if item.kind is ObjectKind.RADIOMICS:
        return check_radiomics(item.dataset, result)
    if item.kind is ObjectKind.REPORT:
        return check_report(item.dataset, result)
    return ()


def _identity_problems(ds: Dataset, source: Dataset, settings: EncodingSettings) -> Iterator[str]:
    for keyword in _COPIED:
        if (ds.get(keyword) or "") != (source.get(keyword) or ""):
            yield f"{keyword} is not the source's"
    if not str(ds.SOPInstanceUID).startswith(f"{settings.uid_root}."):
        yield f"SOP Instance UID is not below the configured root {settings.uid_root}"
    if ds.Modality == "SR" and (ds.CompletionFlag, ds.VerificationFlag) != ("COMPLETE", "UNVERIFIED"):
        yield "is not marked COMPLETE and UNVERIFIED"


def _series_problems(objects: Sequence[EncodedObject], headers: Sequence[Dataset]) -> Iterator[str]:
    series = Counter(str(item.dataset.SeriesInstanceUID) for item in objects)
    if any(count > 1 for count in series.values()):
        yield "two objects share one series; each needs its own"
    if str(headers[0].SeriesInstanceUID) in series:
        yield "an object was put into the source series"


def _order_problems(result: PatientResult) -> Iterator[str]:
    """Measured levels run from head to feet along LPS z: T12 above L1 above L2."""
    order = sorted(result.vois, key=lambda voi: _rank(voi.level))
    heights = [voi.centre_lps_mm[2] for voi in order]
    if any(upper <= lower for upper, lower in zip(heights, heights[1:], strict=False)):
        yield f"the levels {', '.join(voi.level for voi in order)} do not follow each other from head to feet"


def _rank(level: str) -> tuple[int, int]:
    return "CTL".index(level[0]), int(level[1:])
