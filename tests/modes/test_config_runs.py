"""Settings of SQuAD, of several seeds and of studies."""

import json

import pytest
from settings_report import items

from bertvision_stream.settings.command_line import TaskSettings, load_settings


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
