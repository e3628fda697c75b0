"""Are the written reports what viewers need and what the result says? Read back from the trees."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydicom import Dataset

from analysis.results import PatientResult
from node import codes
from node.report_text import COVERAGE_FACTOR, vertebra_sentence
from node.segments import levels_name
from node.source_headers import ascii_text

_RELATIVE_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class GroupRead:
    """A measurement group as a reader finds it. `values`: code value -> (value, unit code)."""

    tracking_uid: str
    name: str
    site: str
    values: dict[str, tuple[float, str]]
    answers: dict[str, str]
    segment: tuple[str, int] | None
    source_series: str | None
    polyline: tuple[str, tuple[float, ...]] | None


def check_tree(ds: Dataset) -> tuple[str, ...]:
    """Containers SEPARATE, Measurement Method as concept modifier: what tree viewers need to show names."""
    problems = []
    for item in walk(ds):
        if item.ValueType == "CONTAINER" and item.ContinuityOfContent != "SEPARATE":
            problems.append("a container is not SEPARATE")
        if _name(item) == codes.MEASUREMENT_METHOD.value and item.RelationshipType != "HAS CONCEPT MOD":
            problems.append("Measurement Method is not HAS CONCEPT MOD")
    return tuple(dict.fromkeys(problems))


def check_measurements(
    ds: Dataset, headers: Sequence[Dataset], result: PatientResult, segmentations: Sequence[Dataset]
) -> tuple[str, ...]:
    """Values, units, material, sites, segments, source and drawn partners of the measurement SR."""
    groups = read_groups(ds)
    problems = [*_partner_problems(groups)]
    for group in groups:
        problems.extend(_reference_problems(group, headers, segmentations))
    expected = _expected(result)
    for name, (site, values) in expected.items():
        with_values = [group for group in groups if group.name == name and group.values]
        if len(with_values) != 1:
            problems.append(f"{len(with_values)} groups hold the values of {name!r}; one expected")
        else:
            problems.extend(_value_problems(with_values[0], site, values))
    unknown = {group.name for group in groups} - set(expected)
    problems.extend(f"group {name!r} is not of the result" for name in sorted(unknown))
    return tuple(problems)


def check_radiomics(ds: Dataset, result: PatientResult) -> tuple[str, ...]:
    """Every finite feature under its own code, and no drawn group."""
    problems = []
    groups = {group.name: group for group in read_groups(ds)}
    for features in (item for item in result.features if item.values):
        group = groups.get(f"{features.level} trabecular VOI")
        if group is None:
            problems.append(f"features of {features.level} are missing")
            continue
        for name, value in zip(features.names, features.values, strict=True):
            code = codes.feature_codes()[name]
            found = group.values.get(code.code.value)
            if np.isfinite(value) and (found is None or not _close(found[0], value + code.added)):
                problems.append(f"feature {name} of {features.level} is not the result's")
    if any(group.polyline for group in groups.values()):
        problems.append("the radiomics report holds a drawn region; viewers would paint every feature")
    return tuple(problems)


def check_report(ds: Dataset, result: PatientResult) -> tuple[str, ...]:
    """Each vertebra's sentence and the class stand in the readable report."""
    texts = [str(item.TextValue) for item in walk(ds) if item.ValueType == "TEXT"]
    problems = []
    summary = result.summary
    if summary is None:
        return ("a report without a result",)
    for vertebra in result.vertebrae:
        if ascii_text(vertebra_sentence(vertebra, summary.material)) not in texts:
            problems.append(f"the readable report lacks the values of {vertebra.level}")
    if summary.classification is not None and not any(str(summary.classification) in text for text in texts):
        problems.append("the readable report lacks the category")
    return tuple(problems)


def walk(ds: Dataset) -> Iterator[Dataset]:
    """The item and all below it, depth first."""
    yield ds
    for item in ds.get("ContentSequence") or ():
        yield from walk(item)


def read_groups(ds: Dataset) -> list[GroupRead]:
    return [_read_group(item) for item in walk(ds) if _name(item) == "125007"]  # Measurement Group


def _read_group(group: Dataset) -> GroupRead:
    items = list(group.ContentSequence)
    by_name = {_name(item): item for item in items}
    images = [item for item in items if item.ValueType == "IMAGE"]
    scoords = [item for item in items if item.ValueType == "SCOORD"]
    source = by_name.get("121232")  # Source Series for Segmentation
    return GroupRead(
        tracking_uid=str(by_name["112040"].UID), name=str(by_name["112039"].TextValue),
        site=by_name["363698007"].ConceptCodeSequence[0].CodeValue,
        values={_name(item): _measured(item) for item in items if item.ValueType == "NUM"},
        answers={_name(item): item.ConceptCodeSequence[0].CodeValue for item in items if item.ValueType == "CODE"},
        segment=_segment(images[0]) if images else None,
        source_series=None if source is None else str(source.UID),
        polyline=_polyline(scoords[0]) if scoords else None,
    )


