"""The errors that bertvision_stream raises on purpose."""


class BertvisionError(Exception):
    """Base of every error that this package raises on purpose."""


class UserError(BertvisionError):
    """An error that the user can mend; shown without a traceback, exit status 2."""


class ConfigError(UserError):
    """A command line that cannot be run: one report of everything wrong with it."""


class DataError(UserError):
    """Data that are missing, malformed or unfit for the task."""


class BackboneError(UserError):
    """A backbone that cannot be found, loaded or used."""


class StreamError(BertvisionError):
    """A run that cannot go on, exit status 1; says the block, the cause and the attempts."""


class TrainerLostError(StreamError):
    """A head trainer died; what it held goes on from its last checkpoint in a new one."""


class OutputError(BertvisionError):
    """Results that cannot be written: the disk is full or the folder read-only. Exit status 1."""


class SearchError(BertvisionError):
    """A search that leaves no trial to go on with, exit status 1."""


RUN_ERROR, USER_ERROR, INTERRUPTED = 1, 2, 130
