"""The model card: what a reader of an exported model must know, as Markdown."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from bertvision_stream.models.sources import MINILM
from bertvision_stream.report.records import RunReport
from bertvision_stream.report.tables import PREDICTORS, Table
from bertvision_stream.settings.tasks import Task
from bertvision_stream.utils.units import format_value

# Settings that change the numbers; the others say where and how to run.
_SHOWN = (
    "backbone.",
    "finetune.",
    "extract.codec",
    "extract.layers",
    "head.",
    "train.",
    "data.max_length",
    "data.stride",
    "seed",
)
_NOT_SHOWN = ("backbone.name", "finetune.reuse", "num_workers", "num_trainers", "num_gpus")
# Metrics of spans that the card leaves to `results.md`, by their beginning or end.
_NOT_SCORED = ("threshold", "_tuned", "_always")

_USE_OF_SPANS = """\
```python
import torch

import bertvision_stream  # registers the model with transformers
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

folder = "path/to/this/folder"
model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def answer(question, context):
    \"\"\"The best span of a context of one window; empty where no answer scores higher.\"\"\"
    tokens = tokenizer(question, context, truncation="only_second", return_tensors="pt")
    output = model(**tokens)
    start, end = output.start_logits[0], output.end_logits[0]
    inside = torch.tensor([part == 1 for part in tokens.sequence_ids(0)])  # of the context
    allowed = (inside[:, None] & inside).triu().tril(29)  # spans of at most 30 tokens
    scores = (start[:, None] + end).masked_fill(~allowed, -torch.inf)
    cls = tokens.input_ids[0].tolist().index(tokenizer.cls_token_id)
    if start[cls] + end[cls] > scores.max():
        return ""
    first, last = divmod(int(scores.argmax()), len(start))
    return context[tokens.token_to_chars(0, first).start : tokens.token_to_chars(0, last).end]


answer("the question", "the context")
```

transformers 5 has no pipeline for this any more. Longer contexts take overlapping windows:
`python -m bertvision_stream.run mode=predict run=... data.path=...` makes and joins them."""

_USE_OF_EXAMPLES = """\
```python
import bertvision_stream  # registers the model with transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

folder = "path/to/this/folder"
classify = pipeline("text-classification", model=folder)
classify({example}, truncation=True)

model = AutoModelForSequenceClassification.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
```"""


@dataclass(frozen=True)
class _Words:
    """What the card says differently for each kind of task.

    Attributes:
        pipeline: The tag of the kind on the hub.
        layer: BERT's own last layer.
        logits: Which outputs of the model are whose.
        use: Code that uses the model.
        task: What goes in and what comes out.
        not_shown: Settings that mean nothing for the kind.
    """

    pipeline: str
    layer: str
    logits: str
    use: str
    task: str
    not_shown: tuple[str, ...] = ()


def _words(task: Task) -> _Words:
    columns = " and ".join(task.text_columns)
    if task.per_token:
        return _Words(
            pipeline="question-answering",
            layer="question-answering layer",
            logits="This model's `start_logits` and `end_logits` are the head's (far below all "
            "others at padding); `backbone_start_logits` and `backbone_end_logits` are BERT's. An "
            "answer is the best span of at most 30 tokens in all windows of a long context; there "
            "is none where `[CLS]`, start and end, scores higher (threshold 0).",
            use=_USE_OF_SPANS,
            task=f"From {columns} to the span of the context that answers, or to no answer.",
            not_shown=("head.pool",),  # Every token has logits, so nothing is pooled.
        )
    texts = [json.dumps(f"the {column}") for column in task.text_columns]
    pair = '{{"text": {}, "text_pair": {}}}'
    target = f"a number, {task.label_column}"
    if task.kind == "classification":
        target = f"one of: {', '.join(task.label_names)}"
    return _Words(
        pipeline="text-classification",
        layer="classifier",
        logits="This model's `logits` are the head's; `backbone_logits` are BERT's.",
        use=_USE_OF_EXAMPLES.format(example=pair.format(*texts) if len(texts) == 2 else texts[0]),
        task=f"From {columns} to {target}.",
    )


def render_card(report: RunReport, *, backbone_source: str | None) -> str:
    """The content of `model/README.md`.

    Args:
        report: The report of the run that trained the head.
        backbone_source: The folder or the hub id of the backbone that the model refers to; None
            where the backbone is inside the model.
    """
    task, train, words = report.task, report.train, _words(report.task)
    validation = ", ".join(f"{split.examples:,} of {split.name}" for split in report.splits)
    data = f"`{task.hub_repo}` ({task.hub_config})" if task.hub_repo else f"`task={task.name}`"
    where = "Both are in this folder."
    if backbone_source is not None:
        where = f"The head is in this folder, which refers to the backbone in `{backbone_source}`."
    every = report.settings.get("extract.layers", "all") == "all"
    layers = "every layer" if every else f"layers {', '.join(map(str, report.head.layers))}"
    sections = [
        _front_matter(report, words),
        f"# {task.name}: {report.head.kind} head on {report.backbone}",
        f"A small head ({report.head.parameters:,} parameters) that reads the hidden states of "
        f"{layers} of a frozen BERT ({report.head.backbone_parameters:,} parameters), which was "
        f"fine-tuned for {report.finetune.epochs:g} epochs before.{_begins(report, words)} {where}",
        "## Use",
        words.use,
        "## Task and data",
        f"{words.task} Rows of {data}: {train.examples:,} to train on ({train.tokens:,} "
        f"tokens), evaluated on {validation}.",
        "## Scores",
        _scores(report).markdown(left=2),
        f"BERT is the fine-tuned {words.layer} that the head stands on, the ensemble the "
        f"{report.ensemble} of both. {words.logits}",
        "## Numbers",
        _numbers(report),
        "## Settings",
        _settings(report, words).markdown(left=2),
        f"Made with {', '.join(f'{name} {number}' for name, number in report.versions.items())}. "
        "The licences of the backbone and of the data apply.",
    ]
    return "\n\n".join(sections) + "\n"


def _begins(report: RunReport, words: _Words) -> str:
    """What the head's logits are added to, if to any."""
    if report.settings.get("head.start") != "bert":
        return ""
    return f" It began as BERT: what it computes is added to the logits of BERT's {words.layer}."


