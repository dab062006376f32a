"""The configuration of a head with its backbone as one transformers model."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from bertvision_stream.heads.shape import hidden_shape, kept_layers
from bertvision_stream.models.sources import check_sizes
from bertvision_stream.settings.settings import HeadSettings


class AdapterPoolerConfig(PreTrainedConfig):
    """What `AdapterPoolerForSequenceClassification` and `...ForQuestionAnswering` are built from.

    Label names, their number and `problem_type` stand where they stand for every transformers
    classifier; where answers are spans, the two labels are the outputs, start and end.

    Args:
        head: The settings `head.*` by name.
        max_tokens: The most tokens of an example in training, special tokens included; the number
            of positions of `head.pool=flatten`.
        backbone_config: The configuration of the encoder with its own classifier, or a dictionary
            of it.
        backbone_source: Where the backbone's weights are: a hub id, `minilm`, or a folder, one that
            begins with a dot being relative to the model's. None: with the head's.
        backbone_revision: The branch, tag or commit of a hub id.
        backbone_fingerprint: A hash of the weights of the backbone that the head was trained on;
            of its encoder's alone where its classifier is untrained.
        task: The name of the task that the head was trained on.
        seed: Initialises the head, and the backbone's classifier where its source has none.
        kwargs: Arguments of `PreTrainedConfig`; `layers`, the numbers of the layers that the head
            reads, ascending (0 is the embeddings; None, as in models of older versions: all);
            `target_mean` and `target_std`, mean and standard deviation of the training labels of a
            regression, see `HeadShape`; and `weights_fingerprint`, a hash of the weights that were
            exported with this configuration, which models of earlier versions lack.
    """

    model_type = "adapter_pooler"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012
    keys_to_ignore_at_inference = [  # noqa: RUF012
        "backbone_logits",
        "backbone_start_logits",
        "backbone_end_logits",
    ]

    def __init__(
        self,
        *,
        head: dict[str, Any] | None = None,
        max_tokens: int = 128,
        backbone_config: PreTrainedConfig | dict[str, Any] | None = None,
        backbone_source: str | None = None,
        backbone_revision: str | None = None,
        backbone_fingerprint: str | None = None,
        task: str | None = None,
        seed: int = 0,
        **kwargs: Any,
    ):
        check_sizes({"max_tokens": max_tokens} | kwargs, "the model")
        if not isinstance(backbone_config, PreTrainedConfig):
            options = dict(backbone_config or {"model_type": "bert"})
            check_sizes(options, "the backbone of the model")
            backbone_config = AutoConfig.for_model(options.pop("model_type"), **options)
        # Heads that were exported before `start` was a setting begin anew.
        self.head = HeadSettings.model_validate({"start": "new", **(head or {})}).model_dump()
        self.max_tokens = max_tokens
        self.backbone_config = backbone_config
        self.backbone_source = backbone_source
        self.backbone_revision = backbone_revision
        self.backbone_fingerprint = backbone_fingerprint
        self.weights_fingerprint: str | None = kwargs.pop("weights_fingerprint", None)
        self.target_mean: float = kwargs.pop("target_mean", 0.0)
        self.target_std: float = kwargs.pop("target_std", 1.0)
        self.task = task
        self.seed = seed
        self.layers: list[int] | None = kwargs.pop("layers", None)
        super().__init__(**kwargs)
        # The backbone's own classifier has the same outputs.
        self.backbone_config.id2label = self.id2label
        self.backbone_config.label2id = self.label2id
        self.backbone_config.problem_type = self.problem_type

    @property
    def layers_read(self) -> tuple[int, ...]:
        """The numbers of the layers whose hidden states the head reads, ascending."""
        num_layers, _ = hidden_shape(self.backbone_config)
        return kept_layers(num_layers, "all" if self.layers is None else tuple(self.layers))

    @property
    def num_outputs(self) -> int:
        """The number of logits."""
        return len(self.id2label or {})


AutoConfig.register(AdapterPoolerConfig.model_type, AdapterPoolerConfig)
