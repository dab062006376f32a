"""The settings by group: every key below the top level, its type, its default and its meaning.

The text of `--help` is generated from these models. Nothing here reads files or imports anything
heavy, so that a mistake in the settings is reported at once, before torch and Ray are loaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bertvision_stream.settings.checks import check_cache, check_head, check_planned
from bertvision_stream.settings.problems import Problem, raise_problems
from bertvision_stream.settings.types import (
    AtLeastOne,
    Auto,
    Bytes,
    Codec,
    Columns,
    Epochs,
    Fraction,
    Fractions,
    Layers,
    MaxLength,
    NoLabel,
    NotNegative,
    NumGpus,
    Positive,
    PositiveBytes,
    Precision,
    Seeds,
    UserPath,
)


def default_means(meaning: str) -> dict[str, Any]:
    """Tells `--help` what a default of None stands for."""
    return {"unset": meaning}


class SettingsGroup(BaseModel):
    """A group of settings that cannot be changed, takes no unknown key and converts no type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def problems(self) -> Iterable[Problem]:
        """What is wrong with the combination of values, each of which is right by itself."""
        return ()

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        raise_problems([*self.problems()])
        return self


class BackboneSettings(SettingsGroup):
    """The encoder that is fine-tuned, then frozen."""

    name: UserPath | None = Field(
        default=None,
        description="Hub id, local folder, or `minilm`; `backbone=NAME` is short for this key.",
        json_schema_extra=default_means("minilm for demo, else bert-base-uncased"),
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of a hub id.")
    dtype: Precision = Field(
        default="auto",
        description="Precision of the frozen forward pass; auto is bf16 where it is fast.",
    )


class DataSettings(SettingsGroup):
    """Where the examples come from and how much of them is used."""

    path: UserPath | None = Field(
        default=None,
        description="Local folder laid out like the hub's; for `custom` a csv, jsonl or parquet "
        "file, or a folder of them.",
        json_schema_extra=default_means("the hub"),
    )
    train_fraction: Fraction | None = Field(
        default=None,
        description="Share of the training examples to use.",
        json_schema_extra=default_means("1.0; 0.1 to search on mnli, qnli, qqp or sst2"),
    )
    max_length: MaxLength | None = Field(
        default=None,
        description="Limit of tokens in an example, special tokens included.",
        json_schema_extra=default_means("per task"),
    )
    stride: AtLeastOne | None = Field(
        default=None,
        description="For `squad_v2`: context tokens that neighbouring windows of a long context "
        "share.",
        json_schema_extra=default_means("a third of data.max_length, 128 at most"),
    )
    text_columns: Columns | None = Field(
        default=None,
        description="For `custom`: the column, or the pair of columns, that holds the text.",
    )
    label_column: str | None = Field(
        default=None, description="For `custom`: the column that holds the labels."
    )
    no_label: NoLabel = Field(
        default="refuse",
        description="For `custom`: what to do with rows whose label is -1, -100 or another sign "
        "that there is none.",
    )


class FinetuneSettings(SettingsGroup):
    """Partial fine-tuning of the backbone before it is frozen."""

    epochs: NotNegative = Field(
        default=1.0, description="May be a fraction such as 0.3; 0 uses the backbone as it is."
    )
    lr: Positive | None = Field(
        default=None,
        description="Peak learning rate.",
        json_schema_extra=default_means("per task; 1e-4 for minilm"),
    )
    batch_size: AtLeastOne | None = Field(
        default=None, description="Examples in a step.", json_schema_extra=default_means("per task")
    )
    reuse: bool = Field(
        default=True,
        description="Take a finished fine-tuning with the same inputs instead of a new one.",
    )
    num_workers: AtLeastOne = Field(
        default=1, description="Ray Train workers that share each step."
    )


class ExtractSettings(SettingsGroup):
    """The actors that turn tokens into hidden states."""

    num_extractors: AtLeastOne | Auto = Field(default="auto", description="Number of extractors.")
    num_gpus: NumGpus | Auto = Field(default="auto", description="GPUs of each extractor.")
    block_tokens: Annotated[int, Field(ge=64)] | Auto = Field(
        default="auto",
        description="Most tokens in a block, the unit that is extracted, sent and cached.",
    )
    codec: Codec = Field(
        default="bf16",
        description="How a block's hidden states are stored; int8 halves bf16's bytes.",
    )
    layers: Literal["all"] | Layers = Field(
        default="all",
        description="Layers whose hidden states are kept, moved and cached; heads read these "
        "alone, and the last of them where they read the last layer.",
    )


class StreamSettings(SettingsGroup):
    """Memory that hidden states may take in the object store."""

    budget: PositiveBytes | Auto = Field(
        default="auto",
        description="Most bytes of hidden states at once: in flight, delivered and cached.",
    )
    cache: Bytes | Auto = Field(
        default="auto",
        description="Most bytes kept between epochs, part of the budget; 0 keeps none.",
    )

    def problems(self) -> Iterable[Problem]:
        return check_cache(self)


class HeadSettings(SettingsGroup):
    """The small trainable module on the hidden states."""

    kind: Literal["adapter_pooler", "scalar_mix", "mean_layers", "cls"] = Field(
        default="adapter_pooler",
        description="Architecture; the next four keys are for adapter_pooler.",
    )
    adapter_dim: AtLeastOne = Field(
        default=16, description="Width that each layer is projected to."
    )
    share_layers: bool = Field(
        default=True, description="One projection for all layers, or one for each."
    )
    skip: Literal["last", "mix", "none"] = Field(
        default="last",
        description="Residual added to the adapters: the last layer, a learned mix of all, none.",
    )
    pool: Literal["mean", "cls", "attention", "flatten"] = Field(
        default="mean",
        description="How tokens are pooled (squad_v2 pools none); flatten is BERTVision's "
        "position-wise layer.",
    )
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Dropout before the last linear layer."
    )
    start: Literal["auto", "bert", "new"] = Field(
        default="auto",
        description="Whether the head begins as BERT's own classifier, to whose logits it adds its "
        "own, or anew; auto is bert where that classifier is trained.",
    )

    def problems(self) -> Iterable[Problem]:
        return check_head(self)


