"""The trials of a search, read from its folder while it runs or at any time after."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bertvision_stream.settings.search_space import Space, read_space
from bertvision_stream.settings.tasks import TASKS, metric_title
from bertvision_stream.utils.errors import ConfigError, SearchError
from bertvision_stream.utils.files import read_json
from tune.trial_results import FAILURE, SCORE

if TYPE_CHECKING:
    import pandas as pd
    from ray.tune import ExperimentAnalysis
    from ray.tune.experiment import Trial as TuneTrial

Status = Literal["finished", "stopped", "unfinished", "waiting", "diverged", "failed"]
"""What became of a trial; see `Trial.status`."""

FAILED_STATUSES = ("diverged", "failed")
"""The statuses of trials that cannot be the best, whatever they have scored before."""

_STATE_FILES = "experiment_state-*.json"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial of a search, as far as it has reported.

    Attributes:
        number: The place of the trial in the order of proposal, counted from 1.
        trial_id: The name that Tune gave the trial.
        status: `finished` (it has trained all epochs), `stopped` (early, by ASHA or by
            `train.patience`), `unfinished` (it still runs, or the search was interrupted),
            `waiting` (it has not reported so far), `diverged`, or `failed` (its process died, and
            so did those of the retries).
        config: The sampled values by dotted key.
        history: The reports of the trial, a row for each epoch, with the epoch (counted from 1) as
            the index; it may be empty.
        failure: Why the trial diverged or failed; empty if it did not.
    """

    number: int
    trial_id: str
    status: Status
    config: Mapping[str, Any]
    history: pd.DataFrame
    failure: str = ""

    @property
    def score(self) -> float:
        """The score in the last report; nan if there is none."""
        return self.last(SCORE)

    @property
    def epochs(self) -> int:
        """The number of epochs that the trial has reported."""
        return 0 if self.history.empty else int(self.history.index[-1])

    @property
    def seconds(self) -> float:
        """The time of the trial so far; nan before the first report."""
        return self.last("time_total_s")

    @property
    def is_eligible(self) -> bool:
        """Whether the trial can be the best: it has a score, and neither diverged nor failed."""
        return self.status not in FAILED_STATUSES and math.isfinite(self.score)

    def last(self, column: str) -> float:
        """The value of a column in the last report; nan where there is none."""
        return float(self.history[column].iloc[-1]) if column in self.history else math.nan


@dataclass(frozen=True, kw_only=True)
class Search:
    """The trials of a search.

    Attributes:
        name: The name of the task; without the `config.json` of the run, the name of the folder.
        space: The space that was searched; empty without `config.json`.
        trials: The trials in the order of their numbers.
        f1_class: The class that F1 is of, where that is known.
    """

    name: str
    space: Space
    trials: tuple[Trial, ...]
    f1_class: str | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The dotted keys that were searched."""
        return tuple(self.space or dict.fromkeys(key for t in self.trials for key in t.config))

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the reported metrics whose mean is the score, as `<split>_<metric>`."""
        columns = dict.fromkeys(name for trial in self.trials for name in trial.history.columns)
        return tuple(n for n in columns if n.startswith("validation") and n != "validation_loss")

    @property
    def score_parts(self) -> list[str]:
        """What the score is the mean of, for people: the split and the title of each metric."""
        parts = (metric.rpartition("_") for metric in self.metrics)
        return [
            f"{split.replace('_', ' ')} {metric_title(metric, self.f1_class)}"
            for split, _, metric in parts
        ]


