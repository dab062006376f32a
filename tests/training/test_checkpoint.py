"""Training that goes on from a checkpoint, bit for bit; and what the file is, sound or damaged."""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_fit import CLASSES, SCORES, ScaledValidation, assert_same, make_corpus, shape_of
from tiny import CPU, RandomExtractor, one_thread, task_settings  # noqa: F401

from bertvision_stream.settings.tasks import Task
from bertvision_stream.stream.blocks import epoch_sequence
from bertvision_stream.stream.codecs import EncodedBlock
from bertvision_stream.stream.plan import Position
from bertvision_stream.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from bertvision_stream.training.fit import HeadResult
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.head_training import HeadTraining, make_training
from bertvision_stream.utils.errors import ConfigError, OutputError

NUM_EPOCHS = 3
# Every kind of head and every option that holds state, in batches of three sizes.
HEADS: Mapping[str, tuple[str, ...]] = {
    "default": ("train.batch_size=16",),
    "dropout": ("train.batch_size=16", "head.dropout=0.4", "seed=3"),
    "unshared": ("train.batch_size=25", "head.share_layers=false", "head.skip=mix"),
    "attention": ("train.batch_size=25", "head.pool=attention", "head.skip=none"),
    "first token": ("train.batch_size=16", "head.pool=cls"),
    "flatten": ("train.batch_size=200", "head.pool=flatten", "head.dropout=0.1"),
    "scalar mix": ("train.batch_size=16", "head.kind=scalar_mix", "train.warmup_ratio=0.6"),
    "mean": ("train.batch_size=25", "head.kind=mean_layers", "head.dropout=0.2"),
    "cls": ("train.batch_size=200", "head.kind=cls", "train.weight_decay=0.3"),
    "impatient": ("train.batch_size=16", "train.patience=1"),
    "shorter": ("train.batch_size=16", "train.epochs=2"),
    "begins as BERT": ("train.batch_size=25", "head.start=bert", "train.patience=2"),
    "wild": ("train.batch_size=16", "train.lr=1e30"),
}


class Job:
    """Heads and the blocks that they are trained on, each block made once."""

    def __init__(self, task: Task, precision: str, device: torch.device = CPU):
        self.task = task
        self.device = device
        self.corpus = make_corpus(task)
        # Validation says the opposite of training: patience ends, and the first epoch is chosen.
        self.extractor: RandomExtractor = ScaledValidation(self.corpus, factor=-1.0)
        common = (f"train.precision={precision}", f"train.epochs={NUM_EPOCHS}", "train.lr=0.01")
        self.heads: dict[str, HeadJob] = {}
        for name, options in HEADS.items():
            merged = dict(option.split("=") for option in (*common, *options))
            overrides = [f"{key}={value}" for key, value in merged.items()]
            self.heads[name] = HeadJob(task_settings("cola", *overrides))
        self._blocks: dict[object, EncodedBlock] = {}

    def start(self) -> HeadTraining:
        shape = shape_of(self.task)
        return make_training(self.corpus, self.task, self.heads, shape, device=self.device)

    def run_epoch(self, training: HeadTraining) -> None:
        epoch = training.position.epoch
        num_train = len(self.corpus.blocks["train"])
        sequence = epoch_sequence(num_train, self.corpus.validation_keys, seed=1, epoch=epoch)
        for index, key in enumerate(sequence):
            if key not in self._blocks:
                self._blocks[key] = self.extractor.extract(key)
            training.consume(Position(epoch, index), key, self._blocks[key])
        training.end_epoch(epoch)

    def restart(self, training: HeadTraining, path: Path) -> HeadTraining:
        """From a file, as another process does."""
        save_checkpoint(path, training.checkpoint())
        fresh = self.start()
        fresh.restore(load_checkpoint(path))
        return fresh


def assert_same_training(actual: HeadTraining, expected: HeadTraining) -> None:
    assert actual.position == expected.position
    for name, result in expected.results().items():
        other: HeadResult = actual.results()[name]
        assert_same(other, result)
        assert (other.chosen_epoch, other.failure) == (result.chosen_epoch, result.failure)
        assert actual.fits[name].steps == expected.fits[name].steps
        assert actual.fits[name].active == expected.fits[name].active
    assert actual.bert_logits.keys() == expected.bert_logits.keys()
    for split, logits in expected.bert_logits.items():
        np.testing.assert_array_equal(actual.bert_logits[split], logits)


