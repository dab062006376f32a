"""The frozen backbone: load it, and turn packed token ids into hidden states of every layer."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from bertvision_stream.heads.shape import hidden_shape
from bertvision_stream.models.last_layers import cast_encoder, compute_in_fp32
from bertvision_stream.models.sources import check_sizes, explained
from bertvision_stream.utils.devices import attention_of_any_shape, memory_bytes
from bertvision_stream.utils.errors import BackboneError
from bertvision_stream.utils.hashing import hash_contents
from bertvision_stream.utils.hub import hub_reachable
from bertvision_stream.utils.units import format_bytes

# Padded tokens of one forward pass. A CPU is fastest while activations stay in its caches; a GPU
# wants more.
MICRO_BATCH_TOKENS = {"cpu": 1024, "cuda": 32768}

# Padding allowed inside a micro-batch, as a share of its real tokens, where little is gained by
# larger ones.
MAX_PADDING = 0.04

# Padding allowed in one. A GPU is told of each operation by a CPU, which takes as long for a few
# tokens as for thousands: fewer passes with more padding are faster there.
MAX_PADDING_ON = {"cpu": MAX_PADDING, "cuda": 1.0}


def load_tokenizer(source: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a located backbone."""
    with quiet(), explained(f"backbone={source}"):
        tokenizer = AutoTokenizer.from_pretrained(source, **_hub_options(source, revision))
    # Without its files transformers makes a tokenizer that knows only the special tokens.
    if not tokenizer.is_fast or len(tokenizer) <= len(tokenizer.all_special_ids):
        raise BackboneError(f"backbone={source} has no fast tokenizer (tokenizer.json)")
    return tokenizer


def load_config(source: str, revision: str | None = None) -> PreTrainedConfig:
    """The configuration of a located backbone.

    Raises:
        BackboneError: It cannot be read, or is not that of an encoder of the BERT family.
    """
    with quiet(), explained(f"backbone={source}"):
        options = _hub_options(source, revision)
        check_sizes(PreTrainedConfig.get_config_dict(source, **options)[0], f"backbone={source}")
        config = AutoConfig.from_pretrained(source, **options)
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING or config.is_encoder_decoder:
        raise BackboneError(
            f"backbone={source} is a `{config.model_type}` model, not an encoder of the BERT "
            f"family (bert, roberta, distilbert, electra, ...)"
        )
    for name in ("num_hidden_layers", "hidden_size", "vocab_size"):
        if not getattr(config, name) > 0:
            raise BackboneError(
                f"backbone={source}: {name}={getattr(config, name)} in its config.json makes no "
                f"sense"
            )
    return config


def load_classifier(
    source: str,
    *,
    num_labels: int,
    label_names: tuple[str, ...] = (),
    revision: str | None = None,
    per_token: bool = False,
    seed: int = 0,
) -> tuple[PreTrainedModel, bool]:
    """An encoder with a classification layer, in fp32 on the CPU.

    Where answers are spans, that layer is the question-answering one: two logits a token.

    Args:
        source: What `locate` returned.
        num_labels: The number of outputs of the classification layer; 1 means regression.
        label_names: The names of the classes, kept in the model's configuration.
        revision: A branch, tag or commit on the hub.
        per_token: Whether every token has logits, and not every example.
        seed: Initialises the classification layer where the source has none of that shape.

    Returns:
        The model, and whether its classification layer came from the source (else it is untrained).

    Raises:
        BackboneError: The source cannot be loaded, or its weights do not fit its configuration.
    """
    config = load_config(source, revision)
    needed, memory = weight_bytes(config, per_token=per_token), memory_bytes()
    if needed > memory:
        raise BackboneError(
            f"backbone={source}: by its config.json the weights take {format_bytes(needed)}, and "
            f"this machine has {format_bytes(memory)} of memory"
        )
    labels: dict[str, Any] = {"id2label": dict(enumerate(label_names))} if label_names else {}
    if label_names:
        labels["label2id"] = {label: i for i, label in enumerate(label_names)}
    with quiet(), explained(f"backbone={source}"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, info = auto_model(per_token).from_pretrained(
            source,
            num_labels=num_labels,
            problem_type=problem_type(num_labels, per_token),
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **labels,
            **_hub_options(source, revision),
        )
    base = f"{model.base_model_prefix}."
    lacking = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    if encoder := sorted(k for k in lacking if k.startswith(base) and ".pooler." not in k):
        raise BackboneError(
            f"backbone={source}: the weights do not fit its configuration; {len(encoder)} of the "
            f"encoder's are missing or of another shape, first {encoder[0]}"
        )
    return model, not lacking


def has_token_logits(model: PreTrainedModel) -> bool:
    """Whether a model gives logits to every token (start and end of a span)."""
    return "QuestionAnswering" in type(model).__name__


def model_logits(output: Any, real_t: torch.Tensor | None) -> torch.Tensor:
    """The logits in a transformers model's output, in fp32: [B, C], or [T, 2] of real tokens.

    Args:
        output: The output of a padded forward pass [b, S].
        real_t: Where the real tokens are, one padded row after another; None where all are.
    """
    if "logits" in output:
        logits: torch.Tensor = output.logits
        return logits.float()
    logits = torch.stack([output.start_logits, output.end_logits], dim=-1).flatten(0, 1).float()
    return logits if real_t is None else logits[real_t]


def auto_model(per_token: bool) -> Any:
    """The auto class of a backbone with its own last layer."""
    return AutoModelForQuestionAnswering if per_token else AutoModelForSequenceClassification


def problem_type(num_labels: int, per_token: bool) -> str | None:
    """What transformers calls the kind of a task; None where every token has logits."""
    if per_token:
        return None
    return "regression" if num_labels == 1 else "single_label_classification"


def rescale_output(model: PreTrainedModel, *, mean: float, std: float) -> None:
    """Make a regression give `mean + std * y` where it gave `y`, by its last layer's weights."""
    # The last layer has another name in every family of models, but always this shape.
    outputs = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1]
    with torch.no_grad():
        outputs[-1].weight.mul_(std)
        outputs[-1].bias.mul_(std).add_(mean)


