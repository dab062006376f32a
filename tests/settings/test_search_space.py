"""The space of a search: what it means, what is refused and why."""

import json
import subprocess
import sys

import pytest

from bertvision_stream.settings.command_line import format_help, load_settings
from bertvision_stream.settings.search_dimensions import Choice, Range, show
from bertvision_stream.settings.search_space import SEARCHABLE, Space, default_space, read_space
from bertvision_stream.settings.settings import TaskSettings
from bertvision_stream.utils.errors import ConfigError

ADAPTER_SIZES = Choice((8, 16, 32, 64, 128, 256))
LR = Range(low=1e-4, high=1e-2, log=True)
SEED = Range(low=1, high=2000, integer=True)


def settings(*argv: str, task: str = "cola") -> TaskSettings:
    return load_settings([f"task={task}", "mode=search", *argv]).for_task(task)


def space(*argv: str, task: str = "cola") -> Space:
    return read_space(settings(*argv, task=task).search.space)


def items(*argv: str) -> list[list[str]]:
    """What is wrong with a command line: of each problem the lines."""
    with pytest.raises(ConfigError) as caught:
        settings(*argv)
    blocks = str(caught.value).split("\n\n")[1:-1]
    return [[line.strip() for line in block.splitlines()] for block in blocks]


# --- what is searched


def test_the_default_space_is_bertvisions():
    assert space() == {"train.lr": LR, "head.adapter_dim": ADAPTER_SIZES, "seed": SEED}


@pytest.mark.parametrize(
    ("written", "dimension"),
    [
        ("head.adapter_dim=[8,24]", Choice((8, 24))),
        ("head.adapter_dim=8..64", Range(low=8, high=64, integer=True)),
        ("head.adapter_dim=log:8..256", Range(low=8, high=256, log=True, integer=True)),
        ("head.dropout=0..0.3", Range(low=0.0, high=0.3)),
        ("head.dropout=[0,0.1]", Choice((0.0, 0.1))),
        ("head.kind=[adapter_pooler,scalar_mix]", Choice(("adapter_pooler", "scalar_mix"))),
        ("head.skip=[none,mix]", Choice(("none", "mix"))),
        ("head.start=[bert,new]", Choice(("bert", "new"))),
        ("head.pool=[mean,cls,attention]", Choice(("mean", "cls", "attention"))),
        ("head.share_layers=[true,false]", Choice((True, False))),
        ("train.lr=log:5e-5..2E-3", Range(low=5e-5, high=2e-3, log=True)),
        ("train.lr=[1e-3,2e-3,1e-3]", Choice((1e-3, 2e-3))),
        ("train.weight_decay=0..1", Range(low=0.0, high=1.0)),
        ("train.warmup_ratio=0..0.5", Range(low=0.0, high=0.5)),
        ("train.batch_size=[8,16]", Choice((8, 16))),
        ("seed=0..4294967295", Range(low=0, high=4294967295, integer=True)),
        ("seed=[1,2,3]", Choice((1, 2, 3))),
    ],
)
def test_what_is_written(written, dimension):
    key = written.partition("=")[0]
    read = space(f"search.space.{written}")[key]
    assert read == dimension
    if isinstance(read, Range):
        assert {type(read.low), type(read.high)} == {int if read.integer else float}
    else:
        assert set(map(type, read.values)) == set(map(type, dimension.values))


def test_what_is_written_adds_to_the_default_space():
    assert space("search.space.head.dropout=0..0.3", "search.space.train.lr=[1e-3,2e-3]") == {
        "train.lr": Choice((1e-3, 2e-3)),
        "head.adapter_dim": ADAPTER_SIZES,
        "seed": SEED,
        "head.dropout": Range(low=0.0, high=0.3),
    }


