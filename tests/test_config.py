"""Settings: what a command line means, and what a person reads when it cannot be run."""

import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

from bertvision_stream.config import Settings, TaskSettings, dotted_keys, format_help, load_settings
from bertvision_stream.config_errors import nearest, nearest_keys
from bertvision_stream.errors import ConfigError, UserError
from bertvision_stream.settings import HeadSettings
from bertvision_stream.tasks import GLUE_TASKS, TASKS
from bertvision_stream.units import parse_bytes

# Users, scripts and the README rely on these: adding one is a decision, removing one breaks them.
KEYS = """
task mode run seed seeds output_dir run_name resume
backbone.name backbone.revision backbone.dtype
data.path data.train_fraction data.max_length data.stride data.text_columns data.label_column
finetune.epochs finetune.lr finetune.batch_size finetune.reuse finetune.num_workers
extract.num_extractors extract.num_gpus extract.block_tokens extract.codec
stream.budget stream.cache
head.kind head.adapter_dim head.share_layers head.skip head.pool head.dropout
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

CUSTOM = ["task=custom", "data.path=a.csv", "data.text_columns=[a,b]", "data.label_column=y"]


def report(*argv: str) -> str:
    """The report on a command line that must be refused."""
    with pytest.raises(ConfigError) as caught:
        load_settings(argv)
    return str(caught.value)


def items(*argv: str) -> list[list[str]]:
    """The report's items, each as its lines, without the first and the last line of the report."""
    blocks = report(*argv).split("\n\n")[1:-1]
    return [[line.strip() for line in block.splitlines()] for block in blocks]


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
    "text", ["1e10", "007", "true", "no", "a #b: c", "[x", "@x", "C:\\data", "2024-01-01", "é 'x'"]
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


# --- what a person reads


def test_the_whole_report():
    argv = ["task=colla", "train.epochz=5", "head.kind=scalarmix", "finetune.epochs=-1"]
    assert (
        report(*argv)
        == """\
4 problems with the settings:

  train.epochz=5
      there is no such key
      Did you mean train.epochs?

  task=colla
      no such task; must be one of demo, cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, \
squad_v2, custom;
      glue for the nine tasks of GLUE; or a list such as [cola,rte]
      Did you mean cola?

  finetune.epochs=-1
      must be a number of at least 0

  head.kind=scalarmix
      must be one of adapter_pooler, scalar_mix, mean_layers, cls
      Did you mean head.kind=scalar_mix?

All keys: python -m bertvision_stream.run --help"""
    )


def test_a_config_error_is_the_users_to_mend():
    assert issubclass(ConfigError, UserError)


def test_a_missing_task_lists_the_tasks():
    ((key, missing, more, advice),) = items()
    assert key == "task"
    assert missing.startswith("not given; must be one of demo, cola, sst2,")
    assert more.startswith("glue for the nine tasks of GLUE")
    assert advice == "For a first look: task=demo"


@pytest.mark.parametrize(
    ("task", "advice"),
    [
        ("mnil", "Did you mean mnli?"),
        ("SST-2", "Did you mean sst2?"),
        ("squad", "Did you mean squad_v2?"),
        ("[rtee,cola,mrcp]", "Did you mean rte, mrpc?"),
        ("cola,rte", "Write a list in brackets: 'task=[cola,rte]'"),
    ],
)
def test_a_misspelt_task_names_the_nearest(task, advice):
    ((given, wrong, _, last),) = items(f"task={task}")
    assert given == f"task={task}"
    assert wrong.startswith("no such task; must be one of demo, cola,")
    assert last == advice


@pytest.mark.parametrize("argument", ["--task=cola", "tsk=cola", "task", "task=", "cola", "taks"])
def test_a_malformed_task_is_not_called_missing_as_well(argument):
    ((given, *_),) = items(argument)
    assert given == argument


