"""Labels that mean "no label", names of classes that are easily confused, and which class is which.

Nothing here depends on where labels are from.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

_NO_LABEL_NUMBERS = frozenset({"-1", "-9", "-99", "-100", "-999", "-9999"})
# SNLI's files write "-", scikit-learn and the Hugging Face hub -1, PyTorch's losses -100, R "NA",
# pandas and JSON the others. "none" is not among them: it is a common class.
_NO_LABEL_TEXTS = frozenset(
    {"", "-", "?", "nan", "null", "n/a", "#n/a", "<na>", "unlabeled", "unlabelled"}
)


def is_no_label(label: object) -> bool:
    """Whether a label commonly means that the row has none.

    Null, nan, empty text, -1, -100 and the like do. Floats never do but for nan: each may be a
    number to predict.
    """
    if label is None:
        return True
    if isinstance(label, float):
        return label != label
    text = str(label).strip()
    # "NA" in small letters is a word.
    return text in _NO_LABEL_NUMBERS or text == "NA" or text.casefold() in _NO_LABEL_TEXTS


def no_labels_among(names: Iterable[str]) -> list[str]:
    """Those names of classes that commonly mean "no label", unless all are numbers of one scale.

    -1 and 1 are two classes, for without -1 there would be only one. -2, -1, 0, 1, 2 and -1, 0, +1
    are numbers of one scale.
    """
    names = list(names)
    found = [name for name in names if is_no_label(name)]
    others = [name for name in names if name not in found]
    is_scale = sorted(names) == ["-1", "1"] or any(
        name.startswith(("-", "+")) and name[1:].isdecimal() for name in others
    )
    return [name for name in found if not (is_scale and name in _NO_LABEL_NUMBERS)]


def alike(names: Sequence[str]) -> list[list[str]]:
    """Groups of names that differ only in white space, case or in how a character is encoded."""
    groups: dict[str, list[str]] = {}
    for name in names:
        visible = "".join(
            character
            for character in unicodedata.normalize("NFKC", name)
            if unicodedata.category(character) != "Cf"  # such as a zero-width space
        )
        groups.setdefault(" ".join(visible.split()).casefold(), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def shown(name: str) -> str:
    """A label as messages show it: in quotes where white space or an invisible sign matters."""
    return name if name == name.strip() and name.isprintable() else ascii(name)


def class_ids(label_names: Sequence[str]) -> dict[str, int]:
    """The id of each label, written as text: its name or, where no name is a number, its id."""
    ids = {name: i for i, name in enumerate(label_names)}
    if takes_ids(label_names):
        ids |= {str(i): i for i in range(len(label_names))}
    return ids


def takes_ids(label_names: Sequence[str]) -> bool:
    """Whether ids may stand for the names: not where a number is the name of a class."""
    return not any(name.strip().lstrip("+-").isdecimal() for name in label_names)


def as_names(labels: np.ndarray) -> np.ndarray:
    """The labels as strings, in an object array as `Rows` has it."""
    names = np.empty(len(labels), dtype=object)
    names[:] = [str(label) for label in labels]
    return names
