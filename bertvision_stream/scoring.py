"""A finished run's head and BERT on new rows, in this process.

Rows are read once by one head: there is nothing to share, to cache or to train, so actors would
only cost their start. Blocks are made and opened by the code of the stream, in the run's precision
and codec, which gives the numbers that the run would have given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bertvision_stream.backbone import Backbone, load_tokenizer, quiet
from bertvision_stream.batches import OpenBlock
from bertvision_stream.blocks import pick_block_tokens
from bertvision_stream.codecs import BlockFormat
from bertvision_stream.corpus import Corpus
from bertvision_stream.data import Split, TokenStore, tokenize
from bertvision_stream.devices import keep_freed_memory, pick_dtype
from bertvision_stream.evaluate import ensemble, scores_from_logits
from bertvision_stream.extract import BlockExtractor
from bertvision_stream.finished_run import FinishedRun
from bertvision_stream.model import AdapterPoolerForSequenceClassification

_BLOCK_BYTES = 2**28  # most bytes of hidden states at once


@dataclass(frozen=True)
class Scored:
    """One split.

    Attributes:
        bert: Scores of BERT's own classifier, float64 [N, C] or [N].
        head: Of the head.
        ensemble: Of both, combined as the run did.
        lengths: Tokens of each row, int64 [N].
        num_truncated: Rows that were cut.
    """

    bert: np.ndarray
    head: np.ndarray
    ensemble: np.ndarray
    lengths: np.ndarray
    num_truncated: int


class Scorer:
    """A finished run's model, on a GPU if there is one.

    Args:
        run: The run.

    Raises:
        BackboneError: The model cannot be loaded.
    """

    def __init__(self, run: FinishedRun):
        keep_freed_memory()
        self.run = run
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.head_dtype = pick_dtype(run.settings.train.precision, self.device)
        with quiet():
            model = AdapterPoolerForSequenceClassification.from_pretrained(run.model)
        self._tokenizer: Any = load_tokenizer(str(run.model))
        self._head = model.head.to(self.device).requires_grad_(False)
        dtype = pick_dtype(run.settings.backbone.dtype, self.device)
        self.backbone = Backbone(model.backbone, device=self.device, dtype=dtype)

    @torch.inference_mode()
    def score(self, split: Split, *, show_progress: bool = False) -> Scored:
        """Scores of all rows of a split, in their order."""
        settings = self.run.settings
        store = tokenize(split, self._tokenizer, settings.data.max_length)
        corpus = self._pack(split.name, store)
        extractor = BlockExtractor(self.backbone, corpus, settings.extract.codec)
        shape = (store.num_examples, self.run.task.num_labels)
        bert, head = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.float32)
        with tqdm(
            total=store.num_examples, desc=split.name, unit="row", disable=not show_progress
        ) as bar:
            for block in corpus.blocks[split.name]:
                encoded = extractor.extract(block.key)
                opened = OpenBlock(
                    encoded,
                    block.lengths,
                    store.labels[block.example_ids],
                    device=self.device,
                    dtype=self.head_dtype,
                )
                batch = opened.take(np.arange(block.num_examples))
                logits = self._head(batch.hidden_TLD, batch.lengths_B)
                bert[block.example_ids] = encoded.logits
                head[block.example_ids] = logits.cpu().numpy()
                bar.update(block.num_examples)
        kind = self.run.task.kind
        of_bert, of_head = scores_from_logits(bert, kind), scores_from_logits(head, kind)
        both = ensemble(of_bert, of_head, settings.evaluate.ensemble, kind)
        return Scored(of_bert, of_head, both, store.lengths, store.num_truncated)

    def _pack(self, name: str, store: TokenStore) -> Corpus:
        """Blocks of a size that suits the rows, not too large for memory."""
        backbone, settings = self.backbone, self.run.settings
        block_format = BlockFormat(
            backbone.num_layers,
            backbone.hidden_size,
            self.run.task.num_labels,
            settings.extract.codec,
        )
        block_tokens = pick_block_tokens(
            num_tokens=store.num_tokens,
            longest=int(store.lengths.max()),
            token_bytes=block_format.token_bytes,
            most_bytes=_BLOCK_BYTES,
            on_gpu=self.device.type == "cuda",
        )
        return Corpus.pack({name: store}, block_tokens=block_tokens, seed=settings.seed)
