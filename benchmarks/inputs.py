"""What every benchmark starts from: a task's corpus and a backbone, as a run would have them."""

from collections.abc import Sequence
from dataclasses import dataclass

from bertvision_stream.backbone import (
    BackboneWeights,
    hidden_shape,
    load_classifier,
    load_tokenizer,
)
from bertvision_stream.codecs import BlockFormat
from bertvision_stream.config import load_settings
from bertvision_stream.corpus import Corpus
from bertvision_stream.data import TaskData, load_task_data, tokenize
from bertvision_stream.heads import HeadShape
from bertvision_stream.settings import TaskSettings
from bertvision_stream.sources import locate


@dataclass(frozen=True)
class Inputs:
    """A task, packed, and the classifier whose encoder is streamed."""

    settings: TaskSettings
    data: TaskData
    corpus: Corpus
    weights: BackboneWeights
    shape: HeadShape
    block_format: BlockFormat


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
    stores = {s.name: tokenize(s, tokenizer, settings.data.max_length) for s in splits}
    model, _ = load_classifier(source, num_labels=data.task.num_labels, seed=settings.seed)
    num_layers, hidden_size = hidden_shape(model.config)
    num_labels = data.task.num_labels
    return Inputs(
        settings=settings,
        data=data,
        corpus=Corpus.pack(stores, block_tokens=block_tokens, seed=settings.seed),
        weights=BackboneWeights.of(model),
        shape=HeadShape(num_layers, hidden_size, num_labels, settings.data.max_length),
        block_format=BlockFormat(num_layers, hidden_size, num_labels, settings.extract.codec),
    )
