"""Where a finished run errs: read from its `predictions_<split>.jsonl`, without torch and Ray.

| table | classification | regression |
|---|---|---|
| `disagreements` | rows on which head and BERT differ, surest first | all, widest gap first |
| `mistakes` | rows on which the head is wrong, surest first | all, largest error first |
| `lengths` | share of right predictions by length | mean absolute error by length |

Spans are treated as a classification whose answers are compared by SQuAD's official rules: an
answer is right if it is an exact match. Their scores are exact match and F1, by the length of the
context, and in one more table, `kinds`, for questions with and without an answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bertvision_stream.report.tables import PREDICTORS
from bertvision_stream.settings.tasks import TaskKind
from bertvision_stream.training.objectives.squad_scoring import normalized_tokens
from bertvision_stream.utils.errors import ConfigError

_MOST_BINS = 5
_LEAST_IN_BIN = 10  # A share of fewer rows than these says little.
_PREFIX = "predictions_"


@dataclass(frozen=True)
class Predictions:
    """The predictions on one split.

    Attributes:
        split: The name of the split.
        rows: The lines of `predictions_<split>.jsonl` (see `predictions.write_predictions`).
    """

    split: str
    rows: list[dict[str, Any]]

    @property
    def labelled(self) -> bool:
        """Whether the gold labels or answers are known."""
        return "gold" in self.rows[0]

    @property
    def kind(self) -> TaskKind:
        """The kind of the task that the predictions are of."""
        if _is_span(self.rows[0]):
            return "span"
        return "classification" if "confidence" in self.rows[0]["head"] else "regression"

    @property
    def unit(self) -> str:
        """What lengths are counted in; runs of earlier versions wrote no numbers of tokens."""
        if self.kind == "span":
            return "words of context"
        return "tokens" if "tokens" in self.rows[0] else "words"

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The columns that `disagreements` and `mistakes` show, for all rows."""
        # Columns of Python objects keep each number as it was written.
        return pd.DataFrame([_flat(row) for row in self.rows], dtype=object)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """What each prediction is worth: a column for each predictor, for spans and metric too."""
        if self.kind == "span":
            return pd.DataFrame(
                {
                    f"{name}_{metric}": [row[name][metric] for row in self.rows]
                    for metric in ("exact", "f1")
                    for name in PREDICTORS
                }
            )
        predicted, gold = self.frame[list(PREDICTORS)], self.frame["gold"]
        if self.kind == "regression":
            return predicted.sub(gold, axis=0).abs().astype(float)
        return predicted.eq(gold, axis=0)

    @property
    def right(self) -> pd.DataFrame:
        """Whether each prediction of a classification or of spans is right, by predictor."""
        if self.kind != "span":
            return self.scores
        return pd.DataFrame({name: self.scores[f"{name}_exact"] > 0 for name in PREDICTORS})


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
                if not all("prediction" in row[name] for name in PREDICTORS):
                    raise ValueError("a prediction is missing")
                _check_kind(row)
                rows.append(row)
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ConfigError(f"{path}: line {len(rows) + 1} cannot be read: {what}") from error
    if not rows:
        raise ConfigError(f"{path}: there are no rows")
    return rows


def _check_kind(row: Mapping[str, Any]) -> None:
    """Refuses rows of tasks that no run of ours has, such as other programs may have written."""
    gold = row.get("gold")
    if not isinstance(row["texts"], dict) or isinstance(gold, dict):
        raise ValueError("these are not predictions of a label, a number or a span")
    if _is_span(row):
        if "context" not in row["texts"] or not isinstance(row["head"]["prediction"], str):
            raise ValueError("predictions of spans have a context and texts of it")
        if gold is not None and not all("exact" in row[name] for name in PREDICTORS):
            raise ValueError("predictions of spans with gold answers have exact and f1")
    elif isinstance(gold, list):
        raise ValueError("these are not predictions of a label, a number or a span")


