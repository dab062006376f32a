"""What is wrong with rows, backbones and runs: told together, before anything is read."""

import json
from pathlib import Path

import pytest
from commands import run_here

from bertvision_stream.modes.inputs import read_all_inputs
from bertvision_stream.settings.command_line import load_settings
from bertvision_stream.utils.errors import UserError


def test_what_is_wrong_with_rows_and_backbone_is_told_together(tmp_path: Path):
    done = run_here(tmp_path, "task=[cola,rte]", "backbone=./bert", "data.path=/nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip().startswith(
        "2 problems:\n\ndata.path=/nowhere does not exist; task=cola"
    )
    assert done.stderr.strip().endswith("backbone=./bert: there is no such folder")
    (tmp_path / "x.csv").write_text("text,mood\na,b\n")
    columns = ("data.text_columns=text", "data.label_column=stars")
    done = run_here(tmp_path, "task=custom", "backbone=./bert", "data.path=x.csv", *columns)
    assert done.stderr.strip() == (
        "2 problems:\n\nbackbone=./bert: there is no such folder\n\n"
        "x.csv: there is no column 'stars'; the columns are: text, mood"
    )
    done = run_here(tmp_path, "mode=predict", "run=[a,b]", "data.path=c.csv")
    assert done.stderr.strip() == (
        "3 problems:\n\nrun=a: there is no such folder\n\nrun=b: there is no such folder\n\n"
        "data.path=c.csv does not exist"
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "title,body,stars\nx,y,1\n"),
        ("a.jsonl", '\n{"title": "x", "body": "y", "stars": 1}\n'),
        ("train.csv", "title,body,stars\nx,y,1\n"),
    ],
)
def test_a_forgotten_label_column_lists_the_columns(tmp_path: Path, name: str, content: str):
    (tmp_path / name).write_text(content)
    path = "." if name.startswith("train") else name
    done = run_here(tmp_path, "task=custom", f"data.path={path}", "data.text_columns=title")
    assert done.returncode == 2
    assert "\n      The columns there: title, body, stars\n" in done.stderr.strip()


@pytest.mark.parametrize("mode", ["train", "plan"])
@pytest.mark.parametrize("name", ["num_hidden_layers", "n_layers"])
def test_a_layer_that_the_backbone_lacks_is_told_with_what_else_is_wrong(
    tmp_path: Path, mode: str, name: str
):
    for file in ("model.safetensors", "tokenizer.json"):
        (tmp_path / file).touch()
    (tmp_path / "config.json").write_text(json.dumps({name: 12}))
    keys = ["task=cola", f"mode={mode}", f"backbone={tmp_path}", f"data.path={tmp_path}"]
    with pytest.raises(UserError) as error:
        read_all_inputs(load_settings([*keys, "extract.layers=[0,13]"]))
    assert "extract.layers=[0,13]: this backbone has no layer 13" in str(error.value)
    assert "0 (the embeddings) to 12" in str(error.value)
    assert "data.path" in str(error.value)
