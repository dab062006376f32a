"""What is wrong with settings, and the report of it to the person who wrote the command line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from pydantic_core import PydanticCustomError


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the settings.

    Attributes:
        key: The dotted key at fault.
        wrong: What is wrong and what is allowed, in one line or several.
        advice: What to do about it; may be empty.
        given: What the user wrote; empty if the key was not given.
        involves: Other keys that take part. If one of them has a problem of its own, this problem
            may be a mere consequence of that, and is not reported.
    """

    key: str
    wrong: str
    advice: str = ""
    given: str = ""
    involves: tuple[str, ...] = ()


def raise_problems(problems: Sequence[Problem]) -> None:
    """Raises the pydantic error that carries `problems`, if there are any.

    Raises:
        PydanticCustomError: It has the type `refused`, and the problems in its context.
    """
    if problems:
        text = "; ".join(f"{problem.key}: {problem.wrong}" for problem in problems)
        raise PydanticCustomError("refused", "{text}", {"text": text, "problems": list(problems)})


def render_report(problems: Sequence[Problem]) -> str:
    """Renders all problems as one text, with an item for each."""
    count = "One problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = [f"{count} with the settings:"]
    for problem in problems:
        lines += ["", f"  {problem.given or problem.key}"]
        said = (*problem.wrong.splitlines(), *problem.advice.splitlines())
        lines += [f"      {line}" for line in said]
    lines += ["", "All keys: python -m bertvision_stream.run --help all"]
    return "\n".join(lines)


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """Returns the choice that `word` most likely stands for, or None if none is likely."""
    by_plain = {_plain(choice): choice for choice in choices}
    matches = get_close_matches(_plain(word), by_plain, n=3, cutoff=0.6)
    # People seldom miss the first letter: `attn` is attention rather than flatten.
    matches.sort(key=lambda match: match[:1] != _plain(word)[:1])
    return by_plain[matches[0]] if matches else None


def nearest_keys(key: str, keys: Sequence[str]) -> list[str]:
    """Returns the dotted keys that `key` may stand for, in the first of these ways that finds any.

    1. The key of the same group with a close name: `train.epoch` is `train.epochs`.
    2. For a word without a group, the key without a group with a close name: `sead` is `seed`.
    3. All keys with a close name: `lr` is `finetune.lr` or `train.lr`.
    4. For a word without a group, the key that is close as a whole: `finetune_lr`.
    """
    group, _, name = _plain(key).rpartition(".")
    members = [tuple(known.rpartition(".")[::2]) for known in keys]
    groups = get_close_matches(group, {of for of, _ in members if of}, n=1, cutoff=0.75)
    same_group = nearest(name, [leaf for of, leaf in members if of in groups])
    if same_group:
        return [f"{groups[0]}.{same_group}"]
    close_names = get_close_matches(name, {leaf for _, leaf in members}, n=1, cutoff=0.75)
    if close_names or group:
        likely = [known for known in keys if known.rpartition(".")[2] in close_names]
        without_group = [known for known in likely if "." not in known]
        return likely if group else without_group or likely
    return get_close_matches(name, keys, n=1, cutoff=0.75)


def _plain(word: str) -> str:
    return word.lower().replace("-", "_").strip("_")
