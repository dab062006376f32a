"""The head of a peer that brings its own batches."""

from benchmarks.inputs import CPU, Inputs
from bertvision_stream.heads.head import Head
from bertvision_stream.stream.blocks import TRAIN
from bertvision_stream.training.fit import HeadFit
from bertvision_stream.training.objectives.factory import make_objective


def new_fit(inputs: Inputs) -> HeadFit:
    """The head that a stream would train, with its optimiser and schedule."""
    settings, corpus = inputs.settings, inputs.corpus
    return HeadFit(
        Head(settings.head, inputs.shape, seed=settings.seed),
        settings.train,
        make_objective(inputs.data.task),
        train_labels=corpus.stores[TRAIN].labels,
        validation={split: corpus.stores[split] for split in corpus.validation_splits},
        device=CPU,
        with_report=False,
    )
