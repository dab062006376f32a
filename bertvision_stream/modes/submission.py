"""Files for GLUE's leaderboard: names, headers and labels as its sample submission has them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping

import numpy as np

from bertvision_stream.data.new_rows import AX
from bertvision_stream.settings.tasks import Task
from bertvision_stream.training.metrics import predicted

ZIP = "submission.zip"
# For each task and split the name of the file, and the number of rows of GLUE's own test split.
_FILES = {
    ("cola", "test"): ("CoLA.tsv", 1063),
    ("sst2", "test"): ("SST-2.tsv", 1821),
    ("mrpc", "test"): ("MRPC.tsv", 1725),
    ("stsb", "test"): ("STS-B.tsv", 1379),
    ("qqp", "test"): ("QQP.tsv", 390965),
    ("mnli", "test_matched"): ("MNLI-m.tsv", 9796),
    ("mnli", "test_mismatched"): ("MNLI-mm.tsv", 9847),
    ("qnli", "test"): ("QNLI.tsv", 5463),
    ("rte", "test"): ("RTE.tsv", 3000),
    ("wnli", "test"): ("WNLI.tsv", 146),
    ("mnli", AX): ("AX.tsv", 1104),
}
_BY_NAME = ("mnli", "qnli", "rte")  # The labels of other classifications are handed in as numbers.
_EPOCH = (1980, 1, 1, 0, 0, 0)  # With one date for all files, equal predictions give equal bytes.


def file_name(task: Task, split: str) -> str | None:
    """The name of the file that GLUE wants for a split; None where it wants none."""
    return _FILES.get((task.name, split), (None, 0))[0]


def expected_rows(task: Task, split: str) -> int:
    """How many rows GLUE's own split has."""
    return _FILES[task.name, split][1]


def render_file(task: Task, scores: np.ndarray, index: np.ndarray) -> str:
    """The content of a file.

    Args:
        task: The task of the predictions.
        scores: Class probabilities [N, C], or numbers [N].
        index: GLUE's number of each row, a permutation of 0 to N - 1.
    """
    lines = ["index\tprediction"]
    order = np.argsort(index)
    for number, value in enumerate(predicted(scores, task.kind)[order].tolist()):
        lines.append(f"{number}\t{_label(value, task)}")
    return "\n".join(lines) + "\n"


def _label(value: float, task: Task) -> str:
    if task.kind == "regression":
        return f"{min(max(value, 0.0), 5.0):.3f}"
    return task.label_names[int(value)] if task.name in _BY_NAME else str(value)


def missing_files(names: Iterable[str]) -> list[str]:
    """The names of the files that GLUE wants beside `names`."""
    return sorted({name for name, _ in _FILES.values()} - set(names))


def zip_of(files: Mapping[str, str]) -> bytes:
    """A zip of files by name, with no folders in it, as GLUE wants it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