def _front_matter(report: RunReport, words: _Words) -> str:
    """What the hub reads: YAML between two lines of dashes."""
    lines = ["library_name: transformers", f"pipeline_tag: {words.pipeline}"]
    lines += ["tags:", "- bertvision_stream", f"- {report.head.kind}"]
    # A folder or a package on the user's machine is no model of the hub.
    if report.backbone != MINILM and not Path(report.backbone).expanduser().exists():
        lines.append(f"base_model: {json.dumps(report.backbone)}")
    if report.task.hub_repo:
        lines += ["datasets:", f"- {report.task.hub_repo}"]
    return "\n".join(["---", *lines, "---"])


def _scores(report: RunReport) -> Table:
    rows = [
        [
            split.name,
            report.task.metric_title(metric),
            *(f"{scores[metric]:.4f}" for scores in split.by_predictor().values()),
        ]
        for split in report.splits
        for metric in split.head
        if not metric.startswith(_NOT_SCORED) and not metric.endswith(_NOT_SCORED)
    ]
    return Table(["split", "metric", *PREDICTORS.values()], rows)


def _numbers(report: RunReport) -> str:
    devices = next((note for note in report.notes if note.startswith("the backbone ran on")), "")
    trained = f"In the run {devices}. " if devices else ""
    return (
        f"{trained}Loaded as it is, in fp32, the model gives the run's logits up to the rounding "
        "of bf16 where the run used that, and of `extract.codec=int8` where it did; with "
        "`dtype=torch.bfloat16` the encoder computes in bf16, and the backbone's own last layers "
        "and the head stay in fp32."
    )


def _settings(report: RunReport, words: _Words) -> Table:
    rows = [
        [f"`{key}`", f"`{format_value(value)}`"]
        for key, value in report.settings.items()
        if value is not None and key.startswith(_SHOWN) and not key.endswith(_NOT_SHOWN)
        if key not in words.not_shown
    ]
    return Table(["key", "value"], rows)