class TrainSettings(SettingsGroup):
    """Training of the head on streamed hidden states."""

    epochs: AtLeastOne = Field(default=5, description="Passes over the training examples.")
    lr: Positive = Field(default=2e-3, description="Peak learning rate.")
    batch_size: AtLeastOne | None = Field(
        default=None, description="Examples in a step.", json_schema_extra=default_means("per task")
    )
    weight_decay: NotNegative = Field(default=0.01, description="AdamW's weight decay.")
    warmup_ratio: float = Field(
        default=0.1, ge=0, lt=1, description="Share of the steps in which the learning rate rises."
    )
    patience: AtLeastOne | None = Field(
        default=None,
        description="Stop after so many epochs without a better validation loss.",
        json_schema_extra=default_means("never stop early"),
    )
    precision: Precision = Field(
        default="auto",
        description="Precision of the head's products; the weights are fp32 in any case.",
    )
    stack_heads: bool = Field(
        default=True,
        description="Compute heads of equal shape together: faster, and equal to one by one but "
        "for rounding.",
    )
    num_trainers: AtLeastOne = Field(
        default=1, description="Actors that the heads are spread over."
    )
    num_gpus: NumGpus | Auto = Field(default="auto", description="GPUs of each trainer.")


class SearchSettings(SettingsGroup):
    """Hyperparameter search with Ray Tune."""

    num_trials: AtLeastOne = Field(default=20, description="Number of trials.")
    searcher: Literal["hyperopt", "optuna", "random"] = Field(
        default="hyperopt", description="What proposes the trials."
    )
    scheduler: Literal["asha", "fifo"] = Field(
        default="asha",
        description="Whether poor trials are stopped early (asha) or none is (fifo).",
    )
    max_concurrent: AtLeastOne | Auto = Field(
        default="auto", description="Trials that run at once."
    )
    target: Literal["head", "backbone"] = Field(
        default="head",
        description="What is searched: the head, or the fine-tuning of the backbone.",
    )
    space: dict[str, Any] = Field(
        default_factory=dict,
        description="Keys to vary, added to the default ones: search.space.KEY=[8,16] lists "
        "values; 0..0.3 is a range, both ends included; log:1e-4..1e-2 a logarithmic one; null "
        "leaves KEY out, as does setting it, KEY=VALUE. KEY is seed (of a head's initialisation), "
        "a key of head, or train.lr, .weight_decay, .warmup_ratio, .batch_size; with "
        "search.target=backbone seed or finetune.lr, .epochs, .batch_size.",
        json_schema_extra=default_means(
            "train.lr=log:0.0001..0.01, head.adapter_dim=[8,16,32,64,128,256], seed=1..2000; for a "
            "backbone finetune.lr from half to 5 times its default, "
            "finetune.epochs=[0.5,1.0,2.0,3.0], seed=1..2000"
        ),
    )