def _measured(item: Dataset) -> tuple[float, str]:
    measured = item.MeasuredValueSequence[0]
    value = measured.get("FloatingPointValue", measured.NumericValue)
    return float(value), str(measured.MeasurementUnitsCodeSequence[0].CodeValue)


def _segment(item: Dataset) -> tuple[str, int]:
    reference = item.ReferencedSOPSequence[0]
    number = reference.ReferencedSegmentNumber
    return str(reference.ReferencedSOPInstanceUID), int(number[0] if isinstance(number, list) else number)


def _polyline(item: Dataset) -> tuple[str, tuple[float, ...]]:
    source = item.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    return str(source), tuple(float(value) for value in item.GraphicData)


def _name(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeValue) if item.get("ConceptNameCodeSequence") else ""


def _partner_problems(groups: list[GroupRead]) -> Iterator[str]:
    """OHIF shows a blank page when one group has no drawn partner."""
    drawn = {group.tracking_uid for group in groups if group.polyline is not None}
    for group in groups:
        if group.tracking_uid not in drawn:
            yield f"group {group.name!r} has no drawn partner with its tracking UID"
    for group in groups:
        if group.polyline is not None and group.polyline[1][:2] != group.polyline[1][-2:]:
            yield f"the outline of {group.name!r} is not closed"


def _reference_problems(
    group: GroupRead, headers: Sequence[Dataset], segmentations: Sequence[Dataset]
) -> Iterator[str]:
    if group.source_series is not None and group.source_series != str(headers[0].SeriesInstanceUID):
        yield f"group {group.name!r} refers to another source series"
    if group.polyline is not None and group.polyline[0] not in {str(ds.SOPInstanceUID) for ds in headers}:
        yield f"the outline of {group.name!r} lies on an image that is not of the source series"
    if group.segment is not None and segmentations and _label_of(group.segment, segmentations) != group.name:
        yield f"group {group.name!r} refers to a segment of another name"


def _label_of(segment: tuple[str, int], segmentations: Sequence[Dataset]) -> str | None:
    for ds in segmentations:
        for item in ds.SegmentSequence:
            if (str(ds.SOPInstanceUID), int(item.SegmentNumber)) == segment:
                return str(item.SegmentLabel)
    return None


def _expected(result: PatientResult) -> dict[str, tuple[str, dict[str, tuple[float, str]]]]:
    """Group name -> (site code, code value -> (value, unit))."""
    summary = result.summary
    if summary is None:
        return {}
    bmd, density = codes.VBMD[summary.material].value, codes.MG_PER_CM3.value
    expected: dict[str, tuple[str, dict[str, tuple[float, str]]]] = {}
    for item in result.vertebrae:
        expected[f"{item.level} trabecular VOI"] = codes.vertebra_code(item.level).value, {
            bmd: (item.bmd_mg_cm3, density),
            codes.VBMD_UNCERTAINTY.value: (COVERAGE_FACTOR * item.u_bmd_mg_cm3, density),
            codes.VBMD_SD.value: (item.sd_bmd_mg_cm3, density),
            codes.MEAN_HU.value: (item.mean_hu, codes.HU.value),
            codes.SD_HU.value: (item.sd_hu, codes.HU.value),
            codes.VOLUME.value: (item.voi_volume_mm3 / 1000, codes.CM3.value),
        }
    if len(summary.levels) > 1:
        expected[f"{levels_name(summary.levels)} trabecular VOI"] = codes.region_code(summary.levels).value, {
            bmd: (summary.bmd_mg_cm3, density),
            codes.VBMD_UNCERTAINTY.value: (COVERAGE_FACTOR * summary.u_bmd_mg_cm3, density),
        }
    return expected


def _value_problems(group: GroupRead, site: str, expected: dict[str, tuple[float, str]]) -> Iterator[str]:
    if group.site != site:
        yield f"group {group.name!r} has another finding site"
    for code, (value, unit) in expected.items():
        if code not in group.values:
            yield f"group {group.name!r} lacks {code}"
        elif group.values[code][1] != unit:
            yield f"{code} of {group.name!r} is in {group.values[code][1]}; {unit} expected"
        elif not _close(group.values[code][0], value):
            yield f"{code} of {group.name!r} is {group.values[code][0]}; {value} expected"


def _close(found: float, expected: float) -> bool:
    return abs(found - expected) <= _RELATIVE_TOLERANCE * max(1.0, abs(expected))
