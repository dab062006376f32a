"""Windows and labels against a brute force, on contexts chosen to be awkward."""

from __future__ import annotations

import numpy as np
import pytest
from span_rows import Row, byte_level, generated_rows, row, split_of, wordpiece
from transformers import PreTrainedTokenizerFast

from bertvision_stream.data.windows import SpanLayout, WindowStore, tokenize_windows

LONG = " ".join(f"battle {i} of the norman {'x' * (i % 7)}" for i in range(700))[:20_000]

AWKWARD = [
    row("repeated, the first", "where?", "in france, in france, in france", "france"),
    row("repeated, the last", "where?", "in france, in france, in france", "france", starts=(25,)),
    row("several golds", "who?", "the duke rollo of normandy", "rollo", "the duke rollo", "duke"),
    row("accents and umlauts", "wer?", "die größe über café señor naïve", "über café", "größe"),
    row("other scripts", "who?", "日本語 and 日本 語 🙂🙂 end", "本語", "日本 語", "🙂🙂"),
    row("combining accent", "who?", "cafe\u0301 rollo", "rollo"),
    row("inside a word", "who?", "the unnormandyable norman", "normandy"),
    row("a part of a word that is known", "who?", "the normandy of france", "man"),
    row("between words", "who?", "rollo-of-normandy.", "of-norman"),
    row("blank at both ends", "who?", "the  rollo  of", " rollo "),
    row("only a symbol", "how much?", "it cost $ and 5 %", "%"),
    row("the whole context", "what?", "the battle", "the battle"),
    row("dropped by the tokenizer", "what?", "rollo \u200b\x07 won", "\u200b\x07 won"),
    row("no answer", "who?", "in france rollo won the battle"),
    row("empty question", "", "in france rollo won the battle", "rollo"),
    row("blank question", "   ", "in france rollo won the battle", "rollo"),
    row("question with blanks before it", " \n\t who won?", "in france rollo won", "rollo"),
    row("long question", "who won the battle " * 60, "in france rollo won " * 9, "rollo"),
    row("long word as a question", "q" * 99, "in france rollo won " * 9, "rollo"),
    row("20,000 characters, at the start", "where?", LONG, LONG[:6]),
    row("20,000 characters, in the middle", "where?", LONG, LONG[9_990:10_010], starts=(9_990,)),
    row("20,000 characters, at the end", "where?", LONG, LONG[-9:], starts=(len(LONG) - 9,)),
    row("20,000 characters, longer than a window", "where?", LONG, LONG[3_000:4_000]),
    *(  # an answer that slides over the borders of windows
        row(f"at the border {i}", "who?", f"{'x ' * i}rollo won{' y' * 60}", "rollo won")
        for i in range(30)
    ),
]
TOKENIZERS = {"wordpiece": wordpiece, "byte level": byte_level}
SIZES = [(384, 128), (64, 21), (40, 12)]

each_tokenizer = pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
each_size = pytest.mark.parametrize(("max_length", "stride"), SIZES)


def windows_of(
    rows: list[Row], tokenizer: PreTrainedTokenizerFast, max_length: int, stride: int
) -> tuple[WindowStore, SpanLayout]:
    store = tokenize_windows(
        split_of(rows), tokenizer, max_length=max_length, stride=stride, keep_layout=True
    )
    assert store.layout is not None
    return store, store.layout


