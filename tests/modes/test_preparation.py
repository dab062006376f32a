"""What is decided before a stream starts, and the words for it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from jobs import listening
from tiny import random_lengths, task_settings, tiny_classifier, tiny_tokenizer, token_store

from bertvision_stream.data.splits import Split, TaskData
from bertvision_stream.data.tokenize import tokenize_splits
from bertvision_stream.data.tokens import TokenStore
from bertvision_stream.models.backbone import BackboneWeights
from bertvision_stream.modes.preparation import check_unchanged, with_start
from bertvision_stream.settings.groups import StreamSettings
from bertvision_stream.settings.settings import ResolvedData
from bertvision_stream.settings.tasks import TASKS
from bertvision_stream.stream.blocks import TRAIN, BlockFormat, BlockKey
from bertvision_stream.stream.budget import plan_budget
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.stream.plan import StreamPlan, choose_block_tokens, describe_budget
from bertvision_stream.utils.errors import ConfigError

MIB = 2**20


def split_of(name: str, *texts: str) -> Split:
    labels = np.zeros(len(texts), dtype=np.int64)
    return Split(name=name, texts=[(text,) for text in texts], labels=labels)


def limit(max_length: int) -> ResolvedData:
    return task_settings("cola", f"data.max_length={max_length}").data


def test_splits_are_tokenized_and_counted():
    data = TaskData(
        TASKS["cola"], split_of(TRAIN, "w1 w2", "w3"), (split_of("dev", "w1 " * 9),), ()
    )
    said: list[str] = []
    with listening(said.append):
        stores = tokenize_splits(data, tiny_tokenizer(), limit(8), 64)
    assert {name: store.lengths.tolist() for name, store in stores.items()} == {
        TRAIN: [4, 3],
        "dev": [8],
    }
    assert said == ["train: 2 examples, 7 tokens", "dev: 1 examples, 8 tokens; 1 were cut to 8"]


def test_examples_longer_than_the_positions_of_the_backbone():
    data = TaskData(TASKS["cola"], split_of(TRAIN, "w1"), (), ())
    expected = "data.max_length=33 is more than the 32 positions of the backbone"
    with pytest.raises(ConfigError, match=f"^{expected}$"):
        tokenize_splits(data, tiny_tokenizer(), limit(33), 32)
    assert TRAIN in tokenize_splits(data, tiny_tokenizer(), limit(32), 32)


def stores_of(num_train: int = 200, longest: int = 90) -> dict[str, TokenStore]:
    lengths = random_lengths(num_train)
    return {
        TRAIN: token_store(lengths, np.zeros(num_train, dtype=np.int64)),
        "dev": token_store([longest], np.zeros(1, dtype=np.int64)),
    }


def block_tokens_of(*overrides: str, **stores: Any) -> int:
    return choose_block_tokens(
        task_settings("cola", *overrides),
        stores_of(**stores),
        BlockFormat(7, 384, 2, "bf16"),  # 5.25 KiB a token
        store_bytes=100 * MIB,
        num_extractors=2,  # 8 blocks in flight
        on_gpu=False,
    )


def test_a_block_size_that_is_asked_for_is_taken_if_each_example_fits():
    assert block_tokens_of("extract.block_tokens=90") == 90
    expected = "extract.block_tokens=89 is less than the longest example's 90"
    with pytest.raises(ConfigError, match=f"^{expected}$"):
        block_tokens_of("extract.block_tokens=89")


@pytest.mark.parametrize(
    ("overrides", "stores", "expected"),
    [
        pytest.param((), {}, 512, id="few rows"),
        pytest.param((), {"longest": 600}, 600, id="a long example"),
        pytest.param((), {"num_train": 20_000}, 70 * MIB // 8 // 5376, id="a share of the store"),
        pytest.param(
            ("stream.budget=50MiB",), {"num_train": 20_000}, 50 * MIB // 8 // 5376, id="a budget"
        ),
        pytest.param(("stream.budget=1GiB",), {"num_train": 20_000}, 4096, id="a large budget"),
    ],
)
def test_block_sizes_that_suit_rows_and_memory(
    overrides: tuple[str, ...], stores: dict[str, int], expected: int
):
    assert block_tokens_of(*overrides, **stores) == expected


def test_windows_of_a_large_bert_stream_within_a_small_budget():
    """A window of 384 tokens, 25 layers and 1,024 numbers takes 19 MiB; two need 38."""
    lengths = np.full(100, 384)
    stores = {split: token_store(lengths, np.zeros((100, 2), np.int64)) for split in (TRAIN, "dev")}
    block_format = BlockFormat(25, 1024, 2, "bf16", per_token=True)
    window_bytes = block_format.block_bytes(384, 1)
    assert window_bytes == 384 * (25 * 1024 * 2 + 2 * 4)
    for budget, asked, in_block in ((2 * window_bytes, 384, 384), (64 * MIB, "auto", 512)):
        options = (f"stream.budget={budget}", f"extract.block_tokens={asked}")
        settings = task_settings("cola", *options)
        block_tokens = choose_block_tokens(
            settings, stores, block_format, store_bytes=2**32, num_extractors=2, on_gpu=False
        )
        assert block_tokens == in_block
        corpus = Corpus.pack(stores, block_tokens=block_tokens, seed=0)
        assert {b.num_examples for blocks in corpus.blocks.values() for b in blocks} == {1}
        sizes = {
            block.key: block_format.block_bytes(block.num_tokens, block.num_examples)
            for blocks in corpus.blocks.values()
            for block in blocks
        }
        plan_budget(
            sizes,
            corpus.validation_keys,
            num_train=100,
            seed=0,
            settings=StreamSettings(budget=budget, cache=0),
            store_bytes=2**32,
            num_nodes=1,
            num_extractors=2,
        )


def plan_of(*, cache: int, num_epochs: int = 5) -> StreamPlan:
    """60 blocks of 1 MiB and 200 tokens."""
    validation = tuple(BlockKey("dev", i) for i in range(10))
    keys = [*(BlockKey(TRAIN, i) for i in range(50)), *validation]
    sizes = dict.fromkeys(keys, MIB)
    budget = plan_budget(
        sizes,
        validation,
        num_train=50,
        seed=1,
        settings=StreamSettings(cache=cache),
        store_bytes=1000 * MIB,
        num_nodes=1,
        num_extractors=2,
    )
    tokens = dict.fromkeys(keys, 200)
    return StreamPlan(1, num_epochs, False, 50, validation, sizes, tokens, budget)


DELIVERS = (
    "memory: an epoch delivers 60.0 MiB in 60 blocks; Ray's object store has room for 1,000 MiB, "
)
ALL = "the budget is 68.0 MiB, of which 60.0 MiB (100% of an epoch) are kept for later epochs"
SOME = "the budget is 23.0 MiB, of which 15.0 MiB (25% of an epoch) are kept for later epochs"
NONE = "the budget is 8.0 MiB, of which 0 B (0% of an epoch) are kept for later epochs"
# 15 of 60 blocks in four of five epochs.
SPARED = ": 20% of all blocks need no forward pass, which spares 12,000 tokens"


@pytest.mark.parametrize(
    ("plan", "codec", "expected"),
    [
        (
            plan_of(cache=60 * MIB),
            "bf16",
            f"{ALL}: 80% of all blocks need no forward pass, which spares 48,000 tokens",
        ),
        (
            plan_of(cache=15 * MIB),
            "bf16",
            f"{SOME}{SPARED}; extract.codec=int8 would halve the bytes of an epoch",
        ),
        (
            plan_of(cache=15 * MIB),
            "fp32",
            f"{SOME}{SPARED}; extract.codec=int8 would quarter the bytes of an epoch",
        ),
        (plan_of(cache=15 * MIB), "int8", SOME + SPARED),
        (plan_of(cache=15 * MIB, num_epochs=1), "bf16", SOME),
        (plan_of(cache=0), "int8", NONE),
    ],
    ids=["all", "some", "some in fp32", "some in int8", "one epoch", "none"],
)
def test_the_decision_about_memory_in_words(plan: StreamPlan, codec: str, expected: str):
    assert describe_budget(plan, store_bytes=1000 * MIB, codec=codec) == DELIVERS + expected


def corpus_of(change: Callable[[TokenStore], object] = lambda store: None, **pack: int) -> Corpus:
    store = token_store(random_lengths(60), np.arange(60) % 2)
    change(store)
    dev = token_store(random_lengths(20, seed=1), np.zeros(20, dtype=np.int64))
    return Corpus.pack({TRAIN: store, "dev": dev}, **({"block_tokens": 256, "seed": 1} | pack))


def test_what_a_resumed_run_must_find_unchanged():
    first = corpus_of().fingerprint()
    assert corpus_of().fingerprint() == first
    others = [
        corpus_of(lambda store: store.input_ids.__setitem__(9, 1)),
        corpus_of(lambda store: store.token_type_ids.__setitem__(0, 1)),
        corpus_of(lambda store: store.labels.__setitem__(3, 0)),
        corpus_of(block_tokens=200),
        corpus_of(seed=2),
        Corpus.pack({TRAIN: corpus_of().stores[TRAIN]}, block_tokens=256, seed=1),
    ]
    prints = [corpus.fingerprint() for corpus in others]
    assert len({first, *prints}) == len(others) + 1
    weights = [BackboneWeights.of(tiny_classifier(seed=seed)) for seed in (0, 0, 1)]
    assert weights[0].fingerprint() == weights[1].fingerprint() != weights[2].fingerprint()
    renamed = dataclasses.replace(
        weights[0], arrays={f"x.{name}": array for name, array in weights[0].arrays.items()}
    )
    assert renamed.fingerprint() != weights[0].fingerprint()


FACTS = {
    "block_tokens": 256,
    "corpus": corpus_of().fingerprint(),
    "backbone": "weights",
}  # `Job.facts`


@pytest.mark.parametrize(
    ("changed", "causes"),
    [
        (["corpus"], "the rows, the tokenizer or the blocks are not those that it began with"),
        (["backbone"], "the fine-tuned backbone is not the one that it began with"),
        (
            ["backbone", "corpus"],
            "the rows, the tokenizer or the blocks are not those that it began with; the "
            "fine-tuned backbone is not the one that it began with",
        ),
    ],
)
def test_a_run_that_would_go_on_with_something_else(changed: list[str], causes: str):
    now = FACTS | dict.fromkeys(changed, "other")
    expected = (
        f"resume=true cannot go on with the interrupted run: {causes}. Leave resume out to begin "
        "anew."
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        check_unchanged(json.loads(json.dumps(FACTS)), now)


def test_a_run_that_goes_on_with_the_same():
    assert FACTS.keys() == {"corpus", "backbone", "block_tokens"}
    check_unchanged(json.loads(json.dumps(FACTS)), FACTS)


# --- what a head begins as


@pytest.mark.parametrize(
    ("given", "trained", "decided"),
    [
        ("auto", True, "bert"),
        ("auto", False, "new"),
        ("new", True, "new"),
        ("new", False, "new"),
        ("bert", True, "bert"),
    ],
)
def test_what_a_head_begins_as(given: str, trained: bool, decided: str):
    settings = task_settings("cola", f"head.start={given}", "head.skip=mix")
    head = with_start(settings, trained=trained).head
    assert (head.start, head.skip) == (decided, "mix")


@pytest.mark.parametrize(
    "keys",
    [("head.start=bert",), ("mode=search", "search.space.head.start=[bert,new]")],
    ids=" ".join,
)
def test_no_head_begins_as_an_untrained_classifier(keys: tuple[str, ...]):
    settings = task_settings("cola", *keys)
    with_start(settings, trained=True)
    with pytest.raises(ConfigError, match=r"would begin with chance\. Fine-tune it"):
        with_start(settings, trained=False)
