"""Settings: what a command line means."""

import json
import subprocess
import sys

import pytest
from pydantic import ValidationError
from settings_report import CUSTOM

from bertvision_stream.settings.command_line import (
    Settings,
    TaskSettings,
    dotted_keys,
    format_help,
    load_settings,
)
from bertvision_stream.settings.help import asked_section
from bertvision_stream.settings.settings import HeadSettings
from bertvision_stream.settings.tasks import GLUE_TASKS, TASKS
from bertvision_stream.utils.errors import ConfigError
from bertvision_stream.utils.units import parse_bytes

# Users, scripts and the README rely on these: adding one is a decision, removing one breaks them.
KEYS = """
task mode run seed seeds output_dir run_name resume
backbone.name backbone.revision backbone.dtype
data.path data.train_fraction data.max_length data.stride data.text_columns data.label_column
data.no_label
finetune.epochs finetune.lr finetune.batch_size finetune.reuse finetune.num_workers
extract.num_extractors extract.num_gpus extract.block_tokens extract.codec extract.layers
stream.budget stream.cache
head.kind head.adapter_dim head.share_layers head.skip head.pool head.dropout head.start
train.epochs train.lr train.batch_size train.weight_decay train.warmup_ratio train.patience
train.precision train.stack_heads train.num_trainers train.num_gpus
search.num_trials search.searcher search.scheduler search.max_concurrent search.target search.space
evaluate.ensemble
export.backbone
predict.source
plan.extractors plan.tokens_per_second plan.head_tokens_per_second plan.heads plan.nodes
plan.network_gbps plan.store plan.layers plan.hidden_size
study.fractions study.finetune_epochs study.seeds
ray.address
"""


def test_the_keys_are_frozen():
    assert sorted(dotted_keys()) == sorted(KEYS.split())


# --- what a command line means


def test_values_of_every_type_are_read():
    settings = load_settings(
        [
            "task=[cola,rte]",
            "mode=search",
            "finetune.epochs=0.3",
            "finetune.reuse=false",
            "train.epochs=3",
            "train.lr=1e-4",
            "train.patience=2",
            "train.weight_decay=0",
            "extract.num_gpus=0.25",
            "extract.num_extractors=2",
            "stream.budget=256MiB",
            "head.skip=none",
            "backbone.revision=null",
            "search.space={train.warmup_ratio: [0, 0.1]}",
        ]
    )
    assert settings.task == ("cola", "rte")
    assert settings.finetune.epochs == 0.3
    assert settings.finetune.reuse is False
    assert settings.train.epochs == 3
    assert settings.train.lr == 1e-4
    assert settings.train.patience == 2
    assert settings.train.weight_decay == 0.0
    assert settings.extract.num_gpus == 0.25
    assert settings.extract.num_extractors == 2
    assert settings.stream.budget == 2**28
    assert settings.stream.cache == "auto"
    assert settings.head.skip == "none"
    assert settings.backbone.revision is None
    assert settings.search.space == {"train.warmup_ratio": [0, 0.1]}


def test_free_form_keys_are_merged():
    argv = ["search.space.train.lr=[1,2]", "search.space.head={skip: [mix, none]}"]
    settings = load_settings(["task=demo", "mode=search", *argv])
    assert settings.search.space == {"train": {"lr": [1, 2]}, "head": {"skip": ["mix", "none"]}}


@pytest.mark.parametrize(
    "text",
    ["1e10", "007", "true", "no", "a #b: c", "[x", "@x", "${x}", "C:\\data", "2024-01-01", "é 'x'"],
)
def test_text_stays_as_it_was_written(text):
    assert load_settings(["task=demo", f"output_dir={text}"]).output_dir == text


def test_text_may_be_quoted_within_the_shells_quotes():
    assert load_settings(["task=demo", 'output_dir="my runs"']).output_dir == "my runs"


def test_backbone_is_short_for_backbone_name():
    assert load_settings(["task=cola", "backbone=minilm"]).backbone.name == "minilm"


