"""Which convolution kernels (0018,1210) enhance edges: bone, lung and detail kernels shift and sharpen CT numbers.

DICOM gives the kernel's name only, and each vendor has its own scheme:

    Siemens     letters and a number of sharpness: B30f, Br40d\\3, I31f, Hr64 (operating instructions of the SOMATOM
                Sensation: B10 to B41 soft to standard body kernels, B50 to B80 "for higher sharpness", U70 to U90 for
                bone); Bl is the lung family. S kernels, of phantoms and Siemens' own osteo protocol, are not judged
    GE          words: SOFT, STANDARD; DETAIL, CHST, LUNG, BONE, BONEPLUS, EDGE, ULTRA are sharper in this order, more
                or less
    Philips     letters: A, B, C for soft tissue; D, E, L, YA to YE sharp; UA to UC and EB, EC of the head
    Canon       FC and a number: 01 to 19 body, 20 to 29 and 40 to 49 head, 30 to 39 bone, 50 to 59 lung, 80 to 89
                bone and inner ear
    United Imaging, Hitachi and newer names: words such as B_SHARP_C, BODY SHARP

A name that no rule knows is not called sharp: the calibration's hard key still ties a scan to its own kernel.
"""

import re
from collections.abc import Collection

SHARP_PARTS = ("BONE", "LUNG", "EDGE", "SHARP", "DETAIL")  # anywhere in a word
SHARP_NAMES = frozenset({"CHST", "ULTRA", "D", "E", "L", "YA", "YB", "YC", "YD", "YE"})
SIEMENS = re.compile(r"(B[RFLMV]?|H[CFRV]?|U[BHR]?|QR?|I|J|D|C)(\d\d)[A-Z]?\d?")
SIEMENS_LUNG = "BL"
SIEMENS_SHARP = 50
CANON = re.compile(r"FC(\d)\d")
CANON_SHARP_TENS = frozenset("358")


def is_sharp_kernel(kernel: str, refused: Collection[str] = (), allowed: Collection[str] = ()) -> bool:
    """Whether the name stands for a sharp kernel; a site's own lists of whole names go before the vendors' schemes."""
    name = kernel.strip().upper()
    words = re.split(r"[\\_\s]+", name)
    if _named(name, words, allowed):
        return False
    return _named(name, words, refused) or words[0] in SHARP_NAMES or any(_is_sharp_word(word) for word in words)


def _named(name: str, words: list[str], names: Collection[str]) -> bool:
    """The first word is the kernel; further values are strengths of the iterative reconstruction."""
    listed = {one.strip().upper() for one in names}
    return name in listed or words[0] in listed


def _is_sharp_word(word: str) -> bool:
    if any(part in word for part in SHARP_PARTS):
        return True
    if found := CANON.fullmatch(word):
        return found[1] in CANON_SHARP_TENS
    if found := SIEMENS.fullmatch(word):
        return found[1] == SIEMENS_LUNG or int(found[2]) >= SIEMENS_SHARP
    return False