@pytest.mark.parametrize(
    ("argument", "wrong", "advice"),
    [
        ("--train.lr=3", "keys are written without dashes", "Write train.lr=3"),
        ("--seed", "keys are written without dashes", "Write seed=VALUE"),
        ("seed", "there is no value", "Write seed=VALUE"),
        ("seed=", "there is no value", "Write seed=VALUE"),
        (
            "cola",
            "not of the form key=value, without spaces around the =",
            "Did you mean task=cola?",
        ),
        ("sead=1", "there is no such key", "Did you mean seed?"),
        ("Train.Epochs=1", "there is no such key", "Did you mean train.epochs?"),
        ("lr=1", "there is no such key", "Did you mean finetune.lr or train.lr?"),
        ("model.kind=cls", "there is no such key", "Did you mean head.kind?"),
        ("backbonne=x", "there is no such key", "Did you mean backbone?"),
        (
            "stream=1",
            "stream is a group of keys, which are set one by one",
            "Its keys: stream.budget, stream.cache",
        ),
    ],
)
def test_malformed_and_unknown_keys(argument, wrong, advice):
    assert items("task=demo", argument) == [[argument, wrong, advice]]


def test_nothing_far_fetched_is_suggested():
    assert items("task=demo", "optimizer.foreach=true") == [
        ["optimizer.foreach=true", "there is no such key"]
    ]
    assert items("task=demo", "-v") == [
        ["-v", "there is no such option: settings are key=value, without dashes"]
    ]


def test_a_key_given_twice():
    assert items("task=demo", "seed=1", "backbone=a", "seed=2", "backbone.name=b") == [
        ["seed=1 seed=2", "seed is given 2 times", "Keep one of them."],
        ["backbone=a backbone.name=b", "backbone.name is given 2 times", "Keep one of them."],
    ]


@pytest.mark.parametrize(
    ("argument", "allowed"),
    [
        ("seed=true", "a whole number of at least 0 and at most 4294967295"),
        ("seed=1.5", "a whole number of at least 0 and at most 4294967295"),
        ("train.epochs=true", "a whole number of at least 1"),
        ("train.epochs=0", "a whole number of at least 1"),
        ("train.epochs=many", "a whole number of at least 1"),
        ("train.patience=0", "a whole number of at least 1, or null"),
        ("finetune.epochs=-1", "a number of at least 0"),
        ("finetune.epochs=.inf", "a number of at least 0"),
        ("train.lr=.nan", "a number above 0"),
        ("train.lr=1e999", "a number above 0"),
        ("train.lr=0", "a number above 0"),
        ("data.train_fraction=0", "a number above 0 and at most 1, or null"),
        ("data.train_fraction=1.1", "a number above 0 and at most 1, or null"),
        ("data.max_length=7", "a whole number of at least 8, or null"),
        ("head.dropout=1", "a number of at least 0 and below 1"),
        ("train.warmup_ratio=1", "a number of at least 0 and below 1"),
        ("finetune.reuse=1", "true or false"),
        ("extract.block_tokens=63", "a whole number of at least 64, or auto"),
        ("extract.num_extractors=true", "a whole number of at least 1, or auto"),
        *(
            (
                f"{group}.num_gpus={value}",
                "0, a fraction of one GPU such as 0.5, a whole number of GPUs, or auto",
            )
            for group in ("extract", "train")
            for value in ("1.5", "-1", "true", ".inf")
        ),
        ("stream.budget=2Gigs", "a size such as 268435456, 256MiB or 2GB, or auto"),
        ("stream.budget=0", "a size such as 268435456, 256MiB or 2GB, or auto"),
        ("stream.cache=-1", "0, a size such as 268435456, 256MiB or 2GB, or auto"),
        ("stream.cache=true", "0, a size such as 268435456, 256MiB or 2GB, or auto"),
        ("extract.codec=fp16", "one of bf16, int8, fp32"),
        ("search.space=3", "a mapping such as {key: value}"),
        ("output_dir=null", "text"),
        ("run_name=../x", "a folder name of letters, digits, dots, dashes and underscores"),
    ],
)
def test_what_a_key_allows(argument, allowed):
    ((given, wrong, *_),) = items("task=demo", argument)
    assert given == argument
    assert wrong == f"must be {allowed}"


