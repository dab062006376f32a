"""What benchmarks start from: a task's blocks and a backbone, as a run would have them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import ray
import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from actors.cluster import connect
from actors.engine import RayEngine
from bertvision_stream.models.backbone import (
    Backbone,
    BackboneWeights,
    load_classifier,
    load_tokenizer,
)
from bertvision_stream.models.extract import BlockExtractor
from bertvision_stream.models.job import Job, PreparedBackbone, TokenizedTask
from bertvision_stream.models.sources import MINILM, locate
from bertvision_stream.modes.engine import ignore_checkpoint
from bertvision_stream.modes.inputs import read_inputs
from bertvision_stream.modes.preparation import plan_job, tokenize_task
from bertvision_stream.settings.command_line import load_settings
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.settings.tasks import Task
from bertvision_stream.stream.blocks import BlockFormat, BlockKey
from bertvision_stream.stream.codecs import EncodedBlock
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.stream.placement import plan_placement
from bertvision_stream.training.checkpoint import Checkpoint
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.head_training import HeadTraining, make_training
from bertvision_stream.training.outcome import StreamOutcome
from bertvision_stream.utils.devices import pick_dtype

CPU = torch.device("cpu")
BLOCK_TOKENS = 2048
RANDOM_BACKBONE = Path("outputs/random-bert-base")


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """A task whose tokens are packed into blocks.

    Attributes:
        tokenized: The task and its tokens.
        block_tokens: The most tokens of a block.
        corpus: The tokens, labels and blocks.
        weights: The classifier whose encoder is streamed.
    """

    tokenized: TokenizedTask
    block_tokens: int
    corpus: Corpus
    weights: BackboneWeights

    @property
    def settings(self) -> TaskSettings:
        """The settings of the task."""
        return self.tokenized.settings

    @property
    def task(self) -> Task:
        """What is learned."""
        return self.tokenized.task

    @property
    def epoch_bytes(self) -> int:
        """Bytes of all blocks."""
        block_format = BlockFormat.of(self.tokenized.shape, self.settings.extract.codec)
        return sum(
            block_format.block_bytes(block.num_tokens, block.num_examples)
            for split in self.corpus.blocks.values()
            for block in split
        )


def load_inputs(keys: Sequence[str], *, block_tokens: int = BLOCK_TOKENS) -> Inputs:
    """Load rows and backbone, and make tokens and blocks.

    Args:
        keys: `key=value` settings of one task. The backbone is taken as it is: `backbone=FOLDER`
            names one that is fine-tuned.
        block_tokens: The most tokens of a block.
    """
    all_settings = load_settings(keys)
    settings = all_settings.for_task(all_settings.tasks[0])
    tokenized = tokenize_task(read_inputs(settings))
    model, _ = load_classifier(
        tokenized.source,
        num_labels=tokenized.task.num_labels,
        per_token=tokenized.task.per_token,
        seed=settings.seed,
    )
    return Inputs(
        tokenized=tokenized,
        block_tokens=block_tokens,
        corpus=Corpus.pack(tokenized.stores, block_tokens=block_tokens, seed=settings.seed),
        weights=BackboneWeights.of(model),
    )


def make_random_backbone() -> None:
    """Save a backbone with the shape of BERT-base in `RANDOM_BACKBONE`, unless it is there.

    Its weights are random, as nothing can be downloaded everywhere; products take as long as with
    those of BERT. The vocabulary is that of the uncased BERTs.
    """
    if (RANDOM_BACKBONE / "config.json").exists():
        return
    torch.manual_seed(0)
    load_tokenizer(locate(MINILM)).save_pretrained(RANDOM_BACKBONE)
    model = AutoModelForSequenceClassification.from_config(BertConfig())
    model.save_pretrained(RANDOM_BACKBONE)


def make_extractor(inputs: Inputs) -> BlockExtractor:
    """An extractor in this process, as those of a stream on a CPU."""
    dtype = pick_dtype(inputs.settings.backbone.dtype, CPU)
    backbone = Backbone(inputs.weights.build(), device=CPU, dtype=dtype)
    return BlockExtractor(backbone, inputs.corpus, inputs.settings.extract.codec)


class CountedBlocks:
    """Makes blocks in this process, counts their tokens, and may hold them for the next epoch."""

    def __init__(self, inputs: Inputs, *, hold: bool):
        self.corpus = inputs.corpus
        self.tokens = 0
        self._extractor = make_extractor(inputs)
        self._hold = hold
        self._held: dict[BlockKey, EncodedBlock] = {}

    def extract(self, key: BlockKey) -> EncodedBlock:
        if key in self._held:
            return self._held[key]
        block = self._extractor.extract(key)
        self.tokens += self.corpus.block(key).num_tokens
        if self._hold:
            self._held[key] = block
        return block


def make_head(inputs: Inputs, head: HeadJob | None = None) -> HeadTraining:
    """The training of one head in this process; None trains the one that a stream would train."""
    heads = {"head": head or HeadJob(inputs.settings)}
    return make_training(inputs.corpus, inputs.task, heads, inputs.tokenized.shape, device=CPU)


@contextmanager
def cluster() -> Iterator[None]:
    """A Ray cluster on this machine; it ends with the block, unless it was there before."""
    began_here = not ray.is_initialized()
    connect(None)
    try:
        yield
    finally:
        if began_here:
            ray.shutdown()


def make_job(inputs: Inputs, *, cache: int | None = None) -> Job:
    """Plan a run on the cluster that we are connected to.

    Args:
        inputs: What is streamed.
        cache: Bytes that replace `stream.cache`.
    """
    settings = inputs.settings
    if cache is not None:
        stream = settings.stream.model_copy(update={"cache": cache})
        settings = settings.model_copy(update={"stream": stream})
    resources = RayEngine().resources()
    planned = plan_job(
        replace(inputs.tokenized, settings=settings),
        resources,
        plan_placement(resources, settings),
        block_tokens=inputs.block_tokens,
    )
    return Job(**vars(planned), backbone=PreparedBackbone(inputs.weights, None, 0.0, True, {}))


def run_head(
    job: Job, *, on_epoch: Callable[[Checkpoint], None] = ignore_checkpoint
) -> StreamOutcome:
    """Train one head on a stream, as a run would.

    Args:
        job: What is streamed.
        on_epoch: Called after each epoch.
    """
    return RayEngine().run(job, {"head": HeadJob(job.settings)}, on_epoch=on_epoch)
