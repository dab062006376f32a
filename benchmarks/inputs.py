"""What every benchmark starts from: a task's corpus and a backbone, as a run would have them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from actors.cluster import cluster_resources
from actors.engine import run_stream
from bertvision_stream.data.load import load_task_data
from bertvision_stream.data.splits import TaskData
from bertvision_stream.data.tokenize import tokens_of
from bertvision_stream.heads.shape import HeadShape, hidden_shape
from bertvision_stream.models.backbone import (
    Backbone,
    BackboneWeights,
    load_classifier,
    load_tokenizer,
)
from bertvision_stream.models.extract import BlockExtractor
from bertvision_stream.models.sources import locate
from bertvision_stream.settings.command_line import load_settings
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.stream.blocks import BlockFormat
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.stream.placement import plan_placement
from bertvision_stream.stream.plan import StreamPlan, plan_stream
from bertvision_stream.training.checkpoint import Checkpoint
from bertvision_stream.training.outcome import StreamOutcome
from bertvision_stream.utils.devices import pick_dtype

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Inputs:
    """A task, packed, and the classifier whose encoder is streamed."""

    settings: TaskSettings
    data: TaskData
    corpus: Corpus
    weights: BackboneWeights
    shape: HeadShape
    block_format: BlockFormat

    @property
    def epoch_bytes(self) -> int:
        """Bytes of all blocks."""
        return sum(
            self.block_format.block_bytes(block.num_tokens, block.num_examples)
            for split in self.corpus.blocks.values()
            for block in split
        )


def load_inputs(keys: Sequence[str], *, block_tokens: int = 2048) -> Inputs:
    """Rows, tokens, blocks and backbone for `key=value` settings of one task.

    The backbone is taken as it is: name a fine-tuned one with `backbone=FOLDER`.
    """
    everything = load_settings(keys)
    settings = everything.for_task(everything.tasks[0])
    data = load_task_data(settings)
    source = locate(settings.backbone.name)
    tokenizer = load_tokenizer(source)
    splits = (data.train, *data.validation)
    stores = {
        s.name: tokens_of(s, tokenizer, settings.data, evaluated=s is not data.train)
        for s in splits
    }
    num_labels, per_token = data.task.num_labels, data.task.per_token
    model, _ = load_classifier(
        source, num_labels=num_labels, per_token=per_token, seed=settings.seed
    )
    num_layers, hidden_size = hidden_shape(model.config)
    codec = settings.extract.codec
    return Inputs(
        settings=settings,
        data=data,
        corpus=Corpus.pack(stores, block_tokens=block_tokens, seed=settings.seed),
        weights=BackboneWeights.of(model),
        shape=HeadShape(num_layers, hidden_size, num_labels, settings.data.max_length, per_token),
        block_format=BlockFormat(num_layers, hidden_size, num_labels, codec, per_token),
    )


def make_extractor(inputs: Inputs) -> BlockExtractor:
    """An extractor in this process, as those of a stream on a CPU."""
    dtype = pick_dtype(inputs.settings.backbone.dtype, CPU)
    backbone = Backbone(inputs.weights.build(), device=CPU, dtype=dtype)
    return BlockExtractor(backbone, inputs.corpus, inputs.settings.extract.codec)


def run_streamed(
    inputs: Inputs,
    *,
    cache: int | None = None,
    keep: Callable[[Checkpoint], None] = lambda checkpoint: None,
) -> tuple[StreamPlan, StreamOutcome]:
    """One stream with one head on the cluster that we are connected to, as a run would have it.

    Args:
        inputs: What is streamed.
        cache: Bytes, in the place of `stream.cache`.
        keep: Called after each epoch.
    """
    settings = inputs.settings
    if cache is not None:
        stream = settings.stream.model_copy(update={"cache": cache})
        settings = settings.model_copy(update={"stream": stream})
    cluster = cluster_resources()
    placement = plan_placement(cluster, settings)
    plan = plan_stream(
        settings,
        inputs.corpus,
        inputs.block_format,
        num_extractors=placement.num_extractors,
        num_nodes=cluster.num_nodes,
        store_bytes=cluster.free_store_bytes(0),
    )
    outcome = run_stream(
        plan,
        placement,
        settings=settings,
        task=inputs.data.task,
        corpus=inputs.corpus,
        weights=inputs.weights,
        heads={"head": settings},
        shape=inputs.shape,
        show_progress=False,
        say=lambda text: None,
        keep=keep,
    )
    return plan, outcome
