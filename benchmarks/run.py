"""What is claimed, measured by one command: streaming against what users would do instead.

    python -m benchmarks.run [--sections peers,score,...] [--repeats N] [key=value ...]

writes `benchmarks/RESULTS.md`, section by section; those that are not asked for stay as they are.
Needs the extra `bench` (`pip install -e '.[demo,bench]'`), and for BERTVision's dump of CoLA 13 GB
in the folder for temporary files (`TMPDIR`). The section `gpu` is left out where there is no GPU.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks import (
    control_plane,
    cost_check,
    extraction,
    gpu,
    one_head,
    stacked_heads,
    sweeps,
    time_to_score,
    trials_against_tune,
)
from benchmarks.inputs import RANDOM_BACKBONE, make_random_backbone
from benchmarks.results import Section, write_section
from bertvision_stream.settings.command_line import load_settings
from bertvision_stream.utils.errors import ConfigError

DEFAULTS = ("backbone=minilm", "data.path=../shared/data/glue")

# Half of CoLA is a few minutes of fine-tuning on two cores.
SCORE_DEFAULTS = {"cola": ("data.train_fraction=0.5",)}

TRIALS_DEFAULTS = (
    "task=cola",
    "data.train_fraction=0.3",
    "train.epochs=3",
    "mode=search",
    "search.searcher=random",
    "search.scheduler=fifo",
)

# A forward pass of BERT-base takes eight times that of MiniLM, a head twice: fewer rows will do.
BASE_TRIALS = (*TRIALS_DEFAULTS, "data.train_fraction=0.06")

# Settings that each section gives by itself, and what says them in their place.
RESERVED = {
    "task": "--tasks (the section trials: always cola)",
    "mode": "the section",
    "finetune.epochs": "the section score: full fine-tuning has more of them than the other",
    "search.num_trials": "--trials",
}

# These sections bring their own settings.
OTHERS = (
    Section(
        "full-cache",
        "Ten epochs with a full cache, against what cannot be spared",
        sweeps.measure_full_cache,
    ),
    Section("sweeps", "One setting varied at a time", sweeps.measure),
    Section("extraction", "Extraction against the model alone, and padding", extraction.measure),
    Section("heads", "Heads computed together", stacked_heads.measure),
    Section("control", "The control plane alone", control_plane.measure),
    Section("costs", "The cost model against measurements", cost_check.measure),
    Section("gpu", "GPU against what docs/scaling.md assumes", gpu.measure, needs_gpu=True),
)


def make_sections(options: argparse.Namespace) -> list[Section]:
    """All sections that can be measured, in the order of a new file."""
    return [
        *(_peers(task, options) for task in options.tasks or ("cola", "rte")),
        *(_score(task, options) for task in options.tasks or ("stsb", "cola")),
        _trials(options),
        _trials_on_base(options),
        *OTHERS,
    ]


def _peers(task: str, options: argparse.Namespace) -> Section:
    keys, marks = merged(DEFAULTS, [f"task={task}"], options.keys), options.epochs
    return Section(
        "peers",
        f"{task}: one head, and what users would do instead",
        partial(one_head.measure, names=options.peers, once=options.once, marks=marks, keys=keys),
        keys,
        f"Epochs: {', '.join(map(str, marks))} of one run of {marks[-1]}",
    )


def _score(task: str, options: argparse.Namespace) -> Section:
    keys = merged(DEFAULTS, SCORE_DEFAULTS.get(task, ()), [f"task={task}"], options.keys)
    title = f"{task}: time to a score, against fine-tuning all of BERT"
    return Section("score", title, partial(time_to_score.measure, keys=keys), keys)


def _trials(options: argparse.Namespace) -> Section:
    keys = merged(DEFAULTS, TRIALS_DEFAULTS, options.keys)
    measure = partial(trials_against_tune.measure, counts=options.trials, keys=keys)
    return Section("trials", "Trials in one search against independent Tune trials", measure, keys)


def _trials_on_base(options: argparse.Namespace) -> Section:
    keys = merged(DEFAULTS, BASE_TRIALS, options.keys, (f"backbone={RANDOM_BACKBONE}",))

    def measure(repeats: int) -> list[str]:
        make_random_backbone()
        return trials_against_tune.measure(repeats, counts=options.trials[-1:], keys=keys)

    title = "The same on a backbone with the shape of BERT-base"
    others = "Its weights are random, so scores mean nothing, and times do"
    return Section("trials-base", title, measure, keys, others)


def merged(*layers: Sequence[str]) -> tuple[str, ...]:
    """The settings of all layers; of several with the same key the last one counts."""
    by_key = {setting.partition("=")[0]: setting for layer in layers for setting in layer}
    return tuple(by_key.values())


def parse_options(argv: Sequence[str]) -> tuple[argparse.Namespace, list[Section]]:
    """Read the command line. Mistakes end the process with exit status 2.

    Returns:
        The options, and the sections that they ask for.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--sections", type=_names, help="default: all")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each (%(default)s)")
    parser.add_argument("--tasks", type=_names, help="tasks of the sections peers and score")
    peers = tuple(one_head.PEERS)
    parser.add_argument(
        "--peers", type=_names, default=peers, help=f"ways of the section peers: {', '.join(peers)}"
    )
    parser.add_argument(
        "--once", type=_names, default=(), help="peers that take part in the first turn only"
    )
    parser.add_argument(
        "--epochs",
        type=_counts,
        default=(1, 3, 5, 10),
        help="of the section peers (1,3,5,10)",
    )
    parser.add_argument(
        "--trials", type=_counts, default=(1, 4, 16), help="trials of the section trials (1,4,16)"
    )
    parser.add_argument("--output", type=Path, default=Path("benchmarks/RESULTS.md"))
    parser.add_argument("keys", nargs="*", help="settings for all sections, key=value")
    options = parser.parse_args(argv)
    if options.repeats < 1:
        parser.error(f"--repeats={options.repeats}: at least 1")
    _refuse_unknown(parser, "--peers", options.peers, peers)
    _refuse_unknown(
        parser, "--once", options.once, [n for n in options.peers if n != one_head.CACHED]
    )
    if one_head.CACHED not in options.peers:
        parser.error(f"--peers lacks {one_head.CACHED}, which the others are compared with")
    for key in (setting.partition("=")[0] for setting in options.keys):
        if key in RESERVED:
            parser.error(f"{key}= cannot be set here; it is given by {RESERVED[key]}")
    sections = make_sections(options)
    known = list(dict.fromkeys(section.name for section in sections))
    chosen = options.sections or known
    _refuse_unknown(parser, "--sections", chosen, known)
    sections = [section for section in sections if section.name in chosen]
    for section in sections:
        _check_settings(parser, section, options)
    return options, _without_gpu(parser, sections, named=options.sections is not None)