@pytest.mark.parametrize(
    ("task", "precision"),
    [(CLASSES, "fp32"), (SCORES, "bf16")],
    ids=["classification in fp32", "regression in bf16"],
)
def test_training_goes_on_from_a_file_bit_for_bit(tmp_path: Path, task: Task, precision: str):
    job = Job(task, precision)
    path = tmp_path / "checkpoints" / "last.safetensors"
    uninterrupted = job.start()
    interrupted = [job.restart(job.start(), path)]  # once each, and the first in every epoch
    for _ in range(NUM_EPOCHS):
        for training in [uninterrupted, *interrupted]:
            job.run_epoch(training)
        for training in interrupted:
            assert_same_training(training, uninterrupted)
        interrupted[0] = job.restart(interrupted[0], path)
        interrupted.append(job.restart(uninterrupted, path))
    assert_same_training(interrupted[-1], uninterrupted)
    # All was there to be kept: heads that ended early, chose an early epoch, or failed.
    results = uninterrupted.results()
    epochs = {name: len(result.history) for name, result in results.items()}
    short = {"impatient": 2, "begins as BERT": 2, "shorter": 2, "wild": 0}
    assert epochs == dict.fromkeys(HEADS, NUM_EPOCHS) | short
    assert results["impatient"].chosen_epoch == 1
    assert results["begins as BERT"].chosen_epoch == 0
    assert results["wild"].failure.startswith("the training loss became ")


def test_a_checkpoint_is_not_changed_by_the_training_that_goes_on():
    job = Job(CLASSES, "fp32")
    training = job.start()
    job.run_epoch(training)
    checkpoint = training.checkpoint()
    before = {name: tensor.numpy().tobytes() for name, tensor in checkpoint.tensors.items()}
    other = job.start()
    other.restore(checkpoint)
    for _ in range(2):
        job.run_epoch(training)
        job.run_epoch(other)
    assert before == {name: t.numpy().tobytes() for name, t in checkpoint.tensors.items()}
    assert_same_training(other, training)


def test_there_is_no_checkpoint_within_an_epoch():
    job = Job(CLASSES, "fp32")
    training = job.start()
    key = job.corpus.blocks["train"][0].key
    training.consume(Position(0, 0), key, job.extractor.extract(key))
    expected = "no checkpoint within an epoch, at delivery 1 of epoch 1"
    with pytest.raises(ValueError, match=f"^{expected}$"):
        training.checkpoint()


TENSORS = {
    "a/fp32": torch.tensor([1 / 3, -0.0, math.inf]),
    "a/bf16": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).T,  # not contiguous
    "b/bytes": torch.tensor([0, 255], dtype=torch.uint8),
    "b/none of them": torch.zeros(0, 3),
    "step": torch.tensor(7.0),
}
FACTS = {"epoch": 3, "loss": 0.1 + 0.2, "nested": {"é": [1, None, True, " "]}, "none": None}


def test_tensors_and_facts_survive(tmp_path: Path):
    path = tmp_path / "checkpoints" / "last.safetensors"
    save_checkpoint(path, Checkpoint(TENSORS, FACTS))
    loaded = load_checkpoint(path)
    assert loaded.facts == FACTS
    assert loaded.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor), name
    save_checkpoint(path, loaded.with_facts(epoch=4, run="two"))
    assert load_checkpoint(path).facts == FACTS | {"epoch": 4, "run": "two"}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_parts_come_out_as_they_went_in():
    one = Checkpoint({"x": torch.ones(2), "y/z": torch.zeros(1)}, {"steps": 1})
    two = Checkpoint({"x": torch.full((3,), 2.0)}, {"steps": 2})
    joined = Checkpoint.join({"head:a": one, "head:a b": two, "none": Checkpoint()}, {"epoch": 5})
    assert joined.facts["epoch"] == 5
    for name, part in {"head:a": one, "head:a b": two, "none": Checkpoint()}.items():
        taken = joined.part(name)
        assert taken.facts == part.facts
        assert taken.tensors.keys() == part.tensors.keys()
        assert all(torch.equal(taken.tensors[key], t) for key, t in part.tensors.items())