def test_one_text_column_needs_no_brackets():
    settings = load_settings([*CUSTOM[:2], "data.text_columns=title", "data.label_column=stars"])
    assert settings.data.text_columns == ("title",)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("0B", 0),
        ("268435456", 268435456),
        ("256MiB", 256 * 2**20),
        ("2GiB", 2 * 2**30),
        ("1.5 gib", 3 * 2**29),
        ("500MB", 500_000_000),
        ("64KiB", 65536),
        ("1TB", 10**12),
    ],
)
def test_byte_sizes(size, expected):
    assert parse_bytes(int(size) if size.isdigit() else size) == expected


@pytest.mark.parametrize(
    "size", ["", "GiB", "2", "2G", "2GBs", "-1MB", "1e3MB", -1, 1.5, True, None]
)
def test_what_is_no_byte_size(size):
    with pytest.raises(ValueError, match="is not a byte size such as"):
        parse_bytes(size)


def test_glue_and_lists_are_expanded_in_order_without_duplicates():
    assert load_settings(["task=demo"]).tasks == ("demo",)
    assert load_settings(["task=glue"]).tasks == GLUE_TASKS
    assert len(GLUE_TASKS) == 9
    tasks = load_settings(["task=[rte,demo,rte,glue]"]).tasks
    assert tasks[:2] == ("rte", "demo")
    assert sorted(tasks) == sorted([*GLUE_TASKS, "demo"])


def test_settings_cannot_be_changed():
    settings = load_settings(["task=demo"])
    with pytest.raises(ValidationError, match="frozen"):
        settings.seed = 1
    with pytest.raises(ValidationError, match="frozen"):
        settings.train.lr = 1.0


def test_models_take_no_unknown_field():
    with pytest.raises(ValidationError, match="Extra inputs"):
        HeadSettings(kinds="cls")


def test_settings_survive_json():
    settings = load_settings([*CUSTOM, "stream.budget=1GiB", "extract.num_gpus=0.5"])
    dumped = json.dumps(settings.model_dump(mode="json"))
    assert json.loads(dumped)["stream"] == {"budget": 2**30, "cache": "auto"}
    assert Settings.model_validate(json.loads(dumped)) == settings


@pytest.mark.parametrize("mode", ["train", "search"])
def test_settings_of_a_task_survive_json(mode):
    settings = load_settings([*CUSTOM, f"mode={mode}", "head.dropout=0.1"]).for_task("custom")
    dumped = json.dumps(settings.model_dump(mode="json"))
    assert TaskSettings.model_validate(json.loads(dumped)) == settings


# --- one task of a run


@pytest.mark.parametrize("name", TASKS)
def test_for_task_fills_in_the_tasks_recommendations(name):
    task = TASKS[name]
    settings = load_settings([f"task=[{name}]", "backbone=bert-large-cased"]).for_task(name)
    assert settings.task == name
    assert settings.tasks == (name,)
    assert settings.data.max_length == task.max_length
    assert settings.finetune.lr == task.finetune_lr
    assert settings.finetune.batch_size == settings.train.batch_size == task.batch_size


def test_for_task_keeps_what_was_given():
    argv = ["data.max_length=64", "finetune.lr=3e-5", "finetune.batch_size=4", "train.batch_size=8"]
    settings = load_settings(["task=glue", "backbone=x", *argv]).for_task("rte")
    assert settings.backbone.name == "x"
    assert settings.data.max_length == 64
    assert settings.finetune.lr == 3e-5
    assert settings.finetune.batch_size == 4
    assert settings.train.batch_size == 8


def test_a_search_samples_the_large_tasks():
    def fraction(name, *argv):
        return load_settings(["task=glue", *argv]).for_task(name).data.train_fraction

    sampled = {name for name in GLUE_TASKS if fraction(name, "mode=search") == 0.1}
    assert sampled == {"mnli", "qnli", "qqp", "sst2"}
    assert fraction("cola", "mode=search") == fraction("mnli") == 1.0
    assert fraction("mnli", "mode=search", "data.train_fraction=0.5") == 0.5
    assert fraction("mnli", "mode=search", "data.train_fraction=null") == 0.1
    assert fraction("cola", "data.train_fraction=0.5") == 0.5


