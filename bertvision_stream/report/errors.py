"""Where a finished run errs: read from its `predictions_<split>.jsonl`, without torch and Ray.

| table | classification | regression |
|---|---|---|
| `disagreements` | rows on which head and BERT differ, surest first | all, widest gap first |
| `mistakes` | rows on which the head is wrong, surest first | all, largest error first |
| `lengths` | share of right predictions by length | mean absolute error by length |

Spans are as a classification, compared by SQuAD's official rules: right is an exact match. Scores
are exact match and F1, by length of the context, and in one more table, `kinds`, of questions with
and without an answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertvision_stream.training.objectives.squad_scoring import normalized_tokens
from bertvision_stream.utils.errors import ConfigError

SOURCES = ("bert", "head", "ensemble")
_MOST_BINS = 5
_LEAST_IN_BIN = 10  # rows; a share of fewer says little
_PREFIX = "predictions_"


@dataclass(frozen=True)
class Table:
    """Rows by column, as they are written."""

    columns: tuple[str, ...]
    rows: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Predictions:
    """The predictions on one split.

    Attributes:
        split: Its name.
        rows: As `results.write_predictions` wrote them.
    """

    split: str
    rows: list[dict[str, Any]]

    @property
    def labelled(self) -> bool:
        return "gold" in self.rows[0]

    @property
    def regression(self) -> bool:
        return "confidence" not in self.rows[0]["head"]

    @property
    def spans(self) -> bool:
        return _is_span(self.rows[0])

    @property
    def unit(self) -> str:
        """What lengths are counted in: earlier versions wrote no tokens."""
        if self.spans:
            return "words of context"
        return "tokens" if "tokens" in self.rows[0] else "words"


def read_predictions(folder: Path) -> list[Predictions]:
    """All predictions in the folder of a run.

    Raises:
        ConfigError: It is not the folder of a finished run, or a file in it cannot be read.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder")
    paths = sorted(folder.glob(f"{_PREFIX}*.jsonl"))
    if not paths:
        raise ConfigError(
            f"{folder}: there is no {_PREFIX}*.jsonl in it, so it is not the folder of a finished "
            f"run (OUTPUT_DIR/TASK/RUN_NAME)"
        )
    return [Predictions(path.stem.removeprefix(_PREFIX), _read(path)) for path in paths]


def _read(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                if not all("prediction" in row[source] for source in SOURCES):
                    raise ValueError("a prediction is lacking")
                _check_kind(row)
                rows.append(row)
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{error} is lacking" if isinstance(error, KeyError) else error
        raise ConfigError(f"{path}: line {len(rows) + 1} cannot be read: {what}") from error
    if not rows:
        raise ConfigError(f"{path}: there are no rows")
    return rows


def _check_kind(row: Mapping[str, Any]) -> None:
    """What other programs may have written is not taken for what it is not."""
    gold = row.get("gold")
    if not isinstance(row["texts"], dict) or isinstance(gold, dict):
        raise ValueError("these are not predictions of a label, a number or a span")
    if _is_span(row):
        if "context" not in row["texts"] or not isinstance(row["head"]["prediction"], str):
            raise ValueError("predictions of spans have a context and texts of it")
        if gold is not None and not all("exact" in row[source] for source in SOURCES):
            raise ValueError("predictions of spans with gold answers have exact and f1")
    elif isinstance(gold, list):
        raise ValueError("these are not predictions of a label, a number or a span")


def _is_span(row: Mapping[str, Any]) -> bool:
    return "null_odds" in row["head"]


def tables(predictions: Predictions) -> dict[str, Table]:
    """All tables by name; without labels only where head and BERT disagree."""
    found = {"disagreements": disagreements(predictions)}
    if predictions.labelled:
        found |= {"mistakes": mistakes(predictions), "lengths": by_length(predictions)}
        if predictions.spans:
            found["kinds"] = by_kind(predictions)
    return found


def disagreements(predictions: Predictions) -> Table:
    """Rows on which head and BERT differ."""
    rows = predictions.rows
    if predictions.regression:
        return _sorted(
            rows, lambda row: abs(_value(row, "head") - _value(row, "bert")), predictions
        )

    def sure_of_both(row: Mapping[str, Any]) -> float:
        return min(row["head"]["confidence"], row["bert"]["confidence"])

    apart = [row for row in rows if _compared(row, "head") != _compared(row, "bert")]
    return _sorted(apart, sure_of_both, predictions)


def mistakes(predictions: Predictions) -> Table:
    """Rows on which the head is wrong."""
    rows = predictions.rows
    if predictions.regression:
        return _sorted(rows, lambda row: abs(_value(row, "head") - row["gold"]), predictions)
    wrong = [row for row in rows if not _is_right(row, "head")]
    return _sorted(wrong, lambda row: row["head"]["confidence"], predictions)


def counts(predictions: Predictions) -> dict[str, int]:
    """How many rows of a classification or of spans both get right, one of them, or none."""
    found = {"both right": 0, "only head": 0, "only BERT": 0, "both wrong": 0}
    names = {(True, True): "both right", (True, False): "only head", (False, True): "only BERT"}
    for row in predictions.rows:
        right = (_is_right(row, "head"), _is_right(row, "bert"))
        found[names.get(right, "both wrong")] += 1
    return found


def by_length(predictions: Predictions) -> Table:
    """Scores of the three, of rows in at most five groups of about equal size by length."""
    lengths = np.array([length(row) for row in predictions.rows])
    num_bins = min(_MOST_BINS, max(1, len(lengths) // _LEAST_IN_BIN))
    # Rows of one length are never parted.
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, num_bins + 1)[1:], method="lower"))
    bins = np.searchsorted(edges, lengths)
    groups: list[dict[str, Any]] = []
    for number in range(len(edges)):
        rows = [row for row, of in zip(predictions.rows, bins, strict=True) if of == number]
        within = lengths[bins == number]
        first, last = int(within.min()), int(within.max())
        group = {"unit": predictions.unit, "from": first, "to": last, "rows": len(rows)}
        groups.append(group | _scores(rows, predictions))
    return Table(tuple(groups[0]), groups)


