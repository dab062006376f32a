"""What a process does with the memory of its tensors, and the dtype that a device is given."""

import platform
import subprocess
import sys

import pytest
import torch

from bertvision_stream.utils.devices import attention_of_any_shape, pick_dtype

# Page faults of ten tensors of 48 MiB, one after another: before and after.
SCRIPT = """
import resource, torch
from bertvision_stream.utils.devices import keep_freed_memory

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


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_dtype_that_is_asked_for_is_taken(device: str):
    assert pick_dtype("bf16", torch.device(device)) == torch.bfloat16
    assert pick_dtype("fp32", torch.device(device)) == torch.float32


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"),
    [
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
        (False, False, torch.float32),
    ],
)
def test_auto_takes_bf16_on_a_cpu_that_is_fast_at_it(
    monkeypatch: pytest.MonkeyPatch, avx512: bool, amx: bool, expected: torch.dtype
):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert pick_dtype("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)]
)
def test_auto_takes_bf16_on_a_gpu_that_is_fast_at_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: torch.dtype
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert pick_dtype("auto", torch.device("cuda")) == expected


def test_attention_on_a_gpu_is_not_by_kernels_made_for_one_shape():
    allowed = torch.backends.cuda.cudnn_sdp_enabled()
    with attention_of_any_shape(torch.device("cpu")):
        assert torch.backends.cuda.cudnn_sdp_enabled() == allowed
    with attention_of_any_shape(torch.device("cuda")):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() == allowed
