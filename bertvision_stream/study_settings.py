"""`study.*`: what `mode=study` compares, and what keeps it from doing so."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from pydantic import Field

from bertvision_stream.config_errors import Problem
from bertvision_stream.setting_groups import Group, unset
from bertvision_stream.setting_types import Epochs, Fractions, Seeds


class StudySettings(Group):
    """`mode=study`: how much data, and how much fine-tuning, is enough."""

    fractions: Fractions | None = Field(
        default=None,
        description="Shares of the training examples; each lies inside the larger ones.",
        json_schema_extra=unset("data.train_fraction alone"),
    )
    finetune_epochs: Epochs | None = Field(
        default=None,
        description="Amounts of fine-tuning; 0 takes the backbone as it is.",
        json_schema_extra=unset("finetune.epochs alone"),
    )
    seeds: Seeds | None = Field(
        default=None,
        description="Each draws its own examples and seeds fine-tuning and heads.",
        json_schema_extra=unset("seed alone"),
    )


def study_misfits(
    mode: str,
    study: StudySettings,
    *,
    given: Collection[str],
    num_trainers: int,
) -> Iterator[Problem]:
    """What is wrong with `study.*`, or with other keys beside them.

    Args:
        mode: Of the run.
        study: `study.*`.
        given: Dotted keys that the user has set.
        num_trainers: `train.num_trainers`.
    """
    if mode != "study":
        for name in StudySettings.model_fields:
            if getattr(study, name) is not None:
                wrong = f"only mode=study has a use for this, and mode is {mode}"
                advice = f"Leave study.{name} out, or take mode=study."
                yield Problem(f"study.{name}", wrong, advice, involves=("mode",))
        return
    if study.fractions is None and study.finetune_epochs is None:
        wrong = "not given, nor is study.finetune_epochs: there is nothing to compare"
        advice = "For example study.fractions=[0.01,0.1,1.0], or study.finetune_epochs=[0,0.3,1]"
        involved = ("mode", "study.finetune_epochs")
        yield Problem("study.fractions", wrong, advice, involves=involved)
    for key, name in (("data.train_fraction", "fractions"), ("finetune.epochs", "finetune_epochs")):
        if key in given and getattr(study, name) is not None:
            wrong = f"study.{name} says this already"
            yield Problem(key, wrong, f"Leave {key} out.", involves=("mode", f"study.{name}"))
    if num_trainers > 1:
        wrong = "all heads of a stream of a study are held by one trainer"
        yield Problem(
            "train.num_trainers", wrong, "Leave train.num_trainers out.", involves=("mode",)
        )
