"""What devices are good at."""

import torch


def pick_dtype(setting: str, device: torch.device) -> torch.dtype:
    """The dtype of the forward pass: `auto` is bf16 where it is fast, else fp32."""
    if setting != "auto":
        return {"bf16": torch.bfloat16, "fp32": torch.float32}[setting]
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32
