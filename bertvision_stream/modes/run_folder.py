"""The folder of a run: a new one, or that of an interrupted run which is resumed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

from bertvision_stream.settings.settings import dotted
from bertvision_stream.settings.tasks import GLUE_TASKS
from bertvision_stream.utils.errors import ConfigError
from bertvision_stream.utils.files import read_json, write_json
from bertvision_stream.utils.folder_lock import FolderLock

if TYPE_CHECKING:
    from bertvision_stream.settings.settings import Settings, TaskSettings

# The names of files in the folder of a run. A study writes its own in place of the metrics.
CONFIG, METRICS, LOG = "config.json", "metrics.json", "run.log"
STUDY = "study.json"

# A run may be resumed with other values of these settings: they say where it runs, and change none
# of its results.
_NOT_COMPARED = ("resume", "run_name", "output_dir", "ray.address")


@dataclass(frozen=True)
class RunFolder:
    """The folder that the results of a run are written into.

    It is kept from other runs until the end of its `with` block, or of the process.

    Attributes:
        path: The path of the folder, which exists.
        resumed: Whether an interrupted run has begun in it.
        finished: Whether a run has finished in it, and nothing is left to do.
        lock: What keeps it from other runs.
    """

    path: Path
    resumed: bool = False
    finished: bool = False
    lock: FolderLock | None = field(default=None, compare=False, repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.lock is not None:
            self.lock.release()

    @property
    def checkpoint(self) -> Path:
        """The file with the state of training after the last finished epoch.

        It does not exist before the first epoch is finished.
        """
        return self.path / "checkpoints" / "last.safetensors"


def temporary_folder_warning(folder: Path) -> str | None:
    """A warning for people if results in a folder would be deleted, and None otherwise.

    Ray runs a job in its own copy of the working directory, and deletes that copy at some time.
    """
    if "working_dir_files" not in folder.resolve().parts:
        return None
    return (
        f"{folder} lies in this job's copy of the working directory, which Ray deletes some time; "
        f"give output_dir a folder that stays, with its full path"
    )


def open_run_folder(settings: TaskSettings) -> RunFolder:
    """Open the folder of a run: a new one, or with `resume=true` that of the interrupted run.

    Without `run_name`, `resume=true` takes the latest run of the task that had the same settings.

    Args:
        settings: The settings of the run.

    Raises:
        ConfigError: The folder cannot be written, is in use by another run, holds the results of
            one, or belongs to a run that began with other settings.
    """
    parent = Path(settings.output_dir) / settings.task
    try:
        if settings.resume:
            earlier = _earlier_run(parent, settings)
            if earlier is not None:
                (earlier / LOG).touch()  # raises now, and not at the end, if it cannot be written
                lock = FolderLock(earlier)
                return RunFolder(earlier, True, _finished(earlier), lock)
        if settings.run_name is None:
            folder = _new_folder(parent, _now())
        else:
            folder = parent / settings.run_name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / LOG).touch()
        run = _keep(folder)
        run.checkpoint.unlink(missing_ok=True)  # that of an interrupted run which begins anew
    except OSError as error:
        raise _not_writable(settings, error) from error
    write_json(folder / CONFIG, settings.model_dump())
    return run


def check_run_name(settings: TaskSettings) -> None:
    """Check that a named folder is free, before the first of several runs begins.

    Args:
        settings: The settings of one of the runs.

    Raises:
        ConfigError: The folder holds the results of a finished run, or another run uses it.
    """
    if settings.run_name is None:
        return
    folder = Path(settings.output_dir) / settings.task / settings.run_name
    if not settings.resume:
        _check_no_results(folder)
    if folder.is_dir():
        try:
            FolderLock(folder).release()
        except OSError as error:
            raise _not_writable(settings, error) from error


def open_suite_folder(settings: Settings) -> RunFolder:
    """Open the folder for the summary of several runs; each run has a folder of its own besides.

    It is `output_dir/glue/RUN_NAME`, or `output_dir/suite/RUN_NAME` where other tasks take part.

    Args:
        settings: The settings of all runs.

    Raises:
        ConfigError: The folder cannot be written, is in use by another run, or holds the results of
            other settings.
    """
    parent = Path(settings.output_dir) / ("glue" if {*settings.tasks} <= {*GLUE_TASKS} else "suite")
    try:
        if settings.resume and (earlier := _earlier_run(parent, settings)) is not None:
            return RunFolder(earlier, resumed=True, lock=FolderLock(earlier))
        if settings.run_name is None:
            folder = _new_folder(parent, _now())
        else:
            folder = parent / settings.run_name
            folder.mkdir(parents=True, exist_ok=True)
        suite = _keep(folder)
    except OSError as error:
        raise _not_writable(settings, error) from error
    write_json(folder / CONFIG, settings.model_dump())
    return suite


def _keep(folder: Path) -> RunFolder:
    """Keep a folder from other runs, unless one has finished in it."""
    lock = FolderLock(folder)
    try:
        _check_no_results(folder)
    except ConfigError:
        lock.release()  # a refused run leaves nothing behind
        raise
    return RunFolder(folder, lock=lock)


def _finished(folder: Path) -> bool:
    """Whether the folder holds the results of a finished run."""
    return (folder / METRICS).exists() or (folder / STUDY).exists()


def _check_no_results(folder: Path) -> None:
    """Raise a `ConfigError` if the folder holds the results of a finished run."""
    if _finished(folder):
        raise ConfigError(
            f"run_name={folder.name}: {folder} holds the results of a finished run; take "
            f"another name, or none"
        )


def open_prediction_folder(settings: Settings, task: str) -> Path:
    """Open a new folder for the results of `mode=predict`.

    Args:
        settings: The settings of the run.
        task: The name of the task.

    Raises:
        ConfigError: The folder cannot be written, or `run_name` names one that is not empty.
    """
    parent = Path(settings.output_dir) / task
    try:
        if settings.run_name is None:
            folder = _new_folder(parent, _now())
        else:
            folder = parent / settings.run_name
            folder.mkdir(parents=True, exist_ok=True)
            if not _claim_empty(folder):
                raise ConfigError(
                    f"run_name={folder.name}: {folder} is not empty; take another name, or none"
                )
    except OSError as error:
        raise _not_writable(settings, error) from error
    write_json(folder / CONFIG, settings.model_dump() | {"task": task})
    return folder


def _claim_empty(folder: Path) -> bool:
    """Write a first file into an empty folder; False where it is not empty.

    Of two runs that find it empty at the same time, one writes the file.
    """
    if any(folder.iterdir()):
        return False
    try:
        (folder / CONFIG).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _not_writable(settings: Settings, error: OSError) -> ConfigError:
    """The error that says which folder cannot be written, and why."""
    return ConfigError(
        f"output_dir={settings.output_dir} cannot be written: {error.strerror} ({error.filename})"
    )


def _now() -> str:
    """The time of day as the name of a run."""
    return datetime.now().strftime("%Y%m%d-%H%M%S")


def _earlier_run(parent: Path, settings: Settings) -> Path | None:
    """The folder of the run to resume; None where there is none, and a new run begins."""
    if settings.run_name is not None:
        folder = parent / settings.run_name
        if not (folder / CONFIG).is_file():
            return None
        if changed := _changed_settings(folder, settings):
            raise _cannot_resume(folder, changed)
        return folder
    folders = sorted(parent.glob(f"*/{CONFIG}"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
    changes: dict[Path, dict[str, str]] = {}
    for path in folders:
        with suppress(ConfigError):  # a folder that cannot be read is not the one to resume
            changes[path.parent] = _changed_settings(path.parent, settings)
    same = [folder for folder, changed in changes.items() if not changed]
    if same:
        return same[0]
    for folder, changed in changes.items():
        # The user wants to resume, and the latest unfinished run of this mode has other settings:
        # an error says so, where a new run would be a surprise. Runs of other modes do not count: a
        # fine-tuning, for one, never has metrics and would look unfinished for ever.
        if "mode" not in changed and not _finished(folder):
            raise _cannot_resume(folder, changed)
    return None


def _cannot_resume(folder: Path, changed: Mapping[str, str]) -> ConfigError:
    """The error that says which settings were others when the run in `folder` began."""
    return ConfigError(
        f"resume=true would go on with {folder}, but its settings were others:\n"
        + "".join(f"  {key}: {difference}\n" for key, difference in changed.items())
        + "Give the same settings, name another run with run_name, or leave resume out to begin "
        "anew."
    )


def _changed_settings(folder: Path, settings: Settings) -> dict[str, str]:
    """The settings that differ from those with which the run in a folder began.

    Args:
        folder: The folder of that run.
        settings: The settings of the run that would resume it.

    Returns:
        The two values of each such setting, as text, by dotted key.

    Raises:
        ConfigError: The settings of that run cannot be read.
    """
    way_out = "Name another run with run_name, or leave resume out to begin anew."
    then = dotted(read_json(folder / CONFIG, way_out))
    now = dotted(json.loads(json.dumps(settings.model_dump())))  # tuples become lists
    return {
        key: f"{then.get(key)} then, {now.get(key)} now"
        for key in sorted({*then, *now} - set(_NOT_COMPARED))
        if then.get(key) != now.get(key)
    }


def _new_folder(parent: Path, name: str) -> Path:
    """Make the folder `parent/name`; if another run has just made it, `parent/name-2` and so on."""
    for number in itertools.count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not folder.is_dir():  # a file is in the way, here or further up
                raise
        else:
            return folder
    raise AssertionError("unreachable")
