"""Predictions of spans for people and for the official scorer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bertvision_stream.data import Split
from bertvision_stream.results import write_json, write_text
from bertvision_stream.spans.decode import NUM_BEST, best_spans, span_texts
from bertvision_stream.spans.scoring import exact_and_f1
from bertvision_stream.spans.windows import SpanLayout

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
        name: _verdicts(values, offsets, layout, threshold, labelled)
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


def _verdicts(
    scores_T2: np.ndarray,
    offsets: np.ndarray,
    layout: SpanLayout,
    threshold: float,
    labelled: bool,
) -> list[dict[str, Any]]:
    """What one contestant predicts for each question."""
    spans = best_spans(scores_T2, offsets, layout, num_best=NUM_BEST)
    verdicts = []
    for text, gold, odds, confidence in zip(
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
                "confidence": confidence,
                "null_odds": odds,
                **({"exact": exact, "f1": round(f1, 6)} if labelled else {}),
                "best_span": text,
            }
        )
    return verdicts