def read_search(path: str | Path, f1_class: str | None = None) -> Search:
    """Read a search from the folder of its run, or from Tune's experiment folder in it.

    For a search that still runs it is what Tune has written so far, some ten seconds behind.

    Args:
        path: The folder.
        f1_class: The class that F1 is of; None looks it up, which an unfinished search of a task of
            the user's own does not tell.

    Raises:
        ConfigError: `path` does not hold one search.
    """
    folder = _experiment_folder(Path(path).expanduser())
    config = _run_file(folder, "config.json")
    analysis = _load(folder)
    epochs = {
        trial.trial_id: analysis.trial_dataframes[trial.trial_id].get("training_iteration", [])
        for trial in analysis.trials
    }
    # The epochs that a finished trial has: the most that any trial has reported, unless the run
    # says how many were planned.
    planned = max((max(reported) for reported in epochs.values() if len(reported)), default=0)
    try:
        searched = config.get("search", {})
        if searched.get("target") == "head":
            planned = int(config["train"]["epochs"])
        space = read_space(searched.get("space", {}))
        f1_class = f1_class or _f1_class(folder, config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{folder}: the config.json of the run is damaged ({error!r})") from error
    trials = [
        _trial(number, trial, analysis.trial_dataframes[trial.trial_id], planned)
        for number, trial in enumerate(sorted(analysis.trials, key=number_of), start=1)
    ]
    return Search(
        name=config.get("task", folder.name),
        space=space,
        trials=tuple(trials),
        f1_class=f1_class,
    )


def best_trial(search: Search) -> Trial:
    """The best trial by `trial_results.BEST_RULE`; of equals the first.

    Raises:
        SearchError: No trial can be the best: all of them diverged or failed, or none has reported.
    """
    candidates = [trial for trial in search.trials if trial.is_eligible]
    if candidates:
        return max(candidates, key=lambda trial: trial.score)
    failed = [trial for trial in search.trials if trial.status in FAILED_STATUSES]
    if not failed:
        raise SearchError("no trial has reported a score yet")
    text = (
        f"{len(failed)} of {len(search.trials)} trials diverged or failed, and no other has a score"
    )
    if len(failed) == len(search.trials):
        text = f"there is no best trial: all {len(failed)} diverged or failed"
    text += f". The first: {failed[0].failure}"
    if any(trial.status == "diverged" for trial in failed):
        text += ". Lower learning rates may help: search.space.train.lr=log:1e-5..1e-3"
    raise SearchError(text)


def _experiment_folder(path: Path) -> Path:
    """The folder of Tune's experiment, which is `path` or up to two folders below it."""
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


def _run_file(folder: Path, name: str) -> dict[str, Any]:
    """A json file of the run that the experiment belongs to; empty if there is none."""
    for place in (folder, *folder.resolve().parents[:2]):
        if (place / name).is_file():
            return read_json(place / name, "Restore that file to read the search.")
    return {}


def _f1_class(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The class that F1 is of: a task of the user's own says so once its run is finished."""
    task = TASKS.get(config.get("task", ""))
    return task.f1_class if task else _run_file(folder, "metrics.json").get("f1_class")


def _load(folder: Path) -> ExperimentAnalysis:
    """Read an experiment with Tune's own reader, again where Tune is just writing to it.

    Raises:
        ConfigError: The files of the experiment cannot be read.
    """
    from ray.tune import ExperimentAnalysis

    # Tune's reader warns of every trial without a report, which here is nothing unusual.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    for attempt in range(8):
        try:
            return ExperimentAnalysis(folder.resolve().as_posix())
        except (ValueError, EOFError) as error:  # a file that is half written
            problem = error
            time.sleep(0.2 * attempt)
    raise ConfigError(f"{folder}: the state of the search cannot be read: {problem}") from problem


def number_of(trial: TuneTrial) -> int:
    """The number of a trial in the order of proposal, by Tune's tag.

    Tune lists the trials in another order, but counts them in their tags.
    """
    return int(trial.experiment_tag.partition("_")[0])


def _trial(number: int, trial: TuneTrial, history: pd.DataFrame, planned: int) -> Trial:
    """A trial of Tune's as a `Trial`.

    Args:
        number: The place of the trial in the order of proposal, counted from 1.
        trial: The trial as Tune has it.
        history: The reports of the trial.
        planned: The number of epochs after which a trial is finished.
    """
    if not history.empty:
        # A trial that was restored from a checkpoint reports again the epochs after it.
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
    """The last line of the traceback in the folder of a trial."""
    file = folder / "error.txt"
    lines = file.read_text(encoding="utf-8").split("\n") if file.is_file() else []
    written = [line.strip() for line in lines if line.strip()]
    return written[-1] if written else "its process died without a word"
