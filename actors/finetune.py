"""Partial fine-tuning under Ray Train."""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from ray.experimental import tqdm_ray
from ray.train import ScalingConfig
from ray.train.v2.api.config import LoggingConfig, RunConfig

from actors.cluster import in_thread, result_with_notice
from actors.object_store import STORE_FULL, full_text, put, wait_for_room
from actors.ray_private import no_coordinator_left, quiet_torch_trainer
from bertvision_stream.models.backbone import BackboneWeights
from bertvision_stream.models.finetune import (
    FinetuneOptions,
    StepReport,
    Worker,
    finetune,
    num_steps,
)
from bertvision_stream.models.job import PlannedJob
from bertvision_stream.models.prepare import FinetuneResult, evaluate_classifier
from bertvision_stream.stream.blocks import TRAIN
from bertvision_stream.training.objectives.factory import make_objective
from bertvision_stream.utils.errors import ConfigError, StreamError
from bertvision_stream.utils.log import show_progress
from bertvision_stream.utils.torch_environment import SHARED_CORES, TORCH_ENVIRONMENT
from bertvision_stream.utils.units import format_bytes

# The environment of workers on a CPU, where a step consists of many short parallel loops and
# allocates large gradients for a short time.
WORKER_ENVIRONMENT = {
    **TORCH_ENVIRONMENT,
    **SHARED_CORES,
    # Let the process keep freed memory. Otherwise the operating system maps the gradient of the
    # word embeddings anew in each step, page by page, and a step takes 1.15 times as long.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_TOP_PAD_": "67108864",
}


def run_finetune(
    job: PlannedJob, weights: BackboneWeights, options: FinetuneOptions
) -> FinetuneResult:
    """Fine-tune on `finetune.num_workers` workers, and evaluate at the end.

    The weights travel through the object store in both directions, so that the nodes need no shared
    storage.

    Args:
        job: The task, with its corpus and the cluster's resources.
        weights: Where the fine-tuning begins.
        options: The hyperparameters.

    Raises:
        ConfigError: The fine-tuned weights would not fit into the object store.
        StreamError: The fine-tuning failed; the message holds the cause.
    """
    our_bytes = check_room(job, weights)
    start = time.perf_counter()
    num_workers = job.settings.finetune.num_workers
    use_gpu = job.cluster.num_gpus > 0
    cpus = 1 if use_gpu else max(1, job.cluster.num_cpus // num_workers)
    with tempfile.TemporaryDirectory(prefix="bertvision-train-") as storage:
        trainer = quiet_torch_trainer()(
            _worker,
            train_loop_config={
                "weights": put("the backbone", weights, our_bytes),
                "corpus": put("the corpus", job.corpus, our_bytes),
                "task": job.task,
                "options": options,
                "num_threads": cpus,
                "show_progress": show_progress(),
            },
            scaling_config=ScalingConfig(
                num_workers=num_workers, use_gpu=use_gpu, resources_per_worker={"CPU": cpus}
            ),
            run_config=RunConfig(
                name="finetune",
                storage_path=storage,
                worker_runtime_env={} if use_gpu else {"env_vars": WORKER_ENVIRONMENT},
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        try:
            with no_coordinator_left():
                each = f"{cpus} CPU" + (" and 1 GPU" if use_gpu else "")
                wanted = f"fine-tuning ({num_workers} workers with {each})"
                fitted = result_with_notice(in_thread(trainer.fit, "ray-train"), wanted)
                arrays, logits = fitted.return_value
        except ray.train.TrainingFailedError as error:
            raise StreamError(f"fine-tuning failed: {_cause(error)}") from error
        except STORE_FULL:
            raise StreamError(
                f"the fine-tuned weights do not fit: {full_text(our_bytes)}"
            ) from None
    return FinetuneResult(replace(weights, arrays=arrays), logits, time.perf_counter() - start)


def check_room(job: PlannedJob, weights: BackboneWeights) -> int:
    """Check that the object store has room for what a fine-tuning brings, before it begins.

    Returns:
        The bytes that it needs.

    Raises:
        ConfigError: It has not.
    """
    cluster = job.cluster
    tokens = sum(store.nbytes for store in job.stores.values())
    # Those it begins with, and those it ends with, which Ray Train passes on as a copy.
    wanted = 3 * sum(array.nbytes for array in weights.arrays.values()) + tokens
    total = cluster.store_bytes // cluster.num_nodes
    others = cluster.store_used_bytes // cluster.num_nodes
    if wanted > total - others:
        raise ConfigError(
            f"fine-tuning needs {format_bytes(wanted)} of Ray's object store, for the weights "
            f"before and after it and the tokens; of the {format_bytes(total)} of a node, others "
            f"hold {format_bytes(others)}. Give Ray a larger object store, free what others hold, "
            f"or take a smaller backbone."
        )
    return wanted


def _cause(error: Exception) -> str:
    """The last line of the traceback of the worker that failed first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)


def _worker(config: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Fine-tune and evaluate; every worker runs this, and that of rank 0 returns the result.

    Returns:
        The fine-tuned weights by name, and the validation logits by split; both are empty for all
        other workers.
    """
    torch.set_num_threads(config["num_threads"])
    context = ray.train.get_context()
    rank = context.get_world_rank()
    corpus, options = ray.get(config["corpus"]), config["options"]
    bar: Any = None
    if config["show_progress"] and rank == 0:
        total = num_steps(corpus.stores[TRAIN].num_examples, options)
        bar = tqdm_ray.tqdm(desc="fine-tuning", total=total, unit="steps")
    start = time.perf_counter()
    shown = 0

    def on_step(report: StepReport) -> None:
        nonlocal shown
        if bar is not None:
            rate = report.tokens / (time.perf_counter() - start)
            bar.set_description(f"fine-tuning · loss {report.loss:.3f} · {rate:,.0f} tok/s")
            bar.update(report.step - shown)
            shown = report.step
            if report.step == report.total_steps:
                bar.close()

    device = ray.train.torch.get_device()
    model = finetune(
        ray.get(config["weights"]).build(),
        corpus.stores[TRAIN],
        make_objective(config["task"]),
        options,
        device=device,
        worker=Worker(
            rank,
            context.get_world_size(),
            lambda model: ray.train.torch.prepare_model(model, move_to_device=False),
        ),
        on_step=on_step,
    )
    if rank > 0:
        return {}, {}
    result = evaluate_classifier(model, corpus, config["task"], options, device)
    wait_for_room(result)
    return result
