"""`report.html`: a run's results in one file that opens without a network."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from bertvision_stream.report.figures import DOTS_PER_INCH
from bertvision_stream.report.records import RunReport
from bertvision_stream.report.tables import Best, Table
from bertvision_stream.report.text import report_parts
from bertvision_stream.utils.units import format_value

# What stands below a plot, by how the name of the plot's file begins.
_CAPTIONS = {
    "curves": "Loss and scores after each epoch of the head. The circle and the dotted line mark "
    "the epoch whose weights are kept; grey lines are BERT's own classifier.",
    "layers": "What the head takes from each layer. Layer 0 is the embeddings. The norm is that of "
    "the adapters' output, on every eighth validation example.",
    "calibration": "Accuracy of the predictions against their confidence, in bins of equal width, "
    "and the number of examples in each. Points on the dashed line are as right as they are "
    "confident; below it they are overconfident.",
    "confusion": "Examples by gold label (rows) and prediction (columns); the shade is the share "
    "of the row.",
    "scatter": "Each validation example: predicted against gold score.",
    "thresholds": "Scores of the three for every threshold: no answer is given where the null "
    "score is higher than the best span's by more than it. Dashed: threshold 0. To the left "
    "nothing is answered, to the right every question.",
    "hyperparameters": "The search: score of each trial against each key that was searched.",
    "learning_curves": "The search: score and validation loss of each trial.",
    "best_so_far": "The search: trials in the order of their last report.",
}
_CSS_PIXELS_PER_INCH = 96


@dataclass(frozen=True)
class _Plot:
    name: str
    caption: str
    base64: str
    width: int  # The width on the screen, in CSS pixels.


def render_html(report: RunReport, plots: Sequence[Path]) -> str:
    """The content of `report.html`.

    Args:
        report: The run.
        plots: PNG files to show, in order; they become part of the text.
    """
    environment = Environment(
        loader=PackageLoader("bertvision_stream.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["best"] = lambda cell: isinstance(cell, Best)
    settings = [[key, format_value(value)] for key, value in report.settings.items()]
    return environment.get_template("report.html.j2").render(
        parts=report_parts(report),
        stages=_stages(report),
        plots=[_plot(path) for path in plots],
        settings=Table(["key", "value"], settings),
        command=report.command,
        versions=", ".join(f"{name} {version}" for name, version in report.versions.items()),
    )


def _stages(report: RunReport) -> list[tuple[str, float, float]]:
    """Stages with their seconds and their share of all, the slowest first."""
    stages = report.seconds.stages
    total = sum(stages.values()) or 1.0
    slowest = sorted(stages.items(), key=lambda stage: -stage[1])
    return [(name, seconds, seconds / total) for name, seconds in slowest]


def _plot(path: Path) -> _Plot:
    content = path.read_bytes()
    (width,) = struct.unpack(">I", content[16:20])  # The width's place in the header of a PNG.
    captions = (text for name, text in _CAPTIONS.items() if path.stem.startswith(name))
    return _Plot(
        path.stem.replace("_", " "),
        next(captions, path.stem.replace("_", " ")),
        base64.b64encode(content).decode(),
        round(width * _CSS_PIXELS_PER_INCH / DOTS_PER_INCH),
    )
