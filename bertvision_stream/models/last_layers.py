"""Pooler and classifier of a backbone: they compute in fp32, whatever the dtype of its encoder.

Heads compute their logits in fp32. In bf16, with 8 bits, BERT's own would be rounded to a few
values: numbers with two digits, and answers that tie with the threshold.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


def last_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The layers between the hidden states and the logits, by name: pooler, classifier, ...

    Args:
        model: A sequence classifier or a question-answering model. Whatever stands beside its
            encoder belongs to them, and of the encoder the pooler.
    """
    base = model.base_model
    layers = {name: child for name, child in model.named_children() if child is not base}
    if base is model:
        return {}
    pooler = getattr(base, "pooler", None)
    if isinstance(pooler, nn.Module):
        layers[f"{model.base_model_prefix}.pooler"] = pooler
    return {name: layer for name, layer in layers.items() if any(True for _ in layer.parameters())}


def compute_in_fp32(model: PreTrainedModel) -> tuple[str, ...]:
    """Make the last layers of a model take and compute fp32, from now on; gives their names."""
    layers = last_layers(model)
    for layer in layers.values():
        layer.register_forward_pre_hook(_to_fp32, with_kwargs=True)
    return tuple(layers)


def cast_encoder(model: PreTrainedModel, *, device: torch.device, dtype: torch.dtype) -> None:
    """Move a model in place, and cast its encoder; its last layers stay in fp32, or become it.

    Args:
        model: A sequence classifier or a question-answering model.
        device: Where it is to compute.
        dtype: The dtype of the encoder, bf16 or fp32.
    """
    kept = {id(module) for layer in last_layers(model).values() for module in layer.modules()}
    for module in model.modules():
        own = torch.float32 if id(module) in kept else dtype
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            # On one device integers stay what they are: ids, and positions.
            tensor.data = tensor.data.to(device, own if tensor.is_floating_point() else None)


def _to_fp32(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A hook: the layer's inputs as fp32, and its weights where a model was cast as a whole."""
    with torch.inference_mode(False):  # or else the weights could not be trained afterwards
        layer.float()
    return tuple(map(_as_fp32, args)), {name: _as_fp32(value) for name, value in kwargs.items()}


def _as_fp32(value: Any) -> Any:
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.float() if is_float else value
