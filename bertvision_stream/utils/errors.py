"""The errors that bertvision_stream raises on purpose, and the exit codes that they lead to."""

from collections.abc import Iterator
from contextlib import contextmanager


class BertvisionError(Exception):
    """The base of every error that this package raises on purpose."""


class UserError(BertvisionError):
    """A mistake that the user can correct; shown without a traceback, exit code 2."""


class ConfigError(UserError):
    """A command line that cannot be run; the message reports everything that is wrong with it."""


class DataError(UserError):
    """Data that are missing, malformed or unfit for the task."""


class BackboneError(UserError):
    """A backbone that cannot be found, loaded or used."""


class Mistakes:
    """Mistakes of the user that are found one after another and told together."""

    def __init__(self) -> None:
        self._found: dict[str, UserError] = {}

    def __bool__(self) -> bool:
        return bool(self._found)

    @contextmanager
    def noting(self, subject: str = "") -> Iterator[None]:
        """Notes a `UserError` that is raised within this context, which ends with it.

        Args:
            subject: What the check is for, such as a task: of messages that differ in this word
                alone, as where a folder lacks the rows of all tasks, the first is kept.
        """
        try:
            yield
        except UserError as error:
            text = str(error)
            self._found.setdefault(text.replace(subject, "*") if subject else text, error)

    def tell(self) -> None:
        """Raises what was noted, if anything was.

        Raises:
            UserError: It is the only one as it is, or one with the messages of all.
        """
        found = list(self._found.values())
        if len(found) == 1:
            raise found[0]
        if found:
            raise UserError("\n\n".join((f"{len(found)} problems:", *map(str, found))))


class StreamError(BertvisionError):
    """A run that cannot go on, exit code 1; the message names block, cause and attempts."""


class TrainerLostError(StreamError):
    """A head trainer died; a new one takes over its heads from their last checkpoint."""


class OutputError(BertvisionError):
    """Results that cannot be written, on a full disk or into a read-only folder. Exit code 1."""


class SearchError(BertvisionError):
    """A search that leaves no trial to go on with, exit code 1."""


# 130 is what a shell reports for a command that Ctrl-C has ended: 128 + SIGINT.
RUN_ERROR, USER_ERROR, INTERRUPTED = 1, 2, 130
