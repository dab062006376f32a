"""The trials of a search, read from its folder while it runs or at any time after."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bertvision_stream.settings.search_space import Space, read_space
from bertvision_stream.utils.errors import ConfigError, SearchError
from tune.trial_results import FAILURE, SCORE

if TYPE_CHECKING:
    import pandas as pd
    from ray.tune import ExperimentAnalysis
    from ray.tune.experiment import Trial as TuneTrial

Status = Literal["finished", "stopped", "unfinished", "waiting", "diverged", "failed"]


FAILED_STATUSES = ("diverged", "failed")


_STATE_FILES = "experiment_state-*.json"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial of a search, as far as it has reported.

    Attributes:
        number: In the order in which trials were proposed, from 1.
        trial_id: Tune's name for it.
        status: `finished` (all epochs), `stopped` (early, by ASHA or by `train.patience`),
            `unfinished` (it runs, or the search was interrupted), `waiting` (no report so far),
            `diverged` or `failed` (its process died, and so did the retries).
        config: The sampled values by dotted key.
        history: What it reported, a row an epoch, the epoch (from 1) as index; may be empty.
        failure: Why it diverged or failed; else empty.
    """

    number: int
    trial_id: str
    status: Status
    config: Mapping[str, Any]
    history: pd.DataFrame
    failure: str = ""

    @property
    def score(self) -> float:
        """The score in its last report; nan if there is none."""
        return self._last(SCORE)

    @property
    def epochs(self) -> int:
        """Epochs that it has reported."""
        return 0 if self.history.empty else int(self.history.index[-1])

    @property
    def seconds(self) -> float:
        """Its time so far; nan before the first report."""
        return self._last("time_total_s")

    @property
    def is_eligible(self) -> bool:
        """Whether it can be the best."""
        return self.status not in FAILED_STATUSES and math.isfinite(self.score)

    def _last(self, column: str) -> float:
        return float(self.history[column].iloc[-1]) if column in self.history else math.nan


