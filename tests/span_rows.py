"""What tests of SQuAD share: tricky rows, tokenizers that cut words and characters, a brute force.

The brute force says the rules again, token by token in plain Python, and shares no code with what
it is compared with.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from bertvision_stream.data.splits import Split
from bertvision_stream.data.squad import questions_from_rows

Row = dict[str, Any]

WORDS = ["the", "in", "of", "norman", "##dy", "france", "rollo", "battle", "won", "who", "where"]


def wordpiece() -> BertTokenizerFast:
    """Words that it knows, and all others letter by letter."""
    letters = string.ascii_lowercase + string.digits + "éüßñ日本語"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *string.punctuation]
    tokens += [*letters, *(f"##{letter}" for letter in letters)]
    return BertTokenizerFast(vocab={token: i for i, token in enumerate(dict.fromkeys(tokens))})


def byte_level() -> PreTrainedTokenizerFast:
    """One token a byte, like RoBERTa before any merge: a character may be several tokens."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )


def row(
    name: str, question: str, context: str, *answers: str, starts: tuple[int, ...] | None = None
) -> Row:
    """A row whose answers are at their first place in the context unless told otherwise."""
    starts = tuple(context.index(text) for text in answers) if starts is None else starts
    return {
        "id": name,
        "question": question,
        "context": context,
        "answers": {"text": list(answers), "answer_start": list(starts)},
    }


def split_of(rows: list[Row], name: str = "validation") -> Split:
    questions = questions_from_rows(rows, "rows")
    return Split(name, questions.texts, questions.labels, questions)


def write_squad(folder: Path, train: list[Row], validation: list[Row]) -> Path:
    """Parquet files laid out as on the hub; returns what `data.path` is to be."""
    (folder / "squad_v2").mkdir(parents=True)
    for split, rows in (("train", train), ("validation", validation)):
        path = folder / "squad_v2" / f"{split}-00000-of-00001.parquet"
        pd.DataFrame(rows).to_parquet(path)
    return folder


def generated_rows(count: int, *, seed: int, prefix: str = "q") -> list[Row]:
    """Who won which battle: half of the questions name one that the context does not tell of."""
    rng = np.random.default_rng(seed)
    names = ["rollo", "harold", "tostig", "sweyn", "edgar", "bruno"]
    places = ["paris", "york", "rouen", "bath", "kent", "dover", "leeds", "wells"]
    rows = []
    for i in range(count):
        told = rng.permutation(places)[:4].tolist()
        winners = rng.choice(names, size=4).tolist()
        sentences = [f"in {p} {w} won the battle." for p, w in zip(told, winners, strict=True)]
        context = " ".join(sentences)
        asked = int(rng.integers(4))
        if i % 2:
            place = next(p for p in places if p not in told)
            rows.append(row(f"{prefix}{i}", f"who won in {place}?", context))
            continue
        start = context.index(sentences[asked]) + len(f"in {told[asked]} ")
        question = f"who won in {told[asked]}?"
        answer = winners[asked]
        rows.append(row(f"{prefix}{i}", question, context, answer, answer, starts=(start, start)))
    return rows
