import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet
from transformers import BertTokenizerFast

from bertvision_stream.data.load import load_task_data
from bertvision_stream.data.splits import Split, TaskData, nested_sample
from bertvision_stream.data.tokenize import tokenize
from bertvision_stream.settings.command_line import load_settings
from bertvision_stream.utils.errors import DataError


def load(task: str, *arguments: str) -> TaskData:
    return load_task_data(load_settings([f"task={task}", *arguments]).for_task(task))


def write_rte(folder: Path, labels: list, *, suffix: str = ".csv") -> str:
    """Writes a data set whose row `i` has the texts `a{i}` and `b{i}`; returns the override."""
    folder.mkdir(exist_ok=True)
    rows = range(len(labels))
    table = pa.table(
        {
            "sentence1": [f"a{i}" for i in rows],
            "sentence2": [f"b{i}" for i in rows],
            "label": labels,
        }
    )
    for split in ("train", "validation"):
        if suffix == ".csv":
            csv.write_csv(table, folder / f"{split}.csv")
        else:
            parquet.write_table(table, folder / f"{split}.parquet")
    return f"data.path={folder}"


def test_string_labels_are_mapped_by_name(tmp_path: Path):
    data = load("rte", write_rte(tmp_path, ["not_entailment", "entailment", "entailment"]))
    assert data.train.labels.tolist() == [1, 0, 0]
    assert data.train.labels.dtype == np.int64
    assert data.notes == ()


def test_integers_without_names_are_ids_and_a_note_says_so(tmp_path: Path):
    data = load("wnli", write_rte(tmp_path, [1, 0, 1]))
    assert data.train.labels.tolist() == [1, 0, 1]
    assert data.notes == (
        "Labels of wnli are numbers without names: taken as GLUE's, 0 is not_entailment, "
        "1 is entailment.",
    )


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (
            ["entailment", "maybe", "no", "maybe"],
            "'maybe' in 2 rows (2, 4; the first row is 1), 'no' in 1 row (3; the first row is 1); "
            "allowed: entailment (or 0), not_entailment (or 1)",
        ),
        ([0, 1, -1, -1], "-1 in 2 rows (3, 4; the first row is 1); allowed: entailment (or 0)"),
        ([0, 1, 2], "2 in 1 row (3; the first row is 1); allowed"),
        ([0.0, 1.5], "holds floats, not entailment (or 0), not_entailment (or 1)"),
        ([True, False], "holds booleans, not entailment"),
        ([1, None, 0], "is empty in 1 row (2; the first row is 1)"),
    ],
)
def test_labels_that_the_task_does_not_have(tmp_path: Path, labels: list, expected: str):
    override = write_rte(tmp_path, labels, suffix=".parquet")
    with pytest.raises(DataError, match=re.escape(expected)) as caught:
        load("rte", override)
    assert f"{tmp_path / 'train.parquet'}: label column 'label' " in str(caught.value)


def test_scores_are_float32(tmp_path: Path):
    data = load("stsb", write_rte(tmp_path, [0.5, 5.0]))
    assert data.train.labels.tolist() == [0.5, 5.0]
    assert data.train.labels.dtype == np.float32


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["low", "high"], "holds no numbers, and stsb is to predict a number"),
        ([1.0, float("nan"), float("inf")], "is not a finite number in 2 rows (2, 3;"),
    ],
)
def test_scores_that_are_no_numbers(tmp_path: Path, labels: list, expected: str):
    with pytest.raises(DataError, match=re.escape(expected)):
        load("stsb", write_rte(tmp_path, labels, suffix=".parquet"))


def test_train_fraction_takes_whole_rows_of_train_only(tmp_path: Path):
    override = write_rte(tmp_path, [0, 1] * 20)
    data = load("rte", override, "data.train_fraction=0.3", "seed=7")
    assert len(data.train) == 12
    assert len(data.validation[0]) == 40
    for (first, second), label in zip(data.train.texts, data.train.labels, strict=True):
        row = int(first[1:])
        assert (second, label) == (f"b{row}", row % 2)
    assert data.notes[-1] == (
        "Training on 12 of 40 rows, drawn with seed 7 (data.train_fraction=0.3)."
    )