@pytest.mark.parametrize("num_gpus", ["0", "0.1", "1", "3", "auto"])
def test_gpus_are_shared_or_whole(num_gpus):
    load_settings(["task=demo", f"extract.num_gpus={num_gpus}", f"train.num_gpus={num_gpus}"])


@pytest.mark.parametrize(
    ("argument", "advice"),
    [
        ("head.pool=attn", "Did you mean head.pool=attention?"),
        ("mode=trian", "Did you mean mode=train?"),
        ("stream.cache=atuo", "Did you mean stream.cache=auto?"),
    ],
)
def test_a_misspelt_choice_names_the_nearest(argument, advice):
    assert items("task=demo", argument)[0][-1] == advice


@pytest.mark.parametrize("value", ["[1", "${nowhere}", "${", "*x", "9" * 5000])
def test_a_value_that_cannot_be_read(value):
    ((given, wrong),) = items("task=demo", f"train.epochs={value}")
    assert given == f"train.epochs={value}"
    assert wrong.startswith("the value cannot be read: ")


def test_options_of_another_head():
    argv = ["head.kind=cls", "head.pool=attention", "head.share_layers=false", "head.adapter_dim=8"]
    found = items("task=demo", *argv, "head.skip=last", "head.dropout=0.1")
    assert [given for given, *_ in found] == [argv[3], argv[2], argv[1]]
    for given, wrong, advice in found:
        key = given.partition("=")[0]
        assert wrong == "only adapter_pooler has this option, and head.kind is cls"
        assert advice == f"Leave {key} out, or take head.kind=adapter_pooler."


def test_a_head_cannot_be_built_with_options_of_another():
    with pytest.raises(ValidationError, match="only adapter_pooler has this option"):
        HeadSettings(kind="scalar_mix", pool="cls")


def test_a_cache_larger_than_the_budget():
    assert items("task=demo", "stream.budget=1KiB", "stream.cache=2KiB") == [
        [
            "stream.cache=2KiB",
            "the cache is part of the budget and cannot be larger: 2,048 > 1,024 bytes",
            "Raise stream.budget or lower stream.cache.",
        ]
    ]
    load_settings(["task=demo", "stream.budget=2KiB", "stream.cache=2KiB"])
    load_settings(["task=demo", "stream.cache=2KiB"])


def test_columns_are_for_custom_alone():
    for argument in ("data.text_columns=[a,b]", "data.label_column=y"):
        key = argument.partition("=")[0]
        wrong = "only for task=custom: the columns of other tasks are fixed"
        assert items("task=[cola,rte]", argument) == [[argument, wrong, f"Leave {key} out."]]


def test_custom_needs_to_know_its_data():
    for argument in CUSTOM[1:]:
        key = argument.partition("=")[0]
        ((given, wrong, advice),) = items(*(other for other in CUSTOM if other != argument))
        assert given == key
        assert wrong == "not given, but task=custom needs it"
        assert f"{key}=" in advice


def test_custom_runs_alone():
    ((given, wrong, advice),) = items("task=[cola,custom]", "data.path=x")
    assert given == "task=[cola,custom]"
    assert wrong.startswith("custom cannot share a run with other tasks")
    assert advice == "Run task=custom by itself."


def test_demo_reads_no_data():
    ((_, wrong, _),) = items("task=demo", "data.path=x")
    assert wrong == "the demo task is generated and reads no data"


def test_one_head_needs_one_trainer():
    ((given, wrong, _),) = items("task=demo", "train.num_trainers=2")
    assert given == "train.num_trainers=2"
    assert wrong == "mode=train fits one head, and one head is held by one trainer"


