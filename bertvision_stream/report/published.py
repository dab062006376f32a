"""BERTVision's published scores on the validation sets, as data, to be shown beside ours.

Source: the results of https://github.com/cbenge509/BERTVision (index.md), in which BERT-base and
BERT-large, both uncased, and heads on their hidden states were tuned task by task.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

SOURCE = "https://github.com/cbenge509/BERTVision"

SIZES = ("base", "large")
"""BERT's, in the order of columns."""


@dataclass(frozen=True)
class Published:
    """One metric on one validation split.

    Attributes:
        metric: Which.
        bert: BERT-base and BERT-large, fine-tuned.
        head: BERTVision's head on each of them.
    """

    metric: str
    bert: tuple[float, float]
    head: tuple[float, float]


def _of(metric: str, base: tuple[float, float], large: tuple[float, float]) -> Published:
    """BERT and then its head, for each size."""
    return Published(metric, (base[0], large[0]), (base[1], large[1]))


PUBLISHED: dict[tuple[str, str], tuple[Published, ...]] = {
    ("cola", "validation"): (_of("matthews", (0.5650, 0.6000), (0.5960, 0.4320)),),
    ("sst2", "validation"): (_of("accuracy", (0.9200, 0.9270), (0.9330, 0.9290)),),
    ("mrpc", "validation"): (_of("accuracy", (0.8280, 0.8400), (0.7680, 0.8370)),),
    ("stsb", "validation"): (_of("pearson", (0.8880, 0.8620), (0.8940, 0.8800)),),
    ("qqp", "validation"): (_of("accuracy", (0.8890, 0.8860), (0.8690, 0.8970)),),
    ("mnli", "validation_matched"): (_of("accuracy", (0.8240, 0.8220), (0.8530, 0.8490)),),
    ("mnli", "validation_mismatched"): (_of("accuracy", (0.8290, 0.8290), (0.8510, 0.8500)),),
    ("qnli", "validation"): (_of("accuracy", (0.9010, 0.8920), (0.9120, 0.9100)),),
    ("rte", "validation"): (_of("accuracy", (0.6570, 0.7260), (0.6640, 0.5920)),),
    ("squad_v2", "validation"): (
        _of("exact", (0.6941, 0.7010), (0.7758, 0.7696)),
        _of("f1", (0.7257, 0.7342), (0.8058, 0.8027)),
    ),
}
"""By task and validation split; wnli is not among them."""


def published(task: str, split: str, metric: str) -> Published | None:
    """What was published of a task's metric on a split, if anything."""
    rows = PUBLISHED.get((task, split), ())
    return next((row for row in rows if row.metric == metric), None)


def size_of(backbone: str) -> str | None:
    """Which of BERTVision's two backbones this is, by its name; None for another one."""
    name = PurePath(backbone).name
    return next((size for size in SIZES if name == f"bert-{size}-uncased"), None)
