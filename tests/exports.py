"""Exported models of a few thousand weights, in folders laid out as a run leaves them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from reports import report_on, split_result
from tiny import MAX_LENGTH, task_settings, tiny_classifier, tiny_tokenizer
from transformers import PreTrainedModel

from bertvision_stream.data.custom import custom_task
from bertvision_stream.heads.head import Head
from bertvision_stream.heads.shape import HeadShape
from bertvision_stream.models.backbone import BackboneWeights
from bertvision_stream.models.export import backbone_source, export_model
from bertvision_stream.models.finetuned_store import save_finetuned
from bertvision_stream.models.job import PreparedBackbone
from bertvision_stream.report.model_card import render_card
from bertvision_stream.settings.settings import dotted
from bertvision_stream.settings.tasks import TASKS
from bertvision_stream.utils.files import write_json


@dataclass(frozen=True)
class Exported:
    """An exported model, and the two that it was made of.

    Attributes:
        root: The output folder; backbones stand in it.
        folder: Of the model.
        classifier: BERT.
        head: The head.
    """

    root: Path
    folder: Path
    classifier: PreTrainedModel
    head: Head

    @property
    def run(self) -> Path:
        """The folder of the run."""
        return self.folder.parent

    @property
    def backbone_folder(self) -> Path:
        return self.root / "backbones" / f"{self.run.parent.name}-tiny"


def export_tiny(
    root: Path,
    *overrides: str,
    task: str = "mnli",
    model_type: str = "bert",
    seed: int = 0,
    finetuned_here: bool = True,
    classifier_trained: bool = True,
) -> Exported:
    """Leave an untrained head on an untrained classifier as a finished run would.

    In `root/TASK/one`.

    Args:
        root: The output folder.
        overrides: Settings, such as `head.pool=cls`.
        task: Name of the task.
        model_type: Of the classifier.
        seed: Of the weights.
        finetuned_here: Whether the run has fine-tuned the backbone, and not taken it as it was.
        classifier_trained: Whether its classifier means anything.
    """
    facts = TASKS.get(task) or custom_task(("cats", "dogs"), ("text",), "about")
    settings = task_settings(task, f"data.max_length={MAX_LENGTH}", f"seed={seed}", *overrides)
    labels = facts.label_names
    classifier = tiny_classifier(
        model_type,
        facts.num_labels,
        seed=seed,
        per_token=facts.per_token,
        **({"id2label": dict(enumerate(labels))} if labels else {}),
    )
    shape = HeadShape.of(classifier.config, facts, MAX_LENGTH, settings.extract.layers)
    if facts.kind == "regression":
        shape = replace(shape, target_mean=2.5, target_std=1.25)
    head = Head(settings.head, shape, seed=seed).eval()
    with torch.no_grad():  # an untrained head has zeros where they would hide mistakes
        for parameter in head.parameters():
            parameter += 0.1 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(7)
            )
    classifier.config.name_or_path = "/somewhere/bert"
    weights = BackboneWeights.of(classifier)
    exported = Exported(root, root / task / "one" / "model", classifier, head)
    save_finetuned(exported.backbone_folder, weights, tiny_tokenizer(), {})
    scores = dict.fromkeys(facts.metrics, (0.5, 0.625, 0.75))
    report = report_on("rte", split_result("validation", 100, **scores))
    report = replace(report, task=facts, settings=dotted(settings.model_dump()))
    stored = exported.backbone_folder if finetuned_here else None
    backbone = PreparedBackbone(weights, stored, 0.0, classifier_trained, {})
    source = backbone_source(exported.folder, settings, backbone)
    export_model(
        exported.folder,
        head=head.state_dict(),
        target_scale=(shape.target_mean, shape.target_std),
        settings=settings,
        task=facts,
        backbone=backbone,
        tokenizer=tiny_tokenizer(),
        card=render_card(report, backbone_source=source),
    )
    write_json(exported.run / "config.json", settings.model_dump())
    write_json(exported.run / "metrics.json", {})
    return exported
