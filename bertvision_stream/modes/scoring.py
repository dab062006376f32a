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

from bertvision_stream.data.splits import Split
from bertvision_stream.data.tokenize import tokens_of
from bertvision_stream.data.tokens import TokenStore
from bertvision_stream.models.backbone import Backbone, load_tokenizer, quiet
from bertvision_stream.models.extract import BlockExtractor
from bertvision_stream.models.head_model import model_class
from bertvision_stream.modes.finished_run import FinishedRun
from bertvision_stream.stream.blocks import BlockFormat, pick_block_tokens
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.training.batches import OpenBlock
from bertvision_stream.training.objectives.base import PredictorScores
from bertvision_stream.training.objectives.factory import make_objective
from bertvision_stream.utils.devices import keep_freed_memory, pick_dtype

_BLOCK_BYTES = 2**28  # most bytes of hidden states at once


@dataclass(frozen=True)
class Scored:
    """One split.

    Attributes:
        store: Its tokens.
        contestants: Scores of the three, the ensemble's as the run combined them.
    """

    store: TokenStore
    predictor_scores: PredictorScores


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
        self.objective = make_objective(run.task)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.head_dtype = pick_dtype(run.settings.train.precision, self.device)
        with quiet():
            model = model_class(per_token=run.task.per_token).from_pretrained(run.model)
        self._tokenizer: Any = load_tokenizer(str(run.model))
        self._head = model.head.to(self.device).requires_grad_(False)
        dtype = pick_dtype(run.settings.backbone.dtype, self.device)
        self.backbone = Backbone(model.backbone, device=self.device, dtype=dtype)

    @torch.inference_mode()
    def score(self, split: Split, *, show_progress: bool = False) -> Scored:
        """Scores of all rows of a split, in their order."""
        settings, objective = self.run.settings, self.objective
        store = tokens_of(split, self._tokenizer, settings.data)
        corpus = self._pack(split.name, store)
        extractor = BlockExtractor(self.backbone, corpus, settings.extract.codec)
        bert, head = objective.empty_logits(store), objective.empty_logits(store)
        unit = "window" if self.run.task.per_token else "row"
        with tqdm(
            total=store.num_examples, desc=split.name, unit=unit, disable=not show_progress
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
                rows = objective.rows(store, block.example_ids)
                bert[rows], head[rows] = encoded.logits, logits.cpu().numpy()
                bar.update(block.num_examples)
        of_bert, of_head = objective.scores(bert), objective.scores(head)
        both = objective.ensemble(of_bert, of_head, settings.evaluate.ensemble, store)
        return Scored(store, PredictorScores(of_bert, of_head, both))

    def _pack(self, name: str, store: TokenStore) -> Corpus:
        """Blocks of a size that suits the rows, not too large for memory."""
        backbone, settings = self.backbone, self.run.settings
        block_format = BlockFormat(
            backbone.num_layers,
            backbone.hidden_size,
            self.run.task.num_labels,
            settings.extract.codec,
            self.run.task.per_token,
        )
        block_tokens = pick_block_tokens(
            num_tokens=store.num_tokens,
            longest=int(store.lengths.max()),
            token_bytes=block_format.token_bytes,
            most_bytes=_BLOCK_BYTES,
            on_gpu=self.device.type == "cuda",
        )
        return Corpus.pack({name: store}, block_tokens=block_tokens, seed=settings.seed)