def test_keys_may_be_nested_or_dotted():
    assert (
        space("search.space={train.lr: '1e-4..1e-3', head: {dropout: [0, 0.1]}}")
        == space("search.space.train={lr: 1e-4..1e-3}", "search.space.head.dropout=[0,0.1]")
        == space() | {"train.lr": Range(low=1e-4, high=1e-3), "head.dropout": Choice((0.0, 0.1))}
    )


def test_null_and_a_value_of_its_own_take_a_key_out():
    assert list(space("search.space.seed=null")) == ["train.lr", "head.adapter_dim"]
    assert list(space("head.adapter_dim=16")) == ["train.lr", "seed"]  # though 16 is the default
    assert list(space("train.lr=1e-3", "head.dropout=0.1")) == ["head.adapter_dim", "seed"]
    assert settings("train.lr=1e-3").train.lr == 1e-3
    assert list(space("search.space.head.pool=null")) == list(space())


def test_the_seed_of_the_run_leaves_the_seeds_of_heads_searched():
    assert settings("seed=7").seed == 7
    assert space("seed=7")["seed"] == SEED
    assert space("seed=7", "search.space.seed=[1,2]")["seed"] == Choice((1, 2))


def test_a_key_that_is_unset_by_null_stays_searched():
    written = "search.space.train.batch_size=[8,16]"
    assert space("train.batch_size=null", written)["train.batch_size"] == Choice((8, 16))


def test_adapter_sizes_are_searched_where_a_head_has_adapters():
    assert "head.adapter_dim" not in space("head.kind=cls")
    assert "head.adapter_dim" not in space("search.space.head.kind=[cls,scalar_mix]")
    assert "head.adapter_dim" in space("search.space.head.kind=[cls,adapter_pooler]")


def test_the_space_of_a_backbone():
    seen = space("search.target=backbone")
    assert seen == default_space("backbone", finetune_lr=2e-5)
    assert seen["finetune.lr"] == Range(low=1e-5, high=1e-4, log=True)
    assert seen["seed"] == SEED
    assert isinstance(seen["finetune.epochs"], Choice)
    minilm = space("search.target=backbone", "backbone=minilm")["finetune.lr"]
    assert minilm == Range(low=5e-5, high=5e-4, log=True)
    fixed = space("search.target=backbone", "finetune.epochs=1", "head.adapter_dim=8")
    assert list(fixed) == ["finetune.lr", "seed"]
    batches = space("search.target=backbone", "search.space.finetune.batch_size=8..32")
    assert batches["finetune.batch_size"] == Range(low=8, high=32, integer=True)


def test_help_states_the_default_spaces():
    text = " ".join(format_help("search").split())
    for target in SEARCHABLE:
        for key, dimension in default_space(target, finetune_lr=1e-5).items():
            if key != "finetune.lr":  # relative to the default rate, in words
                assert f"{key}={show(dimension.written)}" in text


def test_nothing_is_searched_in_other_modes():
    assert load_settings(["task=cola"]).for_task("cola").search.space == {}


def test_a_resolved_space_survives_json():
    argv = ["search.space.head.skip=[mix,none]", "search.space.head.dropout=0..1e-7"]
    resolved = settings(*argv)
    dumped = json.loads(json.dumps(resolved.model_dump(mode="json")))
    assert read_space(dumped["search"]["space"]) == read_space(resolved.search.space)
    assert TaskSettings.model_validate(dumped) == resolved


@pytest.mark.parametrize("target", SEARCHABLE)
def test_default_spaces_are_of_keys_that_can_be_searched(target):
    found = default_space(target, finetune_lr=1e-5)
    assert set(found) <= set(SEARCHABLE[target])
    assert read_space({key: dimension.written for key, dimension in found.items()}) == found


# --- what is refused