def _hub_options(source: str, revision: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {"trust_remote_code": False}
    if not Path(source).is_dir():
        options |= {"revision": revision or "main", "local_files_only": not hub_reachable()}
    return options


@contextmanager
def quiet() -> Iterator[None]:
    """No loading report and no bars: that a classification layer is new is what we expect."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


@dataclass(frozen=True)
class BackboneWeights:
    """A classifier as plain arrays, which travel through the object store: no disk is shared.

    Attributes:
        config: The configuration of transformers as a dictionary, with `model_type`.
        arrays: The state dict, float32.
        per_token: Whether the model has a question-answering layer, and not a classification layer.
    """

    config: dict[str, Any]
    arrays: dict[str, np.ndarray]
    per_token: bool = False

    @classmethod
    def of(cls, model: PreTrainedModel) -> "BackboneWeights":
        """The weights of a model on the CPU, which share its memory."""
        arrays = {name: t.numpy() for name, t in model.state_dict().items()}
        return cls(model.config.to_dict(), arrays, has_token_logits(model))

    def fingerprint(self) -> str:
        """A hash of all weights; of BERT-base it takes 0.4 s, so once."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return hash_contents(chain.from_iterable(sorted(self.arrays.items())))

    def build(self) -> PreTrainedModel:
        """The model again; its weights are copies."""
        options = dict(self.config)
        config = AutoConfig.for_model(options.pop("model_type"), **options)
        model: PreTrainedModel = auto_model(self.per_token).from_config(config)
        model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in self.arrays.items()})
        return model


