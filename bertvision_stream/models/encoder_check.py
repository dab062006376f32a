"""Checks whether the hidden states of an encoder can be streamed, by what it computes.

Encoders differ in more than their configuration says. One that returns other states than it names
would leave memory unwritten, and one whose states depend on the padding beside a text would give a
row other states among other rows; both would pass unnoticed, with poorer scores.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel

from bertvision_stream.heads.shape import hidden_shape
from bertvision_stream.models.backbone import padded_inputs
from bertvision_stream.models.sources import explained
from bertvision_stream.utils.devices import attention_of_any_shape
from bertvision_stream.utils.errors import BackboneError

# Tokens of the two texts that are tried. Padding beside the shorter one is wider than the kernels
# of convolutions.
_LENGTHS = (4, 17)

# The largest difference between states with and without padding, as a share of the largest state.
# Sums in another order differ by some 1e-6; states that see padding differ by a hundredth and more.
_ROUNDING = 1e-3


def num_positions(config: Any) -> int:
    """The most tokens of an example that an encoder has positions for.

    RoBERTa and its relatives number positions from `pad_token_id + 1`, and so have fewer than their
    configuration names.

    Args:
        config: The configuration of the encoder, as transformers has it.
    """
    with explained(f"backbone={config.name_or_path}"), torch.device("meta"):
        encoder = AutoModel.from_config(config)
    most = int(config.max_position_embeddings)
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings"):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            return min(most, module.num_embeddings - first)
    return most


@torch.inference_mode()
def check_states(model: PreTrainedModel, source: str) -> None:
    """Try an encoder on two short texts, each alone and both together, padded.

    Args:
        model: A sequence classifier or a question-answering model in fp32 on the CPU, in evaluation
            mode.
        source: What messages call it.

    Raises:
        BackboneError: The forward pass fails, or its hidden states are not those that its
            configuration names, or they depend on the padding beside a text.
    """
    num_layers, hidden_size = hidden_shape(model.config)
    rows = [np.arange(length) * 7 % (model.config.vocab_size - 1) + 1 for length in _LENGTHS]
    try:
        together, *alone = (_states(model, texts) for texts in (rows, *([ids] for ids in rows)))
    except Exception as error:  # whatever a family's own code raises
        cause = (str(error).splitlines() or [repr(error)])[0]
        raise BackboneError(
            f"backbone={source}: a forward pass on two short texts failed "
            f"({type(error).__name__}: {cause}): it cannot be used"
        ) from error
    if len(together) != num_layers:
        raise BackboneError(
            f"backbone={source}: it returns {len(together)} hidden states, and its configuration "
            f"names {num_layers}, the embeddings and {num_layers - 1} layers: it cannot be used"
        )
    expected = (len(rows), max(_LENGTHS), hidden_size)
    for layer, states in enumerate(together):
        if tuple(states.shape) != expected:
            raise BackboneError(
                f"backbone={source}: the hidden states of layer {layer} have the shape "
                f"{list(states.shape)} where {list(expected)} was expected (texts, tokens, hidden "
                f"size): it cannot be used"
            )
    for row, of_row in enumerate(alone):
        for layer, states in enumerate(of_row):
            beside = together[layer][row, : _LENGTHS[row]]
            apart = (beside - states[0]).abs().max() / states.abs().max()
            if not apart < _ROUNDING:
                raise BackboneError(
                    f"backbone={source}: its hidden states depend on the padding beside a text "
                    f"(those of layer {layer} by {apart:.2g} of the largest), so that a row would "
                    f"have other states among other rows. Take an encoder whose attention leaves "
                    f"padding out, such as bert, roberta, distilbert, electra or deberta."
                )


def check_ids(highest_id: int, config: Any, source: str) -> None:
    """Check that an encoder has embeddings for all ids of its tokenizer.

    Args:
        highest_id: The highest token id of the rows.
        config: The configuration of the encoder.
        source: What messages call it.

    Raises:
        BackboneError: It has not.
    """
    if highest_id >= config.vocab_size:
        raise BackboneError(
            f"backbone={source}: its tokenizer makes the token id {highest_id}, and the encoder "
            f"has embeddings for the ids 0 to {config.vocab_size - 1}: they do not belong together"
        )


def _states(model: PreTrainedModel, rows: list[np.ndarray]) -> tuple[torch.Tensor, ...]:
    """Hidden states [b, S, D] of every layer for texts that are padded to the longest of them."""
    lengths = np.array([len(ids) for ids in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.concatenate(rows)
    inputs = padded_inputs(model.config, mask, ids, np.zeros_like(ids), torch.device("cpu"))
    with attention_of_any_shape(torch.device("cpu")):
        states: tuple[torch.Tensor, ...] = model(**inputs, output_hidden_states=True).hidden_states
    return states
