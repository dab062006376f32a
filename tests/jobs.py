"""Jobs made for tests, and ears for what a run says."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

from tiny import tiny_tokenizer

from bertvision_stream.data.splits import Split, TaskData
from bertvision_stream.heads.shape import HeadShape
from bertvision_stream.models.backbone import BackboneWeights
from bertvision_stream.models.job import Job, PreparedBackbone
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.settings.tasks import Task
from bertvision_stream.stream.blocks import TRAIN
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.stream.placement import ClusterResources, Placement
from bertvision_stream.stream.plan import StreamPlan
from bertvision_stream.utils.log import log


def make_job(
    settings: TaskSettings,
    task: Task,
    corpus: Corpus,
    weights: BackboneWeights,
    shape: HeadShape,
    *,
    plan: StreamPlan,
    placement: Placement,
    cluster: ClusterResources | None = None,
) -> Job:
    """A job on a corpus that is there, with no text behind its tokens."""
    splits = {
        name: Split(name, [("",)] * store.num_examples, store.labels)
        for name, store in corpus.stores.items()
    }
    cluster = cluster or ClusterResources(num_cpus=2, num_gpus=0, num_nodes=1, store_bytes=2**28)
    return Job(
        settings=settings.model_copy(
            update={"data": settings.data.model_copy(update={"max_length": shape.max_length})}
        ),
        data=TaskData(task, splits.pop(TRAIN), tuple(splits.values()), ()),
        source="",
        config=SimpleNamespace(
            num_hidden_layers=shape.num_layers - 1, hidden_size=shape.hidden_size
        ),
        tokenizer=tiny_tokenizer(),
        stores=corpus.stores,
        cluster=cluster,
        placement=placement,
        store_bytes=cluster.free_store_bytes(0),
        block_tokens=512,
        corpus=corpus,
        plan=plan,
        backbone=PreparedBackbone(weights, None, 0.0, True, {}),
    )


class _Ear(logging.Handler):
    def __init__(self, hear: Callable[[str], object]):
        super().__init__()
        self._hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        self._hear(record.getMessage())

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        raise  # what a test raises while it listens


@contextmanager
def listening(hear: Callable[[str], object]) -> Iterator[None]:
    """While it lasts, `hear` is called with each line that a run says."""
    ear, level = _Ear(hear), log.level
    log.addHandler(ear)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(ear)
        log.setLevel(level)