def test_the_best_trial_is_trained_on_all_examples_unless_told_otherwise():
    argv = ["task=mnli", "mode=search", "search.num_trials=3", "search.space.seed=[1,2]"]
    best = load_settings(argv).after_search("mnli")
    assert (best.mode, best.data.train_fraction) == ("train", 1.0)
    assert best == load_settings(["task=mnli"]).for_task("mnli").model_copy(
        update={"search": best.search}
    )
    given = load_settings([*argv, "data.train_fraction=0.2"]).after_search("mnli")
    assert given.data.train_fraction == 0.2


def test_for_task_picks_a_backbone_and_its_rate():
    settings = load_settings(["task=[demo,cola]", "data.path=glue"])
    demo, cola = settings.for_task("demo"), settings.for_task("cola")
    assert (demo.backbone.name, demo.finetune.lr) == ("minilm", 1e-4)
    assert (cola.backbone.name, cola.finetune.lr) == ("bert-base-uncased", 2e-5)
    assert (demo.data.path, cola.data.path) == (None, "glue")
    assert load_settings(["task=cola", "backbone=minilm"]).for_task("cola").finetune.lr == 1e-4


def test_for_task_custom():
    settings = load_settings(CUSTOM).for_task("custom")
    assert settings.data.text_columns == ("a", "b")
    assert settings.data.max_length == 128
    assert settings.finetune.batch_size == settings.train.batch_size == 32
    assert settings.finetune.lr == 2e-5


def test_for_task_refuses_a_task_that_is_not_run():
    with pytest.raises(ValueError, match="rte is not among the tasks of this run: cola"):
        load_settings(["task=cola"]).for_task("rte")


# --- help, and the cost of it


def test_help_shows_every_key_with_default_and_meaning():
    text = format_help("all")
    lines = text.splitlines()
    assert text.startswith("usage: python -m bertvision_stream.run task=TASK [key=value ...]\n")
    for key in dotted_keys():
        assert any(line.startswith(f"  {key} ") for line in lines), key
    assert max(map(len, lines)) <= 100
    start, end = text.index("  finetune.lr "), text.index("  finetune.batch_size ")
    assert " ".join(text[start:end].split()) == (
        "finetune.lr Peak learning rate. "
        "Default: per task; 1e-4 for minilm. Takes a number above 0."
    )


def test_help_has_a_short_form_and_sections():
    short, search, one = format_help(), format_help("search"), format_help("train.lr")
    assert "  task " in short
    assert "search.num_trials" not in short
    assert len(short) < len(format_help("all")) / 2
    assert "or --help all" in short.splitlines()[-1]
    keys = [line.split()[0] for line in search.splitlines() if line[:3].strip()]
    assert keys[0] == "search:"
    assert {key.partition(".")[0] for key in keys[1:]} == {"search"}
    assert one.splitlines()[1].startswith("  train.lr ")
    with pytest.raises(ConfigError, match="Did you mean --help search"):
        format_help("serch")


@pytest.mark.parametrize(
    ("argv", "section"),
    [
        (["--help"], ""),
        (["-h", "search"], "search"),
        (["task=cola", "--help", "head"], "head"),
        (["--help=all"], "all"),
        (["task=cola"], None),
    ],
)
def test_what_help_is_asked_for(argv, section):
    assert asked_section(argv) == section


def test_nothing_heavy_is_imported_for_help_and_errors():
    code = """
import sys
from bertvision_stream.settings.command_line import ConfigError, format_help, load_settings
format_help()
try:
    load_settings(["task=colla"])
except ConfigError:
    heavy = {"torch", "ray", "transformers", "datasets", "numpy"}
    print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_a_path_that_begins_with_a_tilde_is_in_the_home_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    settings = load_settings(
        ["task=cola", "output_dir=~/results", "data.path=~/rows", "backbone=~/bert", "run_name=a"]
    )
    assert settings.output_dir == "/home/me/results"
    assert settings.data.path == "/home/me/rows"
    assert settings.for_task("cola").backbone.name == "/home/me/bert"
    assert load_settings(["mode=predict", "run=[~/a,~/b~]"]).run == ("/home/me/a", "/home/me/b~")
    for text in ("a~/x", "~no-such-user/x"):
        assert load_settings(["task=cola", f"output_dir={text}"]).output_dir == text
