"""The space of a search in Ray Tune: its domains, and the searchers that draw from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from ray import tune
from ray.tune.search import SearchAlgorithm, Searcher
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.sample import Domain

from actors.cluster import in_thread
from bertvision_stream.settings.checks import ADAPTER_OPTIONS
from bertvision_stream.settings.groups import HeadSettings
from bertvision_stream.settings.search_dimensions import Choice, Dimension
from bertvision_stream.settings.search_space import Space
from bertvision_stream.settings.settings import TaskSettings
from tune.trial_results import MODE, SCORE, WORST_SCORE

# The number of trials that are drawn at random before a searcher learns from scores. Tune's default
# for hyperopt is 20, with which the default search, of 20 trials, would be a random one.
_NUM_RANDOM = 8


def tune_domains(space: Space) -> dict[str, Domain]:
    """The `param_space` of a Tuner: the domain of each searched key, by dotted key."""
    return {key: _domain(dimension) for key, dimension in space.items()}


def _domain(dimension: Dimension) -> Domain:
    """The domain of one searched key."""
    if isinstance(dimension, Choice):
        return tune.choice(list(dimension.values))
    low, high = dimension.low, dimension.high
    if dimension.integer:
        draw = tune.lograndint if dimension.log else tune.randint
        return draw(int(low), int(high) + 1)  # Tune leaves the upper end out
    return tune.loguniform(low, high) if dimension.log else tune.uniform(low, high)


def make_searcher(
    name: Literal["hyperopt", "optuna", "random"], *, seed: int, num_concurrent: int
) -> Searcher | SearchAlgorithm:
    """The `search_alg` of a Tuner.

    With the same seed a searcher proposes the same trials, as long as it is told the same scores in
    the same order.

    Args:
        name: `search.searcher`.
        seed: The seed of what the searcher draws.
        num_concurrent: The most trials that run at once. This many are proposed before any score is
            known, and so they are drawn at random.
    """
    num_random = max(_NUM_RANDOM, num_concurrent)
    if name == "random":
        # Tune's `max_concurrent_trials` does not limit this one: it needs the limit itself.
        return BasicVariantGenerator(max_concurrent=num_concurrent, random_state=seed)
    if name == "hyperopt":
        from ray.tune.search.hyperopt import HyperOptSearch

        return DivergedIsWorst(HyperOptSearch(n_initial_points=num_random, random_state_seed=seed))
    # Optuna keeps the errors of optional imports that failed. With them it keeps the frames of the
    # code that imported it first, and all that their variables hold: even refs of blocks. In a
    # thread of its own it finds no frame of ours.
    return in_thread(lambda: _optuna_search(seed, num_random), "optuna").result()


def _optuna_search(seed: int, num_random: int) -> Searcher:
    """Optuna's sampler of tree-structured Parzen estimators, as a searcher of Tune's."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # else a line for each trial
    sampler = optuna.samplers.TPESampler(n_startup_trials=num_random, seed=seed)
    return DivergedIsWorst(OptunaSearch(sampler=sampler))


class DivergedIsWorst(Searcher):
    """Tells a searcher that a trial which diverged has the worst score there is.

    By themselves both searchers learn nothing from a score of nan. Hyperopt drops the trial: in a
    simulation where a fifth of the space diverges, it proposed three times as many such trials as
    chance would. Optuna rejects the score, and takes the trial as running for ever.

    Args:
        searcher: The searcher that proposes the trials.
    """

    def __init__(self, searcher: Searcher):
        super().__init__(metric=SCORE, mode=MODE)
        self.searcher = searcher

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        return self.searcher.set_search_properties(metric, mode, config, **spec)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        return self.searcher.suggest(trial_id)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.searcher.on_trial_result(trial_id, _finite(result))

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self.searcher.on_trial_complete(trial_id, result and _finite(result), error)

    def save(self, checkpoint_path: str) -> None:
        self.searcher.save(checkpoint_path)

    def restore(self, checkpoint_path: str) -> None:
        self.searcher.restore(checkpoint_path)

    def get_state(self) -> dict[str, Any]:
        return {}  # the only state is that of the inner searcher, which Tune saves by itself

    def set_state(self, state: dict[str, Any]) -> None:
        pass


def _finite(result: dict[str, Any]) -> dict[str, Any]:
    """The result with the worst score in the place of one that is not finite."""
    score = result.get(SCORE, math.nan)
    return result if math.isfinite(score) else {**result, SCORE: WORST_SCORE}


def trial_settings(base: TaskSettings, sample: Mapping[str, Any]) -> TaskSettings:
    """The settings of a trial.

    A searcher draws a value for every searched key. Options that only the head `adapter_pooler` has
    stay at their defaults for other kinds of heads, which would refuse them.

    Args:
        base: The settings that the trials have in common.
        sample: The values by dotted key as a searcher draws them; some are numbers of NumPy.

    Raises:
        ValidationError: A value does not fit its setting.
    """
    values = base.model_dump()
    for key, value in sample.items():
        group, _, name = key.rpartition(".")
        members = values[group] if group else values
        members[name] = value.item() if hasattr(value, "item") else value
    if values["head"]["kind"] != "adapter_pooler":
        for name in ADAPTER_OPTIONS:
            values["head"][name] = HeadSettings.model_fields[name].default
    return type(base).model_validate(values)
