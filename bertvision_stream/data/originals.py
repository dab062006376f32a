"""What turns files as GLUE and SQuAD first published them into files that can be read here."""

from __future__ import annotations

from pathlib import Path

from bertvision_stream.settings.tasks import Task

_FOLDERS = {"cola": "CoLA", "sst2": "SST-2", "stsb": "STS-B"}
_COLUMNS = {
    "mrpc": {"Quality": "label", "#1 String": "sentence1", "#2 String": "sentence2"},
    "qqp": {"is_duplicate": "label"},
    "stsb": {"score": "label"},
    "mnli": {"gold_label": "label", "sentence1": "premise", "sentence2": "hypothesis"},
}
_COLA = ["source", "label", "mark", "sentence"]  # its train.tsv and dev.tsv have no first line

_FROM_TSV = """
  import csv, pandas
  for file, split in {files}:
      rows = pandas.read_csv(file, sep="\\t", quoting=csv.QUOTE_NONE, keep_default_na=False{names})
      rows.rename(columns={columns})[{wanted}].to_parquet({folder!r} + f"/{{split}}.parquet")
"""
_FROM_JSON = """
  import json
  for file, split in {files}:
      rows = [{{"id": q["id"], "question": q["question"], "context": p["context"], "answers":
          {{key: [a[key] for a in q["answers"]] for key in ("text", "answer_start")}}}}
          for article in json.load(open(file, encoding="utf-8"))["data"]
          for p in article["paragraphs"] for q in p["qas"]]
      open({folder!r} + f"/{{split}}.jsonl", "w").write("\\n".join(map(json.dumps, rows)))
"""


def how_to_convert(task: Task, path: Path) -> str:
    """Lines of Python that convert the original files of a task, for the end of an error.

    Args:
        task: A task of GLUE or SQuAD.
        path: Where the splits were looked for: a folder, or one that holds the task's.

    Returns:
        The lines with an introduction; an empty text where no original file is there.
    """
    suffix = ".json" if task.per_token else ".tsv"
    own = _FOLDERS.get(task.name, task.name.upper())
    for folder in (path, path / task.name, path / own):
        there = sorted(folder.glob(f"*{suffix}")) if folder.is_dir() else []
        files = [(str(file), split) for file in there if (split := _split_of(file, task))]
        # Test splits lack the label, and CoLA's has a first line, so the lines are others.
        labelled = [(file, split) for file, split in files if not split.startswith("test")]
        if files:
            return _lines(task, labelled or files, folder, tested=not labelled)
    return ""


def _lines(task: Task, files: list[tuple[str, str]], folder: Path, *, tested: bool) -> str:
    columns = {"index": "idx"} | _COLUMNS.get(task.name, {})
    wanted = [*task.text_columns, *([] if tested else [task.label_column])]
    template = _FROM_JSON if task.per_token else _FROM_TSV
    names = f", names={_COLA}" if task.name == "cola" and not tested else ""
    lines = template.format(
        files=files, names=names, columns=columns, wanted=wanted, folder=str(folder)
    )
    return (
        f". {folder} holds files as they were first published. These lines convert them, and then "
        f"data.path={folder} can be read:\n{lines}"
    )


def _split_of(file: Path, task: Task) -> str:
    """The split that an original file is, by its name; empty if it is none."""
    stem = file.stem.replace("dev", "validation", 1)
    known = (task.train_split, *task.validation_splits, "test", "test_matched", "test_mismatched")
    if task.per_token:  # train-v2.0.json
        stem = stem.split("-")[0]
    return stem if stem in known else ""
