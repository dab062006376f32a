"""Operations on packed tokens: `[T, ...]` rows that belong to B examples, one after another.

All are deterministic on every device, and none lets one example's values reach another's.
"""

import torch
from torch.nn.utils.rnn import pad_sequence


def segment_mean(x_TF: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """Mean of each example's tokens: [T, F] -> [B, F]."""
    return torch.segment_reduce(x_TF, "mean", lengths=lengths_B, unsafe=True)


def segment_sum(x_TF: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """Sum of each example's tokens: [T, F] -> [B, F]."""
    return torch.segment_reduce(x_TF, "sum", lengths=lengths_B, unsafe=True)


def segment_starts(lengths_B: torch.Tensor) -> torch.Tensor:
    """Position of each example's first token in the packed rows: int64 [B]."""
    return lengths_B.cumsum(0) - lengths_B


def pad_segments(x_TF: torch.Tensor, lengths_B: torch.Tensor, value: float = 0.0) -> torch.Tensor:
    """Packed rows to padded ones: [T, F] -> [B, S, F], S the longest example."""
    return pad_sequence(list(x_TF.split(lengths_B.tolist())), True, value)


def segment_softmax(scores_T: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """Softmax over each example's tokens: [T] -> [T]."""
    padded_BS = pad_segments(scores_T.unsqueeze(-1), lengths_B, -torch.inf).squeeze(-1)
    real_BS = torch.arange(padded_BS.shape[1], device=scores_T.device) < lengths_B.unsqueeze(1)
    return padded_BS.softmax(dim=-1)[real_BS]
