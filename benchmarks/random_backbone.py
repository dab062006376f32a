"""A backbone with the shape of BERT-base and random weights: products take as long as real ones."""

from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from bertvision_stream.models.backbone import load_tokenizer
from bertvision_stream.models.sources import MINILM, locate

FOLDER = Path("outputs/random-bert-base")


def make_random_backbone(folder: Path = FOLDER) -> None:
    """Save it, with the uncased vocabulary, unless it is there."""
    if (folder / "config.json").exists():
        return
    torch.manual_seed(0)
    load_tokenizer(locate(MINILM)).save_pretrained(folder)
    AutoModelForSequenceClassification.from_config(BertConfig()).save_pretrained(folder)
