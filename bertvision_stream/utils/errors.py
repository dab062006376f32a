"""The errors that bertvision_stream raises on purpose, and the exit codes that they lead to."""


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
