"""Partial fine-tuning under Ray Train."""

import contextlib
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from ray.actor import ActorHandle
from ray.exceptions import OutOfDiskError
from ray.experimental import tqdm_ray
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.config import LoggingConfig, RunConfig

from actors.cluster import in_thread, result_with_notice
from bertvision_stream.data.tokens import TokenStore
from bertvision_stream.models.backbone import Backbone, BackboneWeights
from bertvision_stream.models.extract import validation_logits
from bertvision_stream.models.finetune import FinetuneOptions, StepReport, finetune, num_steps
from bertvision_stream.models.prepare import FinetuneResult
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.training.objectives.base import Objective
from bertvision_stream.utils.devices import pick_dtype
from bertvision_stream.utils.errors import StreamError
from bertvision_stream.utils.torch_environment import SHARED_CORES, TORCH_ENVIRONMENT

# For workers on a CPU, where a step is many short parallel loops and large short-lived gradients.
WORKER_ENVIRONMENT = {
    **TORCH_ENVIRONMENT,
    **SHARED_CORES,
    # Keep freed memory: otherwise the gradient of the word embeddings is mapped anew, page by page,
    # in each step (1.15 times the time).
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_TOP_PAD_": "67108864",
}


def run_finetune(
    weights: BackboneWeights,
    corpus: Corpus,
    objective: Objective,
    options: FinetuneOptions,
    *,
    num_workers: int,
    cpus_per_worker: int,
    use_gpu: bool,
    show_progress: bool,
) -> FinetuneResult:
    """Fine-tune on `num_workers` workers and evaluate at the end.

    Weights travel through the object store in both directions: no storage has to be shared by
    nodes.

    Raises:
        StreamError: Training failed; with its cause.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="bertvision-train-") as storage:
        # mypy sees the arguments of Ray Train's first version.
        trainer = cast(Any, _QuietTrainer)(
            _worker,
            train_loop_config={
                "weights": ray.put(weights),
                "corpus": ray.put(corpus),
                "objective": objective,
                "options": options,
                "num_threads": cpus_per_worker,
                "show_progress": show_progress,
            },
            scaling_config=ScalingConfig(
                num_workers=num_workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": cpus_per_worker},
            ),
            run_config=RunConfig(
                name="finetune",
                storage_path=storage,
                worker_runtime_env={} if use_gpu else {"env_vars": WORKER_ENVIRONMENT},
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        coordinator = _coordinator()
        try:
            each = f"{cpus_per_worker} CPU" + (" and 1 GPU" if use_gpu else "")
            wanted = f"fine-tuning ({num_workers} workers with {each})"
            fitted = result_with_notice(in_thread(trainer.fit, "ray-train"), wanted)
            arrays, logits = fitted.return_value
        except ray.train.TrainingFailedError as error:
            raise StreamError(f"fine-tuning failed: {_cause(error)}") from error
        except OutOfDiskError:
            raise StreamError(
                "the fine-tuned weights do not fit into Ray's object store beside those they began "
                "with; give Ray a larger object store"
            ) from None
        finally:
            if coordinator is None and (ours := _coordinator()):
                ray.kill(ours)
    return FinetuneResult(replace(weights, arrays=arrays), logits, time.perf_counter() - start)


def _coordinator() -> ActorHandle | None:
    """Ray Train's detached actor for clusters that grow, which it leaves behind in any cluster."""
    with contextlib.suppress(ValueError):  # there is none
        return ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
    return None


class _QuietTrainer(TorchTrainer):
    """Without the detached actor that removes the workers' placement group after a crash.

    Ours goes with its job in any case, and that actor cannot find its cluster where a machine runs
    several: it then fails loudly.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        return [c for c in callbacks if not isinstance(c, PlacementGroupCleanerCallback)]


def _cause(error: Exception) -> str:
    """The last line of the first worker's traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)


def _worker(config: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Runs in each worker; what rank 0 returns is the result."""
    torch.set_num_threads(config["num_threads"])
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    corpus: Corpus = ray.get(config["corpus"])
    store: TokenStore = corpus.stores["train"]
    weights: BackboneWeights = ray.get(config["weights"])
    options: FinetuneOptions = config["options"]
    bar: Any = None
    if config["show_progress"] and rank == 0:
        total = num_steps(store.num_examples, options)
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

    model = finetune(
        weights.build(),
        store,
        options,
        device=device,
        rank=rank,
        world_size=world_size,
        wrap=lambda m: ray.train.torch.prepare_model(m, move_to_device=False),
        on_step=on_step,
    )
    if bar is not None:
        bar.close()
    if rank > 0:
        return {}, {}
    arrays = BackboneWeights.of(model.cpu()).arrays
    arrays = {name: array.copy() for name, array in arrays.items()}  # the cast below is in place
    dtype = pick_dtype(options.dtype, device)
    backbone = Backbone(model, device=device, dtype=dtype)
    return arrays, validation_logits(backbone, corpus, config["objective"])
