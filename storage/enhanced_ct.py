"""Enhanced multi-frame CT -> one header and pixel array per frame, so that the rest sees classic slices.

DICOM PS3.3 A.38: shared and per-frame functional groups.
"""

from collections.abc import Iterator

from pydicom import Dataset
from pydicom.uid import EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from analysis.errors import UnusableSeriesError

ENHANCED_CT_CLASSES = (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)

# functional group sequence -> attributes that classic CT keeps at the top level
FRAME_GROUPS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
    "CTXRayDetailsSequence": ("KVP", "FilterType", "FocalSpots"),
    "CTReconstructionSequence": ("ConvolutionKernel", "ReconstructionDiameter"),
    "CTTableDynamicsSequence": ("SpiralPitchFactor",),
    "CTGeometrySequence": ("DataCollectionDiameter",),
    "CTAcquisitionDetailsSequence": ("TableHeight", "GantryDetectorTilt"),
    "CTExposureSequence": ("ExposureModulationType",),
    "FrameContentSequence": ("FrameAcquisitionDateTime",),
    "CTImageFrameTypeSequence": ("FrameType",),
}
RENAMED = {"FrameAcquisitionDateTime": "AcquisitionDateTime", "FrameType": "ImageType"}


def split_frames(ds: Dataset) -> Iterator[Dataset]:
    """One classic-looking dataset per frame, with its slice of the decoded pixels.

    Raises
    ------
    UnusableSeriesError : PIXELS_UNREADABLE when frames and pixels do not agree
    """
    try:
        frames = ds.pixel_array
        groups = list(ds.PerFrameFunctionalGroupsSequence)
    except (AttributeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise UnusableSeriesError("PIXELS_UNREADABLE", f"the enhanced CT cannot be decoded: {error}") from error
    if frames.ndim == 2:
        frames = frames[None]
    if len(groups) != len(frames):
        raise UnusableSeriesError(
            "PIXELS_UNREADABLE", f"{len(groups)} frame headers for {len(frames)} frames found; equal expected"
        )
    shared = ds.get("SharedFunctionalGroupsSequence", [Dataset()])[0]
    top = _top_level(ds)
    for number, group in enumerate(groups, start=1):
        yield _frame(top, shared, group, number, frames[number - 1].tobytes())


def _top_level(ds: Dataset) -> Dataset:
    top = Dataset()
    for element in ds:
        if element.keyword not in ("PixelData", "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
            top.add(element)
    top.file_meta = ds.file_meta
    return top


def _frame(top: Dataset, shared: Dataset, group: Dataset, number: int, pixels: bytes) -> Dataset:
    frame = Dataset()
    frame.update(top)
    frame.file_meta = type(top.file_meta)()
    frame.file_meta.update(top.file_meta)
    frame.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    frame.InConcatenationNumber = number
    frame.NumberOfFrames = 1
    for source in (shared, group):
        for sequence, keywords in FRAME_GROUPS.items():
            for item in source.get(sequence, [])[:1]:
                for keyword in keywords:
                    if keyword in item:
                        setattr(frame, RENAMED.get(keyword, keyword), item[keyword].value)
    frame.PixelData = pixels
    return frame
