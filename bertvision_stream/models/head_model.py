"""A head with its backbone as one transformers model: from a text's tokens to logits, without Ray.

Modules that import transformers' models are imported where they are used: importing transformers
may itself import this module.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.modeling_outputs import (
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
)

from bertvision_stream.heads.head import Head
from bertvision_stream.heads.shape import HeadShape, hidden_shape
from bertvision_stream.models.head_config import AdapterPoolerConfig
from bertvision_stream.models.last_layers import compute_in_fp32
from bertvision_stream.settings.settings import HeadSettings
from bertvision_stream.utils.errors import BackboneError

# Arguments of `from_pretrained` that say where files come from.
_DOWNLOAD = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")

PADDING_LOGIT = -10_000.0
"""Start and end logit of padding: no share in a softmax, and finite, so that sums stay numbers."""


class AdapterPoolerModel(PreTrainedModel):
    """A backbone with its own classifier, and a head on the hidden states of its layers.

    The head's weights stay in fp32 whatever the dtype of the backbone, as in training, and so do
    those of the backbone's own pooler and classifier.
    """

    config_class = AdapterPoolerConfig
    config: AdapterPoolerConfig
    backbone_class: ClassVar[type]
    """The auto class of the backbone."""
    per_token: ClassVar[bool] = False
    """Whether every token has logits, and not every example."""
    _keep_in_fp32_modules_strict: set[str] | list[str] | None = ["head"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: AdapterPoolerConfig):
        super().__init__(config)
        self.layers_read = config.layers_read
        shape = HeadShape(
            len(self.layers_read),
            hidden_shape(config.backbone_config)[1],
            config.num_outputs,
            config.max_tokens,
            self.per_token,
            config.target_mean,
            config.target_std,
        )
        self.backbone = self.backbone_class.from_config(config.backbone_config)  # type: ignore[attr-defined]
        self.head = Head(HeadSettings.model_validate(config.head), shape, seed=config.seed)
        self.post_init()
        in_fp32 = {f"backbone.{name}" for name in compute_in_fp32(self.backbone)}
        # Now that `post_init` has added those of the backbone's class.
        self._keep_in_fp32_modules_strict = {*(self._keep_in_fp32_modules_strict or ()), *in_fp32}

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing to do: a head initialises itself, and so does the backbone."""

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def run_backbone(
        self,
        attention_mask: torch.Tensor | None,
        token_type_ids: torch.Tensor | None,
        *,
        all_states: bool | None,
        **inputs: Any,
    ) -> tuple[Any, tuple[torch.Tensor, ...]]:
        """What the backbone returns for padded inputs, and the hidden states that the head reads.

        With `all_states` what it returns has the hidden states of all layers.
        """
        if getattr(self.config.backbone_config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = token_type_ids
        output = self.backbone(
            attention_mask=attention_mask,
            output_hidden_states=True if all_states else list(self.layers_read),
            return_dict=True,
            **inputs,
        )
        return output, tuple(output.hidden_states[layer] for layer in self.layers_read)

    def wants_dict(self, return_dict: bool | None) -> bool:
        """Whether `forward` returns an object, and not a tuple."""
        return bool(self.config.return_dict if return_dict is None else return_dict)

    def run_head(
        self,
        states: tuple[torch.Tensor, ...],
        output: Any,
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Logits of the head in fp32: [B, C], or packed [T, C] where every token has logits.

        Args:
            states: Hidden states [B, S, D] of every layer that the head reads, padded.
            output: What the backbone returned, its own logits among it.
            attention_mask: [B, S], 1 at real tokens; None takes all for real.

        Raises:
            ValueError: An example has no token, or more than the head has positions.
        """
        from bertvision_stream.models.backbone import model_logits

        real_BS = real_tokens(states[0], attention_mask)
        lengths_B = real_BS.sum(dim=1)
        self._check_lengths(lengths_B)
        hidden_TLD = torch.stack([layer_BSD[real_BS] for layer_BSD in states], dim=1)
        # `model.half()` casts the head as well, and its formula wants fp32.
        weights = {name: weight.float() for name, weight in self.head.named_parameters()}
        bert_logits = model_logits(output, real_BS.flatten())
        return torch.func.functional_call(self.head, weights, (hidden_TLD, lengths_B, bert_logits))

    def _check_lengths(self, lengths_B: torch.Tensor) -> None:
        shortest, longest = int(lengths_B.min()), int(lengths_B.max())
        if shortest == 0:
            raise ValueError("an example has no token: its attention_mask is 0 everywhere")
        if self.config.head["pool"] == "flatten" and longest > self.config.max_tokens:
            raise ValueError(
                f"an example has {longest} tokens, and this head has weights for "
                f"{self.config.max_tokens} positions (head.pool=flatten): truncate, as in "
                f"tokenizer(text, truncation=True)"
            )

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *model_args: Any,
        config: Any = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As for every transformers model; the backbone may be where the configuration says.

        Raises:
            BackboneError: The backbone that it refers to is gone or is another one; or weights are
                missing or damaged; or the model is one of another kind.
        """
        name = str(pretrained_model_name_or_path)
        download = {key: kwargs[key] for key in _DOWNLOAD if key in kwargs}
        if not isinstance(config, AdapterPoolerConfig):
            config = AdapterPoolerConfig.from_pretrained(config or name, **download)
        cls._check_kind(config, name)
        kwargs |= {"config": config, "output_loading_info": True, "use_safetensors": True}
        source: str | None = name
        is_checked = config.weights_fingerprint is not None and "state_dict" not in kwargs
        if config.backbone_source is not None or is_checked:
            source, kwargs = None, {k: v for k, v in kwargs.items() if k not in _DOWNLOAD}
            from bertvision_stream.models.exported_weights import load_weights

            kwargs["state_dict"] = load_weights(config, name, download, per_token=cls.per_token)
        loaded: Any = super().from_pretrained(source, *model_args, **kwargs)
        model, info = loaded
        model.config.name_or_path = model.name_or_path = name
        lacking = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
        if lacking:
            raise BackboneError(
                f"{name}: the weights do not fit the configuration; {len(lacking)} are missing or "
                f"of another shape, first {min(lacking)}"
            )
        return (model, info) if output_loading_info else model

    @classmethod
    def _check_kind(cls, config: AdapterPoolerConfig, name: str) -> None:
        """Weights of one kind may fit the other, whose outputs they would make nonsense of."""
        kinds: list[str] = config.architectures or [cls.__name__]
        if cls.__name__ not in kinds:
            auto_class = kinds[0].replace("AdapterPooler", "AutoModel")
            raise BackboneError(
                f"{name} is an {kinds[0]}, not an {cls.__name__}: load it with {auto_class}"
            )

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:  # type: ignore[override]
        """As for every transformers model: the backbone comes inside, wherever it came from.

        The weights may have been trained or cast since they were loaded: they have no fingerprint.
        """
        of_file = ("backbone_source", "backbone_revision", "weights_fingerprint")
        before = {name: getattr(self.config, name) for name in of_file}
        vars(self.config).update(dict.fromkeys(of_file))
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            vars(self.config).update(before)


def real_tokens(state_BSD: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Where the tokens are that are no padding: bool [B, S]."""
    if attention_mask is None:
        return torch.ones(state_BSD.shape[:2], dtype=torch.bool, device=state_BSD.device)
    return attention_mask.bool()


@dataclass
class AdapterPoolerOutput(SequenceClassifierOutput):
    """As every classifier's, and the logits of BERT's own classifier.

    Attributes:
        backbone_logits: [B, C], in fp32.
    """

    backbone_logits: torch.FloatTensor | None = None


class AdapterPoolerForSequenceClassification(AdapterPoolerModel):
    """Classes or a number for a text or a pair of texts."""

    backbone_class = AutoModelForSequenceClassification

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> AdapterPoolerOutput | tuple[Any, ...]:
        """Logits of padded inputs; padding takes no part in them.

        Args:
            input_ids: [B, S].
            attention_mask: [B, S], 1 at real tokens and 0 at padding; None takes all for real.
            token_type_ids: [B, S]; ignored by encoders without token types.
            labels: Class ids [B], or numbers for a regression: the loss is computed.
            output_hidden_states: Whether to return the backbone's hidden states.
            return_dict: False returns a tuple of what there is in the place of an object; None
                does as the configuration says.
            kwargs: Further arguments of the backbone.
        """
        output, states = self.run_backbone(
            attention_mask,
            token_type_ids,
            all_states=output_hidden_states,
            input_ids=input_ids,
            **kwargs,
        )
        logits: Any = self.run_head(states, output, attention_mask)
        result = AdapterPoolerOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            hidden_states=output.hidden_states if output_hidden_states else None,
            attentions=output.attentions,
            backbone_logits=output.logits,
        )
        return result if self.wants_dict(return_dict) else result.to_tuple()

    def _loss(self, logits_BC: torch.Tensor, labels_B: torch.Tensor) -> Any:
        if self.config.problem_type == "regression":
            numbers = labels_B.view(-1).to(logits_BC.dtype)
            return nn.functional.mse_loss(logits_BC.squeeze(-1), numbers)
        return nn.functional.cross_entropy(logits_BC, labels_B.view(-1))


@dataclass
class AdapterPoolerSpanOutput(QuestionAnsweringModelOutput):
    """As every question-answering model's, and the logits of BERT's own layer.

    Attributes:
        backbone_start_logits: [B, S], in fp32, also at padding.
        backbone_end_logits: [B, S], likewise.
    """

    backbone_start_logits: torch.FloatTensor | None = None
    backbone_end_logits: torch.FloatTensor | None = None


class AdapterPoolerForQuestionAnswering(AdapterPoolerModel):
    """The first and the last token of an answer; both are `[CLS]` where there is none."""

    backbone_class = AutoModelForQuestionAnswering
    per_token = True

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> AdapterPoolerSpanOutput | tuple[Any, ...]:
        """Logits of padded inputs; padding takes no part in them, and has `PADDING_LOGIT`.

        Args:
            input_ids: [B, S].
            attention_mask: [B, S], 1 at real tokens and 0 at padding; None takes all for real.
            token_type_ids: [B, S]; ignored by encoders without token types.
            start_positions: [B]; with `end_positions` the loss is computed, as transformers does:
                positions outside of an example do not count.
            end_positions: [B].
            output_hidden_states: Whether to return the backbone's hidden states.
            return_dict: False returns a tuple of what there is in the place of an object; None
                does as the configuration says.
            kwargs: Further arguments of the backbone.
        """
        output, states = self.run_backbone(
            attention_mask,
            token_type_ids,
            all_states=output_hidden_states,
            input_ids=input_ids,
            **kwargs,
        )
        logits_T2 = self.run_head(states, output, attention_mask)
        real_BS = real_tokens(states[0], attention_mask)
        logits_BS2 = logits_T2.new_full((*real_BS.shape, 2), PADDING_LOGIT)
        logits_BS2[real_BS] = logits_T2
        start: Any
        end: Any
        start, end = (logits_BS.contiguous() for logits_BS in logits_BS2.unbind(-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start, end, start_positions, end_positions)
        result = AdapterPoolerSpanOutput(
            loss=loss,
            start_logits=start,
            end_logits=end,
            hidden_states=output.hidden_states if output_hidden_states else None,
            attentions=output.attentions,
            backbone_start_logits=output.start_logits,
            backbone_end_logits=output.end_logits,
        )
        return result if self.wants_dict(return_dict) else result.to_tuple()


def model_class(*, per_token: bool) -> type[AdapterPoolerModel]:
    """The class of an exported head: of every token's logits, or of every example's."""
    return (
        AdapterPoolerForQuestionAnswering if per_token else AdapterPoolerForSequenceClassification
    )


AutoModelForSequenceClassification.register(
    AdapterPoolerConfig, AdapterPoolerForSequenceClassification
)
AutoModelForQuestionAnswering.register(AdapterPoolerConfig, AdapterPoolerForQuestionAnswering)
