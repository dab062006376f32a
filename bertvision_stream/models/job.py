"""A task on its way to training: tokenized, then planned, then with a backbone ready to freeze.

Each stage holds all of the stage before, so that whoever is handed one asks for nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from bertvision_stream.data.splits import TaskData
from bertvision_stream.data.tokens import TokenStore
from bertvision_stream.heads.shape import HeadShape, hidden_shape, kept_layers
from bertvision_stream.models.backbone import BackboneWeights
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.settings.tasks import Task
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.stream.placement import ClusterResources, Placement
from bertvision_stream.stream.plan import StreamPlan, describe_budget


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenizedTask:
    """The rows of a task as tokens of its backbone.

    Attributes:
        settings: The settings of the task.
        data: The rows of the task.
        source: The folder or the hub id that the backbone comes from.
        config: The configuration of the backbone, as transformers has it.
        tokenizer: The tokenizer of the backbone.
        stores: The tokens of every split, by its name.
    """

    settings: TaskSettings
    data: TaskData
    source: str
    config: Any
    tokenizer: PreTrainedTokenizerBase
    stores: Mapping[str, TokenStore]

    @property
    def task(self) -> Task:
        """What is learned."""
        return self.data.task

    @property
    def shape(self) -> HeadShape:
        """What a head reads and writes."""
        settings = self.settings
        return HeadShape.of(
            self.config, self.task, settings.data.max_length, settings.extract.layers
        )

    @property
    def layers(self) -> tuple[int, ...]:
        """The numbers of the layers that heads read, ascending; 0 is the embeddings."""
        num_layers, _ = hidden_shape(self.config)
        return kept_layers(num_layers, self.settings.extract.layers)


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedJob(TokenizedTask):
    """A task whose blocks, budget and actors are decided.

    Attributes:
        cluster: The resources that there are to run on.
        placement: How many actors there are, and what each of them gets of the resources.
        store_bytes: The room for blocks in the object stores of all nodes together.
        block_tokens: The most tokens of a block.
        corpus: The tokens, labels and blocks.
        plan: What is streamed, and within which limits.
    """

    cluster: ClusterResources
    placement: Placement
    store_bytes: int
    block_tokens: int
    corpus: Corpus
    plan: StreamPlan

    @property
    def memory(self) -> str:
        """One line for people: what was decided about memory."""
        codec = self.settings.extract.codec
        return describe_budget(self.plan, store_bytes=self.store_bytes, codec=codec)


@dataclass(frozen=True)
class PreparedBackbone:
    """A classifier ready to be frozen.

    Attributes:
        weights: The parameters of the classifier.
        folder: The folder on disk that holds it; None where `finetune.epochs=0` left the source as
            it was.
        seconds: What fine-tuning took in this run; 0 where it was found again.
        classifier_trained: Whether its classification layer means anything.
        scores: Its metrics by validation split, measured after the fine-tuning; empty without one.
    """

    weights: BackboneWeights
    folder: Path | None
    seconds: float
    classifier_trained: bool
    scores: Mapping[str, Mapping[str, float]]

    @property
    def num_parameters(self) -> int:
        """The number of all parameters."""
        return sum(array.size for array in self.weights.arrays.values())


@dataclass(frozen=True, kw_only=True, eq=False)
class Job(PlannedJob):
    """A task that is ready to have heads trained on it.

    Attributes:
        backbone: The fine-tuned backbone, to be frozen. For a search over backbones it is the
            backbone as it came, as each trial fine-tunes its own.
    """

    backbone: PreparedBackbone

    @property
    def resident_bytes(self) -> int:
        """The bytes of weights and tokens in the object stores, of which every node has a copy."""
        arrays = self.backbone.weights.arrays.values()
        tokens = sum(store.nbytes for store in self.stores.values())
        return self.cluster.num_nodes * (sum(array.nbytes for array in arrays) + tokens)

    @property
    def facts(self) -> dict[str, Any]:
        """What must be the same for an interrupted run to go on: JSON, kept in its checkpoint."""
        return {
            "block_tokens": self.block_tokens,
            "corpus": self.corpus.fingerprint(),
            "backbone": self.backbone.weights.fingerprint(),
        }
