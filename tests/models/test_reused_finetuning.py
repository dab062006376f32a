"""A fine-tuning of an earlier run, or of another run at the same time: found, sound or damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny import save_model, task_settings, tiny_classifier, tiny_tokenizer, token_store

from bertvision_stream.models.backbone import BackboneWeights
from bertvision_stream.models.job import PreparedBackbone
from bertvision_stream.models.prepare import FinetuneResult, prepare_backbone
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.settings.tasks import TASKS
from bertvision_stream.stream.blocks import TRAIN
from bertvision_stream.stream.placement import ClusterResources
from bertvision_stream.utils.errors import BackboneError


class Runs:
    """Runs with the same fine-tuning, which gives the weights of a seed."""

    def __init__(self, folder: Path):
        save_model(folder / "source")
        self.job: Any = SimpleNamespace(
            settings=self.settings(folder),
            task=TASKS["rte"],
            stores={TRAIN: token_store([5, 6], np.array([0, 1]))},
            source=str(folder / "source"),
            cluster=ClusterResources(2, 0, 1, 10**9),
            tokenizer=tiny_tokenizer(),
        )
        self.num_finetuned = 0
        self.meanwhile: Callable[[], object] = lambda: None

    def settings(self, folder: Path, *overrides: str) -> TaskSettings:
        return task_settings("rte", f"output_dir={folder}", "finetune.epochs=1", *overrides)

    def prepare(self, *, reuse: bool = True, seed: int = 1) -> PreparedBackbone:
        def fine_tune(job: Any, weights: BackboneWeights, options: object) -> FinetuneResult:
            self.num_finetuned += 1
            meanwhile, self.meanwhile = self.meanwhile, lambda: None
            meanwhile()
            return FinetuneResult(BackboneWeights.of(tiny_classifier(seed=seed)), {}, 2.0)

        return prepare_backbone(self.job, fine_tune, reuse=reuse)


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def test_a_fine_tuning_is_found_again_as_it_was(runs: Runs):
    first, second = runs.prepare(), runs.prepare()
    assert runs.num_finetuned == 1
    assert first.weights.fingerprint() == second.weights.fingerprint()
    assert first.folder == second.folder


def test_layers_that_heads_read_are_of_no_account(runs: Runs, tmp_path: Path):
    first = runs.prepare()
    runs.job.settings = runs.settings(tmp_path, "extract.layers=[0,-1]")
    assert runs.prepare().folder == first.folder
    assert runs.num_finetuned == 1


@pytest.mark.parametrize("reuse", [True, False])
def test_of_two_at_once_the_second_takes_what_the_first_left(runs: Runs, reuse: bool):
    if not reuse:
        runs.prepare(seed=3)
    theirs: list[PreparedBackbone] = []
    runs.meanwhile = lambda: theirs.append(runs.prepare(reuse=reuse, seed=1))
    ours = runs.prepare(reuse=reuse, seed=2)
    assert ours.weights.fingerprint() == theirs[0].weights.fingerprint()
    assert ours.seconds == 2.0
    assert runs.prepare().weights.fingerprint() == theirs[0].weights.fingerprint()


def test_without_reuse_it_takes_the_place_of_the_earlier_one_damaged_or_not(runs: Runs):
    folder = runs.prepare(seed=1).folder
    assert folder is not None
    newer = runs.prepare(reuse=False, seed=2).weights.fingerprint()
    assert runs.prepare().weights.fingerprint() == newer
    (folder / "finetune.json").write_text("garbage")
    newest = runs.prepare(reuse=False, seed=3).weights.fingerprint()
    assert runs.prepare().weights.fingerprint() == newest


def test_one_of_a_version_without_hashes_still_loads(runs: Runs):
    first = runs.prepare()
    assert first.folder is not None
    record = json.loads((first.folder / "finetune.json").read_text())
    del record["hashes"]
    (first.folder / "finetune.json").write_text(json.dumps(record))
    assert runs.prepare().weights.fingerprint() == first.weights.fingerprint()
    assert runs.num_finetuned == 1


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def edit(path: Path, **changed: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changed))


WEIGHTS, CONFIG, RECORD = "model.safetensors", "config.json", "finetune.json"
DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit of a weight": lambda at: flip(at / WEIGHTS, -1),
    "a bit of another weight": lambda at: flip(at / WEIGHTS, -4000),
    "cut weights": lambda at: (at / WEIGHTS).write_bytes((at / WEIGHTS).read_bytes()[:-7]),
    "no weights": lambda at: (at / WEIGHTS).unlink(),
    "empty weights": lambda at: (at / WEIGHTS).write_bytes(b""),
    "an absurd header": lambda at: (at / WEIGHTS).write_bytes(b"\xff" * 64),
    "no config": lambda at: (at / CONFIG).unlink(),
    "no JSON in the config": lambda at: (at / CONFIG).write_text("{"),
    "another value in the config": lambda at: edit(at / CONFIG, layer_norm_eps=1e-3),
    "garbage as the record": lambda at: (at / RECORD).write_bytes(b"\x00\xff"),
    "a list as the record": lambda at: (at / RECORD).write_text("[1]"),
    "a record without scores": lambda at: (at / RECORD).write_text("{}"),
    "scores of a wrong type": lambda at: edit(at / RECORD, validation={"dev": [1]}),
    "hashes of a wrong type": lambda at: edit(at / RECORD, hashes=3),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_one_is_named_with_the_way_out(runs: Runs, damage: Callable[[Path], object]):
    folder = runs.prepare().folder
    assert folder is not None
    damage(folder)
    with pytest.raises(BackboneError) as caught:
        runs.prepare()
    said = str(caught.value)
    assert said.startswith(f"the fine-tuning in {folder}, which an earlier run left and this one")
    assert "finetune.reuse=false" in said
    assert runs.num_finetuned == 1
    shutil.rmtree(folder)  # the other way out
    runs.prepare()
    assert runs.num_finetuned == 2


@pytest.mark.parametrize(
    "changed",
    [
        {"hidden_size": "16"},
        {"num_hidden_layers": 0},
        {"num_attention_heads": [2]},
        {"hidden_size": -16},
        {"vocab_size": None},
        {"hidden_act": "nothing"},
        {"id2label": "x"},
    ],
    ids=str,
)
def test_a_backbone_whose_configuration_makes_no_sense(runs: Runs, changed: dict[str, object]):
    edit(Path(runs.job.source) / CONFIG, **changed)
    with pytest.raises(BackboneError, match=r"^backbone=.*source"):
        runs.prepare()
