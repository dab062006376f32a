"""The model card: what a reader of an exported model must know, as Markdown."""

from __future__ import annotations

import json
from pathlib import Path

from bertvision_stream.models.sources import MINILM
from bertvision_stream.report.records import RunReport
from bertvision_stream.settings.tasks import Task

# Settings that change the numbers; the others say where and how to run.
_SHOWN = (
    "backbone.",
    "finetune.",
    "extract.codec",
    "head.",
    "train.",
    "data.max_length",
    "data.stride",
    "seed",
)
_NOT_SCORED = ("threshold", "_tuned", "_always")  # of spans; `results.md` has them
_NOT_SHOWN = ("backbone.name", "finetune.reuse", "num_workers", "num_trainers", "num_gpus")


def render_card(report: RunReport, *, backbone_source: str | None) -> str:
    """The content of `model/README.md`.

    Args:
        report: Of the run that trained the head.
        backbone_source: What the model refers to; None where the backbone is inside.
    """
    task, train = report.task, report.train
    validation = ", ".join(f"{split.examples:,} of {split.name}" for split in report.splits)
    data = f"`{task.hub_repo}` ({task.hub_config})" if task.hub_repo else f"`task={task.name}`"
    sections = [
        _front_matter(report),
        f"# {task.name}: {report.head.kind} head on {report.backbone}",
        f"A small head ({report.head.parameters:,} parameters) that reads the hidden states of "
        f"every layer of a frozen BERT ({report.head.backbone_parameters:,} parameters), which was "
        f"fine-tuned for {report.finetune.epochs:g} epochs before. {_where(backbone_source)}",
        "## Use",
        _use(task),
        "## Task and data",
        f"{_task_line(task)} Rows of {data}: {train.examples:,} to train on ({train.tokens:,} "
        f"tokens), evaluated on {validation}.",
        "## Scores",
        _scores(report),
        f"BERT is the fine-tuned {_layer(task)} that the head stands on, the ensemble the "
        f"{report.ensemble} of both. {_logits(task)}",
        "## Numbers",
        _numbers(report),
        "## Settings",
        _settings(report),
        f"Made with {', '.join(f'{name} {number}' for name, number in report.versions.items())}. "
        "The licences of the backbone and of the data apply.",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(report: RunReport) -> str:
    kind = "question-answering" if report.task.per_token else "text-classification"
    lines = ["library_name: transformers", f"pipeline_tag: {kind}"]
    lines += ["tags:", "- bertvision_stream", f"- {report.head.kind}"]
    if report.backbone != MINILM and not Path(report.backbone).expanduser().exists():
        lines.append(f"base_model: {json.dumps(report.backbone)}")
    if report.task.hub_repo:
        lines += ["datasets:", f"- {report.task.hub_repo}"]
    return "\n".join(["---", *lines, "---"])


def _where(backbone_source: str | None) -> str:
    if backbone_source is None:
        return "Both are in this folder."
    return f"The head is in this folder, which refers to the backbone in `{backbone_source}`."


def _layer(task: Task) -> str:
    return "question-answering layer" if task.per_token else "classifier"


def _logits(task: Task) -> str:
    if task.per_token:
        return (
            "This model's `start_logits` and `end_logits` are the head's (far below all others at "
            "padding); `backbone_start_logits` and `backbone_end_logits` are BERT's. An answer is "
            "the best span of at most 30 tokens in all windows of a long context; there is none "
            "where `[CLS]`, start and end, scores higher (threshold 0)."
        )
    return "This model's `logits` are the head's; `backbone_logits` are BERT's."


def _use(task: Task) -> str:
    return _use_spans() if task.per_token else _use_texts(task)


def _use_spans() -> str:
    return """\
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


def _use_texts(task: Task) -> str:
    texts = [f"the {column}" for column in task.text_columns]
    one = json.dumps(texts[0])
    if len(texts) == 2:
        one = f'{{"text": {json.dumps(texts[0])}, "text_pair": {json.dumps(texts[1])}}}'
    return f"""\
```python
import bertvision_stream  # registers the model with transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

folder = "path/to/this/folder"
classify = pipeline("text-classification", model=folder)
classify({one}, truncation=True)

model = AutoModelForSequenceClassification.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
```"""


def _task_line(task: Task) -> str:
    columns = " and ".join(task.text_columns)
    if task.kind == "regression":
        return f"From {columns} to a number, {task.label_column}."
    if task.per_token:
        return f"From {columns} to the span of the context that answers, or to no answer."
    return f"From {columns} to one of: {', '.join(task.label_names)}."


def _scores(report: RunReport) -> str:
    header = "| split | metric | BERT | head | ensemble |\n| --- | --- | ---: | ---: | ---: |"
    rows = [
        f"| {split.name} | {metric} | {split.bert[metric]:.4f} | {split.head[metric]:.4f} | "
        f"{split.ensemble[metric]:.4f} |"
        for split in report.splits
        for metric in split.head
        if not metric.startswith(_NOT_SCORED) and not metric.endswith(_NOT_SCORED)
    ]
    return "\n".join([header, *rows])


def _numbers(report: RunReport) -> str:
    devices = next((note for note in report.notes if note.startswith("the backbone ran on")), "")
    trained = f"In the run {devices}. " if devices else ""
    return (
        f"{trained}Loaded as it is, in fp32, the model gives the run's logits up to the rounding "
        "of bf16 where the run used that, and of `extract.codec=int8` where it did; with "
        "`dtype=torch.bfloat16` the backbone computes in bf16, and the head keeps its weights in "
        "fp32."
    )


def _settings(report: RunReport) -> str:
    rows = [
        f"| `{key}` | `{value}` |"
        for key, value in report.settings.items()
        if value is not None and key.startswith(_SHOWN) and not key.endswith(_NOT_SHOWN)
        if not (report.task.per_token and key == "head.pool")  # nothing is pooled
    ]
    return "\n".join(["| key | value |", "| --- | --- |", *rows])
