"""Fine-tuning: batches, steps, workers, and finding the result again."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import (  # noqa: F401
    CPU,
    one_thread,
    random_lengths,
    save_model,
    tiny_classifier,
    tiny_tokenizer,
    token_store,
)
from transformers import AutoTokenizer, PreTrainedModel

import bertvision_stream.models.finetune as finetune_module
from bertvision_stream.data.tokens import TokenStore
from bertvision_stream.models import finetuned_store
from bertvision_stream.models.backbone import BackboneWeights, load_classifier
from bertvision_stream.models.finetune import (
    FinetuneOptions,
    StepReport,
    Worker,
    batch_order,
    content_hash,
    finetune,
    num_steps,
)
from bertvision_stream.models.finetuned_store import find_finetuned, save_finetuned
from bertvision_stream.settings.tasks import TASKS
from bertvision_stream.training.objectives.factory import make_objective

OBJECTIVE = make_objective(TASKS["cola"])  # a regression is told by its one output
OPTIONS = FinetuneOptions(epochs=1.0, lr=1e-3, batch_size=8, seed=42, dtype="fp32")


def options(**changed: object) -> FinetuneOptions:
    return dataclasses.replace(OPTIONS, **changed)


def labelled_store(count: int = 40, *, num_labels: int = 2, seed: int = 0) -> TokenStore:
    rng = np.random.default_rng(seed)
    if num_labels == 1:
        labels = rng.uniform(0, 5, count).astype(np.float32)
    else:
        labels = rng.integers(0, num_labels, count)
    return token_store(random_lengths(count, seed=seed, longest=20), labels, seed=seed)


def padding(lengths: np.ndarray, batches: list[np.ndarray]) -> int:
    return sum(int((lengths[batch].max() - lengths[batch]).sum()) for batch in batches)


@pytest.mark.parametrize(("count", "batch_size"), [(1000, 8), (1001, 8), (3, 8), (600, 32)])
def test_an_epoch_holds_each_row_once_in_batches_of_like_length(count: int, batch_size: int):
    lengths = random_lengths(count, longest=100)
    batches = batch_order(lengths, options(batch_size=batch_size), epoch=0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    assert len(batches) == -(-count // batch_size)
    assert max(len(batch) for batch in batches) <= batch_size
    if count > 100:  # far less padding than batches in random order have
        shuffled = np.array_split(np.arange(count), len(batches))
        assert padding(lengths, batches) < 0.3 * padding(lengths, shuffled)
    mean_lengths = np.array([lengths[batch].mean() for batch in batches])
    if len(batches) > 100:
        assert abs(np.corrcoef(mean_lengths[1:], mean_lengths[:-1])[0, 1]) < 0.3


def test_epochs_and_seeds_have_orders_of_their_own():
    lengths = random_lengths(100)
    orders = [
        np.concatenate(batch_order(lengths, options(seed=seed), epoch)).tolist()
        for seed, epoch in ((1, 0), (1, 0), (1, 1), (2, 0))
    ]
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize(
    ("epochs", "count", "steps"),
    [
        (0, 1000, 0),
        (1, 1000, 100),
        (1, 1001, 101),
        (0.3, 1000, 30),
        (2.5, 1000, 250),
        (0.255, 1000, 26),  # never fewer than asked for
        (0.0001, 1000, 1),
        (0.07, 1000, 7),  # in floats 0.07 * 100 is a little above 7
        (1.1, 1000, 110),
    ],
)
def test_steps_of_a_fraction_of_an_epoch(epochs: float, count: int, steps: int):
    assert num_steps(count, options(epochs=epochs, batch_size=10)) == steps


@pytest.mark.parametrize(("epochs", "steps"), [(0.3, 15), (1, 50), (1.5, 75)])
def test_the_loop_takes_those_steps_and_reports_them(epochs: float, steps: int):
    store = labelled_store(100)
    reports: list[StepReport] = []
    finetune(
        tiny_classifier(),
        store,
        OBJECTIVE,
        options(epochs=epochs, batch_size=2),
        device=CPU,
        on_step=reports.append,
    )
    assert [report.step for report in reports] == [*range(20, steps, 20), steps]
    assert {report.total_steps for report in reports} == {steps}
    assert all(np.isfinite(report.loss) for report in reports)
    if epochs == 1:
        assert reports[-1].tokens == store.num_tokens


def gradients(
    model: PreTrainedModel,
    store: TokenStore,
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> list[torch.Tensor]:
    """What the first step of a worker leaves in `.grad`, before workers exchange anything."""
    one_step = options(batch_size=batch_size, epochs=1 / store.num_examples)
    worker = Worker(rank, world_size)
    finetune(model, store, OBJECTIVE, one_step, device=CPU, worker=worker)
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("world_size", [2, 3])
def test_workers_together_have_the_gradient_of_one(
    monkeypatch: pytest.MonkeyPatch, world_size: int, num_labels: int, batch_size: int
):
    monkeypatch.setattr(
        finetune_module, "MAX_GRAD_NORM", float("inf")
    )  # clipped after the exchange
    store = labelled_store(num_labels=num_labels)
    alone = gradients(tiny_classifier(num_labels=num_labels), store, batch_size)
    of_workers = [
        gradients(
            tiny_classifier(num_labels=num_labels),
            store,
            batch_size,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    assert max(gradient.abs().max() for gradient in alone) > 1e-2
    for expected, *parts in zip(alone, *of_workers, strict=True):
        averaged = torch.stack(parts).mean(dim=0)  # as distributed data parallel does
        torch.testing.assert_close(averaged, expected, rtol=1e-4, atol=1e-6)


def marked_store(count: int, *, seed: int) -> TokenStore:
    """Class 1 where the second token is even: nothing that a bag of the other tokens tells."""
    store = token_store(random_lengths(count, seed=seed, longest=12), np.zeros(count), seed=seed)
    labels = (store.input_ids[store.offsets[:-1] + 1] % 2).astype(np.int64)
    return dataclasses.replace(store, labels=labels)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_tiny_bert_learns_a_toy_task(dtype: str):
    store = marked_store(400, seed=0)
    model = tiny_classifier(
        hidden_size=32, num_hidden_layers=1, intermediate_size=32, initializer_range=0.1
    )
    reports: list[StepReport] = []
    finetune(
        model,
        store,
        OBJECTIVE,
        options(epochs=8, lr=1e-2, batch_size=16, dtype=dtype),
        device=CPU,
        on_step=reports.append,
    )
    assert reports[0].loss > 0.6
    assert reports[-1].loss < 0.1
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_fp32_is_deterministic_and_depends_on_the_seed():
    weights = []
    for noise, seed in ((1, 7), (2, 7), (3, 8)):
        torch.manual_seed(noise)
        model = tiny_classifier(hidden_dropout_prob=0.1)
        finetune(model, labelled_store(), OBJECTIVE, options(seed=seed), device=CPU)
        weights.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_loss_that_is_not_finite_ends_it():
    expected = re.compile(
        r"the loss became (nan|inf) by step 5 of 5; try a lower finetune\.lr \(it was 1e\+30\)"
    )
    with pytest.raises(FloatingPointError, match=expected):
        finetune(tiny_classifier(), labelled_store(), OBJECTIVE, options(lr=1e30), device=CPU)


def hash_of(source: Path, **changed: object) -> str:
    inputs = {
        "commit": None,
        "store": labelled_store(),
        "options": OPTIONS,
        "outputs": ("no", "yes"),
        "num_workers": 1,
    }
    return content_hash(str(source), **(inputs | changed))


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "model")
    return tmp_path / "model"


def changed_array(name: str) -> TokenStore:
    store = labelled_store()
    array = getattr(store, name).copy()
    array[3] += 1
    return dataclasses.replace(store, **{name: array})


def test_every_input_changes_the_hash(model_folder: Path):
    hashes = [
        hash_of(model_folder),
        hash_of(model_folder, num_workers=2),
        hash_of(model_folder, outputs=("no", "yes", "perhaps")),
        hash_of(model_folder, outputs=("yes", "no")),
        hash_of(model_folder, store=labelled_store(39)),
    ]
    new_options = {"epochs": 2.0, "lr": 2e-3, "batch_size": 9, "seed": 43, "dtype": "bf16"}
    assert set(new_options) == {field.name for field in dataclasses.fields(FinetuneOptions)}
    for name, value in new_options.items():
        hashes.append(hash_of(model_folder, options=options(**{name: value})))
    for name in ("input_ids", "token_type_ids", "offsets", "labels"):
        hashes.append(hash_of(model_folder, store=changed_array(name)))
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        path = model_folder / name
        path.write_bytes(path.read_bytes() + b" ")
        hashes.append(hash_of(model_folder))
    hashes += [hash_of(Path("some/bert"), commit=commit) for commit in ("a", "b")]
    hashes.append(hash_of(Path("another/bert"), commit="a"))
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: None,
        lambda folder: (folder / "README.md").write_text("about it"),
        lambda folder: (folder / "pytorch_model.bin").write_bytes(b"never read"),
        lambda folder: (folder / "onnx").mkdir(),
        lambda folder: (folder / "config.json").touch(),
    ],
    ids=["nothing", "readme", "pickle", "subfolder", "time of change"],
)
def test_nothing_else_changes_the_hash(
    model_folder: Path, tmp_path: Path, change: Callable[[Path], object]
):
    before = hash_of(model_folder)
    change(model_folder)
    assert hash_of(model_folder) == before
    moved = shutil.copytree(model_folder, tmp_path / "elsewhere")
    assert hash_of(moved) == before
    cut = dataclasses.replace(
        labelled_store(), num_truncated=3
    )  # told to the user, and that is all
    assert hash_of(model_folder, store=cut) == before


RECORD: dict[str, Any] = {
    "task": "rte",
    "seconds": 1.5,
    "validation": {"validation": {"accuracy": 0.5}},
}


def test_a_saved_fine_tuning_is_found_and_loads_as_it_was(tmp_path: Path):
    folder = tmp_path / "backbones" / "rte-0123"
    assert find_finetuned(folder) is None
    model = tiny_classifier(num_labels=3)
    save_finetuned(folder, BackboneWeights.of(model), tiny_tokenizer(), RECORD)
    found = find_finetuned(folder)
    assert found is not None
    assert found.validation == RECORD["validation"]
    assert found.is_of(BackboneWeights.of(model))
    assert json.loads((folder / "finetune.json").read_text()).items() >= RECORD.items()
    assert [path.name for path in folder.parent.iterdir()] == ["rte-0123"]
    loaded, is_trained = load_classifier(str(folder), num_labels=3)
    assert is_trained
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in loaded.state_dict().items())
    assert AutoTokenizer.from_pretrained(folder)("w1 w2")["input_ids"] == [2, 6, 7, 3]


def test_saving_again_replaces_the_folder_as_a_whole(tmp_path: Path):
    folder = tmp_path / "rte-0123"
    save_finetuned(folder, BackboneWeights.of(tiny_classifier()), tiny_tokenizer(), RECORD)
    (folder / "left over").touch()
    newer = tiny_classifier(seed=1)
    save_finetuned(folder, BackboneWeights.of(newer), tiny_tokenizer(), RECORD | {"seconds": 2.0})
    assert json.loads((folder / "finetune.json").read_text())["seconds"] == 2.0
    assert not (folder / "left over").exists()
    loaded, _ = load_classifier(str(folder), num_labels=2)
    assert torch.equal(loaded.classifier.weight, newer.classifier.weight)


def test_an_interrupted_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(path: Path, content: object) -> None:
        raise KeyboardInterrupt

    new, old = tmp_path / "new", tmp_path / "old"
    weights = BackboneWeights.of(tiny_classifier())
    save_finetuned(old, weights, tiny_tokenizer(), RECORD)
    monkeypatch.setattr(finetuned_store, "write_json", interrupted)
    for folder in (new, old):
        with pytest.raises(KeyboardInterrupt):
            save_finetuned(folder, weights, tiny_tokenizer(), {})
    assert find_finetuned(new) is None
    found = find_finetuned(old)
    assert found is not None
    assert found.is_of(weights)
