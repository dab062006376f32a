"""A trial of the search over heads.

A trial is a process of its own, and a search has many: it imports no torch and holds no data, and
only passes on what the stream reports of its head.
"""

import json
import logging
import threading
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.actor import ActorHandle

from bertvision_stream.settings.settings import TaskSettings
from tune.epoch_barrier import HEARTBEAT_SECONDS, HeadReport
from tune.space import trial_settings
from tune.trial_results import epoch_result, failure_result

_HEAD, _EPOCH = "head.safetensors", "epoch.json"


class HeadTrial(tune.Trainable):
    """Attaches a head to the stream, and reports to Ray Tune how it does in each epoch.

    Use it as `tune.with_parameters(HeadTrial, barrier=..., base=...)`.
    """

    def setup(self, config: dict[str, Any], *, barrier: ActorHandle, base: TaskSettings) -> None:  # type: ignore[override]
        """Attach a new head.

        Args:
            config: The sampled values by dotted key.
            barrier: The handle of the `EpochBarrier`.
            base: The settings that all trials share.
        """
        logging.getLogger("ray.train").setLevel(logging.WARNING)  # else a line for each checkpoint
        self._barrier: Any = barrier
        self._base = base
        self._ended = threading.Event()
        self._attach(config)
        # A process that crashes or is killed detaches nothing. The barrier notices it, as the
        # heartbeats stop.
        threading.Thread(target=self._send_heartbeats, daemon=True, name="heartbeat").start()

    def step(self) -> dict[str, Any]:
        """Wait for the end of one more epoch, and return what Tune is told of it."""
        report: HeadReport = ray.get(self._barrier.next_report.remote(self._name))
        self._report = report
        if report.failure:
            return {**failure_result(report.failure), "done": True}
        assert report.kept is not None
        return {**epoch_result(report.history[-1], kept=report.kept), "done": not report.active}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the state of the head after its last epoch, and the number of its epochs."""
        folder = Path(checkpoint_dir)
        (folder / _HEAD).write_bytes(self._report.checkpoint)
        (folder / _EPOCH).write_text(json.dumps(len(self._report.history)), encoding="utf-8")

    def load_checkpoint(self, checkpoint_dir: str) -> None:  # type: ignore[override]
        """Go on with the head that `save_checkpoint` wrote, in place of the new one of `setup`."""
        folder = Path(checkpoint_dir)
        epoch = json.loads((folder / _EPOCH).read_text(encoding="utf-8"))
        self._attach(self.config, (folder / _HEAD).read_bytes(), epoch)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become the next trial, which saves the start of another process.

        Args:
            new_config: The sampled values of the next trial by dotted key.
        """
        self._detach()
        self._attach(new_config)
        return True

    def cleanup(self) -> None:
        """Detach the head, at the end of the process."""
        self._ended.set()
        self._detach()

    def _attach(
        self, config: dict[str, Any], checkpoint: bytes | None = None, epoch: int = 0
    ) -> None:
        """Attach the head of `config`, new or with the state of a checkpoint."""
        self._name = self.trial_id  # kept, as Tune changes it before `reset_config`
        settings = trial_settings(self._base, config)
        ray.get(self._barrier.attach.remote(self._name, settings, checkpoint, epoch))

    def _detach(self) -> None:
        """Detach the head of the trial that has ended."""
        ray.get(self._barrier.detach.remote(self._name))

    def _send_heartbeats(self) -> None:
        """Tell the barrier again and again that this process is alive."""
        while not self._ended.wait(HEARTBEAT_SECONDS):
            self._barrier.heartbeat.remote(self._name)