def test_the_file_holds_numbers_and_json_and_nothing_that_could_run(tmp_path: Path):
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, Checkpoint(TENSORS, FACTS))
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert json.loads(header.pop("__metadata__")["facts"]) == FACTS
    assert header.keys() == TENSORS.keys()
    spans = sorted(entry["data_offsets"] for entry in header.values())
    ends = [end for _, end in spans]
    assert [start for start, _ in spans] == [0, *ends[:-1]]  # every byte is some tensor's
    assert 8 + length + ends[-1] == len(content)


def damaged_files(folder: Path) -> Mapping[str, tuple[Path, str]]:
    """Files that are no checkpoint, by what they are, and what is said of each."""
    sound = folder / "sound"
    save_checkpoint(sound, Checkpoint(TENSORS, FACTS))
    content = sound.read_bytes()
    contents = {
        "empty": b"",
        "cut in its header": content[:50],
        "cut in its tensors": content[:-1],
        "too long": content + b"0",
        "text": b"epoch 3, loss 0.1\n" * 10,
        "pickle": pickle.dumps({"epoch": 3}),
    }
    files = {}
    for name, damaged in contents.items():
        files[name] = folder / name
        files[name].write_bytes(damaged)
    for name, metadata in {
        "a model": None,
        "another's": {"format": "pt"},
        "facts that are no JSON": {"facts": "epoch 3"},
        "facts that are a list": {"facts": "[3]"},
    }.items():
        files[name] = folder / name
        save_file({"x": torch.ones(1)}, files[name], metadata)
    files["a folder"] = folder
    files["nothing"] = folder / "nowhere"
    foreign = "it was not written by bertvision_stream"
    said = dict.fromkeys(files, "") | {
        "a model": foreign,
        "another's": foreign,
        "facts that are no JSON": foreign,
        "facts that are a list": foreign,
    }
    return {name: (path, said[name]) for name, path in files.items()}


def test_a_file_that_is_damaged_or_none_of_ours(tmp_path: Path):
    for name, (path, said) in damaged_files(tmp_path).items():
        with pytest.raises(ConfigError) as caught:
            load_checkpoint(path)
        expected = (
            rf"the checkpoint {re.escape(str(path))} cannot be read: {said or '.{10,}[^.]'}\. "
            r"Delete it to train the head anew\."
        )
        assert re.fullmatch(expected, str(caught.value)), (name, str(caught.value))


def test_every_flipped_bit_of_what_it_holds_is_noticed(tmp_path: Path):
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, Checkpoint(TENSORS, FACTS))
    sound = path.read_bytes()
    length = int.from_bytes(sound[:8], "little")
    facts = sound.index(b"epoch")
    rng = np.random.default_rng(0)
    places = {facts, 8 + length, len(sound) - 1, *rng.integers(8 + length, len(sound), 20)}
    for place in places:
        damaged = bytearray(sound)
        damaged[place] ^= 1 << int(rng.integers(0, 3))
        path.write_bytes(damaged)
        with pytest.raises(
            ConfigError, match=r"cannot be read: .*Delete it to train the head anew"
        ):
            load_checkpoint(path)


@pytest.mark.parametrize("metadata", [{}, {"format": "1", "hash": "0"}])
def test_a_checkpoint_of_another_version_says_so(tmp_path: Path, metadata: dict[str, str]):
    path = tmp_path / "last.safetensors"
    save_file({"x": torch.ones(2)}, path, {"facts": json.dumps(FACTS), **metadata})
    with pytest.raises(ConfigError, match="another version of bertvision_stream wrote it"):
        load_checkpoint(path)


def test_a_checkpoint_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "checkpoints").write_text("in the way")
    path = tmp_path / "checkpoints" / "last.safetensors"
    with pytest.raises(OutputError) as caught:
        save_checkpoint(path, Checkpoint(TENSORS, FACTS))
    assert str(caught.value).startswith(f"{path} cannot be written: File exists. What was written ")
