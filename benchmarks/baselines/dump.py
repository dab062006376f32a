"""Dump hidden states to disk, then train from there: as BERTVision did, and as an expert would."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch.utils.data import DataLoader, Dataset

from benchmarks.baselines.one_head import train_alone
from benchmarks.baselines.outcome import HeadOutcome, Stopwatch
from benchmarks.inputs import Inputs, make_extractor, make_head
from bertvision_stream.data.tokens import TokenStore
from bertvision_stream.heads.shape import hidden_shape
from bertvision_stream.stream.blocks import TRAIN, BlockKey
from bertvision_stream.stream.codecs import EncodedBlock
from bertvision_stream.training.batches import Batch
from bertvision_stream.training.fit import evaluate_together, train_together

# The batch size of the forward pass in BERTVision's own scripts.
FORWARD_BATCH = 32


def dump(inputs: Inputs, folder: Path) -> HeadOutcome:
    """BERTVision's way: every example, padded to `data.max_length`, goes to HDF5 in fp32.

    A shuffling DataLoader reads it in every epoch.
    """
    watch, path = Stopwatch(), folder / "hidden_states.h5"
    _dump_padded(inputs, path)
    fit = make_head(inputs).fits["head"]
    watch.training_begins(after_dump=True)
    stores = inputs.corpus.stores
    for epoch in range(fit.settings.epochs):
        order = torch.Generator().manual_seed(inputs.settings.seed + epoch)
        for _, batch in _load(path, TRAIN, stores[TRAIN], fit.batch_size, order):
            train_together([fit], batch)
        for split in inputs.corpus.validation_splits:
            for rows, batch in _load(path, split, stores[split], fit.batch_size, None):
                evaluate_together([fit], split, rows.numpy(), batch)
        fit.end_epoch({})  # this head reads no logits of BERT
        watch.epoch_ends()
    return watch.outcome(fit.history, folder)


@torch.inference_mode()
def _dump_padded(inputs: Inputs, path: Path) -> None:
    model = inputs.weights.build().eval()
    max_length = inputs.settings.data.max_length
    layers, width = hidden_shape(model.config)
    with h5py.File(path, "w") as file:
        for split, store in inputs.corpus.stores.items():
            shape = (max_length, layers, width)
            hidden = file.create_dataset(
                split, (store.num_examples, *shape), dtype="f4", chunks=(1, *shape)
            )
            for first in range(0, store.num_examples, FORWARD_BATCH):
                rows = range(first, min(first + FORWARD_BATCH, store.num_examples))
                states = model(**_padded(store, rows, max_length), output_hidden_states=True)
                stacked = torch.stack(states.hidden_states, dim=2)
                hidden[rows.start : rows.stop] = stacked.numpy()


def _padded(store: TokenStore, rows: range, max_length: int) -> dict[str, torch.Tensor]:
    inputs = np.zeros((3, len(rows), max_length), dtype=np.int64)
    for i, row in enumerate(rows):
        tokens = slice(store.offsets[row], store.offsets[row + 1])
        length = tokens.stop - tokens.start
        inputs[0, i, :length] = store.input_ids[tokens]
        inputs[1, i, :length] = store.token_type_ids[tokens]
        inputs[2, i, :length] = 1
    names = ("input_ids", "token_type_ids", "attention_mask")
    return dict(zip(names, torch.from_numpy(inputs), strict=True))


class _Dumped(Dataset[Any]):
    """The padded hidden states of one split; each worker opens the file for itself."""

    def __init__(self, path: Path, split: str, store: TokenStore):
        self._path, self._split, self._store = path, split, store
        self._hidden: Any = None

    def __len__(self) -> int:
        return self._store.num_examples

    def __getitem__(self, row: int) -> tuple[int, torch.Tensor, int, Any]:
        if self._hidden is None:
            self._hidden = h5py.File(self._path, "r")[self._split]
        states_SLD = torch.from_numpy(self._hidden[row])
        return row, states_SLD, int(self._store.lengths[row]), self._store.labels[row]


def _collate(examples: list[tuple[int, torch.Tensor, int, Any]]) -> tuple[torch.Tensor, Batch]:
    rows, states, lengths, labels = zip(*examples, strict=True)
    packed = torch.cat([s[:length] for s, length in zip(states, lengths, strict=True)])
    no_logits = torch.empty(len(rows), 0)
    return torch.tensor(rows), Batch(
        packed, torch.tensor(lengths), torch.from_numpy(np.array(labels)), no_logits
    )


def _load(
    path: Path, split: str, store: TokenStore, batch_size: int, order: torch.Generator | None
) -> Iterator[tuple[torch.Tensor, Batch]]:
    """Batches in a random order, or in that of the rows; a worker reads while the head trains."""
    loader = DataLoader(
        _Dumped(path, split, store),
        batch_size,
        shuffle=order is not None,
        generator=order,
        num_workers=1,
        collate_fn=_collate,
    )
    yield from loader


class _BlocksOnDisk:
    """Unpadded bf16 blocks in safetensors: written once, memory-mapped from then on."""

    def __init__(self, inputs: Inputs, folder: Path):
        self.corpus = inputs.corpus
        self._extractor = make_extractor(inputs)
        self._folder = folder

    def extract(self, key: BlockKey) -> EncodedBlock:
        path = self._folder / f"{key.split}-{key.index}.safetensors"
        if not path.exists():
            block = self._extractor.extract(key)
            save_file({"hidden": block.hidden, "logits": block.logits}, path)
            return block
        with safe_open(path, framework="pt") as file:  # torch tensors lie in the mapped file
            hidden, logits = file.get_tensor("hidden"), file.get_tensor("logits")
        return EncodedBlock(hidden.numpy(), np.empty(0, dtype=np.float32), logits.numpy())


def dump_blocks(inputs: Inputs, folder: Path) -> HeadOutcome:
    """An expert's way: the first epoch writes blocks, later ones map them into memory.

    The blocks and their order are those of the stream, and so are the numbers.
    """
    return train_alone(_BlocksOnDisk(inputs, folder), inputs, folder)