@pytest.mark.parametrize(
    ("written", "wrong", "advice"),
    [
        ("head.dropout=0..1", "1 cannot be head.dropout: must be a number of at least 0 and", None),
        ("head.dropout=-1..0.5", "-1 cannot be head.dropout: must be a number of at least 0", None),
        ("train.lr=log:0..1", "0 cannot be train.lr: must be a number above 0", None),
        ("train.lr=[1e-3,.inf]", "Infinity cannot be train.lr: must be a number above 0", None),
        ("train.lr=1e-3..1e999", "Infinity cannot be train.lr: must be a number above 0", None),
        ("train.weight_decay=log:0..1", "a logarithmic range has to start above 0", None),
        ("train.batch_size=8.5..9", "8.5 cannot be train.batch_size: must be a whole number", None),
        (
            "train.batch_size=[8,null,true,x,0]",
            "null, true, x, 0 cannot be train.batch_size: must be a whole number of at least 1",
            None,
        ),
        ("seed=0..4294967296", "4294967296 cannot be seed: must be a whole number of at", None),
        (
            "head.kind=[cls,scalarmix]",
            "scalarmix cannot be head.kind: must be one of adapter_pooler, scalar_mix, mean_layers",
            "Did you mean scalar_mix?",
        ),
        ("head.start=[bert,auto]", "auto cannot be head.start: must be one of bert, new", None),
        ("head.share_layers=[true,1]", "1 cannot be head.share_layers: must be true or", None),
        (
            "train.lr=1e-2..1e-3",
            "the range ends at 0.001, which is not above its start, 0.01",
            None,
        ),
        ("train.lr=1e-2..1e-2", "the range ends at 0.01, which is not above its start", None),
        (
            "train.lr=log(1e-4, 1e-2)",
            "must be a list such as [1e-3,1e-2], or a range such as 1e-3..1e-2 or log:1e-3..1e-2",
            "Write search.space.train.lr=log:1e-4..1e-2",
        ),
        ("head.dropout=uniform(0,0.3)", "must be a", "Write search.space.head.dropout=0..0.3"),
        ("train.lr=1e-4-1e-2", "must be a list such as", "Write search.space.train.lr=1e-4..1e-2"),
        (
            "head.adapter_dim=8,16",
            "must be a list such as [8,16,64], or a range such as 8..64 or log:8..64",
            "Write a list in brackets: 'search.space.head.adapter_dim=[8,16]'",
        ),
        (
            "head.skip=last..mix",
            "must be a list such as [last,mix], of last, mix, none",
            "Write search.space.head.skip=null to search without it.",
        ),
        ("head.share_layers=0..1", "must be the list [true,false]", None),
        (
            "head.adapter_dim=16",
            "fewer than two values are nothing to search",
            "Write head.adapter_dim=16 to have it so in all trials.",
        ),
        (
            "head.pool=[cls]",
            "fewer than two values are nothing to search",
            "Write head.pool=cls to have it so in all trials.",
        ),
        ("head.share_layers=true", "fewer than two values are nothing to search", None),
        (
            "seed=7",
            "fewer than two values are nothing to search",
            "Write search.space.seed=null to search without it.",
        ),
        ("train.lr=[]", "fewer than two values are nothing to search", None),
        (
            "train.lrr=1..2",
            "not a key that can be searched; there are train.lr, train.weight_decay,",
            "Did you mean search.space.train.lr?",
        ),
        ("extract.codec=[bf16,int8]", "not a key that can be searched; there are train.lr", None),
        (
            "extract.layers=[[0,6],[3]]",
            "all trials have the same layers: they read one stream",
            "Write extract.layers=[0,6,-1] to set it for all, and search once for each list.",
        ),
        ("adapter_dim=[8,16]", "not a key that", "Did you mean search.space.head.adapter_dim?"),
        (
            "train.epochs=1..5",
            "all trials have the same train.epochs: they learn side by side, and ASHA compares",
            "Write train.epochs=VALUE to set it for all.",
        ),
        ("train.patience=1..2", "all trials have the same train.patience: it decides which", None),
        ("train.precision=[bf16,fp32]", "all trials have the same train.precision: heads on", None),
        (
            "finetune.lr=1e-5..2e-5",
            "search.target=head searches the head, and finetune.lr is of the fine-tuning before it",
            "Take search.target=backbone to search that.",
        ),
    ],
)
def test_what_is_refused(written, wrong, advice):
    ((given, message, *more),) = items(f"search.space.{written}")
    assert given == f"search.space.{written}"
    assert message.startswith(wrong)
    if advice is not None:
        assert more[-1] == advice


