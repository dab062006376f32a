"""Fine-tuned backbones on disk: safetensors, configuration, tokenizer and what went in."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from bertvision_stream.models.backbone import BackboneWeights, quiet
from bertvision_stream.utils.files import replacing_folder, write_json

RECORD = "finetune.json"


def find_finetuned(folder: Path) -> Mapping[str, Any] | None:
    """The record of a finished fine-tuning in `folder`, or None."""
    record = folder / RECORD
    return json.loads(record.read_text(encoding="utf-8")) if record.is_file() else None


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
        write_json(beside / RECORD, record)


def save_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a tokenizer's files; what keeps them from being written is an `OSError`."""
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise OSError(str(error)) from error  # the tokenizers library says it no better
