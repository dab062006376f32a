"""Ray Data: a pool of actors runs the frozen BERT, the trainer iterates over what they make."""

from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from benchmarks.baselines.outcome import HeadOutcome, Stopwatch
from benchmarks.inputs import Inputs, cluster, make_extractor, make_head
from bertvision_stream.stream.blocks import TRAIN
from bertvision_stream.stream.corpus import packed_positions
from bertvision_stream.training.batches import Batch
from bertvision_stream.training.fit import evaluate_together, train_together

# Rows that an actor is given at once. It sorts them by length, so that little of them is padding.
FORWARD_ROWS = 128


class Forward:
    """Turns rows of a split into their hidden states in bf16, by the forward pass of a stream."""

    def __init__(self, shared: ray.ObjectRef, split: str):
        torch.set_num_threads(1)
        inputs: Inputs = ray.get(shared)
        self._backbone = make_extractor(inputs).backbone
        self._store = inputs.corpus.stores[split]

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        ids = rows["data"][np.argsort(self._store.lengths[rows["data"]], kind="stable")]
        lengths = self._store.lengths[ids]
        positions = packed_positions(self._store.offsets[ids], lengths)
        hidden_TLD, _ = self._backbone.forward_packed(
            self._store.input_ids[positions], self._store.token_type_ids[positions], lengths
        )
        bits = hidden_TLD.to(torch.bfloat16).view(torch.int16).numpy()  # NumPy has no bfloat16
        states = np.empty(len(ids), dtype=object)
        states[:] = np.split(bits, np.cumsum(lengths)[:-1])
        return {"id": ids, "hidden": states}


def ray_data(inputs: Inputs, folder: Path) -> HeadOutcome:
    """`map_batches` with an actor for each core, `iter_torch_batches` with a shuffle buffer.

    Each epoch runs the pipeline again, as Ray Data does unless a dataset is materialized, which
    would spill to disk what does not fit.
    """
    torch.set_num_threads(1)
    training = make_head(inputs)
    fit, watch, stores = training.fits["head"], Stopwatch(), inputs.corpus.stores

    def batches(split: str, seed: int | None) -> Any:
        ids = np.arange(stores[split].num_examples)
        if seed is not None:
            ids = np.random.default_rng(seed).permutation(ids)
        pieces = np.array_split(ids, max(1, len(ids) // FORWARD_ROWS))
        made = ray.data.from_numpy(pieces).map_batches(
            Forward,
            fn_constructor_args=(shared, split),
            batch_size=FORWARD_ROWS,
            concurrency=int(ray.cluster_resources()["CPU"]),
            num_cpus=1,
        )
        return made.iter_torch_batches(
            batch_size=fit.batch_size,
            local_shuffle_buffer_size=None if seed is None else 4 * FORWARD_ROWS,
            local_shuffle_seed=seed,
            collate_fn=lambda rows: _collate(rows, stores[split].labels, training.dtype),
        )

    with cluster():
        ray.data.DataContext.get_current().enable_progress_bars = False
        shared = ray.put(inputs)
        watch.training_begins()
        for epoch in range(fit.settings.epochs):
            for _, batch in batches(TRAIN, inputs.settings.seed + epoch):
                train_together([fit], batch)
            for split in inputs.corpus.validation_splits:
                for rows, batch in batches(split, None):
                    evaluate_together([fit], split, rows, batch)
            fit.end_epoch({})  # this head reads no logits of BERT
            watch.epoch_ends()
    return watch.outcome(fit.history, folder)


def _collate(
    rows: dict[str, np.ndarray], labels: np.ndarray, dtype: torch.dtype
) -> tuple[np.ndarray, Batch]:
    ids, states = rows["id"], rows["hidden"]
    lengths = torch.tensor([len(each) for each in states])
    bits = torch.from_numpy(np.concatenate(list(states)))
    hidden_TLD = bits.view(torch.bfloat16).to(dtype)
    no_logits = torch.empty(len(ids), 0)
    return ids, Batch(hidden_TLD, lengths, torch.from_numpy(labels[ids]), no_logits)
