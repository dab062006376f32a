"""The command line: `python -m bertvision_stream.run key=value ...`.

Puts the parts together: data, partial fine-tuning, streaming, results. What a user can get wrong is
checked in the order of what it costs to check, and nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import itertools
import logging
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertvision_stream import __version__
from bertvision_stream.config import format_help, load_settings
from bertvision_stream.errors import BertvisionError, ConfigError, UserError

if TYPE_CHECKING:
    from actors.cluster import ClusterResources, Placement
    from bertvision_stream.codecs import BlockFormat
    from bertvision_stream.corpus import Corpus
    from bertvision_stream.data import TaskData, TokenStore
    from bertvision_stream.plan import StreamPlan
    from bertvision_stream.results import RunReport
    from bertvision_stream.settings import TaskSettings

log = logging.getLogger("bertvision_stream")

RUN_ERROR, USER_ERROR, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str]) -> int:
    """Run the command line.

    Returns:
        The exit code: 0, 1 (the run failed), 2 (a user's mistake) or 130 (interrupted).
    """
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    if {"--help", "-h"} & set(argv):
        print(format_help())
        return 0
    if "--version" in argv:
        print(f"bertvision_stream {__version__}")
        return 0
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        settings = load_settings(argv)
        command = shlex.join(["python", "-m", "bertvision_stream.run", *argv])
        # All tasks are checked before the first one runs.
        inputs = [read_inputs(settings.for_task(name)) for name in settings.tasks]
        reports = [run_task(task_inputs, command) for task_inputs in inputs]
        _print_summary([report for report in reports if report is not None])
    except UserError as error:
        print(f"\n{error}", file=sys.stderr)
        return USER_ERROR
    except BertvisionError as error:
        print(f"\nThe run failed: {error}", file=sys.stderr)
        return RUN_ERROR
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return INTERRUPTED
    finally:
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()
    return 0


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _print_summary(reports: list[RunReport]) -> None:
    if len(reports) > 1:
        from bertvision_stream.report import render_summary

        print(f"\n{render_summary(reports)}")


@dataclass(frozen=True)
class TaskInputs:
    """A task's settings and rows, and where its backbone is."""

    settings: TaskSettings
    data: TaskData
    source: str


def read_inputs(settings: TaskSettings) -> TaskInputs:
    """Read the rows and find the backbone, without torch and Ray.

    Raises:
        DataError: The rows cannot be found or used.
        BackboneError: The backbone cannot be found.
    """
    from bertvision_stream.data import load_task_data
    from bertvision_stream.sources import locate

    source = locate(settings.backbone.name, settings.backbone.revision)
    return TaskInputs(settings, load_task_data(settings), source)


def run_task(inputs: TaskInputs, command: str) -> RunReport | None:
    """Run one task, from its rows to its results; prints as it goes.

    Args:
        inputs: Of one task.
        command: The command line, for the records.

    Returns:
        The report; None for `mode=finetune`, which trains no head.
    """
    from bertvision_stream.results import write_json

    start = time.perf_counter()
    settings, data, source = inputs.settings, inputs.data, inputs.source
    folder = make_run_folder(settings)
    with _logging_to(folder / "run.log"):
        log.info("%s: results in %s", settings.task, folder)
        write_json(folder / "config.json", settings.model_dump())
        for note in data.notes:
            log.info("note: %s", note)
        log.info("starting torch, transformers and Ray ...")
        from actors.cluster import cluster_resources, connect, place
        from actors.prepare import prepare_backbone
        from actors.reporting import write_results
        from actors.service import plan_stream, run_stream
        from bertvision_stream.backbone import hidden_shape, load_config, load_tokenizer
        from bertvision_stream.codecs import BlockFormat
        from bertvision_stream.heads import HeadShape
        from bertvision_stream.report import render_table

        tokenizer = load_tokenizer(source, settings.backbone.revision)
        config = load_config(source, settings.backbone.revision)
        num_layers, hidden_size = hidden_shape(config)
        stores = _tokenize(data, tokenizer, settings.data.max_length, config)
        connect(settings.ray.address)
        cluster = cluster_resources()
        placement = place(cluster, settings)
        block_format = BlockFormat(
            num_layers, hidden_size, data.task.num_labels, settings.extract.codec
        )
        corpus = _pack(settings, stores, block_format, cluster, placement)
        plan = plan_stream(
            settings, corpus, block_format, num_extractors=placement.num_extractors, cluster=cluster
        )
        show_progress = sys.stderr.isatty()
        backbone = prepare_backbone(
            settings,
            data.task,
            corpus,
            tokenizer,
            source,
            cluster,
            show_progress=show_progress,
            say=log.info,
        )
        if settings.mode == "finetune":
            for split, scores in backbone.scores.items():
                listed = ", ".join(f"{metric} {value:.4f}" for metric, value in scores.items())
                log.info("BERT on %s: %s", split, listed)
            return None
        log.info("%s", _describe_budget(plan))
        shape = HeadShape(num_layers, hidden_size, data.task.num_labels, settings.data.max_length)
        outcome = run_stream(
            plan,
            placement,
            settings=settings,
            task=data.task,
            corpus=corpus,
            weights=backbone.weights,
            heads={"head": settings},
            shape=shape,
            show_progress=show_progress,
            say=log.info,
        )
        report = write_results(
            folder,
            settings=settings,
            data=data,
            corpus=corpus,
            plan=plan,
            backbone=backbone,
            shape=shape,
            outcome=outcome,
            command=command,
            start=start,
        )
        log.info("\n%s", render_table(report))
        log.info("results in %s", folder)
        return report


def make_run_folder(settings: TaskSettings) -> Path:
    """The folder of this run, new.

    Raises:
        ConfigError: It cannot be written, or holds the results of another run.
    """
    parent = Path(settings.output_dir) / settings.task
    try:
        if settings.run_name is None:
            return _new_folder(parent, datetime.now().strftime("%Y%m%d-%H%M%S"))
        folder = parent / settings.run_name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.log").touch()
    except OSError as error:
        raise ConfigError(
            f"output_dir={settings.output_dir} cannot be written: {error.strerror} "
            f"({error.filename})"
        ) from error
    if (folder / "metrics.json").exists():
        raise ConfigError(
            f"run_name={folder.name}: {folder} holds the results of a finished run; take another "
            f"name, or none"
        )
    return folder


def _new_folder(parent: Path, name: str) -> Path:
    """`parent/name`, or `parent/name-2` and so on where another run was as quick."""
    for number in itertools.count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not folder.is_dir():  # a file in the way, here or above
                raise
        else:
            return folder
    raise AssertionError("unreachable")


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """While it lasts, what we say goes to the console as it is, and with times into `path`."""
    console, file = logging.StreamHandler(sys.stdout), logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers = [console, file]
    try:
        yield
    except BaseException as error:
        file.emit(log.makeRecord(log.name, logging.ERROR, "", 0, "%r", (error,), None))
        raise
    finally:
        log.handlers = [console]
        file.close()


def _tokenize(
    data: TaskData, tokenizer: Any, max_length: int, config: Any
) -> dict[str, TokenStore]:
    from bertvision_stream.data import tokenize

    positions = min(tokenizer.model_max_length, config.max_position_embeddings)
    if max_length > positions:
        raise ConfigError(
            f"data.max_length={max_length} is more than the {positions} positions of the backbone"
        )
    stores = {s.name: tokenize(s, tokenizer, max_length) for s in (data.train, *data.validation)}
    for name, store in stores.items():
        cut = f"; {store.num_truncated:,} were cut to {max_length}" if store.num_truncated else ""
        log.info(
            "%s: %s examples, %s tokens%s",
            name,
            f"{len(store.labels):,}",
            f"{store.num_tokens:,}",
            cut,
        )
    return stores


def _pack(
    settings: TaskSettings,
    stores: Mapping[str, TokenStore],
    block_format: BlockFormat,
    cluster: ClusterResources,
    placement: Placement,
) -> Corpus:
    """Blocks of the size that is asked for, or that suits the data and the memory."""
    from bertvision_stream.blocks import TRAIN, pick_block_tokens
    from bertvision_stream.budget import STORE_SHARE, max_blocks
    from bertvision_stream.corpus import Corpus

    longest = max(int(store.lengths.max()) for store in stores.values())
    budget = settings.stream.budget
    total = int(cluster.store_bytes * STORE_SHARE) if budget == "auto" else budget
    block_tokens = settings.extract.block_tokens
    if block_tokens == "auto":
        block_tokens = pick_block_tokens(
            num_tokens=stores[TRAIN].num_tokens,
            longest=longest,
            token_bytes=block_format.token_bytes,
            most_bytes=total // max_blocks(placement.num_extractors),
            on_gpu=placement.extractor_gpus > 0,
        )
    elif block_tokens < longest:
        raise ConfigError(
            f"extract.block_tokens={block_tokens} is less than the longest example's {longest}"
        )
    return Corpus.pack(stores, block_tokens=block_tokens, seed=settings.seed)


def _describe_budget(plan: StreamPlan) -> str:
    from bertvision_stream.units import format_bytes

    budget = plan.budget
    text = (
        f"memory: an epoch delivers {format_bytes(budget.epoch_bytes)} in {len(plan.block_bytes)} "
        f"blocks; the budget is {format_bytes(budget.total_bytes)}, of which "
        f"{format_bytes(budget.pinned_bytes)} ({budget.cached_share:.0%} of an epoch) are kept for "
        f"later epochs"
    )
    if plan.num_epochs > 1:
        spared = sum(plan.block_tokens[key] for key in budget.pinned) * (plan.num_epochs - 1)
        text += f", which spares the forward pass of {spared:,} tokens"
    return text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