def _is_span(row: Mapping[str, Any]) -> bool:
    return "null_odds" in row["head"]


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as it is shown, without nested values."""
    span = _is_span(row)
    flat = {key: row[key] for key in ("index", "row", "line", "file") if key in row}
    if span:
        flat["id"] = row["id"]
    flat["length"] = length(row)
    if "gold" in row:
        flat["gold"] = " | ".join(dict.fromkeys(row["gold"])) if span else row["gold"]
    for name in PREDICTORS:
        flat[name] = row[name]["prediction"]
        for key in ("confidence", "f1"):
            if key in row[name]:
                flat[f"{name}_{key}"] = row[name][key]
    return flat | {f"texts.{column}": text for column, text in row["texts"].items()}


def length(row: Mapping[str, Any]) -> int:
    """The words of a question's context; for other tasks the tokens, or words if not counted."""
    if _is_span(row):
        return len(row["texts"]["context"].split())
    if "tokens" in row:
        return row["tokens"]
    return sum(len(text.split()) for text in row["texts"].values())


def error_tables(predictions: Predictions) -> dict[str, pd.DataFrame]:
    """All tables by name; without labels there is only the one of disagreements."""
    found = {"disagreements": disagreements(predictions)}
    if predictions.labelled:
        found |= {"mistakes": mistakes(predictions), "lengths": by_length(predictions)}
        if predictions.kind == "span":
            found["kinds"] = by_kind(predictions)
    return found


def disagreements(predictions: Predictions) -> pd.DataFrame:
    """Rows on which head and BERT differ."""
    frame = predictions.frame
    head, bert = frame["head"], frame["bert"]
    if predictions.kind == "regression":
        return _largest_first(frame, (head - bert).abs())
    if predictions.kind == "span":
        head, bert = head.map(normalized_tokens), bert.map(normalized_tokens)
    apart = frame[head != bert]
    return _largest_first(apart, apart[["head_confidence", "bert_confidence"]].min(axis=1))


def mistakes(predictions: Predictions) -> pd.DataFrame:
    """Rows on which the head is wrong."""
    frame = predictions.frame
    if predictions.kind == "regression":
        return _largest_first(frame, predictions.scores["head"])
    wrong = frame[~predictions.right["head"]]
    return _largest_first(wrong, wrong["head_confidence"])


def _largest_first(frame: pd.DataFrame, by: pd.Series) -> pd.DataFrame:
    """The rows of a frame in another order, in their own order on a tie."""
    return frame.loc[by.astype(float).sort_values(ascending=False, kind="stable").index]


def by_length(predictions: Predictions) -> pd.DataFrame:
    """Scores of the predictors, for rows in at most five groups of about equal size by length."""
    lengths = predictions.frame["length"].to_numpy(dtype=int)
    num_bins = min(_MOST_BINS, max(1, len(lengths) // _LEAST_IN_BIN))
    # The edges are lengths of rows, so that rows of one length are in one group.
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, num_bins + 1)[1:], method="lower"))
    bins = np.searchsorted(edges, lengths)
    groups = []
    for number in range(len(edges)):
        within = lengths[bins == number]
        ends = {"from": int(within.min()), "to": int(within.max())}
        groups.append({"unit": predictions.unit} | ends | _scores(predictions, bins == number))
    return pd.DataFrame(groups, dtype=object)


def by_kind(predictions: Predictions) -> pd.DataFrame:
    """Scores of the predictors on questions with an answer and on those without."""
    answerable = np.array([bool(row["gold"]) for row in predictions.rows])
    groups = [
        {"kind": kind} | _scores(predictions, rows)
        for kind, rows in (("answerable", answerable), ("unanswerable", ~answerable))
        if rows.any()
    ]
    return pd.DataFrame(groups, dtype=object)


def _scores(predictions: Predictions, rows: np.ndarray) -> dict[str, Any]:
    """The number of rows that a mask (bool [N]) selects, and their mean scores."""
    means = {
        key: float(values.to_numpy()[rows].mean()) for key, values in predictions.scores.items()
    }
    return {"rows": int(rows.sum())} | means
