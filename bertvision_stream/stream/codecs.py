"""Codecs: how a block's hidden states are stored between extractor and trainer.

| codec | stored | bytes a token |
|---|---|---|
| `bf16` | the values, as the backbone computed them in bf16 | 2 L D |
| `int8` | round(127 x / absmax) per token and layer, and absmax / 127 in fp32 | L D + 4 L |
| `fp32` | the values in fp32 | 4 L D |

An encoded block is made of NumPy arrays, which Ray moves without copying; NumPy has no bfloat16, so
those bits travel as int16.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from bertvision_stream.settings.types import Codec

_STORED = {"bf16": torch.bfloat16, "int8": torch.int8, "fp32": torch.float32}


@dataclass(frozen=True)
class EncodedBlock:
    """A block on its way from an extractor to the trainers. The arrays may be read-only.

    Attributes:
        hidden: The stored hidden states [T, L, D]: int16 (the bits of bf16), int8 or float32.
        scales: The scales of `int8`, float32 [T, L]; an empty array for other codecs.
        logits: BERT's own logits for the block's examples, float32 [B, C]; or for its tokens, [T,
            2], where answers are spans.
    """

    hidden: np.ndarray
    scales: np.ndarray
    logits: np.ndarray

    @property
    def nbytes(self) -> int:
        """The bytes of the three arrays."""
        return self.hidden.nbytes + self.scales.nbytes + self.logits.nbytes


def encode(
    hidden_TLD: torch.Tensor, logits_BC: torch.Tensor, codec: Codec
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Encode a block's hidden states (bf16 or fp32) and logits, on the device where they are.

    Returns:
        What an `EncodedBlock` holds, as tensors: hidden [T, L, D], scales [T, L] or [0], logits [B,
        C] or [T, 2].
    """
    scales = torch.empty(0, device=hidden_TLD.device)
    if codec == "int8":
        hidden = hidden_TLD.float()
        scales = hidden.abs().amax(dim=-1) / 127
        # A token whose states are all zero has scale 0 and decodes to zero.
        hidden = hidden / scales.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(-1)
        # 127 and not 128 steps either way: the scale is symmetric, and -128 is never stored.
        stored = hidden.round_().clamp_(-127, 127).to(torch.int8)
    else:
        stored = hidden_TLD.to(_STORED[codec])
    if codec == "bf16":
        stored = stored.view(torch.int16)
    return stored, scales, logits_BC.float()


def stored_tensor(encoded: EncodedBlock) -> torch.Tensor:
    """The stored values [T, L, D] as a tensor on the block's own memory: bf16, int8 or fp32."""
    tensor = _shared_tensor(encoded.hidden)
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.int16 else tensor


def scales_tensor(encoded: EncodedBlock) -> torch.Tensor | None:
    """The scales [T, L] of an `int8` block as a tensor on the block's own memory, else None."""
    return _shared_tensor(encoded.scales) if encoded.scales.size else None


def decode(stored: torch.Tensor, scales: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Stored values [T, L, D], and the scales [T, L] of `int8`, to hidden states of `dtype`."""
    if scales is None:
        return stored.to(dtype)
    return (stored * scales.unsqueeze(-1)).to(dtype)


def _shared_tensor(array: np.ndarray) -> torch.Tensor:
    """torch has no read-only tensors and warns of it; nothing of ours writes into a block."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
