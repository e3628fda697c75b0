"""Where the real CT data for tests lies; it is never part of the repository."""

import os
from pathlib import Path

import pytest

SHARED_DATA = Path(os.environ.get("QCT_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))

needs_data = pytest.mark.skipif(
    not SHARED_DATA.is_dir(), reason=f"real CT data not found at {SHARED_DATA}; set QCT_TEST_DATA to its folder"
)