def test_lines_of_the_report_stay_short():
    for lines in items("search.space.lr=1..2", "search.space.train.lr=8", "search.space.x=1..2"):
        assert max(map(len, lines)) <= 94


def test_a_search_of_the_backbone_leaves_the_head_alone():
    ((given, wrong, advice),) = items("search.target=backbone", "search.space.head.pool=[cls,mean]")
    assert given == "search.space.head.pool=[cls,mean]"
    assert wrong == "search.target=backbone searches the fine-tuning, and head.pool is of the head"
    assert advice == "Take search.target=head to search that."
    ((_, wrong, *_),) = items("search.target=backbone", "search.space.finetune.epochs=0..2")
    assert wrong == "0 cannot be finetune.epochs: must be a number above 0"
    ((given, wrong, _),) = items("search.target=backbone", "finetune.epochs=0")
    assert given == "finetune.epochs=0"
    assert wrong == "a search of the fine-tuning with 0 epochs would do nothing"


def test_a_key_cannot_be_set_and_searched():
    assert items("train.lr=2e-3", "search.space.train.lr=log:1e-4..1e-2") == [
        [
            "search.space.train.lr=log:1e-4..1e-2",
            "train.lr=0.002 is given as well, and what is set is not searched",
            "Leave one of the two out.",
        ]
    ]


def test_options_of_a_head_that_is_not_searched():
    for kind in ("head.kind=cls", "search.space.head.kind=[cls,mean_layers]"):
        ((given, wrong, advice),) = items(kind, "search.space.head.pool=[mean,cls]")
        assert given == "search.space.head.pool=[mean,cls]"
        assert wrong.startswith("only adapter_pooler has this option, and it is not among the")
        assert advice.endswith("or add adapter_pooler to head.kind.")


def test_a_space_without_any_key():
    ((_, wrong, advice),) = items("train.lr=1e-3", "head.adapter_dim=8", "search.space.seed=null")
    assert wrong == "nothing is left to search: every key of the space is set to one value"
    assert advice.startswith("Give a range for one of train.lr, head.adapter_dim, seed")


def test_a_key_given_nested_and_dotted():
    ((given, wrong, _),) = items("search.space={seed: [1, 2], train.lr: 1..2, train: {lr: 1..3}}")
    assert (given, wrong) == ("search.space.train.lr", "train.lr is given twice")


def test_everything_wrong_is_reported_at_once():
    found = items(
        "train.epochs=0",
        "search.space.train.lr=[1",
        "search.space.head.dropout=0..1",
        "search.space.nope=1",
        "search.searcher=hyperop",
    )
    assert {lines[0].partition("=")[0] for lines in found} == {
        "train.epochs",
        "search.space.train.lr",
        "search.space.head.dropout",
        "search.space.nope",
        "search.searcher",
    }


def test_consequences_are_not_reported():
    ((given, *_),) = items("search.target=bacbone", "search.space.finetune.lr=1e-5..2e-5")
    assert given == "search.target=bacbone"
    ((given, *_),) = items("head.kind=clss", "search.space.head.pool=[mean,cls]")
    assert given == "head.kind=clss"


def test_a_space_is_refused_without_torch_and_ray():
    code = """
import sys
from bertvision_stream.run import main
code = main(["task=cola", "mode=search", "search.space.head.dropout=0..1"])
heavy = {"torch", "ray", "transformers", "datasets", "numpy", "hyperopt", "optuna"}
print(code, sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "2 []"
    assert "1 cannot be head.dropout" in done.stderr
