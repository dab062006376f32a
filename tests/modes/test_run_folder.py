"""Which folder a run goes to: a new one, one to go on with, or none, and why."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest
from tiny import task_settings

from bertvision_stream.modes.run_folder import (
    RunFolder,
    check_run_name,
    open_prediction_folder,
    open_run_folder,
    open_suite_folder,
    temporary_folder_warning,
)
from bertvision_stream.settings.command_line import load_settings
from bertvision_stream.settings.settings import TaskSettings, dotted
from bertvision_stream.utils.errors import ConfigError


class Runs:
    """Runs of tasks below one output folder."""

    def __init__(self, output_dir: Path):
        self.output_dir = output_dir
        self._num_begun = 0

    def settings(self, *overrides: str, task: str = "cola") -> TaskSettings:
        return task_settings(task, f"output_dir={self.output_dir}", *overrides)

    def open(self, *overrides: str, task: str = "cola") -> RunFolder:
        return open_run_folder(self.settings(*overrides, task=task))

    def begin(
        self, *overrides: str, task: str = "cola", epochs: int = 0, finished: bool = False
    ) -> Path:
        """A run that ended, by itself or not; each one is later than those before."""
        run = self.open(*overrides, task=task)
        self._num_begun += 1
        os.utime(run.path / "config.json", (self._num_begun, self._num_begun))
        if epochs:
            run.checkpoint.parent.mkdir()
            run.checkpoint.touch()
        if finished:
            (run.path / "metrics.json").touch()
        return run.path

    def error(self, *overrides: str, task: str = "cola") -> str:
        with pytest.raises(ConfigError) as caught:
            self.open(*overrides, task=task)
        return str(caught.value)

    def files(self) -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in self.output_dir.rglob("*") if p.is_file()}


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "outputs")


def test_a_new_run_is_named_by_its_time(runs: Runs):
    before = datetime.now().replace(microsecond=0)
    run = runs.open("train.epochs=3", "train.lr=0.01")
    assert run == RunFolder(run.path, resumed=False, finished=False)
    assert run.path.parent == runs.output_dir / "cola"
    assert before <= datetime.strptime(run.path.name[:15], "%Y%m%d-%H%M%S") <= datetime.now()
    assert run.checkpoint == run.path / "checkpoints" / "last.safetensors"
    config = json.loads((run.path / "config.json").read_text())
    assert TaskSettings.model_validate(config) == runs.settings("train.epochs=3", "train.lr=0.01")
    assert sorted(path.name for path in run.path.iterdir()) == [".lock", "config.json"]


def test_runs_of_the_same_second_have_folders_of_their_own(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
):
    class Noon(datetime):
        @classmethod
        def now(cls, tz: object = None) -> Noon:
            return cls(2026, 1, 2, 12, 0, 0)

    monkeypatch.setattr("bertvision_stream.modes.run_folder.datetime", Noon)
    names = [runs.open().path.name for _ in range(3)]
    assert names == ["20260102-120000", "20260102-120000-2", "20260102-120000-3"]


def test_a_name_that_is_given_is_taken(runs: Runs):
    run = runs.open("run_name=one")
    assert run == RunFolder(runs.output_dir / "cola" / "one")
    assert run.path.is_dir()


def test_a_run_that_begins_anew_forgets_the_one_before(runs: Runs):
    path = runs.begin("run_name=one", "seed=1", epochs=2)
    run = runs.open("run_name=one", "seed=2")
    assert run == RunFolder(path)
    assert not run.checkpoint.exists()
    assert json.loads((path / "config.json").read_text())["seed"] == 2


@pytest.mark.parametrize("resume", ["false", "true"])
def test_a_finished_run_is_not_overwritten(runs: Runs, resume: str):
    """Not even where it cannot be told what its settings were."""
    path = runs.begin("run_name=one", finished=True)
    if resume == "true":
        (path / "config.json").unlink()
    before = runs.files()
    assert runs.error("run_name=one", f"resume={resume}") == (
        f"run_name=one: {path} holds the results of a finished run; take another name, or none"
    )
    assert runs.files() == before


@pytest.mark.parametrize("name", [(), ("run_name=one",)], ids=["no name", "a name"])
def test_with_nothing_to_go_on_with_a_run_begins(runs: Runs, name: tuple[str, ...]):
    with runs.open("resume=true", *name) as run:
        assert run == RunFolder(run.path)
        assert (run.path / "config.json").is_file()
    again = runs.open("resume=true", *name)
    assert again == RunFolder(run.path, resumed=True)


@pytest.mark.parametrize("name", [(), ("run_name=one",)], ids=["no name", "a name"])
@pytest.mark.parametrize("epochs", [0, 1])
def test_an_interrupted_run_goes_on(runs: Runs, epochs: int, name: tuple[str, ...]):
    path = runs.begin("seed=7", *name, epochs=epochs)
    before = (path / "config.json").read_bytes()
    run = runs.open("seed=7", "resume=true", *name)
    assert run == RunFolder(path, resumed=True)
    assert run.checkpoint.exists() == bool(epochs)
    assert (path / "config.json").read_bytes() == before


@pytest.mark.parametrize("name", [(), ("run_name=one",)], ids=["no name", "a name"])
def test_a_finished_run_is_found_finished(runs: Runs, name: tuple[str, ...]):
    path = runs.begin(*name, epochs=5, finished=True)
    assert runs.open("resume=true", *name) == RunFolder(path, resumed=True, finished=True)


def test_the_latest_run_of_the_same_settings_goes_on(runs: Runs):
    runs.begin("seed=1", "run_name=first")
    second = runs.begin("seed=1", "run_name=second")
    runs.begin("seed=2", "run_name=third")  # later, and of other settings
    runs.begin("seed=1", "run_name=of-another-task", task="rte")
    assert runs.open("seed=1", "resume=true").path == second


def test_a_run_does_not_go_on_with_other_settings(runs: Runs):
    path = runs.begin("train.epochs=3", "run_name=one", "stream.budget=2GiB")
    before = runs.files()
    expected = (
        f"resume=true would go on with {path}, but its settings were others:\n"
        "  head.kind: adapter_pooler then, cls now\n"
        "  stream.budget: 2147483648 then, auto now\n"
        "  train.epochs: 3 then, 4 now\n"
        "Give the same settings, name another run with run_name, or leave resume out to begin "
        "anew."
    )
    for name in ((), ("run_name=one",)):
        assert runs.error("train.epochs=4", "head.kind=cls", "resume=true", *name) == expected
    assert runs.files() == before
    assert runs.open("train.epochs=4", "resume=true", "run_name=two").path != path


def test_finished_runs_of_other_settings_do_not_matter(runs: Runs):
    runs.begin("seed=1", finished=True)
    run = runs.open("seed=2", "resume=true")
    assert run == RunFolder(run.path)


def test_of_several_interrupted_runs_the_latest_is_compared(runs: Runs):
    runs.begin("seed=1", "run_name=one")
    runs.begin("seed=2", "run_name=two")
    runs.begin("seed=3", "run_name=three", finished=True)
    error = runs.error("seed=4", "resume=true")
    assert f"go on with {runs.output_dir / 'cola' / 'two'}, but" in error
    assert "  seed: 2 then, 4 now\n" in error


def test_a_fine_tuning_by_itself_is_no_run_to_go_on_with(runs: Runs):
    runs.begin("mode=finetune", "run_name=tuned")
    run = runs.open("resume=true")
    assert run == RunFolder(run.path)
    assert run.path.name != "tuned"


def test_where_and_how_it_runs_is_not_compared(runs: Runs):
    path = runs.begin("run_name=one", "ray.address=auto")
    moved = runs.output_dir.with_name("moved")
    runs.output_dir.rename(moved)
    settings = task_settings("cola", f"output_dir={moved}", "resume=true")
    assert settings.run_name is None
    assert open_run_folder(settings).path == moved / "cola" / path.name


CUSTOM = ("data.path=rows.csv", "data.label_column=about")


@pytest.mark.parametrize("columns", ["text", "[title,body]"])
def test_settings_that_are_lists_come_back_the_same(runs: Runs, columns: str):
    chosen = (*CUSTOM, f"data.text_columns={columns}")
    path = runs.begin(*chosen, task="custom")
    assert runs.open(*chosen, "resume=true", task="custom").path == path
    error = runs.error(*CUSTOM, "data.text_columns=[title,text]", "resume=true", task="custom")
    then = "['text']" if columns == "text" else "['title', 'body']"
    assert f"\n  data.text_columns: {then} then, ['title', 'text'] now\n" in error


@pytest.mark.parametrize("content", [b"", b'{"seed": 4', b"\xff\xfe{}", b"[1, 2]", b"3"])
def test_settings_that_cannot_be_read(runs: Runs, content: bytes):
    path = runs.begin("run_name=one", epochs=1)
    (path / "config.json").write_bytes(content)
    error = runs.error("run_name=one", "resume=true")
    assert error.startswith(f"{path / 'config.json'} cannot be read: ")
    assert error.endswith(". Name another run with run_name, or leave resume out to begin anew.")
    # Without a name it is no candidate: another run may be meant.
    run = runs.open("resume=true")
    assert (run.resumed, run.path == path) == (False, False)


def test_a_file_in_the_way_of_the_folder(runs: Runs):
    runs.output_dir.mkdir()
    (runs.output_dir / "cola").write_text("in the way")
    for overrides in ((), ("run_name=one",), ("resume=true",), ("run_name=one", "resume=true")):
        error = runs.error(*overrides)
        assert error.startswith(
            f"output_dir={runs.output_dir} cannot be written: Not a directory ("
        )
        assert str(runs.output_dir / "cola") in error


def test_a_checkpoint_that_cannot_be_removed(runs: Runs):
    path = runs.begin("run_name=one")
    checkpoint = path / "checkpoints" / "last.safetensors"
    checkpoint.mkdir(parents=True)
    error = runs.error("run_name=one")
    assert error.startswith(f"output_dir={runs.output_dir} cannot be written: ")
    assert error.endswith(f" ({checkpoint})")


@contextmanager
def held_by_another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a run's folder until it is killed."""
    code = (
        "import signal, sys; from pathlib import Path\n"
        "from bertvision_stream.utils.folder_lock import FolderLock\n"
        "lock = FolderLock(Path(sys.argv[1])); print('held', flush=True); signal.pause()"
    )
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_folder_that_a_live_run_holds_is_refused_and_a_dead_ones_is_not(runs: Runs):
    path = runs.begin("run_name=one", epochs=2)
    with held_by_another_process(path) as holder:
        before = runs.files()
        for overrides in (("run_name=one",), ("run_name=one", "resume=true"), ("resume=true",)):
            error = runs.error(*overrides)
            assert error.startswith(f"{path} is in use by another run that has not ended (")
            assert f"(process {holder.pid} on {socket.gethostname()}, since " in error
        with pytest.raises(ConfigError, match=f"process {holder.pid} on "):
            check_run_name(runs.settings("run_name=one"))
        assert runs.files() == before
        assert runs.open().path != path
        holder.kill()
        holder.wait()
        check_run_name(runs.settings("run_name=one"))
        assert runs.open("run_name=one", "resume=true").checkpoint.exists()