def _without_gpu(
    parser: argparse.ArgumentParser, sections: list[Section], *, named: bool
) -> list[Section]:
    """The sections that can be measured here; another is an error where it was asked for."""
    if torch.cuda.is_available():
        return sections
    for section in sections:
        if section.needs_gpu and named:
            parser.error(f"--sections={section.name}: there is no GPU here that torch can use")
        if section.needs_gpu:
            print(f"{section.name}: left out, as there is no GPU here that torch can use")
    return [section for section in sections if not section.needs_gpu]


def _check_settings(
    parser: argparse.ArgumentParser, section: Section, options: argparse.Namespace
) -> None:
    """Refuse wrong settings now, and not after hours of measuring."""
    if not section.settings:
        return
    if section.name == "peers" and any(key.startswith("train.epochs=") for key in options.keys):
        parser.error("train.epochs= is given by --epochs for the section peers")
    try:
        tasks = load_settings(section.settings).tasks
    except ConfigError as error:
        parser.error(str(error))
    if len(tasks) != 1 or tasks[0] == "squad_v2":
        parser.error(f"{section.name}: one sentence task at a time, and not {', '.join(tasks)}")


def _refuse_unknown(
    parser: argparse.ArgumentParser, option: str, given: Sequence[str], known: Sequence[str]
) -> None:
    if unknown := [name for name in given if name not in known]:
        parser.error(f"{option}={','.join(unknown)}: known are {', '.join(known)}")


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _counts(text: str) -> tuple[int, ...]:
    """Reads distinct whole numbers above zero, ascending."""
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        counts = [0]
    if counts[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r} are not whole numbers above 0, such as 1,3,5")
    return tuple(counts)


def main() -> int:
    options, sections = parse_options(sys.argv[1:])
    command = shlex.join(["python", "-m", "benchmarks.run", *sys.argv[1:]])
    for section in sections:
        print(f"{section.name}: {section.title}", flush=True)
        write_section(options.output, section, command=command, repeats=options.repeats)
        print(f"written to {options.output}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
