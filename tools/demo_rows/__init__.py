"""Generates the rows of the `demo` task: is this English sentence acceptable?

The library ships the rows as a file, so that the task needs no download; this generator is not
installed. The sentences come in minimal pairs from a small seeded grammar. Neither words nor their
neighbors give the label away (`phenomena` says how), and about a quarter of the nouns, verbs,
adjectives and names occur only in the validation split (`lexicon` marks them).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

from tools.demo_rows.grammar import MinimalPair, Sampler, as_sentences
from tools.demo_rows.phenomena import PHENOMENA, Phenomenon

# A rule that makes nothing new this many times in a row has run out of sentences.
_MAX_ATTEMPTS = 1000


@dataclass(frozen=True)
class DemoExample:
    """One sentence of the demo task.

    Attributes:
        sentence: An English sentence with its full stop.
        label: 1 if the sentence is acceptable, 0 if not.
        phenomenon: The name of the rule that the sentence keeps or breaks, one of `PHENOMENA`.
    """

    sentence: str
    label: int
    phenomenon: str


def make_demo(
    seed: int = 0, num_train: int = 4000, num_validation: int = 1000
) -> tuple[list[DemoExample], list[DemoExample]]:
    """Generates the training and the validation split.

    The same arguments give the same examples in every process. No sentence occurs twice, within a
    split or across them. Half of the examples of each phenomenon in each split are acceptable.

    Args:
        seed: Chooses the sentences; which words are held out does not depend on it.
        num_train: The size of the training split; even, because examples are made in pairs.
        num_validation: The size of the validation split; even as well.

    Returns:
        The training and the validation examples, both in random order.

    Raises:
        ValueError: A size is negative or odd, or more sentences are asked for than there are.
    """
    splits = []
    for pairs in make_pairs(seed, num_train, num_validation):
        examples = [
            DemoExample(sentence, label, phenomenon.name)
            for phenomenon, pair in pairs
            for sentence, label in ((pair.good, 1), (pair.bad, 0))
        ]
        random.Random(seed).shuffle(examples)
        splits.append(examples)
    train, validation = splits
    return train, validation


def make_pairs(
    seed: int, num_train: int, num_validation: int
) -> Iterator[list[tuple[Phenomenon, MinimalPair]]]:
    """Yields the pairs of the training split, then those of the validation split."""
    seen: set[str] = set()
    for name, num_examples in (("train", num_train), ("validation", num_validation)):
        if num_examples < 0 or num_examples % 2:
            raise ValueError(
                f"the {name} split needs an even number of examples, not {num_examples}"
            )
        rng = random.Random(f"{name} {seed}")
        sampler = Sampler(rng, use_held_out=name == "validation")
        yield [
            (phenomenon, _new_pair(sampler, phenomenon, seen))
            for phenomenon, num_pairs in zip(PHENOMENA, _shares(num_examples // 2), strict=True)
            for _ in range(num_pairs)
        ]


def _new_pair(sampler: Sampler, phenomenon: Phenomenon, seen: set[str]) -> MinimalPair:
    """Makes a pair of sentences that are not in `seen`, and adds them to it."""
    for _ in range(_MAX_ATTEMPTS):
        sampler.start_sentence()
        pair = as_sentences(sampler, phenomenon.rule(sampler))
        if seen.isdisjoint(pair):
            seen.update(pair)
            return pair
    raise ValueError(f"there are not enough different sentences of {phenomenon.name}")


def _shares(num_pairs: int) -> list[int]:
    """Splits pairs among the phenomena by weight; the sizes sum to `num_pairs` exactly."""
    total = sum(phenomenon.weight for phenomenon in PHENOMENA)
    bounds, cumulated = [0], 0
    for phenomenon in PHENOMENA:
        cumulated += phenomenon.weight
        bounds.append(num_pairs * cumulated // total)
    return [end - start for start, end in itertools.pairwise(bounds)]
