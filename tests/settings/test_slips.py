"""Slips on a command line: values that a shell has split, swapped ones, forgotten columns."""

import pytest
from settings_report import CUSTOM, items

from bertvision_stream.settings.command_line import load_settings
from bertvision_stream.utils.errors import ConfigError


@pytest.mark.parametrize(
    ("split", "whole", "advice"),
    [
        (["seeds=[1,", "2]"], "seeds=[1, 2]", "Quote it: 'seeds=[1, 2]'"),
        (["seeds=1,", "2"], "seeds=1, 2", "Quote it: 'seeds=[1, 2]'"),
        (["stream.budget=2", "GiB"], "stream.budget=2 GiB", "Quote it: 'stream.budget=2 GiB'"),
        (["data.path=my", "own", "x.csv"], None, "Quote it: 'data.path=my own x.csv'"),
        (["train.lr=", "1e-3"], "train.lr=1e-3", "Write train.lr=1e-3 without spaces"),
        (["train.lr", "=", "1e-3"], "train.lr=1e-3", "Write train.lr=1e-3 without spaces"),
        (["train.lr", "=1e-3"], "train.lr=1e-3", "Write train.lr=1e-3 without spaces"),
    ],
)
def test_what_the_shell_has_split_is_said_to_be_quoted(split, whole, advice):
    given, wrong, last = items("task=cola", *split, "seed=3")[0]
    assert given == whole or whole is None
    assert (wrong, last) == ("the shell has split this at its spaces", advice)


def test_brackets_of_several_keys_and_depths_are_joined():
    space = ["search.space={train.lr:", "[0.1,", "0.2]}"]
    found = items("task=[cola,", "rte]", "mode=search", *space)
    assert [given for given, *_ in found] == [
        "task=[cola, rte]",
        "search.space={train.lr: [0.1, 0.2]}",
    ]


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("seeds=[1,2", "a [ is not closed"),
        ("search.space={a: [1}", "a } closes nothing"),
        ("backbone='x", "a quotation mark is not closed"),
        ("train.epochs=@3", "a character in it, such as : # & * ! % @ or `, needs"),
        ("train.epochs=" + 3000 * "[", "its brackets are nested too deeply"),
    ],
)
def test_a_value_that_cannot_be_read_is_told_in_our_own_words(argument, reason):
    ((_, wrong),) = items("task=demo", "mode=search", argument)
    assert wrong.startswith(f"the value cannot be read: {reason}")


def test_a_value_at_the_wrong_key_is_known_there():
    swapped = ["task=search mode=wnli", "the two values are swapped", "Write task=wnli mode=search"]
    assert items("task=search", "mode=wnli") == [swapped]
    assert items("task=predict")[0][-1] == "predict is a value of another key: mode=predict"
    ((*_, advice),) = items("task=demo", "head.pool=scalar_mix")
    assert advice == "scalar_mix is a value of another key: head.kind=scalar_mix"


@pytest.mark.parametrize("forgotten", ["data.label_column", "data.text_columns"])
def test_a_forgotten_column_lists_those_there_are(forgotten):
    given = [argument for argument in CUSTOM if not argument.startswith(forgotten)]
    asked: list[str] = []

    def columns_of(path: str) -> list[str]:
        asked.append(path)
        return ["title", "stars"]

    with pytest.raises(ConfigError, match="The columns there: title, stars"):
        load_settings(given, columns_of=columns_of)
    assert asked == ["a.csv"]
