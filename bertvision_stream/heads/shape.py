"""What a head reads and writes, without torch: settings, blocks and heads are all sized by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bertvision_stream.settings.tasks import Task


@dataclass(frozen=True)
class HeadShape:
    """What a head needs to know of its surroundings.

    Attributes:
        num_layers: L, the number of encoder layers and one more for the embeddings.
        hidden_size: D, the width of a hidden state.
        num_outputs: C, the number of logits.
        max_length: The most tokens of an example; the number of positions of `pool=flatten`.
        per_token: Whether every token has logits, and not every example: nothing is pooled then.
        target_mean: The mean of the numbers that a regression learns; 0 for other tasks.
        target_std: Their standard deviation; 1 for other tasks. Inside of a head a regression is
            in units of it, so that rates and decay suit labels of any size.
    """

    num_layers: int
    hidden_size: int
    num_outputs: int
    max_length: int
    per_token: bool = False
    target_mean: float = 0.0
    target_std: float = 1.0

    @classmethod
    def of(cls, config: Any, task: Task, max_length: int) -> HeadShape:
        """The shape for a backbone and a task.

        Args:
            config: The backbone's configuration, as transformers has it.
            task: Decides the number of outputs, and whether every token has them.
            max_length: `data.max_length`.
        """
        return cls(*hidden_shape(config), task.num_labels, max_length, task.per_token)


def hidden_shape(config: Any) -> tuple[int, int]:
    """Returns (L, D) of an encoder: the embedding layer and every encoder layer, hidden size."""
    return config.num_hidden_layers + 1, config.hidden_size
