"""Reports of runs that never were, for tests of what shows them."""

from __future__ import annotations

from bertvision_stream.report.records import (
    FinetuneSummary,
    HeadSummary,
    RunReport,
    Seconds,
    SplitResult,
    StreamSummary,
    TrainSummary,
)
from bertvision_stream.settings.tasks import TASKS
from bertvision_stream.training.records import EpochRecord


def split_result(name: str, examples: int, **scores: tuple[float, float, float]) -> SplitResult:
    """A split with, for each metric, the scores of BERT, head and ensemble."""
    bert, head, both = ({m: values[i] for m, values in scores.items()} for i in range(3))
    return SplitResult(name=name, examples=examples, bert=bert, head=head, ensemble=both)


def report_on(task: str, *splits: SplitResult) -> RunReport:
    history = tuple(
        EpochRecord(
            epoch=epoch,
            loss=loss,
            validation_loss=loss + 0.01,
            scores={split.name: split.head for split in splits},
        )
        for epoch, loss in enumerate([0.69, 1 / 3, 0.6], start=1)
    )
    return RunReport(
        task=TASKS[task],
        backbone="minilm",
        seed=42,
        ensemble="mean",
        head=HeadSummary(
            kind="adapter_pooler",
            parameters=7154,
            backbone_parameters=22_713_216,
            layers=tuple(range(7)),
        ),
        splits=splits,
        finetune=FinetuneSummary(epochs=1, parameters=22_713_986, reused=False),
        train=TrainSummary(
            examples=2490,
            tokens=174_743,
            history=history,
            planned_epochs=3,
            best_epoch=2,
            chosen_by="lowest validation loss",
        ),
        stream=StreamSummary(
            blocks=47,
            blocks_extracted=47,
            blocks_from_cache=94,
            tokens_extracted=194_000,
            bytes_per_epoch=1_042_944_000,
            budget_bytes=2 * 2**30,
            peak_bytes=1123 * 2**20,
            cache_bytes=1000 * 2**20,
            spilled_bytes=0,
            fallback_bytes=0,
            store_file="",
            dump_bytes_avoided=2490 * 7 * 250 * 384 * 4,
        ),
        seconds=Seconds(total=62.3, finetune=35.1, stream=10.0),
        settings={"task": task, "data.text_columns": "a|b"},
        command=f"python -m bertvision_stream.run task={task} backbone=minilm",
        versions={"torch": "2.13.0", "ray": "2.60.0"},
        notes=("bf16 was picked for this CPU.",),
    )
