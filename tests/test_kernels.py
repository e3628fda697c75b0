"""Sharp kernels by the schemes of the vendors; names as they stand in real headers."""

import pytest

from analysis.kernels import is_sharp_kernel

SHARP = {
    "Siemens": ["B50f", "B60s", "B70f", "B80f", "Br56d\\3", "Br64d", "Bl57d\\2", "Bl64", "Hr60f", "I50f\\3", "U70u"],
    "GE": ["DETAIL", "CHST", "LUNG", "BONE", "BONEPLUS", "EDGE", "ULTRA", "HD BONE"],
    "Philips": ["D", "E", "L", "YA", "YB", "YC"],
    "Canon": ["FC30", "FC35", "FC50", "FC52", "FC55", "FC81", "FC86"],
    "words": ["B_SHARP_C", "BODY SHARP", "Lung", "H_BONE_A"],
}
BODY = {
    "Siemens": ["B10f", "B20f", "B30f", "B31s", "B40s", "B41f", "B45f", "Br36d\\3", "Br40d\\3", "Qr40", "I31f\\3",
                "I30f", "Bv36", "Bf37f", "D30f", "H30s"],
    "GE": ["SOFT", "STANDARD", "STND+", "STANDARD\\ASIR"],
    "Philips": ["A", "B", "C", "UB", "EB", "B\\iDose4"],
    "Canon": ["FC01", "FC03", "FC08", "FC10", "FC12", "FC18", "FC43", "FC68"],
    "words": ["B_SOFT_B", "B_SOFT_D", "BODY", "Body Routine"],
}  # fmt: skip


@pytest.mark.parametrize("kernel", [name for names in SHARP.values() for name in names])
def test_bone_lung_and_detail_kernels_are_sharp(kernel: str) -> None:
    assert is_sharp_kernel(kernel) and is_sharp_kernel(f" {kernel.lower()} ")


@pytest.mark.parametrize("kernel", [name for names in BODY.values() for name in names])
def test_soft_tissue_kernels_are_not(kernel: str) -> None:
    assert not is_sharp_kernel(kernel) and not is_sharp_kernel(kernel.upper())


def test_a_site_may_refuse_and_allow_kernels_of_its_own() -> None:
    assert is_sharp_kernel("B45f", refused=["b45f"]) and is_sharp_kernel("B45f\\2", refused=["B45f"])
    assert not is_sharp_kernel("Br56d\\3", allowed=["Br56d"])
    assert not is_sharp_kernel("DETAIL", refused=["DETAIL"], allowed=["DETAIL"])
    assert is_sharp_kernel("B60f", allowed=["B60s"]), "only whole names count"
