"""The official rules of SQuAD, said again in another way than the library says them."""

from __future__ import annotations

from collections import Counter

PUNCTUATION = set("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


def official_words(text: str) -> list[str]:
    """Lower case, no punctuation, no articles as whole words, split at white space."""
    kept = "".join(ch for ch in text.lower() if ch not in PUNCTUATION)
    words, word = [], ""
    for ch in kept + " ":  # a word, as the rule on articles sees it, ends where \w does
        if ch.isalnum() or ch == "_":
            word += ch
            continue
        words += [" " if word in ("a", "an", "the") else word, ch]
        word = ""
    return "".join(words).split()


def official_score(prediction: str, golds: list[str]) -> tuple[int, float]:
    """Exact match and F1 of one question, as `get_raw_scores` does it."""
    candidates = [gold for gold in golds if official_words(gold)] or [""]
    exact, f1 = 0, 0.0
    for gold in candidates:
        found, wanted = official_words(prediction), official_words(gold)
        exact = max(exact, int(" ".join(found) == " ".join(wanted)))
        same = sum((Counter(found) & Counter(wanted)).values())
        if not found or not wanted:
            f1 = max(f1, float(found == wanted))
        elif same:
            precision, recall = same / len(found), same / len(wanted)
            f1 = max(f1, 2 * precision * recall / (precision + recall))
    return exact, f1