def test_two_runs_of_one_process_do_not_share_a_folder(runs: Runs):
    with runs.open("run_name=one") as run:
        assert str(run.path) in runs.error("run_name=one")
    assert not (run.path / ".lock").exists()
    assert runs.open("run_name=one") == run


def test_a_suite_and_predictions_have_folders_of_their_own(runs: Runs):
    settings = load_settings(["task=[cola,rte]", "run_name=night", f"output_dir={runs.output_dir}"])
    in_use = re.escape(f"{runs.output_dir / 'glue' / 'night'} is in use by another run")
    with open_suite_folder(settings), pytest.raises(ConfigError, match=in_use):
        open_suite_folder(settings)
    open_prediction_folder(settings, "cola")
    with pytest.raises(ConfigError, match="is not empty"):
        open_prediction_folder(settings, "cola")


def test_without_locks_a_run_goes_on_and_names_the_one_before(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def no_locks(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    path = runs.begin("run_name=one")
    (path / ".lock").write_text("process 7 on another-host, since noon\n")  # it was killed
    monkeypatch.setattr("fcntl.flock", no_locks)
    runs.open("run_name=one", "resume=true")
    (warning,) = caplog.messages
    assert "without locks (No locks available): make sure that no other run uses it" in warning
    assert "the last one was process 7 on another-host" in warning


def test_nested_settings_as_dotted_keys():
    nested = {"a": 1, "b": {"c": [2], "d": {"e": None}}, "empty": {}}
    assert dotted(nested) == {"a": 1, "b.c": [2], "b.d.e": None, "empty": {}}


def test_results_in_a_jobs_copy_of_the_sources_do_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1f2e3d"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert temporary_folder_warning(Path("outputs/demo/one")) == (
        "outputs/demo/one lies in this job's copy of the working directory, which Ray deletes some "
        "time; give output_dir a folder that stays, with its full path"
    )
    assert temporary_folder_warning(tmp_path / "outputs") is None
