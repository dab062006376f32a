"""A trial of the search over heads: it holds no data, no tensor and imports no torch."""

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
    """Attaches a head to the stream, and passes on what each epoch makes of it.

    Use it with `tune.with_parameters(HeadTrial, barrier=..., base=...)`.
    """

    def setup(self, config: dict[str, Any], *, barrier: ActorHandle, base: TaskSettings) -> None:  # type: ignore[override]
        """Attach a new head.

        Args:
            config: Sampled values by dotted key.
            barrier: The `EpochBarrier`.
            base: The settings that all trials share.
        """
        logging.getLogger("ray.train").setLevel(logging.WARNING)  # a line for each checkpoint
        self._barrier: Any = barrier
        self._base = base
        self._over = threading.Event()
        self._attach(config)
        threading.Thread(target=self._heartbeat, daemon=True, name="heartbeat").start()

    def step(self) -> dict[str, Any]:
        """Wait for the end of one more epoch."""
        report: HeadReport = ray.get(self._barrier.next_report.remote(self._name))
        self._report = report
        if report.failure:
            return {**failure_result(report.failure), "done": True}
        kept = report.history[report.chosen_epoch - 1]
        return {**epoch_result(report.history[-1], kept=kept), "done": not report.active}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """The head's state after its last epoch."""
        folder = Path(checkpoint_dir)
        (folder / _HEAD).write_bytes(self._report.checkpoint)
        (folder / _EPOCH).write_text(json.dumps(len(self._report.history)), encoding="utf-8")

    def load_checkpoint(self, checkpoint_dir: str) -> None:  # type: ignore[override]
        """Go on from what `save_checkpoint` wrote, in place of the new head of `setup`."""
        folder = Path(checkpoint_dir)
        epoch = json.loads((folder / _EPOCH).read_text(encoding="utf-8"))
        self._attach(self.config, (folder / _HEAD).read_bytes(), epoch)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become the next trial: that spares the start of a process."""
        self._leave()
        self._attach(new_config)
        return True

    def cleanup(self) -> None:
        """Let the head go."""
        self._over.set()
        self._leave()

    def _attach(
        self, config: dict[str, Any], checkpoint: bytes | None = None, epoch: int = 0
    ) -> None:
        self._name = self.trial_id
        settings = trial_settings(self._base, config)
        ray.get(self._barrier.attach.remote(self._name, settings, checkpoint, epoch))

    def _leave(self) -> None:
        ray.get(self._barrier.detach.remote(self._name))

    def _heartbeat(self) -> None:
        while not self._over.wait(HEARTBEAT_SECONDS):
            self._barrier.heartbeat.remote(self._name)