def test_search_keys_do_nothing_without_a_search():
    written = ["search.space.train.lr=[1e-4,1e-3]", "search.space.seed=null"]
    assert items("task=demo", "search.num_trials=8", *written) == [
        [
            "search.num_trials=8",
            "only mode=search has a use for this, and mode is train",
            "Leave search.num_trials out, or take mode=search.",
        ],
        [
            " ".join(written),
            "only mode=search has a use for this, and mode is train",
            "Leave search.space out, or take mode=search.",
        ],
    ]
    assert len(items("task=demo", "mode=serch", "search.num_trials=8")) == 1
    load_settings(["task=demo", "mode=search", "search.num_trials=8", "train.num_trainers=2"])


def test_keys_of_a_plan():
    planned = load_settings(["task=demo", "mode=plan", "plan.extractors=64", "plan.store=2GiB"])
    assert (planned.plan.extractors, planned.plan.store) == (64, 2 * 2**30)
    assert items("task=demo", "plan.extractors=64") == [
        [
            "plan.extractors=64",
            "only mode=plan has a use for this, and mode is train",
            "Leave plan.extractors out, or take mode=plan.",
        ]
    ]
    assert items("task=demo", "mode=plan", "plan.layers=24") == [
        [
            "plan.layers=24",
            "a shape takes plan.layers and plan.hidden_size, and plan.hidden_size is not given",
            "Give plan.hidden_size as well.",
        ]
    ]
    assert items("task=demo", "mode=plan", "plan.nodes=1", "plan.network_gbps=100") == [
        [
            "plan.network_gbps=100",
            "within one node nothing crosses a network, and plan.nodes is 1",
            "Leave plan.network_gbps out, or give more nodes.",
        ]
    ]
    assert items("task=demo", "mode=plan", "plan.heads=4", "plan.head_tokens_per_second=1e5") == [
        [
            "plan.heads=4",
            "only measures with so many heads, and plan.head_tokens_per_second is given",
            "Leave one of the two out.",
        ]
    ]
    assert items("task=demo", "mode=plan", "plan.tokens_per_second=0", "plan.stores=1GiB") == [
        ["plan.stores=1GiB", "there is no such key", "Did you mean plan.store?"],
        ["plan.tokens_per_second=0", "must be a number above 0, or null"],
    ]


def test_all_layers_of_problems_are_reported_at_once():
    found = items(
        "task=rte",
        "--seed=1",  # malformed
        "train.lrr=1",  # unknown
        "search.space=[1",  # unreadable
        "train.epochs=0",  # out of range
        "head.kind=cls",
        "head.pool=cls",  # a combination within a group
        "data.label_column=y",  # a combination across groups
    )
    assert [given for given, *_ in found] == [
        "--seed=1",
        "train.lrr=1",
        "search.space=[1",
        "head.pool=cls",
        "train.epochs=0",
        "data.label_column=y",
    ]


def test_consequences_of_a_reported_problem_are_not_reported():
    assert len(items("task=custm", "data.text_columns=a", "data.label_column=y")) == 1
    assert len(items("mode=trian", "task=demo", "train.num_trainers=4")) == 1
    assert len(items("head.kind=clss", "task=demo", "head.pool=cls")) == 1


def test_the_nearest_word_is_likely_or_none():
    assert nearest("colla", TASKS) == "cola"
    assert nearest("xyzzy", TASKS) is None


@pytest.mark.parametrize(
    ("key", "likely"),
    [
        ("train.epochz", ["train.epochs"]),
        ("trian.Batch-Size", ["train.batch_size"]),
        ("train.kind", ["head.kind"]),
        ("model.lr", ["finetune.lr", "train.lr"]),
        ("num_gpu", ["extract.num_gpus", "train.num_gpus"]),
        ("finetune_lr", ["finetune.lr"]),
        ("train.wd", []),
        ("optimizer", []),
        ("", []),
    ],
)
def test_the_nearest_keys(key, likely):
    assert nearest_keys(key, dotted_keys()) == likely


# --- help, and the cost of it


def test_help_shows_every_key_with_default_and_meaning():
    text = format_help()
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


