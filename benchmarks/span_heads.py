"""Heads of many kinds against BERT's own question-answering layer on SQuAD 2.0, over several seeds.

    python -m benchmarks.span_heads [--seeds 42,43,44] [key=value ...]

Each seed draws the rows (`data.train_fraction`), fine-tunes a backbone and initialises the heads.
All heads of a seed learn from the same blocks, which are made once and kept in memory: in one
process, with the numbers that each would have at the end of a stream.
"""

import argparse
import json
import sys
import time
from statistics import mean

import torch

from benchmarks.inputs import CPU, load_inputs
from bertvision_stream.models.backbone import Backbone
from bertvision_stream.models.extract import BlockExtractor
from bertvision_stream.models.finetune import FinetuneOptions, finetune
from bertvision_stream.settings.command_line import load_settings
from bertvision_stream.stream.blocks import TRAIN, epoch_sequence
from bertvision_stream.stream.plan import Position
from bertvision_stream.training.head_job import HeadJob
from bertvision_stream.training.head_training import make_training
from bertvision_stream.training.objectives.factory import make_objective
from bertvision_stream.utils.devices import keep_freed_memory

HEADS = {
    "adapter_pooler (default)": (),
    "lr 5e-4": ("train.lr=5e-4",),
    "lr 1e-2": ("train.lr=1e-2",),
    "adapter_dim 64": ("head.adapter_dim=64",),
    "adapter_dim 256": ("head.adapter_dim=256",),
    "adapter_dim 64, skip mix": ("head.adapter_dim=64", "head.skip=mix"),
    "adapter_dim 64, skip none": ("head.adapter_dim=64", "head.skip=none"),
    "own projections": ("head.share_layers=false",),
    "scalar_mix": ("head.kind=scalar_mix",),
    "mean_layers": ("head.kind=mean_layers",),
}
SHOWN = (
    "exact",
    "f1",
    "exact_tuned",
    "f1_tuned",
    "exact_answerable_always",
    "f1_answerable_always",
)

Metrics = dict[str, float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="42,43,44", help="separated by commas")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("keys", nargs="*", default=["backbone=minilm"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    found = [of_seed(seed, options.keys) for seed in map(int, options.seeds.split(","))]
    print(f"\nmeans over seeds {options.seeds}\n{'':<28}", *(f"{name:>24}" for name in SHOWN))
    for name in found[0]:
        values = [[metrics[name][key] for metrics in found] for key in SHOWN]
        shown = (f"{mean(v):.4f} ({min(v):.4f}-{max(v):.4f})" for v in values)
        print(f"{name:<28}", *(f"{text:>24}" for text in shown))
    return 0


def of_seed(seed: int, keys: list[str]) -> dict[str, Metrics]:
    """Metrics of BERT, each head, and the two ensembles of BERT with the default head."""
    start = time.perf_counter()
    keys = ["task=squad_v2", f"seed={seed}", *keys]
    inputs = load_inputs(keys)
    settings, corpus = inputs.settings, inputs.corpus
    store = corpus.stores["validation"]
    tuned = FinetuneOptions(
        epochs=settings.finetune.epochs,
        lr=settings.finetune.lr,
        batch_size=settings.finetune.batch_size,
        seed=seed,
        dtype=settings.backbone.dtype,
    )
    model = finetune(
        inputs.weights.build(),
        corpus.stores[TRAIN],
        make_objective(inputs.data.task),
        tuned,
        device=CPU,
        on_step=lambda report: print(f"seed {seed}: {report}", flush=True),
    )
    print(f"seed {seed}: fine-tuned after {time.perf_counter() - start:.0f} s", flush=True)
    backbone = Backbone(model, device=CPU, dtype=torch.bfloat16)
    extractor = BlockExtractor(backbone, corpus, settings.extract.codec)
    blocks = {b.key: extractor.extract(b.key) for split in corpus.blocks.values() for b in split}
    print(f"seed {seed}: extracted after {time.perf_counter() - start:.0f} s", flush=True)

    heads = {
        name: HeadJob(load_settings([*keys, *options]).for_task("squad_v2"))
        for name, options in HEADS.items()
    }
    training = make_training(corpus, inputs.data.task, heads, inputs.shape, device=CPU)
    for epoch in range(settings.train.epochs):
        sequence = epoch_sequence(
            len(corpus.blocks[TRAIN]), corpus.validation_keys, seed=seed, epoch=epoch
        )
        for index, key in enumerate(sequence):
            training.consume(Position(epoch, index), key, blocks[key])
        training.end_epoch(epoch)
        print(f"seed {seed}: epoch {epoch + 1}, {time.perf_counter() - start:.0f} s", flush=True)

    objective = make_objective(inputs.data.task)
    bert = objective.scores(training.bert_logits["validation"])
    scores = {"BERT": bert}
    for name, result in training.results().items():
        scores[name] = objective.scores(result.logits["validation"])
    default = scores[next(iter(HEADS))]
    for method in ("mean", "max"):
        scores[f"ensemble ({method})"] = objective.ensemble(bert, default, method, store)
    metrics = {name: objective.all_metrics(values, store) for name, values in scores.items()}
    for name, values in metrics.items():
        print(json.dumps({"seed": seed, "who": name, **values}), flush=True)
    return metrics


if __name__ == "__main__":
    sys.exit(main())
