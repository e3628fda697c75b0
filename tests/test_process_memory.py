"""A process that runs networks keeps what it freed, and gives it back between two studies."""

import subprocess
import sys

PROGRAM = """
import resource
import numpy as np
import psutil
from node.process_memory import give_back_freed_memory, keep_freed_memory

def faults_of_a_block_used_again():
    np.ones(8 * 2**20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(8 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident_mb():
    return psutil.Process().memory_info().rss // 2**20

fresh = faults_of_a_block_used_again()
taken = keep_freed_memory()
kept, held = faults_of_a_block_used_again(), resident_mb()
give_back_freed_memory()
print(fresh, taken, kept, held - resident_mb())
"""


def test_a_freed_block_is_used_again_without_faulting_its_pages_in_and_goes_back_when_asked() -> None:
    printed = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
    fresh, taken, kept, given_back_mb = printed.split()
    assert taken == "True"
    assert int(kept) < 0.1 * int(fresh)  # 64 MiB are 16,384 pages of 4 kB, or fewer large ones
    assert int(given_back_mb) > 50
