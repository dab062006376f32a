"""The folder of a run: a new one, or one of an interrupted run to go on with."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bertvision_stream.settings.settings import dotted
from bertvision_stream.settings.tasks import GLUE_TASKS
from bertvision_stream.utils.errors import ConfigError
from bertvision_stream.utils.files import write_json

if TYPE_CHECKING:
    from bertvision_stream.settings.settings import Settings, TaskSettings

CONFIG, METRICS, LOG = "config.json", "metrics.json", "run.log"
STUDY = "study.json"  # what mode=study leaves in place of metrics.json

# They say where and how to run, and nothing of what comes out.
_NOT_COMPARED = ("resume", "run_name", "output_dir", "ray.address")


@dataclass(frozen=True)
class RunFolder:
    """Where a run's results go.

    Attributes:
        path: The folder; it is there.
        resumed: Whether an interrupted run began in it.
        finished: Whether there is nothing left to do in it.
    """

    path: Path
    resumed: bool = False
    finished: bool = False

    @property
    def checkpoint(self) -> Path:
        """The state of training after the last finished epoch; not there before the first."""
        return self.path / "checkpoints" / "last.safetensors"


def temporary_folder_warning(folder: Path) -> str | None:
    """A sentence for people where results would not stay: in a Ray job's copy of the sources."""
    if "working_dir_files" not in folder.resolve().parts:
        return None
    return (
        f"{folder} lies in this job's copy of the working directory, which Ray deletes some time; "
        f"give output_dir a folder that stays, with its full path"
    )


def open_run_folder(settings: TaskSettings) -> RunFolder:
    """The folder for a run: new, or with `resume=true` that of the same run, interrupted.

    Without `run_name`, `resume=true` takes the latest run of the task that had the same settings.

    Raises:
        ConfigError: It cannot be written, holds the results of another run, or was begun with other
            settings.
    """
    parent = Path(settings.output_dir) / settings.task
    try:
        if settings.resume:
            earlier = _earlier_run(parent, settings)
            if earlier is not None:
                (earlier / LOG).touch()
                return RunFolder(earlier, True, _finished(earlier))
        if settings.run_name is None:
            folder = _new_folder(parent, _now())
        else:
            folder = parent / settings.run_name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / LOG).touch()
        _refuse_results(folder)
        run = RunFolder(folder)
        run.checkpoint.unlink(missing_ok=True)  # of an interrupted run that is begun anew
    except OSError as error:
        raise _not_writable(settings, error) from error
    write_json(folder / CONFIG, settings.model_dump())
    return run


def check_run_name(settings: TaskSettings) -> None:
    """See that a named folder is free, before the first of several runs begins.

    Raises:
        ConfigError: It holds the results of a finished run.
    """
    if settings.run_name is not None and not settings.resume:
        _refuse_results(Path(settings.output_dir) / settings.task / settings.run_name)


def open_suite_folder(settings: Settings) -> Path:
    """The folder for the summary of several runs, each of which has its own: see `open_run_folder`.

    It is `output_dir/glue/RUN_NAME`, or `output_dir/suite/RUN_NAME` where other tasks take part.

    Raises:
        ConfigError: It cannot be written, or holds the results of other settings.
    """
    parent = Path(settings.output_dir) / ("glue" if {*settings.tasks} <= {*GLUE_TASKS} else "suite")
    try:
        if settings.resume and (earlier := _earlier_run(parent, settings)) is not None:
            return earlier
        if settings.run_name is None:
            folder = _new_folder(parent, _now())
        else:
            folder = parent / settings.run_name
            folder.mkdir(parents=True, exist_ok=True)
            _refuse_results(folder)
    except OSError as error:
        raise _not_writable(settings, error) from error
    write_json(folder / CONFIG, settings.model_dump())
    return folder


def _finished(folder: Path) -> bool:
    return (folder / METRICS).exists() or (folder / STUDY).exists()


def _refuse_results(folder: Path) -> None:
    if _finished(folder):
        raise ConfigError(
            f"run_name={folder.name}: {folder} holds the results of a finished run; take "
            f"another name, or none"
        )


def open_prediction_folder(settings: Settings, task: str) -> Path:
    """A new folder for the results of `mode=predict`.

    Raises:
        ConfigError: It cannot be written, or `run_name` is the name of one that holds something.
    """
    parent = Path(settings.output_dir) / task
    try:
        if settings.run_name is None:
            folder = _new_folder(parent, _now())
        else:
            folder = parent / settings.run_name
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise ConfigError(
                    f"run_name={folder.name}: {folder} is not empty; take another name, or none"
                )
    except OSError as error:
        raise _not_writable(settings, error) from error
    write_json(folder / CONFIG, settings.model_dump() | {"task": task})
    return folder


def _not_writable(settings: Settings, error: OSError) -> ConfigError:
    return ConfigError(
        f"output_dir={settings.output_dir} cannot be written: {error.strerror} ({error.filename})"
    )


def _now() -> str:
    return datetime.now().strftime("%Y%m%d-%H%M%S")


def _earlier_run(parent: Path, settings: Settings) -> Path | None:
    """The run to go on with; None where there is none, and the run begins."""
    if settings.run_name is not None:
        folder = parent / settings.run_name
        if not (folder / CONFIG).is_file():
            return None
        if changed := _changed(folder, settings):
            raise _refusal(folder, changed)
        return folder
    folders = sorted(parent.glob(f"*/{CONFIG}"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
    changes: dict[Path, dict[str, str]] = {}
    for path in folders:
        with suppress(ConfigError):  # one that cannot be read is not the one that is meant
            changes[path.parent] = _changed(path.parent, settings)
    same = [folder for folder, changed in changes.items() if not changed]
    if same:
        return same[0]
    for folder, changed in changes.items():
        # A fine-tuning by itself never has metrics, and is no run that could go on training.
        if "mode" not in changed and not _finished(folder):
            raise _refusal(folder, changed)
    return None


def _refusal(folder: Path, changed: Mapping[str, str]) -> ConfigError:
    return ConfigError(
        f"resume=true would go on with {folder}, but its settings were others:\n"
        + "".join(f"  {key}: {difference}\n" for key, difference in changed.items())
        + "Give the same settings, name another run with run_name, or leave resume out to begin "
        "anew."
    )


def _changed(folder: Path, settings: Settings) -> dict[str, str]:
    """The settings that differ from those with which the run in `folder` began, and how."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no settings")
    except ValueError as error:
        raise ConfigError(
            f"{folder / CONFIG} cannot be read: {error}. Name another run with run_name, or leave "
            f"resume out to begin anew."
        ) from error
    then = dotted(config)
    now = dotted(json.loads(json.dumps(settings.model_dump())))  # tuples become lists
    return {
        key: f"{then.get(key)} then, {now.get(key)} now"
        for key in sorted({*then, *now} - set(_NOT_COMPARED))
        if then.get(key) != now.get(key)
    }


def _new_folder(parent: Path, name: str) -> Path:
    """`parent/name`, or `parent/name-2` and so on where another run was as quick."""
    for number in itertools.count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not folder.is_dir():  # a file in the way, here or above
                raise
        else:
            return folder
    raise AssertionError("unreachable")
