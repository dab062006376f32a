"""What devices are good at."""

import ctypes
import os
import platform
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

# Numbers of the options of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def pick_dtype(setting: str, device: torch.device) -> torch.dtype:
    """Picks the dtype of a forward pass: `auto` is bf16 where that is fast, else fp32."""
    if setting != "auto":
        return {"bf16": torch.bfloat16, "fp32": torch.float32}[setting]
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        # torch says this by private functions alone. Should a later version lack them, the answer
        # is fp32, which is right everywhere and slower where bf16 is fast.
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        fast = any(getattr(torch.cpu, check, bool)() for check in checks)
    return torch.bfloat16 if fast else torch.float32


def attention_of_any_shape(device: torch.device) -> AbstractContextManager[None]:
    """Makes attention use kernels that take any shape, for hardly two micro-batches share one.

    On recent GPUs torch prefers cuDNN's kernels, which are made when a shape is first met: an H200
    extracted 12,000 tokens of BERT-base a second with them, and 82,000 without.
    """
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel(
        [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    )


def memory_bytes() -> int:
    """The memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def keep_freed_memory() -> None:
    """Keeps the memory that tensors free for the next ones, instead of returning it to the system.

    By default glibc returns large blocks at once, and a step that makes the same tensors again pays
    a page fault for each 4 KiB: sixteen stacked heads took 30 to 40 ms a step before this, and 26
    after it. The process keeps up to a GiB more, so this is for processes whose work is steps. It
    does nothing without glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**30)
    if not libc.mallopt(_M_MMAP_THRESHOLD, 2**30):
        libc.mallopt(_M_MMAP_THRESHOLD, 2**25)  # This is the most that older versions take.
