"""Ctrl-C before a run has begun, and what is then said of going on."""

import subprocess
import sys
from pathlib import Path

import pytest

from bertvision_stream.run import main

INTERRUPTED_AT = """
import os, runpy, signal, sys

class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            exec("os.kill(os.getpid(), signal.SIGINT)")  # as where a dataclass is made

sys.meta_path.insert(0, Interrupt())
sys.argv[1:] = {arguments!r}
runpy.run_module("bertvision_stream.run", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "module",
    [
        "bertvision_stream.settings.command_line",
        "pydantic",
        "bertvision_stream.utils.own_packages",
        "pyarrow",
        "bertvision_stream.modes.run_folder",
    ],
)
def test_ctrl_c_while_modules_are_imported(tmp_path: Path, module: str):
    arguments = ["task=demo", "backbone=minilm", "resume=true"]
    code = INTERRUPTED_AT.format(module=module, arguments=arguments)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == (
        "\nInterrupted. What is finished is kept; to go on:\n"
        "  python -m bertvision_stream.run task=demo backbone=minilm resume=true\n"
    )
    assert done.returncode == 130


def test_an_interrupted_job_says_how_to_submit_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setattr("bertvision_stream.settings.command_line.load_settings", interrupted)
    assert main(["task=[cola,rte]"]) == 130
    assert capsys.readouterr().err == (
        "\nInterrupted. What is finished is kept; to go on, submit the job again:\n"
        "  ray job submit --working-dir . -- "
        "python -m bertvision_stream.run 'task=[cola,rte]' resume=true\n"
    )
