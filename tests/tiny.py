"""Small stand-ins that many tests share: settings, tokens, encoders of a few thousand weights."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BertTokenizerFast,
    PreTrainedModel,
)

from bertvision_stream.data.tokens import TokenStore
from bertvision_stream.settings.command_line import load_settings
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.settings.types import Codec
from bertvision_stream.stream.blocks import TRAIN, BlockKey
from bertvision_stream.stream.codecs import EncodedBlock, encode
from bertvision_stream.stream.corpus import Corpus

CPU = torch.device("cpu")
VOCAB_SIZE = 60
NUM_LAYERS = 3  # the embedding layer and two more
HIDDEN_SIZE = 16
MAX_LENGTH = 40

# Weights larger than a new model's, or else layers and examples would hardly differ.
_COMMON = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": 64, "initializer_range": 0.3}
_BERT = {
    "hidden_size": HIDDEN_SIZE,
    "num_hidden_layers": NUM_LAYERS - 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_OPTIONS: Mapping[str, Mapping[str, object]] = {
    "bert": _BERT,
    "roberta": _BERT | {"pad_token_id": 1, "type_vocab_size": 1},
    "electra": _BERT | {"embedding_size": 12},
    "distilbert": {
        "dim": HIDDEN_SIZE,
        "n_layers": NUM_LAYERS - 1,
        "n_heads": 2,
        "hidden_dim": 24,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "seq_classif_dropout": 0.0,
        "qa_dropout": 0.0,
    },
}
MODEL_TYPES = tuple(_OPTIONS)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order whatever the machine, and no fight over its cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


def run_bounded(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test that waits; one that waits for ever fails."""

    async def bounded() -> None:
        await asyncio.wait_for(test(), timeout=5)

    asyncio.run(bounded())


def task_settings(task: str = "cola", *overrides: str) -> TaskSettings:
    """Settings of one task, as the command line would give them."""
    return load_settings([f"task={task}", *overrides]).for_task(task)


def random_lengths(count: int, *, seed: int = 0, longest: int = MAX_LENGTH) -> np.ndarray:
    """Token counts, int64 [N]."""
    return np.random.default_rng(seed).integers(3, longest + 1, count)


def token_store(lengths: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> TokenStore:
    """Random tokens; the second half of each example is of type 1."""
    rng = np.random.default_rng(seed)
    lengths = np.asarray(lengths, dtype=np.int64)
    types = [np.arange(length) >= length // 2 for length in lengths]
    return TokenStore(
        input_ids=rng.integers(5, VOCAB_SIZE, lengths.sum()).astype(np.int32),
        token_type_ids=np.concatenate(types).astype(np.uint8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        labels=labels,
    )


def tiny_classifier(
    model_type: str = "bert",
    num_labels: int = 2,
    *,
    per_token: bool = False,
    seed: int = 0,
    **options: object,
) -> PreTrainedModel:
    """An untrained classifier (or one of spans) without dropout, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        merged = {**_COMMON, **_OPTIONS[model_type], "num_labels": num_labels, **options}
        config = AutoConfig.for_model(model_type, **merged)
        kind = AutoModelForQuestionAnswering if per_token else AutoModelForSequenceClassification
        return kind.from_config(config).eval()


def tiny_tokenizer() -> BertTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [f"w{i}" for i in range(VOCAB_SIZE - len(special))]
    return BertTokenizerFast(vocab={token: i for i, token in enumerate(special + words)})


def save_model(folder: Path, model_type: str = "bert", **options: object) -> PreTrainedModel:
    """Write a classifier and a tokenizer as transformers does; returns the classifier."""
    model = tiny_classifier(model_type, **options)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model


class RandomExtractor:
    """Stands for a `BlockExtractor`: hidden states made up for each example, and always the same.

    The label shifts the states, so that a head has something to learn. An example's states depend
    on its split and row alone: tests look them up without any block.
    """

    def __init__(self, corpus: Corpus, *, codec: Codec = "fp32", num_logits: int | None = None):
        self.corpus = corpus
        self.codec: Codec = codec
        is_regression = corpus.stores[TRAIN].labels.dtype.kind == "f"
        self.num_logits = num_logits or (1 if is_regression else 2)

    def hidden(self, split: str, row: int) -> torch.Tensor:
        """fp32 [S, L, D] of one example."""
        store = self.corpus.stores[split]
        generator = torch.Generator().manual_seed(row + 10_000 * (split == TRAIN))
        shape = (int(store.lengths[row]), NUM_LAYERS, HIDDEN_SIZE)
        return torch.randn(shape, generator=generator) + float(store.labels[row]) / 2

    def bert_logits(self, split: str, row: int) -> torch.Tensor:
        """fp32 [1, C] of one example."""
        return (torch.arange(self.num_logits) + float(row)).unsqueeze(0)

    def extract(self, key: BlockKey) -> EncodedBlock:
        rows = self.corpus.block(key).example_ids.tolist()
        hidden_TLD = torch.cat([self.hidden(key.split, row) for row in rows])
        logits = torch.cat([self.bert_logits(key.split, row) for row in rows])
        parts = [part.numpy() for part in encode(hidden_TLD, logits, self.codec)]
        for part in parts:
            part.flags.writeable = False  # as Ray hands them out
        return EncodedBlock(*parts)
