"""Turns long contexts into overlapping windows of tokens, and finds the answers in them.

| part of a window | tokens |
|---|---|
| question | all of it, or the first half of what `data.stride` leaves of `data.max_length` |
| context | as much as fits beside it; neighbouring windows share `data.stride` tokens |

A window that holds every token of the answer is labelled with the first and the last of them, any
other with its `[CLS]`, which stands for "no answer here".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from bertvision_stream.data.splits import Split
from bertvision_stream.data.squad import Questions
from bertvision_stream.data.tokens import TokenStore, batches_of_texts

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerFast

_QUESTIONS_AT_A_TIME = 500


@dataclass(frozen=True, eq=False)
class SpanLayout:
    """What turns a window's tokens into text again, and the answers that are right.

    In the shapes, T counts tokens, W windows and Q questions.

    Attributes:
        char_spans: int32 [T, 2], the characters of the context that a token stands for: the first,
            and one past the last; zeros for tokens of the question and for special tokens.
        context: int32 [W, 2], where in a window the context stands: its first token, and one past
            its last; equal where the window has no token of it.
        nulls: int32 [W], the position of `[CLS]` in each window.
        question_offsets: int64 [Q + 1]; question `q` has the windows from `question_offsets[q]` up
            to, but not including, `question_offsets[q + 1]`.
        ids: The names of the questions.
        contexts: The contexts of the questions.
        golds: The texts of the gold answers of each question; empty for one without an answer.
    """

    char_spans: np.ndarray
    context: np.ndarray
    nulls: np.ndarray
    question_offsets: np.ndarray
    ids: list[str]
    contexts: list[str]
    golds: list[tuple[str, ...]]

    @property
    def num_questions(self) -> int:
        return len(self.ids)

    @property
    def has_answer(self) -> np.ndarray:
        """Whether each question has an answer, bool [Q]."""
        return np.array([bool(gold) for gold in self.golds])

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """All that the layout holds as arrays, to be counted and hashed."""
        texts = chain(self.ids, dict.fromkeys(self.contexts), *self.golds)
        text = np.frombuffer("\0".join(texts).encode(), dtype=np.uint8)
        return self.char_spans, self.context, self.nulls, self.question_offsets, text


@dataclass(frozen=True, eq=False, kw_only=True)
class WindowStore(TokenStore):
    """The token ids of all windows of a split; an "example" of the base class is a window.

    Attributes:
        labels: int64 [W, 2], the positions in the window of the answer's first and last token.
        num_truncated: How many questions were longer than `max_question_tokens` and were cut.
        num_questions: The number of questions; windows stand in the order of their questions.
        max_question_tokens: The largest number of tokens of a question.
        num_unlabelled: How many questions have an answer that no window holds as a whole.
        question_W: int64 [W], the number of each window's question.
        layout: What an evaluation needs; None where nothing is evaluated.
    """

    num_questions: int
    max_question_tokens: int
    num_unlabelled: int
    question_W: np.ndarray
    layout: SpanLayout | None

    def rows_of(self, examples: np.ndarray) -> np.ndarray:
        """The rows of all windows of some questions."""
        return np.flatnonzero(np.isin(self.question_W, examples))

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return super().arrays + (self.layout.arrays if self.layout else ())

    def describe(self, max_length: int) -> str:
        said = [
            f"{self.num_questions:,} questions in {self.num_examples:,} windows of at most "
            f"{max_length} tokens, {self.num_tokens:,} tokens"
        ]
        if self.num_truncated:
            said.append(
                f"{self.num_truncated:,} questions were cut to {self.max_question_tokens} tokens"
            )
        if self.num_unlabelled:
            said.append(
                f"{self.num_unlabelled:,} answers are in no window as a whole, and are taken for "
                f"none"
            )
        return "; ".join(said)


def tokenize_windows(
    split: Split,
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_length: int,
    stride: int,
    keep_layout: bool,
) -> WindowStore:
    """Tokenizes questions with their contexts into windows, without padding, and labels them.

    Args:
        split: A split of questions.
        tokenizer: A fast tokenizer.
        max_length: The largest number of tokens of a window, special tokens included.
        stride: The number of the context's tokens that neighbouring windows share.
        keep_layout: Whether to keep what an evaluation needs.
    """
    assert split.questions is not None
    num_special = tokenizer.num_special_tokens_to_add(pair=True)
    limit = (max_length - num_special - stride) // 2
    questions, num_cut = _cut_questions([q.lstrip() for q, _ in split.texts], tokenizer, limit)
    has_types = "token_type_ids" in tokenizer.model_input_names
    ids, type_ids, chars, windows_of, lengths, contexts, nulls = [], [], [], [], [], [], []
    first = 0
    for batch in batches_of_texts(split.texts, _QUESTIONS_AT_A_TIME):
        encoded = tokenizer(
            questions[first : first + len(batch)],
            [context for _, context in batch],
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            padding=False,
        )
        windows_of.append(first + np.array(encoded["overflow_to_sample_mapping"]))
        for encoding in encoded.encodings:
            window_ids = np.array(encoding.ids, dtype=np.int32)
            context = _context_range(encoding)
            span = np.array(encoding.offsets, dtype=np.int32)
            span[: context[0]] = span[context[1] :] = 0
            ids.append(window_ids)
            type_ids.append(np.array(encoding.type_ids, dtype=np.uint8))
            chars.append(span)
            lengths.append(len(window_ids))
            contexts.append(context)
            # argmax gives position 0 where a tokenizer has no such token, as is usual for SQuAD.
            nulls.append(int(np.argmax(window_ids == tokenizer.cls_token_id)))
        first += len(batch)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    question_W = np.concatenate(windows_of)
    char_spans, context_W2 = np.concatenate(chars), np.array(contexts, dtype=np.int32)
    null_W = np.array(nulls, dtype=np.int32)
    labels, num_unlabelled = label_windows(
        split.questions, question_W, offsets, char_spans, context_W2, null_W
    )
    layout = SpanLayout(
        char_spans=char_spans,
        context=context_W2,
        nulls=null_W,
        question_offsets=np.searchsorted(question_W, np.arange(len(split) + 1)),
        ids=split.questions.ids,
        contexts=[context for _, context in split.texts],
        golds=[tuple(gold.text for gold in answers) for answers in split.questions.answers],
    )
    all_types = np.concatenate(type_ids)
    return WindowStore(
        input_ids=np.concatenate(ids),
        token_type_ids=all_types if has_types else np.zeros_like(all_types),
        offsets=offsets,
        labels=labels,
        num_truncated=num_cut,
        num_questions=len(split),
        max_question_tokens=limit,
        num_unlabelled=num_unlabelled,
        question_W=question_W,
        layout=layout if keep_layout else None,
    )


def label_windows(
    questions: Questions,
    question_W: np.ndarray,
    offsets: np.ndarray,
    char_spans: np.ndarray,
    context_W2: np.ndarray,
    null_W: np.ndarray,
) -> tuple[np.ndarray, int]:
    """The positions of the answer's first and last token in each window, or of `[CLS]` twice.

    Of several gold answers the first is taken. Its tokens are those that hold one of its
    characters, even where a token holds more than that.

    Args:
        questions: Q questions with their answers.
        question_W: int64 [W], the number of each window's question, ascending.
        offsets: int64 [W + 1], where each window begins in the tokens, as in `TokenStore`.
        char_spans: int32 [T, 2], see `SpanLayout`.
        context_W2: int32 [W, 2], see `SpanLayout.context`.
        null_W: int32 [W], see `SpanLayout.nulls`.

    Returns:
        The labels, int64 [W, 2], and how many answers no window holds as a whole.
    """
    first_char_Q = np.array([gold[0].start if gold else -1 for gold in questions.answers])
    last_char_Q = np.array([gold[0].end if gold else -1 for gold in questions.answers])
    lengths_W = np.diff(offsets)
    window_T = np.repeat(np.arange(len(lengths_W)), lengths_W)
    position_T = np.arange(offsets[-1]) - offsets[:-1][window_T]
    question_T = question_W[window_T]
    is_context_T = (position_T >= context_W2[window_T, 0]) & (position_T < context_W2[window_T, 1])
    holds_T = is_context_T & (char_spans[:, 1] > first_char_Q[question_T])
    holds_T &= char_spans[:, 0] < last_char_Q[question_T]

    holding = np.flatnonzero(holds_T)  # the tokens that belong to answers, in order
    windows, firsts = np.unique(window_T[holding], return_index=True)
    counts = np.diff(np.append(firsts, len(holding)))
    first_tokens, last_tokens = holding[firsts], holding[firsts + counts - 1]
    # All windows of a question together hold all tokens of its answer. A window holds the answer as
    # a whole if its first and last token of it are those that come first and last in any window.
    asked = question_W[windows]
    lowest_Q = np.full(len(questions), np.iinfo(np.int64).max)
    highest_Q = np.full(len(questions), -1)
    np.minimum.at(lowest_Q, asked, char_spans[first_tokens, 0])
    np.maximum.at(highest_Q, asked, char_spans[last_tokens, 1])
    is_whole = char_spans[first_tokens, 0] == lowest_Q[asked]
    is_whole &= char_spans[last_tokens, 1] == highest_Q[asked]

    labels = np.repeat(null_W.astype(np.int64)[:, None], 2, axis=1)
    labels[windows[is_whole], 0] = position_T[first_tokens[is_whole]]
    labels[windows[is_whole], 1] = position_T[last_tokens[is_whole]]
    num_unlabelled = int(questions.labels.sum()) - len(np.unique(asked[is_whole]))
    return labels, num_unlabelled


def _context_range(encoding: Encoding) -> tuple[int, int]:
    """The first position of the context's tokens in a window, and one past the last."""
    sequences = encoding.sequence_ids
    num_tokens = sequences.count(1)
    first = sequences.index(1) if num_tokens else 0
    return first, first + num_tokens


def _cut_questions(
    questions: Sequence[str], tokenizer: PreTrainedTokenizerFast, limit: int
) -> tuple[list[str], int]:
    """Cuts questions to at most `limit` tokens, and counts how many of them were longer."""

    def offsets_of(texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        encoded = tokenizer(
            list(texts),
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        offsets: list[list[tuple[int, int]]] = encoded["offset_mapping"]
        return offsets

    fitting, num_cut = list(questions), 0
    for i, offsets in enumerate(offsets_of(questions)):
        num_cut += len(offsets) > limit
        while len(offsets) > limit:  # The rest of a word that is cut may have more tokens.
            fitting[i] = fitting[i][: offsets[limit][0]]
            (offsets,) = offsets_of([fitting[i]])
    return fitting, num_cut
