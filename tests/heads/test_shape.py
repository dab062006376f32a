"""Which layers' hidden states are kept, by their numbers or counted from the end."""

import pytest

from bertvision_stream.heads.shape import kept_layers
from bertvision_stream.settings.command_line import load_settings
from bertvision_stream.utils.errors import ConfigError

NUM_LAYERS = 7  # six, and the embeddings


@pytest.mark.parametrize(
    ("layers", "kept"),
    [
        ("all", (0, 1, 2, 3, 4, 5, 6)),
        ((0, 3, 6), (0, 3, 6)),
        ((0, 3, -1), (0, 3, 6)),
        ((-1, -2, 0), (0, 5, 6)),
        ((-7,), (0,)),
    ],
)
def test_layers_are_kept_in_the_order_of_their_numbers(layers, kept):
    assert kept_layers(NUM_LAYERS, layers) == kept


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ((0, 7), "extract.layers=[0,7]: this backbone has no layer 7"),
        ((-8,), "this backbone has no layer -8"),
        ((10**30,), "this backbone has no layer 1000"),
        ((0, 6, -1), "extract.layers=[0,6,-1]: layer 6 of this backbone is given twice"),
    ],
)
def test_a_layer_that_the_backbone_lacks_or_has_once_is_refused_with_those_it_has(layers, said):
    with pytest.raises(ConfigError) as error:
        kept_layers(NUM_LAYERS, layers)
    assert said in str(error.value)
    assert "it has layers 0 (the embeddings) to 6, or -7 to -1 from the end" in str(error.value)


@pytest.mark.parametrize(
    ("written", "layers"),
    [
        ("all", "all"),
        ("[6,0,3]", (0, 3, 6)),
        ("[-1,0,-2]", (0, -2, -1)),
        ("4", (4,)),
    ],
)
def test_the_order_in_which_layers_are_written_does_not_matter(written: str, layers):
    assert load_settings(["task=demo", f"extract.layers={written}"]).extract.layers == layers


@pytest.mark.parametrize(
    "written", ["[]", "[1,1]", "[0.5]", "[1.0]", "[true]", "[a]", "last", "[[0]]", "{a: 1}", "null"]
)
def test_what_names_no_layers_is_refused_before_anything_is_loaded(written: str):
    with pytest.raises(ConfigError) as error:
        load_settings(["task=demo", f"extract.layers={written}"])
    report = str(error.value)
    assert "One problem" in report
    assert f"extract.layers={written}" in report
    assert "must be all, or different layers as whole numbers" in report
