"""All that a task needs before heads are trained: tokens, blocks, cluster, backbone, budget."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from actors.cluster import cluster_resources, connect
from bertvision_stream.data.splits import TaskData
from bertvision_stream.data.tokenize import tokenize_splits
from bertvision_stream.heads.shape import HeadShape, hidden_shape
from bertvision_stream.models.backbone import load_config, load_tokenizer, weight_bytes
from bertvision_stream.models.prepare import PreparedBackbone, prepare_backbone
from bertvision_stream.modes.inputs import TaskInputs
from bertvision_stream.modes.run_folder import RunFolder
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.stream.blocks import BlockFormat
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.stream.placement import ClusterResources, Placement, plan_placement
from bertvision_stream.stream.plan import (
    StreamPlan,
    choose_block_tokens,
    describe_budget,
    plan_stream,
)
from bertvision_stream.training.checkpoint import Checkpoint
from bertvision_stream.utils.errors import ConfigError
from bertvision_stream.utils.log import log, show_progress


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
    placement = plan_placement(cluster, settings)
    task = data.task
    block_format = BlockFormat(
        num_layers, hidden_size, task.num_labels, settings.extract.codec, task.per_token
    )
    weights_bytes = weight_bytes(config, per_token=task.per_token)
    resident_bytes = weights_bytes + sum(store.nbytes for store in stores.values())
    store_bytes = cluster.free_store_bytes(resident_bytes)
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


def resume_facts(corpus: Corpus, weights_fingerprint: str, block_tokens: int) -> dict[str, Any]:
    """What a checkpoint says of the run, so that it is not taken up with anything else."""
    return {
        "block_tokens": block_tokens,
        "corpus": corpus.fingerprint(),
        "backbone": weights_fingerprint,
    }


def check_unchanged(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare the `resume_facts` of an interrupted run with those of now.

    Raises:
        ConfigError: Going on would not give the numbers of an uninterrupted run.
    """
    causes = {
        "corpus": "the rows, the tokenizer or the blocks are not those that it began with",
        "backbone": "the fine-tuned backbone is not the one that it began with",
    }
    changed = [cause for key, cause in causes.items() if then[key] != now[key]]
    if changed:
        raise ConfigError(
            f"resume=true cannot go on with the interrupted run: {'; '.join(changed)}. Leave "
            f"resume out to begin anew."
        )


def _prepare(
    inputs: TaskInputs,
    folder: RunFolder,
    checkpoint: Checkpoint | None = None,
    *,
    reuse: bool = False,
) -> Job:
    """All that is needed before heads are trained; of a run that is gone on with, the same."""
    settings = inputs.settings
    return prepare_job(
        settings,
        inputs.data,
        inputs.source,
        block_tokens=checkpoint.facts["run"]["block_tokens"] if checkpoint else None,
        reuse=settings.finetune.reuse or reuse or checkpoint is not None,
        show_progress=show_progress(),
        say=log.info,
    )
