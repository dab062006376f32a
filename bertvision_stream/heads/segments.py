"""Operations on packed tokens: `[T, ...]` rows that belong to B examples, one after another.

All are deterministic on every device, and none lets one example's values reach another's.
"""

import torch
from torch.nn.utils.rnn import pad_sequence


def segment_mean(x_TF: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """Mean of each example's tokens: [T, F] -> [B, F]."""
    if x_TF.is_cuda:
        return torch.segment_reduce(x_TF, "mean", lengths=lengths_B, unsafe=True)
    return segment_sum(x_TF, lengths_B) / lengths_B.unsqueeze(1)


def segment_sum(x_TF: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """Sum of each example's tokens: [T, F] -> [B, F]."""
    if x_TF.is_cuda:  # index_add is not deterministic there
        return torch.segment_reduce(x_TF, "sum", lengths=lengths_B, unsafe=True)
    # Bit for bit what segment_reduce gives (gradient too), in an eighth of its time on a CPU.
    example_T = torch.repeat_interleave(lengths_B)
    return x_TF.new_zeros(len(lengths_B), x_TF.shape[1]).index_add(0, example_T, x_TF)


def segment_starts(lengths_B: torch.Tensor) -> torch.Tensor:
    """Position of each example's first token in the packed rows: int64 [B]."""
    return lengths_B.cumsum(0) - lengths_B


def pad_segments(x_T: torch.Tensor, lengths_B: torch.Tensor, value: float = 0.0) -> torch.Tensor:
    """Packed rows to padded ones: [T, ...] -> [B, S, ...], S the longest example."""
    return pad_sequence(list(x_T.split(lengths_B.tolist())), True, value)


def segment_softmax(scores_T: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """Softmax over each example's tokens: [T] -> [T], or [T, H] -> [T, H] for H scores each."""
    padded_BS = pad_segments(scores_T, lengths_B, -torch.inf)
    real_BS = torch.arange(padded_BS.shape[1], device=scores_T.device) < lengths_B.unsqueeze(1)
    return padded_BS.movedim(1, -1).softmax(dim=-1).movedim(-1, 1)[real_BS]
