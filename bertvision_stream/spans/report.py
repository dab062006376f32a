"""The second table of a report on SQuAD: both kinds of question, at both thresholds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bertvision_stream.results import RunReport, SplitResult

TITLE = "Questions with and without an answer"
NOTE = (
    "No answer is predicted where it scores higher than the best span by more than the threshold. "
    "tuned: the threshold with the highest F1 on these very questions, which flatters a little."
)

_KINDS = (("all", ""), ("answerable", "_answerable"), ("unanswerable", "_unanswerable"))


def threshold_table(report: RunReport) -> tuple[list[tuple[str, str]], list[list[str]]]:
    """Header and rows: each contestant on each split, at threshold 0 and at the tuned one."""
    header = [("", ""), ("", "threshold")]
    header += [(kind, metric) for kind, _ in _KINDS for metric in report.task.metrics]
    return header, [row for split in report.splits for row in _rows(report, split)]


def _rows(report: RunReport, split: SplitResult) -> Iterator[list[str]]:
    contestants = {
        "BERT": split.bert,
        f"{report.head.kind} head": split.head,
        f"ensemble ({report.ensemble})": split.ensemble,
    }
    for name, scores in contestants.items():
        yield [name, "0", *_values(report, scores, "")]
        tuned = f"{scores['threshold_tuned']:.2f}"
        yield [f"{name}, tuned", tuned, *_values(report, scores, "_tuned")]


def _values(report: RunReport, scores: Mapping[str, float], suffix: str) -> list[str]:
    keys = [f"{metric}{kind}{suffix}" for _, kind in _KINDS for metric in report.task.metrics]
    return [f"{scores[key]:.4f}" if key in scores else "-" for key in keys]
