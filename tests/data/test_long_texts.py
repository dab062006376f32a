"""Tokens of texts of any length are those of one call of the tokenizer, which cuts by itself."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from bertvision_stream.data.splits import Split
from bertvision_stream.data.tokenize import tokenize
from bertvision_stream.data.tokens import batches_of_texts

SPECIALS = ["[CLS]", "[SEP]", "[UNK]"]
SENTENCE = "ab cad, abba dacca! bad cab abc"


def wordpiece() -> PreTrainedTokenizerFast:
    pieces = ["a", "b", "ab", "##a", "##b", "##c", "##ab", "cad", "!", ","]
    words = ["[PAD]", "[MASK]", *SPECIALS, *pieces]
    return BertTokenizerFast(vocab={word: i for i, word in enumerate(words)})


def byte_level() -> PreTrainedTokenizerFast:
    """As RoBERTa's: two separators between the texts, and no token types."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [SENTENCE],
        trainers.BpeTrainer(
            vocab_size=280, initial_alphabet=alphabet, special_tokens=SPECIALS, show_progress=False
        ),
    )
    ids = [(token, tokenizer.token_to_id(token)) for token in SPECIALS]
    tokenizer.post_processor = processors.RobertaProcessing(ids[1], ids[0])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token="[CLS]")
    fast.model_input_names = ["input_ids", "attention_mask"]
    return fast


def unigram() -> PreTrainedTokenizerFast:
    """As XLNet's: special tokens at the end, with a type of their own."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=40, unk_token="[UNK]", special_tokens=SPECIALS, show_progress=False
    )
    tokenizer.train_from_iterator([SENTENCE], trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in SPECIALS]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A:0 [SEP]:0 [CLS]:2",
        pair="$A:0 [SEP]:0 $B:1 [SEP]:1 [CLS]:2",
        special_tokens=ids,
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token="[CLS]")


def plain() -> PreTrainedTokenizerFast:
    """Without special tokens, and with several tokens for a single letter."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Replace("a", "a b a")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def from_the_left() -> PreTrainedTokenizerFast:
    tokenizer = wordpiece()
    tokenizer.truncation_side = "left"
    return tokenizer


TEXTS = (
    "",
    " ",
    "a",
    SENTENCE,
    SENTENCE * 9,
    "abc" * 70,
    "a[SEP]b",
    "\u4e2da\u0301\n" * 40,
    "a" * 13,
)


@pytest.mark.parametrize("make", [wordpiece, byte_level, unigram, plain, from_the_left])
@pytest.mark.parametrize("num_texts", [1, 2])
@pytest.mark.parametrize("max_length", [8, 15, 64])
def test_tokens_are_those_of_the_tokenizers_own_cut(make, num_texts: int, max_length: int):
    tokenizer = make()
    rows = list(product(TEXTS, repeat=num_texts))
    store = tokenize(Split("train", rows, np.zeros(len(rows))), tokenizer, max_length)
    columns = [list(column) for column in zip(*rows, strict=True)]
    expected = tokenizer(*columns, truncation="longest_first", max_length=max_length)
    types = expected.get("token_type_ids", [[0] * len(ids) for ids in expected["input_ids"]])
    for i in range(len(rows)):
        assert store.tokens(i).tolist() == expected["input_ids"][i], rows[i]
        found = store.token_type_ids[store.offsets[i] : store.offsets[i + 1]]
        assert found.tolist() == types[i], rows[i]
    assert store.num_truncated == sum(bool(row.overflowing) for row in expected.encodings)


@pytest.mark.parametrize("max_length", [8, 9, 12, 13])
def test_the_longer_text_is_cut_first_as_the_tokenizer_does(max_length: int):
    tokenizer = wordpiece()
    rows = [("a " * first, "b " * second) for first, second in product(range(16), repeat=2)]
    store = tokenize(Split("train", rows, np.zeros(len(rows))), tokenizer, max_length)
    columns = [list(column) for column in zip(*rows, strict=True)]
    expected = tokenizer(*columns, truncation="longest_first", max_length=max_length)
    assert [store.tokens(i).tolist() for i in range(len(rows))] == expected["input_ids"]


def test_two_books_in_one_row_are_cut_to_the_limit():
    # One call of the tokenizer would make 2 * 300 pieces of these and combine each with each.
    row = ("ab " * 40_000, "a " * 40_000)
    store = tokenize(Split("train", [row], np.zeros(1)), wordpiece(), max_length=128)
    ids = store.tokens(0)
    assert (len(ids), store.num_truncated) == (128, 1)
    # The limit leaves 125: the second text has one more, as of two equal ones.
    assert store.token_type_ids.tolist() == [0] * (1 + 62 + 1) + [1] * (63 + 1)


def test_batches_hold_every_row_in_order_and_few_characters():
    rows = [("x" * length,) for length in (5, 900_000, 200_000, 3, 3_000_000, 0, 7)]
    batches = list(batches_of_texts(rows, max_rows=2))
    assert [row for batch in batches for row in batch] == rows
    assert [len(batch) for batch in batches] == [2, 2, 1, 2]
    assert list(batches_of_texts([], max_rows=2)) == []
