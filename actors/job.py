"""All that a task needs before heads are trained: tokens, blocks, cluster, backbone, budget."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from actors.cluster import ClusterResources, Placement, cluster_resources, connect, place
from actors.prepare import PreparedBackbone, prepare_backbone
from actors.service import plan_stream
from bertvision_stream.backbone import hidden_shape, load_config, load_tokenizer, weight_bytes
from bertvision_stream.codecs import BlockFormat
from bertvision_stream.corpus import Corpus
from bertvision_stream.data import TaskData
from bertvision_stream.heads import HeadShape
from bertvision_stream.plan import StreamPlan
from bertvision_stream.preparation import (
    choose_block_tokens,
    describe_budget,
    resume_facts,
    tokenize_splits,
)
from bertvision_stream.settings import TaskSettings


@dataclass(frozen=True)
class Job:
    """A task that is ready to have heads trained on it.

    Attributes:
        settings: Of the task.
        data: Its rows.
        source: Where the backbone comes from.
        tokenizer: The backbone's.
        cluster: What there is to run on.
        placement: Who gets what.
        corpus: Tokens, labels and blocks.
        block_tokens: Most tokens of a block.
        plan: What is streamed, within which limits.
        shape: What heads read and write.
        backbone: Fine-tuned, to be frozen; as it is for a search over backbones.
        store_bytes: Room for blocks in the object stores.
    """

    settings: TaskSettings
    data: TaskData
    source: str
    tokenizer: PreTrainedTokenizerBase
    cluster: ClusterResources
    placement: Placement
    corpus: Corpus
    block_tokens: int
    plan: StreamPlan
    shape: HeadShape
    backbone: PreparedBackbone
    store_bytes: int

    @property
    def facts(self) -> dict[str, Any]:
        """What must be the same for an interrupted run to go on."""
        return resume_facts(self.corpus, self.backbone.weights.fingerprint(), self.block_tokens)

    @property
    def memory(self) -> str:
        """What was decided about memory, for people."""
        codec = self.settings.extract.codec
        return describe_budget(self.plan, store_bytes=self.store_bytes, codec=codec)


def prepare_job(
    settings: TaskSettings,
    data: TaskData,
    source: str,
    *,
    block_tokens: int | None,
    reuse: bool,
    show_progress: bool,
    say: Callable[[str], None],
) -> Job:
    """Tokenize, join or start the cluster, decide about memory, fine-tune the backbone.

    Args:
        settings: Of the task.
        data: Its rows.
        source: Where the backbone comes from.
        block_tokens: Of the run that is gone on with; None decides anew.
        reuse: Whether an earlier fine-tuning with the same inputs will do.
        show_progress: Whether to draw bars.
        say: Prints a line.

    Raises:
        ConfigError: Settings, backbone and cluster do not fit together.
        BackboneError: The backbone cannot be loaded.
        StreamError: The fine-tuning failed.
    """
    tokenizer = load_tokenizer(source, settings.backbone.revision)
    config = load_config(source, settings.backbone.revision)
    num_layers, hidden_size = hidden_shape(config)
    stores = tokenize_splits(data, tokenizer, settings.data, config, say)
    connect(settings.ray.address)
    cluster = cluster_resources()
    placement = place(cluster, settings)
    task = data.task
    block_format = BlockFormat(
        num_layers, hidden_size, task.num_labels, settings.extract.codec, task.per_token
    )
    weights_bytes = weight_bytes(config, per_token=task.per_token)
    resident_bytes = weights_bytes + sum(store.nbytes for store in stores.values())
    store_bytes = cluster.store_room(resident_bytes)
    if block_tokens is None:
        block_tokens = choose_block_tokens(
            settings,
            stores,
            block_format,
            store_bytes=store_bytes,
            num_extractors=placement.num_extractors,
            on_gpu=placement.extractor_gpus > 0,
        )
    corpus = Corpus.pack(stores, block_tokens=block_tokens, seed=settings.seed)
    plan = plan_stream(
        settings,
        corpus,
        block_format,
        num_extractors=placement.num_extractors,
        num_nodes=cluster.num_nodes,
        store_bytes=store_bytes,
    )
    backbone = prepare_backbone(
        _fine_tuned_now(settings),
        task,
        corpus,
        tokenizer,
        source,
        cluster,
        reuse=reuse,
        show_progress=show_progress,
        say=say,
    )
    shape = HeadShape(
        num_layers, hidden_size, task.num_labels, settings.data.max_length, task.per_token
    )
    return Job(
        settings=settings,
        data=data,
        source=source,
        tokenizer=tokenizer,
        cluster=cluster,
        placement=placement,
        corpus=corpus,
        block_tokens=block_tokens,
        plan=plan,
        shape=shape,
        backbone=backbone,
        store_bytes=store_bytes,
    )


def _fine_tuned_now(settings: TaskSettings) -> TaskSettings:
    """With no fine-tuning before a search over backbones, where each trial does its own."""
    if settings.mode != "search" or settings.search.target != "backbone":
        return settings
    finetune = settings.finetune.model_copy(update={"epochs": 0.0})
    return settings.model_copy(update={"finetune": finetune})
