"""The predictions of BERT, the head and their ensemble, as files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bertvision_stream.data.splits import Split
from bertvision_stream.data.windows import SpanLayout
from bertvision_stream.settings.tasks import Task
from bertvision_stream.training.metrics import confidence, predicted
from bertvision_stream.training.objectives.span_decoding import NUM_BEST, best_spans, span_texts
from bertvision_stream.training.objectives.squad_scoring import exact_and_f1
from bertvision_stream.utils.files import write_json, write_text


def write_predictions(
    path: Path,
    *,
    task: Task,
    split: Split,
    bert: np.ndarray,
    head: np.ndarray,
    ensemble: np.ndarray,
    tokens: np.ndarray,
    labelled: bool = True,
) -> None:
    """Write `predictions_<split>.jsonl`, one line an example, in the order of the split.

    A line holds `index`, `texts` by column, how many `tokens` they are, `gold` where there are
    labels, and for each of `bert`, `head` and `ensemble` the `prediction`: a label's name with its
    `confidence`, or for regression the score alone.

    Args:
        path: File to write.
        task: The task that the split belongs to.
        split: The texts and gold labels.
        bert: Scores of BERT's own classifier, `[B, C]` or `[B]`.
        head: Scores of the head.
        ensemble: Scores of their ensemble.
        tokens: Tokens of each example, int [B].
        labelled: Whether the split's labels are real ones.

    Raises:
        ValueError: If there are not as many scores as examples.
    """
    sources = {
        "bert": _verdicts(bert, task),
        "head": _verdicts(head, task),
        "ensemble": _verdicts(ensemble, task),
    }
    lines = []
    for index, (texts, label, length, *verdicts) in enumerate(
        zip(split.texts, split.labels.tolist(), tokens.tolist(), *sources.values(), strict=True)
    ):
        row = {
            "index": index,
            "texts": dict(zip(task.text_columns, texts, strict=True)),
            "tokens": length,
            **({"gold": _label_value(label, task)} if labelled else {}),
            **dict(zip(sources, verdicts, strict=True)),
        }
        lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(path, "".join(lines))


def _verdicts(scores: np.ndarray, task: Task) -> list[dict[str, object]]:
    """Prediction and confidence of each example, as they are written."""
    predictions = [_label_value(value, task) for value in predicted(scores, task.kind).tolist()]
    if task.kind == "regression":
        return [{"prediction": prediction} for prediction in predictions]
    confidences = confidence(scores).round(6).tolist()
    return [
        {"prediction": prediction, "confidence": certainty}
        for prediction, certainty in zip(predictions, confidences, strict=True)
    ]


def _label_value(label: float, task: Task) -> str | float:
    # Six digits: a float32 gold score of 3.8 then reads 3.8, not 3.799999952316284.
    return round(label, 6) if task.kind == "regression" else task.label_names[int(label)]


OFFICIAL = "head"
"""Whose files go by the official names alone; those of others have theirs added."""


def write_span_predictions(
    folder: Path,
    split: Split,
    scores: Mapping[str, np.ndarray],
    offsets: np.ndarray,
    layout: SpanLayout,
    threshold: float,
    *,
    labelled: bool = True,
) -> None:
    """Write `predictions_<split>.jsonl`, and the official format for each of the contestants.

    A line holds `index`, `id`, `texts` by column, `gold`, the answers that are right, and of each
    contestant the `prediction` (empty: no answer), its `confidence`, `null_odds`, `exact`, `f1` and
    `best_span`, which is what it would answer if it had to. Without gold answers there is no
    `gold`, `exact` and `f1`. The official files are
    `predictions.json`, id -> text, and `null_odds.json`, id -> null score less the best span's;
    BERT's and the ensemble's have `_bert` and `_ensemble` in their names.

    Args:
        folder: Of the run.
        split: The questions.
        scores: Start and end scores of all tokens, float64 [T, 2], by contestant.
        offsets: int64 [W + 1], windows in the tokens.
        layout: Of the split.
        threshold: No answer is predicted where the null odds are above it.
        labelled: Whether the questions come with gold answers.

    Raises:
        OutputError: A file cannot be written.
    """
    verdicts = {
        name: _span_verdicts(values, offsets, layout, threshold, labelled)
        for name, values in scores.items()
    }
    lines = []
    for index, (name, texts, gold) in enumerate(
        zip(layout.ids, split.texts, layout.golds, strict=True)
    ):
        row: dict[str, Any] = {
            "index": index,
            "id": name,
            "texts": dict(zip(("question", "context"), texts, strict=True)),
            **({"gold": list(gold)} if labelled else {}),
            **{contestant: rows[index] for contestant, rows in verdicts.items()},
        }
        lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(folder / f"predictions_{split.name}.jsonl", "".join(lines))
    for contestant, rows in verdicts.items():
        suffix = "" if contestant == OFFICIAL else f"_{contestant}"
        for file, key in (("predictions", "prediction"), ("null_odds", "null_odds")):
            values = {name: row[key] for name, row in zip(layout.ids, rows, strict=True)}
            write_json(folder / f"{file}{suffix}.json", values)


def _span_verdicts(
    scores_T2: np.ndarray,
    offsets: np.ndarray,
    layout: SpanLayout,
    threshold: float,
    labelled: bool,
) -> list[dict[str, Any]]:
    """What one contestant predicts for each question."""
    spans = best_spans(scores_T2, offsets, layout, num_best=NUM_BEST)
    verdicts = []
    for text, gold, odds, certainty in zip(
        span_texts(spans.tokens[:, 0], layout),
        layout.golds,
        spans.null_odds.tolist(),
        spans.confidences(threshold).round(6).tolist(),
        strict=True,
    ):
        prediction = "" if odds > threshold else text
        exact, f1 = exact_and_f1(prediction, gold)
        verdicts.append(
            {
                "prediction": prediction,
                "confidence": certainty,
                "null_odds": odds,
                **({"exact": exact, "f1": round(f1, 6)} if labelled else {}),
                "best_span": text,
            }
        )
    return verdicts
