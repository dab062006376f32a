"""The second table of a report on SQuAD: both kinds of question, at three thresholds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bertvision_stream.report.records import SplitResult
from bertvision_stream.training.metrics import EnsembleMethod

TITLE = "Questions with and without an answer"
NOTE = (
    "No answer is predicted where it scores higher than the best span by more than the threshold. "
    "tuned: the threshold with the highest F1 on these very questions, which flatters a little. "
    "always: an answer is predicted for every question."
)

# Where nothing is or should be answered, exact match and F1 are one.
_COLUMNS = (
    ("all", "exact", "exact"),
    ("", "f1", "f1"),
    ("answerable", "exact", "exact_answerable"),
    ("", "f1", "f1_answerable"),
    ("unanswerable", "exact", "exact_unanswerable"),
)


def threshold_table(
    splits: Sequence[SplitResult], ensemble: EnsembleMethod
) -> tuple[list[tuple[str, str]], list[list[str]]]:
    """Header and rows: each contestant on each split, at each threshold."""
    header = [("", ""), ("", "threshold"), *(column[:2] for column in _COLUMNS)]
    return header, [row for split in splits for row in _rows(split, ensemble)]


def _rows(split: SplitResult, ensemble: EnsembleMethod) -> Iterator[list[str]]:
    predictor_scores = {
        "BERT": split.bert,
        "head": split.head,
        f"ensemble ({ensemble})": split.ensemble,
    }
    for name, scores in predictor_scores.items():
        yield [name, "0", *_values(scores, "")]
        tuned = f"{scores['threshold_tuned']:.2f} (tuned)"
        yield [name, tuned, *_values(scores, "_tuned")]
        yield [name, "always", *_values(scores, "_always")]


def _values(scores: Mapping[str, float], suffix: str) -> list[str]:
    keys = [f"{key}{suffix}" for _, _, key in _COLUMNS]
    return [f"{scores[key]:.4f}" if key in scores else "-" for key in keys]