class Backbone:
    """A frozen encoder with its own classifier, ready for packed forward passes.

    Args:
        model: A transformers sequence classifier or question-answering model; it is moved and cast
            in place.
        device: Where to compute.
        dtype: The dtype of the encoder, bf16 or fp32; pooler and classifier compute in fp32.
        layers: The layers whose hidden states are kept, ascending; 0 is the embeddings. None keeps
            all. The forward pass goes through all layers in any case, up to BERT's own logits.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        device: torch.device,
        dtype: torch.dtype,
        layers: tuple[int, ...] | None = None,
    ):
        cast_encoder(model, device=device, dtype=dtype)
        compute_in_fp32(model)
        self.model = model.eval().requires_grad_(False)
        self.device = device
        self.dtype = dtype
        all_layers, self.hidden_size = hidden_shape(model.config)
        self.layers = tuple(range(all_layers)) if layers is None else layers
        self.num_layers = len(self.layers)
        self.micro_batch_tokens = MICRO_BATCH_TOKENS[device.type]
        self.max_padding = MAX_PADDING_ON[device.type]

    @torch.inference_mode()
    def forward_packed(
        self, input_ids_T: np.ndarray, token_type_ids_T: np.ndarray, lengths_B: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states of the layers that are kept and the classifier's logits, in one pass.

        Examples of like length run together, padded; what comes back holds no padding.

        Args:
            input_ids_T: The token ids of all examples, one example after another, int [T].
            token_type_ids_T: The token types, int [T]; ignored by encoders without token types.
            lengths_B: The number of tokens of each example, int64 [B], ascending.

        Returns:
            Hidden states [T, L, D] in the backbone's dtype and logits in fp32, [B, C] or [T, 2],
            on its device.
        """
        num_tokens = int(lengths_B.sum())
        hidden_TLD = torch.empty(
            (num_tokens, self.num_layers, self.hidden_size), dtype=self.dtype, device=self.device
        )
        logits = []
        first = 0
        runs = micro_batches(
            lengths_B, max_tokens=self.micro_batch_tokens, max_padding=self.max_padding
        )
        for run in runs:
            lengths = lengths_B[run]
            last = first + int(lengths.sum())
            mask = np.arange(lengths[-1]) < lengths[:, None]  # [b, S]
            with attention_of_any_shape(self.device):
                output = self.model(
                    output_hidden_states=list(self.layers),
                    **self.padded_inputs(
                        mask, input_ids_T[first:last], token_type_ids_T[first:last]
                    ),
                )
            # Indices from the host: a mask on the device would make a GPU wait at every layer.
            real_t = None if mask.all() else real_positions(mask, self.device)
            for place, layer in enumerate(self.layers):
                # Those of layers that were not asked for are None, or are there all the same in
                # older versions of transformers: their places are the numbers of the layers.
                states = output.hidden_states[layer].flatten(0, 1)
                hidden_TLD[first:last, place] = states if real_t is None else states[real_t]
            logits.append(model_logits(output, real_t))
            first = last
        return hidden_TLD, torch.cat(logits)

    def padded_inputs(
        self, mask_bS: np.ndarray, input_ids_T: np.ndarray, token_type_ids_T: np.ndarray
    ) -> Mapping[str, torch.Tensor]:
        """The arguments of a forward pass, on the backbone's device: see `padded_inputs`."""
        config = self.model.config
        return padded_inputs(config, mask_bS, input_ids_T, token_type_ids_T, self.device)


def padded_inputs(
    config: Any,
    mask_bS: np.ndarray,
    input_ids_T: np.ndarray,
    token_type_ids_T: np.ndarray,
    device: torch.device,
) -> dict[str, torch.Tensor]:
    """The arguments of a forward pass for packed examples: int64 [b, S] each.

    Args:
        config: The configuration of the encoder: the id of padding, and whether it reads token
            types.
        mask_bS: Where the real tokens are, bool.
        input_ids_T: The token ids of the examples, one example after another.
        token_type_ids_T: The token types, ignored by encoders without token types.
        device: Where the forward pass is computed.
    """
    # The encoder's own id of padding, and not any: RoBERTa derives positions from it.
    input_ids = np.full(mask_bS.shape, config.pad_token_id or 0, dtype=np.int64)
    input_ids[mask_bS] = input_ids_T
    arrays = {"input_ids": input_ids, "attention_mask": mask_bS.astype(np.int64)}
    if getattr(config, "type_vocab_size", 0) > 1:
        arrays["token_type_ids"] = np.zeros(mask_bS.shape, dtype=np.int64)
        arrays["token_type_ids"][mask_bS] = token_type_ids_T
    return {
        name: torch.from_numpy(array).to(device, non_blocking=True)
        for name, array in arrays.items()
    }


def real_positions(mask_bS: np.ndarray, device: torch.device) -> torch.Tensor:
    """Where the real tokens are, one padded row after another: int64 [T]."""
    return torch.from_numpy(np.flatnonzero(mask_bS)).to(device, non_blocking=True)


def weight_bytes(config: Any, *, per_token: bool) -> int:
    """The bytes of a classifier's fp32 weights, known before they are loaded."""
    with explained(f"backbone={config.name_or_path}"), torch.device("meta"):
        model = auto_model(per_token).from_config(config)
    return 4 * sum(tensor.numel() for tensor in model.state_dict().values())


def micro_batches(
    lengths: np.ndarray, *, max_tokens: int, max_padding: float = MAX_PADDING
) -> list[slice]:
    """Cut ascending lengths into runs for one padded forward pass each.

    A run ends where one more example would bring its padding above `max_padding` of its real
    tokens, or its padded size above `max_tokens` (a single example may pass that).

    Args:
        lengths: The number of tokens of each example, int64 [B], ascending.
        max_tokens: The most tokens of a run, padding included.
        max_padding: The most padding of a run, as a share of its real tokens.
    """
    runs: list[slice] = []
    first, real = 0, 0
    for i, length in enumerate(lengths.tolist()):
        padded = (i + 1 - first) * length
        if i > first and (
            padded > max_tokens or padded - real - length > max_padding * (real + length)
        ):
            runs.append(slice(first, i))
            first, real = i, 0
        real += length
    if len(lengths):
        runs.append(slice(first, len(lengths)))
    return runs