def test_samples_are_nested_and_seeded():
    samples = [set(nested_sample(1000, fraction=f, seed=1).tolist()) for f in (0.001, 0.1, 0.5, 1)]
    assert [len(sample) for sample in samples] == [1, 100, 500, 1000]
    assert samples[0] < samples[1] < samples[2] < samples[3]
    assert samples[1] != set(nested_sample(1000, fraction=0.1, seed=2).tolist())
    assert len(nested_sample(3, fraction=0.01, seed=1)) == 1


def test_demo_is_the_same_for_every_seed():
    first, second = load("demo", "seed=1"), load("demo", "seed=2")
    assert (len(first.train), len(first.validation[0])) == (4000, 1000)
    assert first.train.texts == second.train.texts
    assert all(len(text) == 1 for text in first.train.texts)
    assert set(first.train.labels.tolist()) == {0, 1}


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizerFast:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "##d", "##e"]
    return BertTokenizerFast(vocab={word: i for i, word in enumerate(words)})


def make_split(num_examples: int, num_texts: int) -> Split:
    """Examples of 0 to 14 words in each text, many of them split into pieces."""
    rng = np.random.default_rng(0)
    texts = [
        tuple(
            " ".join(rng.choice(["a", "b", "cd", "ade", "z"], size=rng.integers(15)))
            for _ in range(num_texts)
        )
        for _ in range(num_examples)
    ]
    return Split("train", texts, rng.integers(2, size=num_examples))


@pytest.mark.parametrize("num_texts", [1, 2])
def test_tokens_are_those_of_one_by_one_calls(tokenizer: BertTokenizerFast, num_texts: int):
    split = make_split(2050, num_texts)  # more than two batches
    store = tokenize(split, tokenizer, max_length=16)
    num_truncated = 0
    for i, texts in enumerate(split.texts):
        # As lists: called with two strings, a tokenizer takes an empty second one for none at all.
        alone = tokenizer(*([text] for text in texts), truncation="longest_first", max_length=16)
        assert store.tokens(i).tolist() == alone["input_ids"][0]
        types = store.token_type_ids[store.offsets[i] : store.offsets[i + 1]]
        assert types.tolist() == alone["token_type_ids"][0]
        num_truncated += len(tokenizer(*([text] for text in texts))["input_ids"][0]) > 16
    assert 0 < store.num_truncated == num_truncated < 2050
    assert store.num_examples == len(store.lengths) == 2050
    assert store.num_tokens == store.lengths.sum() == store.offsets[-1]
    assert store.lengths.max() == 16
    assert store.labels is split.labels


def test_token_store_is_made_of_plain_contiguous_arrays(tokenizer: BertTokenizerFast):
    store = tokenize(make_split(10, 2), tokenizer, max_length=16)
    arrays = {
        "input_ids": np.int32,
        "token_type_ids": np.uint8,
        "offsets": np.int64,
        "labels": np.int64,
    }
    for name, dtype in arrays.items():
        array = getattr(store, name)
        assert (array.dtype, array.ndim, array.flags.c_contiguous) == (dtype, 1, True)


def test_a_tokenizer_without_token_types_gets_zeros(tokenizer: BertTokenizerFast):
    split = make_split(5, 2)
    bare = BertTokenizerFast(
        vocab=tokenizer.get_vocab(), model_input_names=["input_ids", "attention_mask"]
    )
    store = tokenize(split, bare, max_length=16)
    assert store.input_ids.tolist() == tokenize(split, tokenizer, max_length=16).input_ids.tolist()
    assert store.token_type_ids.tolist() == [0] * store.num_tokens


def test_reading_data_does_not_import_torch(tmp_path: Path):
    override = write_rte(tmp_path, [0, 1])
    code = (
        "import sys; from bertvision_stream.settings.command_line import load_settings; "
        "from bertvision_stream.data.load import load_task_data; "
        f"load_task_data(load_settings(['task=rte', {override!r}]).for_task('rte')); "
        "assert 'torch' not in sys.modules"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
