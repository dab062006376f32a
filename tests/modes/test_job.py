"""A run submitted with `ray job submit` to a cluster started with `ray start --head`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from ray._private.services import psutil  # Ray carries it

from actors.ray_private import OWN_CLUSTER

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SHORT = ("task=demo", "data.train_fraction=0.05")
PATIENCE_SECONDS = 240


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass(frozen=True)
class RayHead:
    """A cluster of its own beside any others on the machine."""

    dashboard: str
    environment: dict[str, str]

    def ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The `ray` command."""
        return subprocess.run(
            ["ray", *arguments],
            cwd=REPOSITORY,
            env=self.environment | {"RAY_ADDRESS": self.dashboard},
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )

    def submit(self, name: str, *arguments: str, wait: bool) -> subprocess.CompletedProcess[str]:
        """Submit a run, as the README says."""
        command = ["python", "-m", "bertvision_stream.run", *arguments]
        options = ["--submission-id", name, "--working-dir", "."] + ([] if wait else ["--no-wait"])
        return self.ray("job", "submit", *options, "--", *command)

    def get(self, path: str) -> Any:
        """What the dashboard answers."""
        with urllib.request.urlopen(self.dashboard + path, timeout=60) as answer:
            return json.load(answer)

    def logs(self, name: str) -> str:
        """All that a job has printed."""
        return str(self.get(f"/api/jobs/{name}/logs")["logs"])

    def actors(self) -> dict[str, str]:
        """The state of each actor there has been, by name, but for Ray's supervisors of jobs."""
        listed = self.get("/api/v0/actors?detail=1")["data"]["result"]["result"]
        return {a["name"]: a["state"] for a in listed if a["class_name"] != "JobSupervisor"}


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    """`ray start --head` on ports of its own, ended by what it has started and nothing else."""
    port = free_port()
    binaries = Path(sys.executable).parent
    # Paths of sockets are short, and those of pytest's folders are not.
    with tempfile.TemporaryDirectory(prefix="job-", ignore_cleanup_errors=True) as folder:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "disabled",  # all listens on 127.0.0.1
            "RAY_JOB_STOP_WAIT_TIME_S": "60",  # 3 by default, too few on a busy machine
            "RAY_TMPDIR": folder,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        with subprocess.Popen(
            [
                *("ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1"),
                *(f"--port={free_port()}", f"--dashboard-port={port}", f"--temp-dir={folder}"),
                *("--dashboard-agent-listen-port=0", "--num-cpus=2", "--num-gpus=0"),
                f"--object-store-memory={2**30}",
                f"--system-config={json.dumps(OWN_CLUSTER)}",
            ],
            env=environment | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as started:
            assert started.stdout is not None
            said = []
            for line in started.stdout:
                said.append(line)
                if "Ray runtime started" in line:
                    break
            else:
                pytest.fail("".join(said))
            family = psutil.Process(started.pid).children(recursive=True)
            try:
                yield RayHead(f"http://127.0.0.1:{port}", environment)
            finally:
                family += psutil.Process(started.pid).children(recursive=True)
                started.send_signal(signal.SIGTERM)
                _, alive = psutil.wait_procs(set(family), timeout=15)
                for process in alive:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                started.kill()


def assert_no_actor_is_left(head: RayHead) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while set((actors := head.actors()).values()) != {"DEAD"}:
        assert actors, "there never were any"
        assert time.monotonic() < deadline, actors
        time.sleep(0.2)


def test_a_job_runs_on_its_cluster_and_leaves_results_and_no_actor(
    head: RayHead, tmp_path: Path
) -> None:
    fit = ("finetune.epochs=0.1", "train.epochs=1")
    arguments = (*SHORT, *fit, f"output_dir={tmp_path}", "run_name=job")
    done = head.submit("one", *arguments, wait=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Job 'one' succeeded" in done.stdout
    metrics = json.loads((tmp_path / "demo" / "job" / "metrics.json").read_text())
    assert metrics["train"]["epochs"] == 1
    assert_no_actor_is_left(head)
    said = head.logs("one")
    ours = said[said.index("demo: results in") :].splitlines()
    assert any(line.startswith(f"Ray's dashboard: {head.dashboard}") for line in ours), said
    assert any(line.startswith("epoch 1/1: loss ") for line in ours)
    assert ours[-1] == f"results in {tmp_path}/demo/job"
    assert not re.search(r"[\r\x1b]|\(pid=|it/s|Traceback", "\n".join(ours)), said


def test_a_stopped_job_says_how_to_go_on_and_leaves_no_actor(head: RayHead, tmp_path: Path) -> None:
    fit = ("finetune.epochs=0", "train.epochs=1000")
    arguments = (*SHORT, *fit, f"output_dir={tmp_path}", "run_name=stopped")
    submitted = head.submit("two", *arguments, wait=False)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    deadline = time.monotonic() + PATIENCE_SECONDS
    while "\nepoch 1/1000: " not in (said := head.logs("two")):
        assert time.monotonic() < deadline, said
        time.sleep(0.5)
    assert "ALIVE" in head.actors().values()
    stopped = head.ray("job", "stop", "two")
    assert "Job 'two' was stopped" in stopped.stdout, stopped.stdout + stopped.stderr
    command = shlex.join(["python", "-m", "bertvision_stream.run", *arguments, "resume=true"])
    ending = (
        "Interrupted. What is finished is kept; to go on, submit the job again:\n"
        f"  ray job submit --working-dir . -- {command}\n"
    )
    assert head.logs("two").endswith(ending)
    assert_no_actor_is_left(head)