def by_kind(predictions: Predictions) -> Table:
    """Scores of the three on questions with an answer and on those without."""
    groups: list[dict[str, Any]] = []
    for kind, has_answer in (("answerable", True), ("unanswerable", False)):
        rows = [row for row in predictions.rows if bool(row["gold"]) is has_answer]
        if rows:
            groups.append({"kind": kind, "rows": len(rows)} | _scores(rows, predictions))
    return Table(tuple(groups[0]), groups)


def length(row: Mapping[str, Any]) -> int:
    """Tokens of a row; words where a run of an earlier version wrote none; those of a context."""
    if _is_span(row):
        return len(row["texts"]["context"].split())
    if "tokens" in row:
        return row["tokens"]
    return sum(len(text.split()) for text in row["texts"].values())


def _scores(rows: Sequence[Mapping[str, Any]], predictions: Predictions) -> dict[str, float]:
    """By contestant; of spans two each."""
    if predictions.spans:
        return {
            f"{source}_{metric}": float(np.mean([row[source][metric] for row in rows]))
            for metric in ("exact", "f1")
            for source in SOURCES
        }
    worth = _error if predictions.regression else _is_right
    return {source: float(np.mean([worth(row, source) for row in rows])) for source in SOURCES}


def _error(row: Mapping[str, Any], source: str) -> float:
    error: float = abs(_value(row, source) - row["gold"])
    return error


def _is_right(row: Mapping[str, Any], source: str) -> bool:
    if _is_span(row):
        return bool(row[source]["exact"])
    return bool(_value(row, source) == row["gold"])


def _compared(row: Mapping[str, Any], source: str) -> Any:
    """What two contestants are compared by."""
    return normalized_tokens(_value(row, source)) if _is_span(row) else _value(row, source)


def _value(row: Mapping[str, Any], source: str) -> Any:
    return row[source]["prediction"]


def _sorted(
    rows: list[dict[str, Any]],
    key: Callable[[Mapping[str, Any]], float],
    predictions: Predictions,
) -> Table:
    """The rows, the largest `key` first, in their order on a tie."""
    columns = tuple(_flat(predictions.rows[0]))
    return Table(columns, [_flat(row) for row in sorted(rows, key=key, reverse=True)])


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {"index": row["index"], "length": length(row)}
    if _is_span(row):
        flat = {"index": row["index"], "id": row["id"], "length": length(row)}
    if "gold" in row:
        golds = row["gold"]
        flat["gold"] = " | ".join(dict.fromkeys(golds)) if _is_span(row) else golds
    for source in SOURCES:
        flat[source] = _value(row, source)
        if "confidence" in row[source]:
            flat[f"{source}_confidence"] = row[source]["confidence"]
        if "f1" in row[source]:
            flat[f"{source}_f1"] = row[source]["f1"]
    return flat | {f"texts.{column}": text for column, text in row["texts"].items()}