@dataclass(frozen=True, kw_only=True)
class Search:
    """The trials of a search.

    Attributes:
        name: The task, or the folder's name where the run's `config.json` is not with it.
        space: What was searched; empty without `config.json`.
        trials: In the order of their numbers.
    """

    name: str
    space: Space
    trials: tuple[Trial, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The dotted keys that were searched."""
        return tuple(self.space or dict.fromkeys(key for t in self.trials for key in t.config))

    @property
    def metrics(self) -> tuple[str, ...]:
        """The reported metrics that `score` is the mean of, as `<split>_<metric>`."""
        columns = dict.fromkeys(name for trial in self.trials for name in trial.history.columns)
        return tuple(n for n in columns if n.startswith("validation") and n != "validation_loss")


def read_search(path: Path) -> Search:
    """Reads a search from the folder of its run, or from Tune's experiment folder in it.

    Of a search that runs, what Tune has written so far: some ten seconds behind.

    Raises:
        ConfigError: `path` does not hold one search.
    """
    folder = _experiment_folder(path)
    config = _run_config(folder)
    analysis = _load(folder)
    epochs = {
        trial.trial_id: analysis.trial_dataframes[trial.trial_id].get("training_iteration", [])
        for trial in analysis.trials
    }
    searched = config.get("search", {})
    planned = max((max(reported) for reported in epochs.values() if len(reported)), default=0)
    if searched.get("target") == "head":
        planned = config["train"]["epochs"]
    trials = [
        _trial(number, trial, analysis.trial_dataframes[trial.trial_id], planned)
        for number, trial in enumerate(sorted(analysis.trials, key=_proposed), start=1)
    ]
    return Search(
        name=config.get("task", folder.name),
        space=read_space(searched.get("space", {})),
        trials=tuple(trials),
    )


def best_trial(search: Search) -> Trial:
    """The best trial by `trial_results.BEST_RULE`; of equals the first.

    Raises:
        SearchError: No trial can be the best: all of them diverged or failed, or none has reported.
    """
    candidates = [trial for trial in search.trials if trial.is_eligible]
    if candidates:
        return max(candidates, key=lambda trial: trial.score)
    lost = [trial for trial in search.trials if trial.status in FAILED_STATUSES]
    if not lost:
        raise SearchError("no trial has reported a score yet")
    text = (
        f"{len(lost)} of {len(search.trials)} trials diverged or failed, and no other has a score"
    )
    if len(lost) == len(search.trials):
        text = f"there is no best trial: all {len(lost)} diverged or failed"
    text += f". The first: {lost[0].failure}"
    if any(trial.status == "diverged" for trial in lost):
        text += ". Lower learning rates may help: search.space.train.lr=log:1e-5..1e-3"
    raise SearchError(text)


def _experiment_folder(path: Path) -> Path:
    """The folder of Tune's experiment: `path` or one below it."""
    if not path.exists():
        raise ConfigError(f"{path} does not exist")
    folders = {
        file.parent for depth in ("", "*/", "*/*/") for file in path.glob(depth + _STATE_FILES)
    }
    if not folders:
        raise ConfigError(
            f"{path} holds no search: there is no {_STATE_FILES} in it, nor two folders down. Give "
            f"the folder of a run with mode=search, outputs/TASK/RUN_NAME"
        )
    if len(folders) > 1:
        listed = ", ".join(map(str, sorted(folders)))
        raise ConfigError(f"{path} holds {len(folders)} searches; give one of {listed}")
    return folders.pop()


def _run_config(folder: Path) -> dict[str, Any]:
    """`config.json` of the run that the experiment belongs to; empty without one."""
    for place in (folder, *folder.resolve().parents[:2]):
        if (place / "config.json").is_file():
            return json.loads((place / "config.json").read_text(encoding="utf-8"))
    return {}


def _load(folder: Path) -> ExperimentAnalysis:
    """Tune's own reader; tries again where Tune is just writing.

    Raises:
        ConfigError: The files of the experiment cannot be read.
    """
    from ray.tune import ExperimentAnalysis

    # It warns of every trial without a report, which is nothing to worry about.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    for attempt in range(8):
        try:
            return ExperimentAnalysis(folder.resolve().as_posix())
        except (ValueError, EOFError) as error:  # half of a file
            problem = error
            time.sleep(0.2 * attempt)
    raise ConfigError(f"{folder}: the state of the search cannot be read: {problem}") from problem


def _proposed(trial: TuneTrial) -> int:
    """When a trial was proposed: Tune lists them in another order, but its tags count them."""
    return int(trial.experiment_tag.partition("_")[0])


def _trial(number: int, trial: TuneTrial, history: pd.DataFrame, planned: int) -> Trial:
    if not history.empty:
        # A trial that was restored reports epochs again that its last life had reported already.
        history = history.drop_duplicates("training_iteration", keep="last")
        history = history.set_index("training_iteration").sort_index()
    failure = history[FAILURE].iloc[-1] if FAILURE in history else ""
    failure = failure if isinstance(failure, str) else ""
    status: Status
    if failure:
        status = "diverged"
    elif trial.status == "ERROR":
        status, failure = "failed", _error(Path(trial.path or ""))
    elif history.empty:
        status = "waiting"
    elif trial.status != "TERMINATED":
        status = "unfinished"
    else:
        status = "finished" if history.index[-1] >= planned else "stopped"
    return Trial(
        number=number,
        trial_id=trial.trial_id,
        status=status,
        config=dict(trial.config),
        history=history,
        failure=failure,
    )


def _error(folder: Path) -> str:
    """The last line of a trial's traceback."""
    file = folder / "error.txt"
    lines = file.read_text(encoding="utf-8").split("\n") if file.is_file() else []
    said = [line.strip() for line in lines if line.strip()]
    return said[-1] if said else "its process died without a word"