class PlanSettings(SettingsGroup):
    """The cluster that `mode=plan` plans for, where it is another than the one at hand."""

    extractors: AtLeastOne | Auto = Field(
        default="auto",
        description="Extractors of the planned cluster, each with a device of its own; auto: "
        "those that a run here would start.",
    )
    tokens_per_second: Positive | None = Field(
        default=None,
        description="Tokens that one extractor makes in a second; nothing is measured then.",
        json_schema_extra=default_means("measured here"),
    )
    head_tokens_per_second: Positive | None = Field(
        default=None,
        description="Tokens that one trainer trains on in a second, with all its heads.",
        json_schema_extra=default_means(
            "measured here; unknown where plan.tokens_per_second is given"
        ),
    )
    heads: AtLeastOne = Field(
        default=1, description="Heads on each trainer, as of a search, when its speed is measured."
    )
    nodes: AtLeastOne | Auto = Field(
        default="auto", description="Nodes of the planned cluster; auto: those at hand."
    )
    network_gbps: Positive = Field(
        default=25.0, description="Gigabits a second of each node's network link."
    )
    store: PositiveBytes | Auto = Field(
        default="auto",
        description="Bytes of each node's object store; auto: as on this machine.",
    )
    layers: AtLeastOne | None = Field(
        default=None,
        description="Encoder layers of a backbone that is not at hand.",
        json_schema_extra=default_means("the backbone's"),
    )
    hidden_size: Annotated[int, Field(ge=8)] | None = Field(
        default=None,
        description="Width of its hidden states.",
        json_schema_extra=default_means("the backbone's"),
    )

    def problems(self) -> Iterable[Problem]:
        return check_planned(self)


class EvaluateSettings(SettingsGroup):
    """Evaluation of BERT, the head and the two together."""

    ensemble: Literal["mean", "max"] = Field(
        default="mean",
        description="How the two are combined: mean of probabilities, or larger of the two.",
    )


class ExportSettings(SettingsGroup):
    """The trained head as a transformers model, in `model/`."""

    backbone: Literal["refer", "inside"] = Field(
        default="refer",
        description="Whether model/ refers to the fine-tuned backbone, or holds a copy of it and "
        "needs no other folder.",
    )


class PredictSettings(SettingsGroup):
    """Scoring new rows with a finished run."""

    source: Literal["head", "bert", "ensemble"] = Field(
        default="head", description="Whose predictions go into files for GLUE's leaderboard."
    )


class RaySettings(SettingsGroup):
    """The Ray cluster."""

    address: str | None = Field(
        default=None,
        description="Cluster to join; `auto` joins a running one.",
        json_schema_extra=default_means("start a local cluster, or join the job's"),
    )


class StudySettings(SettingsGroup):
    """`mode=study`: how much data, and how much fine-tuning, is enough."""

    fractions: Fractions | None = Field(
        default=None,
        description="Shares of the training examples; each lies inside the larger ones.",
        json_schema_extra=default_means("data.train_fraction alone"),
    )
    finetune_epochs: Epochs | None = Field(
        default=None,
        description="Amounts of fine-tuning; 0 takes the backbone as it is.",
        json_schema_extra=default_means("finetune.epochs alone"),
    )
    seeds: Seeds | None = Field(
        default=None,
        description="Each draws its own examples and seeds fine-tuning and heads.",
        json_schema_extra=default_means("seed alone"),
    )
