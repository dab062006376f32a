"""What a person reads of a command line that is refused."""

import pytest

from bertvision_stream.settings.command_line import load_settings
from bertvision_stream.utils.errors import ConfigError

CUSTOM = ["task=custom", "data.path=a.csv", "data.text_columns=[a,b]", "data.label_column=y"]


def report(*argv: str) -> str:
    """The report on a command line that must be refused."""
    with pytest.raises(ConfigError) as caught:
        load_settings(argv)
    return str(caught.value)


def items(*argv: str) -> list[list[str]]:
    """The report's items, each as its lines, without the first and the last line of the report."""
    blocks = report(*argv).split("\n\n")[1:-1]
    return [[line.strip() for line in block.splitlines()] for block in blocks]
