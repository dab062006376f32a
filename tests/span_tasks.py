"""A small task whose answers are spans: its windows and its settings."""

from __future__ import annotations

from span_rows import generated_rows, split_of, wordpiece
from tiny import (  # noqa: F401
    CPU,
    HIDDEN_SIZE,
    MODEL_TYPES,
    NUM_LAYERS,
    RandomExtractor,
    one_thread,
    task_settings,
    tiny_classifier,
    tiny_tokenizer,
)

from bertvision_stream.data.tokens import TokenStore
from bertvision_stream.data.windows import tokenize_windows
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.settings.tasks import TASKS
from bertvision_stream.stream.blocks import TRAIN
from bertvision_stream.stream.corpus import Corpus

SQUAD = TASKS["squad_v2"]


MAX_LENGTH, STRIDE = 40, 10


VOCAB = {"vocab_size": len(wordpiece())}


def make_corpus(num_train: int = 60, num_validation: int = 25) -> Corpus:
    counts = {TRAIN: num_train, "validation": num_validation}
    stores: dict[str, TokenStore] = {
        name: tokenize_windows(
            split_of(generated_rows(count, seed=seed), name),
            wordpiece(),
            max_length=MAX_LENGTH,
            stride=STRIDE,
            keep_layout=name != TRAIN,
        )
        for seed, (name, count) in enumerate(counts.items())
    }
    assert all(store.num_examples > counts[name] for name, store in stores.items())
    return Corpus.pack(stores, block_tokens=256, seed=1)


def settings_of(**changed: object) -> TaskSettings:
    """Options of `train`, dots and all, after those that make numbers exact."""
    exact = {"precision": "fp32", "stack_heads": "false", "lr": 0.02, "epochs": 3}
    options = {f"train.{name}": value for name, value in exact.items()} | changed
    overrides = [f"{name}={value}" for name, value in options.items()]
    return task_settings("squad_v2", "backbone=minilm", *overrides)
