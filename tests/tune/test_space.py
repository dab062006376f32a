"""The space of a search as Ray Tune's searchers see it; these tests need no cluster."""

import math
import random
from pathlib import Path

import pytest
from ray.tune.search import ConcurrencyLimiter, Searcher
from ray.tune.search.search_generator import SearchGenerator
from ray.tune.search.variant_generator import generate_variants

from bertvision_stream.settings.command_line import load_settings
from bertvision_stream.settings.search_dimensions import Choice, Dimension, Range
from bertvision_stream.settings.search_space import Space, default_space, read_space
from tune.space import make_searcher, trial_settings, tune_domains

ALL_KINDS: Space = {
    "train.lr": Range(low=1e-4, high=1e-2, log=True),
    "head.dropout": Range(low=0.0, high=0.3),
    "train.batch_size": Range(low=8, high=10, integer=True),
    "head.adapter_dim": Range(low=8, high=10, log=True, integer=True),
    "head.share_layers": Choice((True, False)),
    "head.kind": Choice(("adapter_pooler", "scalar_mix")),
    "train.warmup_ratio": Choice((0.0, 0.1)),
    "seed": Range(low=0, high=2**32 - 1, integer=True),
}


def searcher(name: str, space: Space, *, seed: int = 1, num_concurrent: int = 1) -> Searcher:
    """A searcher, set up as a Tuner does it."""
    made = make_searcher(name, seed=seed, num_concurrent=num_concurrent)
    assert isinstance(made, Searcher)
    assert made.set_search_properties("score", "max", tune_domains(space))
    return made


def report(made: Searcher, trial_id: str, score: float) -> None:
    """Report one epoch and the end of a trial, as a Tuner does."""
    result = {"score": score, "training_iteration": 1}
    made.on_trial_result(trial_id, result)
    made.on_trial_complete(trial_id, result)


def propose(made: Searcher, count: int, score=lambda sample: 0.5) -> list[dict]:
    samples = []
    for number in range(count):
        samples.append(made.suggest(str(number)))
        report(made, str(number), score(samples[-1]))
    return samples


def draw_at_random(space: Space, count: int, seed: int) -> list[dict]:
    """The samples of `searcher=random`, which Tune draws as variants."""
    state = make_searcher("random", seed=seed, num_concurrent=1)._random_state
    domains = tune_domains(space)
    return [next(generate_variants(domains, random_state=state))[1] for _ in range(count)]


def samples_of(name: str, space: Space, count: int, *, seed: int = 1) -> list[dict]:
    if name == "random":
        return draw_at_random(space, count, seed)
    return propose(searcher(name, space, seed=seed), count)


def within(value: object, dimension: Dimension) -> bool:
    if isinstance(dimension, Choice):
        return value in dimension.values
    return dimension.low <= value <= dimension.high and (
        not dimension.integer or value == int(value)
    )


@pytest.mark.parametrize("name", ["hyperopt", "optuna", "random"])
def test_searchers_draw_from_every_kind_of_dimension(name):
    argv = [f"search.space={ {key: d.written for key, d in ALL_KINDS.items()} }"]
    base = load_settings(["task=cola", "mode=search", *argv]).for_task("cola")
    assert read_space(base.search.space) == ALL_KINDS
    samples = samples_of(name, ALL_KINDS, 60)
    for sample in samples:
        assert set(sample) == set(ALL_KINDS)
        assert all(within(sample[key], dimension) for key, dimension in ALL_KINDS.items())
        trial_settings(base, sample)  # in a type that the settings take
    for key in ("train.batch_size", "head.adapter_dim"):
        assert {sample[key] for sample in samples} == {8, 9, 10}  # both ends are drawn
    assert len({sample["seed"] for sample in samples}) > 50


@pytest.mark.parametrize("name", ["hyperopt", "optuna", "random"])
def test_the_same_seed_proposes_the_same_trials(name):
    space = default_space("head", finetune_lr=1e-5)
    first = samples_of(name, space, 12, seed=3)
    assert samples_of(name, space, 12, seed=3) == first
    assert samples_of(name, space, 12, seed=4) != first


@pytest.mark.parametrize("name", ["hyperopt", "optuna"])
def test_high_scores_attract_and_divergence_repels(name):
    space = {"head.dropout": Range(low=0.0, high=0.9)}

    def score(sample: dict) -> float:
        dropout = sample["head.dropout"]
        return math.nan if dropout > 0.5 else 1 - abs(dropout - 0.2)

    late = [
        sample["head.dropout"]
        for seed in range(5)
        for sample in propose(searcher(name, space, seed=seed), 30, score)[-20:]
    ]
    assert sum(dropout > 0.5 for dropout in late) < 22  # 44 by chance
    assert sum(0.1 < dropout <= 0.3 for dropout in late) > 33  # 22 by chance


@pytest.mark.parametrize("name", ["hyperopt", "optuna"])
def test_as_many_trials_as_run_at_once_are_drawn_at_random(name):
    # Scores change nothing while a searcher draws at random.
    space = {"head.dropout": Range(low=0.0, high=0.9)}

    def proposed(luck: random.Random) -> list[dict]:
        made = searcher(name, space, num_concurrent=12)
        return propose(made, 16, lambda sample: luck.random())

    one, other = proposed(random.Random(0)), proposed(random.Random(1))
    assert one[:12] == other[:12]
    assert one[12:] != other[12:]


@pytest.mark.parametrize("name", ["hyperopt", "optuna"])
def test_a_searcher_goes_on_where_it_was_saved(name, tmp_path: Path):
    space = default_space("head", finetune_lr=1e-5)
    made = searcher(name, space)
    propose(made, 10, lambda sample: sample["train.lr"])
    # As a Tuner saves and restores: the searcher within its wrappers.
    SearchGenerator(ConcurrencyLimiter(made, 2)).save_to_dir(str(tmp_path), "session")
    fresh = make_searcher(name, seed=99, num_concurrent=1)
    restored = SearchGenerator(ConcurrencyLimiter(fresh, 2))
    restored.restore_from_dir(str(tmp_path))
    assert restored.searcher.suggest("next") == made.suggest("next")


@pytest.mark.parametrize("name", ["hyperopt", "optuna"])
def test_trials_that_die_without_a_word_do_no_harm(name):
    made = searcher(name, default_space("head", finetune_lr=1e-5))
    for number in range(10):
        assert made.suggest(str(number))
        made.on_trial_complete(str(number), None, error=True)
    assert made.suggest("next")