def test_nothing_heavy_is_imported_for_help_and_errors():
    code = """
import sys
from bertvision_stream.config import ConfigError, format_help, load_settings
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


def squad_items(*argv: str) -> list[list[str]]:
    return items("task=squad_v2", *argv)


def test_windows_of_squad():
    def windows(*argv: str) -> tuple[int, int | None]:
        data = load_settings(["task=squad_v2", *argv]).for_task("squad_v2").data
        return data.max_length, data.stride

    assert windows() == (384, 128)
    assert windows("data.max_length=512") == (512, 128)
    assert windows("data.max_length=256") == (256, 85)
    assert windows("data.max_length=256", "data.stride=128") == (256, 128)
    both = load_settings(["task=[cola,squad_v2]", "data.stride=64"])
    assert both.for_task("squad_v2").data.stride == 64
    assert both.for_task("cola").data.stride is None
    assert "squad_v2" not in load_settings(["task=glue"]).tasks
    searched = load_settings(["task=squad_v2", "mode=search"])
    assert searched.for_task("squad_v2").data.stride == 128
    assert searched.after_search("squad_v2").data.train_fraction == 1


def test_windows_that_cannot_move_on():
    wrong = "data.max_length=384 tokens that share data.stride=370 leave less than 16 for the"
    assert squad_items("data.stride=370") == [
        [
            "data.stride=370",
            f"windows of {wrong} question and to move on by",
            "Raise data.max_length or lower data.stride.",
        ]
    ]
    ((key, _, advice),) = squad_items("data.max_length=20")
    assert (key, advice) == ("data.max_length=20", "Raise data.max_length.")
    assert squad_items("data.stride=0")[0][0] == "data.stride=0"
    load_settings(["task=squad_v2", "data.stride=368"])


def test_only_squad_has_a_stride():
    wrong = "only squad_v2 has windows that share tokens; this run has no such task"
    assert items("task=rte", "data.stride=3") == [
        ["data.stride=3", wrong, "Leave data.stride out."]
    ]


@pytest.mark.parametrize(
    ("given", "wrong", "advice"),
    [
        ("head.pool=cls", "its heads keep them all and pool none", "Leave head.pool out."),
        ("head.pool=flatten", "its heads keep them all and pool none", "Leave head.pool out."),
        (
            "head.kind=cls",
            "and this head reads the first token alone",
            "Take adapter_pooler, scalar_mix or mean_layers.",
        ),
    ],
)
@pytest.mark.parametrize("task", ["squad_v2", "[cola,squad_v2]"])
def test_heads_that_pool_answer_no_questions(task, given, wrong, advice):
    ((key, found, last),) = items(f"task={task}", given)
    assert (key, last) == (given, advice)
    assert found.startswith("answers of squad_v2 are spans of tokens")
    assert found.endswith(wrong)


def test_heads_that_pool_are_not_searched_for_answers():
    given = ("search.space.head.pool=[mean,cls]", "search.space.head.kind=[adapter_pooler,cls]")
    assert [item[0] for item in squad_items("mode=search", *given)] == list(given)
    kinds = "search.space.head.kind=[adapter_pooler,scalar_mix,mean_layers]"
    load_settings(["task=squad_v2", "mode=search", kinds, "search.space.head.pool=null"])


# --- seeds, and studies


def test_every_task_runs_for_every_seed():
    settings = load_settings(["task=[cola,rte]", "seeds=[3,1]", "run_name=night"])
    runs = [(each.task, each.seed, each.seeds, each.run_name) for each in settings.runs()]
    assert runs == [
        ("cola", 3, None, "night-seed3"),
        ("cola", 1, None, "night-seed1"),
        ("rte", 3, None, "night-seed3"),
        ("rte", 1, None, "night-seed1"),
    ]
    (only,) = load_settings(["task=cola", "seed=5", "run_name=one"]).runs()
    assert (only.seed, only.run_name) == (5, "one")
    (after,) = load_settings(["task=cola", "mode=search", "seeds=8"]).runs()
    assert after.seed == 8
    found = load_settings(["task=cola", "mode=search", "seeds=[8,9]"]).after_search("cola", seed=9)
    assert (found.mode, found.seed) == ("train", 9)


@pytest.mark.parametrize("seeds", ["[]", "[1,1]", "[1.5]", "[-1]", "many", "[a]"])
@pytest.mark.parametrize("key", ["seeds", "study.seeds"])
def test_seeds_that_are_none(key: str, seeds: str):
    mode = "mode=study study.fractions=[0.1,1]" if key == "study.seeds" else "mode=train"
    (lines,) = items("task=demo", *mode.split(), f"{key}={seeds}")
    assert lines == [
        f"{key}={seeds}",
        "must be different whole numbers from 0 to 4294967295, such as [1,2,3], or null",
    ]


@pytest.mark.parametrize(
    ("arguments", "key", "wrong"),
    [
        (["seeds=[1,2]", "seed=3"], "seed=3", "seeds says this already"),
        (["seeds=[1,2]", "mode=plan"], "seeds=[1,2]", "mode=plan leaves no scores to compare"),
        (
            ["seeds=[1,2]", "mode=study", "study.fractions=[0.1,1]"],
            "seeds=[1,2]",
            "a study has its own",
        ),
        (
            ["mode=study"],
            "study.fractions",
            "not given, nor is study.finetune_epochs: there is nothing to compare",
        ),
        (
            ["study.fractions=[0.1,1]"],
            "study.fractions=[0.1,1]",
            "only mode=study has a use for this, and mode is train",
        ),
        (
            ["study.finetune_epochs=[0,1]", "mode=search"],
            "study.finetune_epochs=[0,1]",
            "only mode=study has a use for this, and mode is search",
        ),
        (
            ["mode=study", "study.fractions=[0.1,1]", "data.train_fraction=0.5"],
            "data.train_fraction=0.5",
            "study.fractions says this already",
        ),
        (
            ["mode=study", "study.finetune_epochs=[0,1]", "finetune.epochs=1.0"],
            "finetune.epochs=1.0",
            "study.finetune_epochs says this already",
        ),
        (
            ["mode=study", "study.finetune_epochs=[0,1]", "train.num_trainers=2"],
            "train.num_trainers=2",
            "all heads of a stream of a study are held by one trainer",
        ),
    ],
)
def test_seeds_and_studies_that_do_not_fit(arguments: list[str], key: str, wrong: str):
    (lines,) = items("task=demo", *arguments)
    assert lines[:2] == [key, wrong]


@pytest.mark.parametrize("fractions", ["[0,1]", "[0.1,2]", "[]", "[0.5,0.5]", "[-0.1]", "2"])
def test_fractions_that_are_none(fractions: str):
    (lines,) = items("task=demo", "mode=study", f"study.fractions={fractions}")
    assert lines[1].startswith("must be different numbers above 0 and at most 1, such as [0.01,")


@pytest.mark.parametrize("epochs", ["[]", "[-1]", "[1,1]", "[few]"])
def test_amounts_of_fine_tuning_that_are_none(epochs: str):
    (lines,) = items("task=demo", "mode=study", f"study.finetune_epochs={epochs}")
    assert lines[1].startswith("must be different numbers of at least 0, such as [0,0.1,0.3,1]")


def test_what_a_study_leaves_out_is_what_a_run_would_take():
    argv = ["task=cola", "mode=study", "study.fractions=[0.1,1]", "seed=5", "finetune.epochs=0.3"]
    settings = load_settings(argv).for_task("cola")
    assert (settings.study.fractions, settings.study.finetune_epochs) == ((0.1, 1.0), (0.3,))
    assert (settings.study.seeds, settings.data.train_fraction) == ((5,), 1.0)
    argv = ["task=cola", "mode=study", "study.finetune_epochs=[0,1]", "data.train_fraction=0.2"]
    settings = load_settings(argv).for_task("cola")
    assert (settings.study.fractions, settings.data.train_fraction) == ((0.2,), 1.0)
    assert TaskSettings.model_validate(json.loads(settings.model_dump_json())) == settings
