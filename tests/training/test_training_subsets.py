"""Heads that learn from some of the rows of a stream, against a plain loop over these alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_fit import CLASSES, assert_same, matrices_and_vectors, rate_of, settings_of, shape_of
from test_training import CORPUS, NUM_EPOCHS, Stream, training_of
from tiny import CPU, RandomExtractor, one_thread  # noqa: F401

from bertvision_stream.heads.head import Head
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.stream.blocks import TRAIN, epoch_order, row_order
from bertvision_stream.stream.plan import Position
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.head_training import HeadTraining


def brute_force(settings: TaskSettings, subset: list[int]) -> tuple[list[float], torch.nn.Module]:
    """One head in a plain loop over single examples of a subset, in the order of the stream."""
    extractor = RandomExtractor(CORPUS)
    labels = CORPUS.stores[TRAIN].labels
    head = Head(settings.head, shape_of(CLASSES), seed=settings.seed)
    matrices, vectors = matrices_and_vectors(head)
    groups = [
        {"params": matrices, "weight_decay": 0.01},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0, fused=True)
    size, steps, losses = settings.train.batch_size, 0, []
    total = NUM_EPOCHS * -(-len(subset) // size)
    for epoch in range(NUM_EPOCHS):
        order = [
            int(row)
            for i in epoch_order(len(CORPUS.blocks[TRAIN]), seed=CORPUS.seed, epoch=epoch)
            for block in [CORPUS.blocks[TRAIN][i]]
            for row in block.example_ids[row_order(block, seed=CORPUS.seed, epoch=epoch)]
            if row in subset
        ]
        assert sorted(order) == subset, "exactly once"
        loss_sum = 0.0
        for first in range(0, len(order), size):
            rows = order[first : first + size]
            hidden = [extractor.hidden(TRAIN, row) for row in rows]
            for group in optimizer.param_groups:
                group["lr"] = rate_of(settings, steps, total)
            lengths = torch.tensor([len(h) for h in hidden])
            logits = head(torch.cat(hidden), lengths)
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels[rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
            loss_sum += loss.item() * len(rows)
        losses.append(loss_sum / len(order))
    return losses, head


@pytest.mark.parametrize("batch_size", [7, 64])
def test_heads_of_a_subset_learn_from_its_rows_alone(batch_size: int):
    order = np.random.default_rng(3).permutation(CORPUS.stores[TRAIN].num_examples)
    subsets = {"one": np.sort(order[:1]), "some": np.sort(order[:27]), "all": None}
    training = HeadTraining(
        CORPUS, CLASSES, shape_of(CLASSES), device=CPU, dtype=torch.float32, stack_heads=False
    )
    settings = settings_of(f"train.epochs={NUM_EPOCHS}", f"train.batch_size={batch_size}")
    for name, subset in subsets.items():
        training.attach(name, HeadJob(settings, rows=subset))
    stream = Stream()
    for _ in range(NUM_EPOCHS):
        stream.run_epoch(training)
    for name, subset in subsets.items():
        rows = np.arange(len(order)) if subset is None else subset
        losses, head = brute_force(settings, rows.tolist())
        result = training.results()[name]
        assert [record.loss for record in result.history] == pytest.approx(losses, rel=1e-5)
        for key, parameter in head.state_dict().items():
            torch.testing.assert_close(result.state[key], parameter, rtol=1e-4, atol=1e-6)
    alone = training_of(head=settings)
    stream = Stream()
    for _ in range(NUM_EPOCHS):
        stream.run_epoch(alone)
    assert_same(training.results()["all"], alone.results()["head"])


def test_heads_are_computed_together_where_their_rows_are_the_same():
    training = training_of(stack_heads=True)
    rows = {"one": [3, 5], "same": [3, 5], "other": [3, 6], "all": None}
    for name, numbers in rows.items():
        subset = None if numbers is None else np.array(numbers)
        training.attach(name, HeadJob(settings_of(), rows=subset))
    Stream().deliver(training, Position(0, 0))
    fits = {id(fit): name for name, fit in training.fits.items()}
    stacks = [[fits[id(fit)] for fit in stack.fits] for stack in training._stacks]
    assert stacks == [["one", "same"], ["other"], ["all"]]
