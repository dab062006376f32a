"""The command line of the benchmarks."""

import re

import pytest
import torch

from benchmarks.run import merged, parse_options


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parse_options(argv)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_all_sections_by_default_each_with_a_title_of_its_own() -> None:
    options, sections = parse_options([])
    assert {"peers", "score", "trials"} <= {section.name for section in sections}
    assert len({section.title for section in sections}) == len(sections)
    assert options.epochs == (1, 3, 5, 10)


def test_sections_can_be_picked() -> None:
    _, sections = parse_options(["--sections", "trials,score", "--tasks", "rte,mrpc"])
    assert [s.name for s in sections] == ["score", "score", "trials"]
    assert [s.title.partition(":")[0] for s in sections[:2]] == ["rte", "mrpc"]


@pytest.mark.parametrize("there", [False, True])
def test_what_needs_a_gpu_is_left_out_where_there_is_none(
    there: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    _, sections = parse_options([])
    assert ("gpu" in [section.name for section in sections]) == there
    assert ("gpu: left out, as there is no GPU here" in capsys.readouterr().out) != there
    if there:
        assert [s.name for s in parse_options(["--sections", "gpu"])[1]] == ["gpu"]
    else:
        assert "--sections=gpu: there is no GPU here" in refused(capsys, "--sections", "gpu")


def test_settings_of_the_user_come_last() -> None:
    assert merged(["a=1", "b=2"], ["b=3"], ["c=4", "a=5"]) == ("a=5", "b=3", "c=4")
    _, sections = parse_options(["data.train_fraction=0.02", "backbone=minilm"])
    for section in sections:
        if section.settings:
            assert "data.train_fraction=0.02" in section.settings


def test_marks_are_sorted_and_distinct() -> None:
    options, sections = parse_options(["--epochs", "5,1,5", "--sections", "peers"])
    assert options.epochs == (1, 5)
    assert sections[0].others == "Epochs: 1, 5 of one run of 5"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--sections", "peers,pears"], r"--sections=pears: known are peers, score, trials"),
        (["--peers", "stream-cached,spark"], r"--peers=spark: known are stream-cached, "),
        (["--peers", "dump"], r"--peers lacks stream-cached"),
        (["--once", "stream-cached"], r"--once=stream-cached: known are stream-half, "),
        (["--epochs", "0,5"], r"'0,5' are not whole numbers above 0, such as 1,3,5"),
        (["--trials", "four"], r"'four' are not whole numbers"),
        (["--repeats", "0"], r"--repeats=0: at least 1"),
        (["--repeat", "2"], r"unrecognized arguments: --repeat"),
        (["task=rte"], r"task= cannot be set here; it is given by --tasks"),
        (["train.epochs=2"], r"train.epochs= is given by --epochs"),
        (["finetune.epochs=2"], r"finetune.epochs= cannot be set here"),
        (["--tasks", "squad_v2"], r"one sentence task at a time, and not squad_v2"),
        (["--tasks", "colla"], r"task=colla[\s\S]*cola"),
        (["trian.lr=1"], r"trian.lr=1[\s\S]*train.lr"),
    ],
)
def test_mistakes_are_refused_before_anything_is_measured(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(message, refused(capsys, *argv))
