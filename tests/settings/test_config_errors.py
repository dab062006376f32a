"""Settings that cannot be run: what is wrong, what is allowed, what to do."""

import pytest
from pydantic import ValidationError
from settings_report import CUSTOM, items, report

from bertvision_stream.settings.command_line import dotted_keys, load_settings
from bertvision_stream.settings.problems import nearest, nearest_keys
from bertvision_stream.settings.settings import HeadSettings
from bertvision_stream.settings.tasks import TASKS
from bertvision_stream.utils.errors import ConfigError, UserError


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

All keys: python -m bertvision_stream.run --help all"""
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


def test_a_value_and_keys_below_it_clash():
    arguments = ["search.space.head=[cls]", "search.space.head.kind=[cls,scalar_mix]"]
    for first, last in (arguments, arguments[::-1]):
        clash = items("task=demo", "mode=search", first, last)[0]
        assert clash[0] == last
        assert clash[1].startswith("another argument gives a value where this one has keys")


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


@pytest.mark.parametrize("value", ["[1", "*x", "&x [*x]", "{a: 1, a: 2}", "9" * 5000])
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
