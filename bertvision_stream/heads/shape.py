"""What a head reads and writes, without torch: settings, blocks and heads are all sized by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bertvision_stream.settings.tasks import Task
from bertvision_stream.settings.types import Layers
from bertvision_stream.utils.errors import ConfigError


@dataclass(frozen=True)
class HeadShape:
    """What a head needs to know of its surroundings.

    Attributes:
        num_layers: L, the number of layers that heads read: all encoder layers and the
            embeddings, or those of `extract.layers`.
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
    def of(
        cls, config: Any, task: Task, max_length: int, layers: Literal["all"] | Layers = "all"
    ) -> HeadShape:
        """The shape for a backbone and a task.

        Args:
            config: The backbone's configuration, as transformers has it.
            task: Decides the number of outputs, and whether every token has them.
            max_length: `data.max_length`.
            layers: `extract.layers`.

        Raises:
            ConfigError: The backbone lacks one of these layers.
        """
        num_layers, hidden_size = hidden_shape(config)
        num_kept = len(kept_layers(num_layers, layers))
        return cls(num_kept, hidden_size, task.num_labels, max_length, task.per_token)


def hidden_shape(config: Any) -> tuple[int, int]:
    """Returns (L, D) of an encoder: the embedding layer and every encoder layer, hidden size."""
    return config.num_hidden_layers + 1, config.hidden_size


def kept_layers(num_layers: int, layers: Literal["all"] | Layers) -> tuple[int, ...]:
    """The numbers of the layers whose hidden states are kept, ascending; 0 is the embeddings.

    Args:
        num_layers: The number of encoder layers and one more for the embeddings.
        layers: `extract.layers`, in which -1 is the last layer.

    Raises:
        ConfigError: There is no such layer, or one is given twice.
    """
    if layers == "all":
        return tuple(range(num_layers))
    last = num_layers - 1
    given = f"extract.layers=[{','.join(map(str, layers))}]"
    allowed = f"it has layers 0 (the embeddings) to {last}, or -{num_layers} to -1 from the end"
    if absent := [layer for layer in layers if not -num_layers <= layer <= last]:
        raise ConfigError(f"{given}: this backbone has no layer {absent[0]}; {allowed}")
    numbers = sorted(layer % num_layers for layer in layers)
    if twice := [layer for layer in numbers if numbers.count(layer) > 1]:
        raise ConfigError(f"{given}: layer {twice[0]} of this backbone is given twice; {allowed}")
    return tuple(numbers)
