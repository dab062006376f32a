"""The predictions of BERT, the head and their ensemble, as files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bertvision_stream.data.splits import Split
from bertvision_stream.data.tokens import TokenStore
from bertvision_stream.settings.tasks import Task
from bertvision_stream.training.metrics import confidence, predicted
from bertvision_stream.training.objectives.base import PredictorScores
from bertvision_stream.training.objectives.span import THRESHOLD, layout_of
from bertvision_stream.training.objectives.span_decoding import NUM_BEST, best_spans, span_texts
from bertvision_stream.training.objectives.squad_scoring import exact_and_f1
from bertvision_stream.utils.files import write_json, write_text

# SQuAD's own evaluation reads files of these names. The head's files have the names alone, those of
# the other predictors have the predictor's name added.
_OFFICIAL_FILES = {"predictions": "prediction", "null_odds": "null_odds"}
_OFFICIAL_PREDICTOR = "head"


def write_predictions(
    folder: Path,
    task: Task,
    split: Split,
    store: TokenStore,
    scores: PredictorScores,
    *,
    labelled: bool = True,
) -> Path:
    """Write `predictions_<split>.jsonl`, one line for each row of the split, in its order.

    A line holds the `index` of the row in the split, counted from 0; where the split is from files,
    the `row` of its file, counted from 1, with the `line` on which it begins where rows are not
    lines, and the `file` of several; its `texts` by column, `gold` where there are labels, and
    for each of `bert`, `head` and `ensemble` what it predicts:

    - Classification: a label's name as `prediction`, and its `confidence`. A line also holds how
      many `tokens` the texts are.
    - Regression: a number as `prediction`. A line also holds how many `tokens` the texts are.
    - Spans: the text of the answer as `prediction` (empty for no answer), its `confidence`,
      `null_odds`, `exact` and `f1` where there are gold answers, and `best_span`, the text that
      would be the answer if there had to be one. A line also holds the question's `id`, and `gold`
      is the list of all right answers. Beside the lines there are two files for each predictor, in
      the format of SQuAD's own evaluation: `predictions.json`, id -> text, and `null_odds.json`,
      id -> null score less the best span's. BERT's and the ensemble's have `_bert` and `_ensemble`
      in their names.

    Args:
        folder: Where the files go; it exists.
        task: The task of the predictions.
        split: The texts and the gold labels.
        store: The tokens of the split.
        scores: The scores of the three predictors.
        labelled: Whether the split's labels are real ones.

    Returns:
        The file of lines.

    Raises:
        ValueError: There are not as many scores as rows.
        OutputError: A file cannot be written.
    """
    if task.per_token:
        verdicts = {
            name: _span_verdicts(values, store, labelled)
            for name, values in scores.by_name().items()
        }
        lines = _span_lines(split, store, labelled)
        official = _official_files(layout_of(store).ids, verdicts)
    else:
        verdicts = {name: _verdicts(values, task) for name, values in scores.by_name().items()}
        lines = _example_lines(split, store, task, labelled)
        official = {}
    path = folder / f"predictions_{split.name}.jsonl"
    content = [
        json.dumps(
            line | dict(zip(verdicts, of_row, strict=True)), ensure_ascii=False, allow_nan=False
        )
        for line, *of_row in zip(lines, *verdicts.values(), strict=True)
    ]
    write_text(path, "".join(f"{line}\n" for line in content))
    for name, values in official.items():
        write_json(folder / name, values)
    return path


def _example_lines(
    split: Split, store: TokenStore, task: Task, labelled: bool
) -> Iterable[dict[str, Any]]:
    """The lines of examples, without what is predicted."""
    rows = zip(split.texts, split.labels.tolist(), store.lengths.tolist(), strict=True)
    for index, (texts, label, length) in enumerate(rows):
        yield {
            "index": index,
            **(split.places.one(index) if split.places else {}),
            "texts": dict(zip(task.text_columns, texts, strict=True)),
            "tokens": length,
            **({"gold": _label_value(label, task)} if labelled else {}),
        }


def _verdicts(scores: np.ndarray, task: Task) -> list[dict[str, Any]]:
    """What one predictor says of each example, from its scores [N, C] or [N]."""
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


def _span_lines(split: Split, store: TokenStore, labelled: bool) -> Iterable[dict[str, Any]]:
    """The lines of questions, without what is predicted."""
    layout = layout_of(store)
    rows = zip(layout.ids, split.texts, layout.golds, strict=True)
    for index, (name, texts, gold) in enumerate(rows):
        yield {
            "index": index,
            "id": name,
            "texts": dict(zip(("question", "context"), texts, strict=True)),
            **({"gold": list(gold)} if labelled else {}),
        }


def _span_verdicts(
    scores_T2: np.ndarray, store: TokenStore, labelled: bool
) -> list[dict[str, Any]]:
    """What one predictor says of each question, from its start and end scores of all tokens."""
    layout = layout_of(store)
    spans = best_spans(scores_T2, store.offsets, layout, num_best=NUM_BEST)
    verdicts = []
    for text, gold, odds, certainty in zip(
        span_texts(spans.tokens[:, 0], layout),
        layout.golds,
        spans.null_odds.tolist(),
        spans.confidences(THRESHOLD).round(6).tolist(),
        strict=True,
    ):
        prediction = "" if odds > THRESHOLD else text
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


def _official_files(
    ids: Iterable[str], verdicts: Mapping[str, list[dict[str, Any]]]
) -> dict[str, dict[str, Any]]:
    """The content of the files in the format of SQuAD's own evaluation, by their names."""
    files = {}
    for predictor, rows in verdicts.items():
        suffix = "" if predictor == _OFFICIAL_PREDICTOR else f"_{predictor}"
        for name, key in _OFFICIAL_FILES.items():
            values = {question: row[key] for question, row in zip(ids, rows, strict=True)}
            files[f"{name}{suffix}.json"] = values
    return files
