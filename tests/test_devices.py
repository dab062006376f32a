"""What a process does with the memory of its tensors."""

import platform
import subprocess
import sys

import pytest

# Page faults of ten tensors of 48 MiB, one after another: before and after.
SCRIPT = """
import resource, torch
from bertvision_stream.devices import keep_freed_memory

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(12 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
before = page_faults()
keep_freed_memory()
page_faults()
print(before, page_faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to")
def test_freed_memory_is_kept_for_the_next_tensor():
    printed = subprocess.check_output([sys.executable, "-c", SCRIPT], text=True)
    before, after = map(int, printed.split())
    assert before >= 10  # huge pages, where the system gives them, count once
    assert after < 10
