"""The demo task: what its sentences must be so that they measure grammar and not memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from bertvision_stream.data.demo import DEMO_ROWS, load_demo
from tools.demo_rows import DemoExample, lexicon, make_demo, make_pairs
from tools.demo_rows.__main__ import demo_table
from tools.demo_rows.phenomena import PHENOMENA

TRAIN, VALIDATION = make_demo()


def test_shipped_rows_are_the_generated_ones() -> None:
    assert pq.read_table(DEMO_ROWS).equals(demo_table())
    raw = load_demo()
    for rows, examples in ((raw.train, TRAIN), (raw.validation["validation"], VALIDATION)):
        assert rows.texts == [(example.sentence,) for example in examples]
        assert rows.labels.dtype == np.int64
        assert rows.labels.tolist() == [example.label for example in examples]


def words(sentence: str) -> list[str]:
    return re.findall(r"[a-z]+", sentence.lower())


def pools() -> list[lexicon.Pool]:
    named = [value for value in vars(lexicon).values() if isinstance(value, lexicon.Pool)]
    return named + [pool for domain in lexicon.DOMAINS for pool in (domain.verbs, domain.things)]


def forms(entry: str | tuple[str, str] | lexicon.Noun | lexicon.Verb) -> set[str]:
    """All forms of a word that tell it; of a phrasal verb only the verb."""
    if isinstance(entry, str):
        return {entry.lower()}
    return {entry[0]} if isinstance(entry, tuple) else set(vars(entry).values())


def test_sizes_and_balance() -> None:
    assert (len(TRAIN), len(VALIDATION)) == (4000, 1000)
    for split in (TRAIN, VALIDATION):
        labels = Counter((example.phenomenon, example.label) for example in split)
        for phenomenon in PHENOMENA:
            assert labels[phenomenon.name, 0] == labels[phenomenon.name, 1] > 0
        assert set(labels) == {(p.name, label) for p in PHENOMENA for label in (0, 1)}


@pytest.mark.parametrize(("num_train", "num_validation"), [(0, 0), (2, 4), (100, 36)])
def test_other_sizes(num_train: int, num_validation: int) -> None:
    train, validation = make_demo(1, num_train, num_validation)
    assert (len(train), len(validation)) == (num_train, num_validation)
    assert sum(example.label for example in train) == num_train // 2


@pytest.mark.parametrize("size", [-2, 7])
def test_impossible_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"an even number of examples, not {size}$"):
        make_demo(num_train=size)


def test_more_sentences_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.demo_rows.as_sentences", lambda s, clauses: ("A.", "B."))
    with pytest.raises(ValueError, match="not enough different sentences of auxiliary_form"):
        make_demo()


def test_no_sentence_occurs_twice() -> None:
    sentences = [example.sentence.lower() for example in TRAIN + VALIDATION]
    assert len(set(sentences)) == len(sentences)


def test_sentences_are_well_formed() -> None:
    for example in TRAIN + VALIDATION:
        assert re.fullmatch(r"[A-Z][a-z]*(,? [A-Za-z]+)+\.", example.sentence), example
        assert 3 <= len(example.sentence.split()) <= 25, example
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", example.sentence.lower()), example


def test_seed_alone_decides() -> None:
    assert make_demo() == (TRAIN, VALIDATION)
    other = {example.sentence for example in make_demo(seed=1)[0]}
    assert len(other & {example.sentence for example in TRAIN}) < 400


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_same_in_every_process(hash_seed: str) -> None:
    code = "from tools.demo_rows import make_demo; print(make_demo(3, 200, 100))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == f"{make_demo(3, 200, 100)}\n"


def test_held_out_words_are_in_validation_only() -> None:
    held_out = {form for pool in pools() for entry in pool.held_out for form in forms(entry)}
    trained = {form for pool in pools() for entry in pool.train for form in forms(entry)}
    assert not held_out & trained
    train_words = {word for example in TRAIN for word in words(example.sentence)}
    assert not held_out & train_words
    with_held_out = [e for e in VALIDATION if held_out & set(words(e.sentence))]
    assert len(with_held_out) > 0.7 * len(VALIDATION)
    # Every pool has held-out words, and validation uses some of each.
    validation_words = {word for example in VALIDATION for word in words(example.sentence)}
    for pool in pools():
        assert any(forms(entry) & validation_words for entry in pool.held_out)
    # What validation has and training lacks is held out: no function word is new.
    assert validation_words - train_words <= held_out | trained


def test_pairs_are_minimal() -> None:
    """One word is another one, or the same words stand in another order."""
    for split in make_pairs(0, 2000, 1000):
        for _, pair in split:
            good, bad = words(pair.good), words(pair.bad)
            one_word = len(good) == len(bad) and sum(map(str.__ne__, good, bad)) == 1
            reordered = Counter(good) == Counter(bad) and good != bad
            assert one_word or reordered, pair


def ngram_accuracy(longest: int) -> dict[str, float]:
    """Validation accuracy of logistic regression on counts of up to `longest` words in a row."""
    vectorizer = CountVectorizer(ngram_range=(1, longest), token_pattern=r"\w+")
    features = vectorizer.fit_transform(example.sentence for example in TRAIN)
    model = LogisticRegression(max_iter=300).fit(features, [e.label for e in TRAIN])
    predicted = model.predict(vectorizer.transform(e.sentence for e in VALIDATION))
    right = predicted == [example.label for example in VALIDATION]
    names = np.array([example.phenomenon for example in VALIDATION])
    return {name: right[names == name].mean() for name in set(names)} | {"all": right.mean()}


def test_words_do_not_give_the_label_away() -> None:
    accuracy = ngram_accuracy(1)
    assert accuracy["all"] < 0.6
    for phenomenon in PHENOMENA[:6]:  # The others are too few for a figure of their own.
        assert accuracy[phenomenon.name] < 0.65


def test_neighbors_give_less_than_the_task(record_property: Callable[[str, object], None]) -> None:
    accuracy = ngram_accuracy(2)["all"]
    record_property("bigram_accuracy", float(accuracy))
    assert accuracy < 0.75


@pytest.mark.parametrize(
    "pattern",
    [
        r"There (is|are|was|were) (all|every)",
        r"Almost (many|several|some|another)",
        r"(this|every|another) [a-z]+s(?=\.)",
        r"(because|said|knew|thought) (him|us|them)",
        r"(made|let|watched) (he|she|they|we)",
        r"(can|should) (\w+ )?\w+ing (a|an|the)",
        r"has (\w+ )?(eat|steal|write|prepare) (a|an|the)",
        r"(picked up|took off|put away) (it|them)",
        r"(Anna|Peter) (are|were|have)",
        r"(Emma|Thomas) (has|had) ever",
        r"Both [a-z ]+ or|Either [a-z ]+ nor",
    ],
)
def test_known_errors_are_labeled_as_such(pattern: str) -> None:
    labels = [e.label for e in TRAIN + VALIDATION if re.search(rf"\b({pattern})\b", e.sentence)]
    assert set(labels) == {0}


def test_example_is_a_value() -> None:
    example = DemoExample("Anna slept.", 1, "transitivity")
    assert example == DemoExample("Anna slept.", 1, "transitivity")
    with pytest.raises(AttributeError):
        example.label = 0  # type: ignore[misc]
