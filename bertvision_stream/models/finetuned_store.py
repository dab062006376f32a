"""Fine-tuned backbones on disk: safetensors, configuration, tokenizer and what went in."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from transformers import PreTrainedTokenizerBase

from bertvision_stream.models.backbone import BackboneWeights, quiet
from bertvision_stream.utils.errors import BackboneError, UserError
from bertvision_stream.utils.files import read_json, replacing_folder, write_json
from bertvision_stream.utils.hashing import hash_contents

RECORD, CONFIG = "finetune.json", "config.json"


class FinetuneHashes(BaseModel):
    """What tells a fine-tuning from one in which bits have changed.

    Attributes:
        weights: `BackboneWeights.fingerprint`.
        config: A hash of `config.json`.
    """

    model_config = ConfigDict(strict=True)

    weights: str
    config: str


class FinetuneRecord(BaseModel):
    """What is read of a finished fine-tuning's `finetune.json`, which holds more for people.

    Attributes:
        validation: The scores of BERT's own classifier by split and metric.
        hashes: None in one of an earlier version.
    """

    model_config = ConfigDict(strict=True)

    validation: dict[str, dict[str, float]]
    hashes: FinetuneHashes | None = None

    def is_of(self, weights: BackboneWeights) -> bool:
        """Whether the weights are known to be those of this fine-tuning, to the bit."""
        return self.hashes is not None and self.hashes.weights == weights.fingerprint()


def when_finetuned(folder: Path) -> int | None:
    """When the fine-tuning in `folder` was saved, in nanoseconds; None where there is none."""
    record = folder / RECORD
    return record.stat().st_mtime_ns if record.is_file() else None


def find_finetuned(folder: Path) -> FinetuneRecord | None:
    """The record of a finished fine-tuning in `folder`, or None.

    Raises:
        BackboneError: It is damaged.
    """
    if when_finetuned(folder) is None:
        return None
    with reusing(folder):
        record = FinetuneRecord.model_validate(read_json(folder / RECORD))
        if record.hashes and record.hashes.config != _config_hash(folder):
            raise BackboneError(f"{folder / CONFIG} is not what was written")
    return record


@contextmanager
def reusing(folder: Path) -> Iterator[None]:
    """Says of what is wrong with a fine-tuning that it is one that is reused, and the way out.

    Raises:
        BackboneError: Something is wrong with it.
    """
    try:
        yield
    except (UserError, OSError, ValidationError) as error:
        cause = str(error).removesuffix(".")
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            cause = f"{folder / RECORD}: {where}: {first['msg']}"
        raise BackboneError(
            f"the fine-tuning in {folder}, which an earlier run left and this one would reuse, is "
            f"damaged: {cause}. Delete that folder, or give finetune.reuse=false (and not "
            f"resume=true): the backbone is then fine-tuned anew."
        ) from error


def save_finetuned(
    folder: Path,
    weights: BackboneWeights,
    tokenizer: PreTrainedTokenizerBase,
    record: Mapping[str, Any],
) -> None:
    """Write a fine-tuned classifier; transformers' auto class of its kind loads it again.

    It is written beside and renamed: the folder is there as a whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    with replacing_folder(folder) as beside:
        with quiet():
            weights.build().save_pretrained(beside)
        save_tokenizer(beside, tokenizer)
        hashes = {"weights": weights.fingerprint(), "config": _config_hash(beside)}
        write_json(beside / RECORD, {**record, "hashes": hashes})


def _config_hash(folder: Path) -> str:
    return hash_contents([(folder / CONFIG).read_bytes()])


def save_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a tokenizer's files; what keeps them from being written is an `OSError`."""
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise OSError(str(error)) from error  # the tokenizers library says it no better
