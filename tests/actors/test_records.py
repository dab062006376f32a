"""What Ray's errors become when they are told to people."""

from __future__ import annotations

import pytest
from ray.exceptions import RayActorError

from actors.records import death_of

KILLED = """The actor died unexpectedly before finishing this task.
	class_name: HeadTrainer
	actor_id: 8bc4c0f5963b70d2b4efc30401000000
	pid: 28063
	name: wnli-1-head-trainer-0
	namespace: 5784b825-eb37-4bb7-9948-edff42fb2687
	ip: 10.0.0.1
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit \
detail: Worker unexpectedly exits with a connection error code 2. End of file. Some common causes \
include: (1) the process was killed by the OOM killer due to high memory usage, (2) ..."""
NO_NODE = """The actor died because its node has died. Node Id: 12ab
	name: wnli-1-feature-stream-0
	the actor's node was terminated unexpectedly: it missed too many heartbeats"""
NO_START = "The actor died because of an error raised in its creation task\nValueError: no good"


class DiedError(RayActorError):
    def __init__(self, text: str):
        super().__init__()
        self._text = text

    def __str__(self) -> str:
        return self._text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            KILLED,
            "wnli-1-head-trainer-0 died: its process ended unexpectedly: Worker unexpectedly exits "
            "with a connection error code 2. End of file.",
        ),
        (
            NO_NODE,
            "wnli-1-feature-stream-0 died: DiedError: the actor's node was terminated unexpectedly"
            ": it missed too many heartbeats",
        ),
        (NO_START, "an actor died: DiedError: ValueError: no good"),
    ],
)
def test_a_death_says_whose_it_is_and_of_what(text: str, told: str):
    assert death_of(DiedError(text)) == told
