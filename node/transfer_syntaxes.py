"""Which transfer syntaxes the node accepts: those that it proved at start it can decode.

Each compressed syntax is tested with a small image of known pixels; one whose decoder is missing or wrong is not
offered, so that no image is acknowledged that the analysis cannot read.
"""

import base64
import logging
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from node.transfer_syntax_samples import SAMPLES, EncodedSample

LOGGER = logging.getLogger(__name__)
SIDE = 16  # rows and columns of the test image

# the acceptor's order decides (PS3.8 9.3.3.2): uncompressed first, then without loss, then with loss
UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)
LOSSLESS = (
    RLELossless, JPEGLosslessSV1, JPEGLossless, JPEGLSLossless, JPEG2000Lossless, HTJ2KLossless, HTJ2KLosslessRPCL,
)  # fmt: skip
LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000, HTJ2K)  # received; the analysis refuses
ALL_SYNTAXES: tuple[UID, ...] = (*UNCOMPRESSED, *LOSSLESS, *LOSSY)
# what pydicom and the decoders raise when a decoder is missing or broken
DECODER_FAULTS = (RuntimeError, ValueError, NotImplementedError, AttributeError, TypeError, ImportError, KeyError)


@dataclass(frozen=True, slots=True)
class SyntaxVerdict:
    """Whether a transfer syntax can be decoded here, and why not."""

    transfer_syntax_uid: str
    decodable: bool
    reason: str = ""


@cache
def decodable_syntaxes() -> tuple[UID, ...]:
    """Transfer syntaxes that passed the self-test, in order of preference; tested once per process."""
    verdicts = check_syntaxes(ALL_SYNTAXES)
    for verdict in verdicts:
        if not verdict.decodable:
            LOGGER.warning("%s is not accepted: %s", UID(verdict.transfer_syntax_uid).name, verdict.reason)
    return tuple(UID(v.transfer_syntax_uid) for v in verdicts if v.decodable)


def check_syntaxes(syntaxes: Iterable[str]) -> tuple[SyntaxVerdict, ...]:
    """Decode the test image in each syntax and compare it with what it must be."""
    return tuple(_check_syntax(UID(syntax)) for syntax in syntaxes)


def _check_syntax(syntax: UID) -> SyntaxVerdict:
    if syntax in UNCOMPRESSED:
        return SyntaxVerdict(syntax, True)
    sample = SAMPLES.get(HTJ2KLossless if syntax == HTJ2KLosslessRPCL else syntax)
    bits_stored = sample.bits_stored if sample else 16
    try:
        decoded = _compressed(syntax, sample, bits_stored).pixel_array
    except DECODER_FAULTS as exc:
        return SyntaxVerdict(syntax, False, f"decoder fails: {str(exc)[:200]}")
    error = int(np.abs(decoded.astype(np.int64) - ramp(bits_stored)).max())
    tolerance = sample.tolerance if sample else 0
    wrong = "" if error <= tolerance else f"decoder is wrong by {error}, at most {tolerance} allowed"
    return SyntaxVerdict(syntax, not wrong, wrong)


def ramp(bits_stored: int) -> NDArray[np.int64]:
    """The test image: (16, 16), rising row by row."""
    values = np.arange(SIDE * SIDE, dtype=np.int64).reshape(SIDE, SIDE)
    return values if bits_stored == 8 else values * 16


def _compressed(syntax: UID, sample: EncodedSample | None, bits_stored: int) -> Dataset:
    frame = base64.b85decode(sample.codestream_base85) if sample else _rle_frame(ramp(bits_stored))
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.Rows = ds.Columns = SIDE
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated = 8 if bits_stored == 8 else 16
    ds.BitsStored = bits_stored
    ds.HighBit = bits_stored - 1
    ds.PixelRepresentation = 0
    ds.PixelData = encapsulate([frame])
    return ds


def _rle_frame(pixels: NDArray[np.int64]) -> bytes:
    """RLE (PS3.5 annex G) in literal runs only: header with the segments' offsets, high bytes, then low bytes."""
    high, low = (pixels >> 8).astype(np.uint8).tobytes(), (pixels & 0xFF).astype(np.uint8).tobytes()
    segments = [_literal_runs(high), _literal_runs(low)]
    header = struct.pack("<16I", 2, 64, 64 + len(segments[0]), *([0] * 13))
    return header + b"".join(segments)


def _literal_runs(data: bytes) -> bytes:
    """Runs of 128 literal bytes, each after its count minus one."""
    return b"".join(bytes([127]) + data[start : start + 128] for start in range(0, len(data), 128))