def context_tokens(tokenizer: PreTrainedTokenizerFast, context: str) -> list[tuple[int, int, int]]:
    """Id, first character and one past the last of every token of a context."""
    encoded = tokenizer(
        context, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return [(token, start, end) for token, (start, end) in pairs]


@each_tokenizer
@each_size
def test_windows_and_labels_are_those_of_a_brute_force(make, max_length: int, stride: int):
    tokenizer = make()
    store, layout = windows_of(AWKWARD, tokenizer, max_length, stride)
    special = tokenizer.num_special_tokens_to_add(pair=True)
    num_unlabelled = 0
    for q, given in enumerate(AWKWARD):
        everything = context_tokens(tokenizer, given["context"])
        answers = given["answers"]
        held: list[int] = []
        if answers["text"]:
            first = answers["answer_start"][0]
            last = first + len(answers["text"][0])
            held = [i for i, (_, a, b) in enumerate(everything) if b > first and a < last]
        at, labelled = 0, False
        windows = range(layout.question_offsets[q], layout.question_offsets[q + 1])
        for w in windows:
            ids = store.tokens(w).tolist()
            begin, end = layout.context[w].tolist()
            count = end - begin
            question_tokens = len(ids) - count - special
            room = max_length - special - question_tokens
            # The window: the next piece of the context, `stride` tokens of which were there before.
            assert len(ids) <= max_length
            assert ids[begin:end] == [token for token, _, _ in everything[at : at + room]]
            spans = layout.char_spans[store.offsets[w] : store.offsets[w + 1]].tolist()
            assert [tuple(s) for s in spans[begin:end]] == [
                (a, b) for _, a, b in everything[at : at + room]
            ]
            assert not np.any(spans[:begin])
            assert not np.any(spans[end:])
            assert ids[layout.nulls[w]] == tokenizer.cls_token_id
            assert ids.count(tokenizer.cls_token_id) == 1
            # Its labels.
            whole = bool(held) and held[0] >= at and held[-1] < at + count
            expected = (
                [begin + held[0] - at, begin + held[-1] - at] if whole else [layout.nulls[w]] * 2
            )
            assert store.labels[w].tolist() == expected, given["id"]
            labelled |= whole
            if w < windows[-1]:
                assert count == room
                assert room - stride >= (max_length - special - stride) // 2
                at += room - stride
        assert at + count == len(everything), "the last window ends where the context ends"
        num_unlabelled += bool(answers["text"]) and not labelled
    assert store.num_unlabelled == num_unlabelled
    assert layout.question_offsets[-1] == store.num_examples == len(store.labels)
    assert store.num_questions == len(AWKWARD)


@each_tokenizer
def test_the_labels_give_the_answer_back(make):
    """Up to what a token holds more than that, and blanks and symbols that no token holds."""
    store, layout = windows_of(AWKWARD, make(), 384, 128)
    seen = 0
    for q, given in enumerate(AWKWARD):
        for w in range(layout.question_offsets[q], layout.question_offsets[q + 1]):
            first, last = store.labels[w] + store.offsets[w]
            if store.labels[w, 0] != layout.nulls[w]:
                text = given["context"][layout.char_spans[first, 0] : layout.char_spans[last, 1]]
                assert given["answers"]["text"][0].strip(" \u200b\x07") in text
                assert len(text) <= len(given["answers"]["text"][0]) + 20
                seen += 1
    assert seen > 40


def test_an_answer_inside_a_word_is_labelled_with_the_tokens_that_hold_it():
    tokenizer = wordpiece()
    rows = [row("a", "who?", "the normandy of france", "man"), AWKWARD[6]]
    store, _ = windows_of(rows, tokenizer, 384, 128)
    tokens = tokenizer.convert_ids_to_tokens(store.tokens(0).tolist())
    first, last = store.labels[0]
    assert tokens[first : last + 1] == ["norman"]
    tokens = tokenizer.convert_ids_to_tokens(store.tokens(1).tolist())
    first, last = store.labels[1]
    assert tokens[first : last + 1] == [f"##{letter}" for letter in "norman"] + ["##dy"]


def test_long_questions_are_cut_and_counted():
    rows = [row("short", "who?", "rollo won"), *AWKWARD[17:19]]
    store, layout = windows_of(rows, wordpiece(), 64, 21)
    limit = (64 - 3 - 21) // 2
    assert (store.num_truncated, store.max_question_tokens) == (2, limit)
    lengths = store.lengths - np.diff(layout.context).ravel() - 3
    assert lengths.max() <= limit
    assert "; 2 questions were cut to 20 tokens" in store.describe(64)


def test_what_no_window_holds_is_counted_and_told():
    store, _ = windows_of([AWKWARD[22], AWKWARD[13]], wordpiece(), 64, 21)
    assert store.num_unlabelled == 1
    assert store.describe(64).endswith(
        "; 1 answers are in no window as a whole, and are taken for none"
    )


def test_a_short_context_is_one_window_without_notes():
    store, layout = windows_of(AWKWARD[:1], wordpiece(), 64, 21)
    assert store.describe(64) == "1 questions in 1 windows of at most 64 tokens, 13 tokens"
    assert layout.question_offsets.tolist() == [0, 1]


def test_training_keeps_no_texts():
    split = split_of(generated_rows(20, seed=0), "train")
    bare, full = (
        tokenize_windows(split, wordpiece(), max_length=64, stride=21, keep_layout=keep)
        for keep in (False, True)
    )
    assert bare.layout is None
    assert full.layout is not None
    np.testing.assert_array_equal(bare.labels, full.labels)
    assert bare.nbytes + sum(a.nbytes for a in full.layout.arrays) == full.nbytes


def test_token_types_are_the_tokenizers():
    store, layout = windows_of(AWKWARD[:3], wordpiece(), 384, 128)
    for w in range(store.num_examples):
        types = store.token_type_ids[store.offsets[w] : store.offsets[w + 1]]
        assert types.tolist() == [int(i >= layout.context[w, 0]) for i in range(len(types))]
    store, _ = windows_of(AWKWARD[:3], byte_level(), 384, 128)
    assert not store.token_type_ids.any()
