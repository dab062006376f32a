"""What a search found, read from its folder while it runs or at any time after.

    python -m tune.analysis outputs/cola/20261123-171336

prints the table of trials and the best one, and writes `trials.csv` and plots into that folder.
It needs no Ray cluster. Tune's experiment state holds pickles: read only folders that you trust.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, get_args

from bertvision_stream.report.tables import Table
from bertvision_stream.settings.search_dimensions import show
from bertvision_stream.utils.errors import ConfigError, SearchError, UserError
from bertvision_stream.utils.terminal import printable
from bertvision_stream.utils.units import format_seconds, format_value
from tune.trial_results import BEST_RULE, FAILURE, SCORE
from tune.trials import Search, Status, Trial, best_trial, read_search

if TYPE_CHECKING:
    import pandas as pd


_USAGE = "usage: python -m tune.analysis PATH, the folder of a search (outputs/TASK/RUN_NAME)"


def trial_table(search: Search) -> pd.DataFrame:
    """The trials as a table: a row for each, the best first, those that diverged or failed last.

    The columns are `trial`, `status`, `score`, `epochs`, `seconds`, the searched keys, what was
    reported after the last epoch (`loss`, `validation_loss`, `<split>_<metric>`), `trial_id` and
    `failure`.
    """
    import pandas as pd

    reported = ("loss", "validation_loss", *search.metrics)
    rows = [
        {
            "trial": trial.number,
            "status": trial.status,
            SCORE: trial.score,
            "epochs": trial.epochs,
            "seconds": trial.seconds,
            **{key: trial.config.get(key) for key in search.keys},
            **{name: trial.last(name) for name in reported},
            "trial_id": trial.trial_id,
            FAILURE: trial.failure,
        }
        for trial in _ranked(search)
    ]
    return pd.DataFrame(rows)


def render_trials(search: Search) -> str:
    """Text for a console: the table of trials, why some failed, the best trial and the rule."""
    titles = ["trial", "status", SCORE, "epochs", "time", *search.keys]
    rows = [
        [
            str(trial.number),
            trial.status,
            f"{trial.score:.4f}" if trial.is_eligible else "-",
            str(trial.epochs),
            format_seconds(trial.seconds) if math.isfinite(trial.seconds) else "-",
            *(_short(trial.config.get(key)) for key in search.keys),
        ]
        for trial in _ranked(search)
    ]
    counts = Counter(trial.status for trial in search.trials)
    listed = ", ".join(f"{counts[name]} {name}" for name in get_args(Status) if counts[name])
    lines = [
        f"{search.name}: {len(search.trials)} trials, {listed}",
        "",
        Table(titles, rows).text(),
    ]
    facts = [f"trial {t.number} {t.status}: {t.failure}" for t in search.trials if t.failure]
    facts.append("")
    if parts := search.score_parts:
        facts.append(f"score: {'the mean of ' * (len(parts) > 1)}{', '.join(parts)}")
    facts += [_verdict(search), BEST_RULE]
    return "\n".join(lines + [fill(fact, 100, break_long_words=False) for fact in facts])


def write_analysis(search: Search, folder: str | Path) -> list[Path]:
    """Write `trials.csv` and `plots/*.png`.

    Args:
        search: The search.
        folder: The folder that the files are written into.

    Returns:
        The paths of the files.

    Raises:
        ConfigError: `folder` cannot be written.
    """
    from tune.plots import write_plots  # imported late: matplotlib takes a while to load

    folder = Path(folder).expanduser()
    table = folder / "trials.csv"
    try:
        trial_table(search).to_csv(table, index=False)
        return [table, *write_plots(search, folder / "plots")]
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}") from error


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: The arguments of the command: the folder of a search.

    Returns:
        The exit code: 0, 1 (there is no best trial) or 2 (there is no search to read).
    """
    if {"--help", "-h"} & set(argv):
        print(f"{_USAGE}\n\n{__doc__}")
        return 0
    if len(argv) != 1:
        print(_USAGE, file=sys.stderr)
        return 2
    try:
        search = read_search(argv[0])
        print(printable(render_trials(search)))
        files = write_analysis(search, argv[0])
    except UserError as error:
        print(printable(error), file=sys.stderr)
        return 2
    print(printable("\n" + "\n".join(f"written: {file}" for file in files)))
    return 0 if any(trial.is_eligible for trial in search.trials) else 1


def _verdict(search: Search) -> str:
    """A sentence that names the best trial, or says why there is none."""
    try:
        best = best_trial(search)
    except SearchError as error:
        return f"best: {error}"
    config = " ".join(f"{key}={_written(best.config.get(key))}" for key in search.keys)
    return f"best: trial {best.number}, score {best.score:.4f}, with {config}"


def _ranked(search: Search) -> list[Trial]:
    """The trials from the best to the worst, those that cannot be the best last."""
    return sorted(
        search.trials, key=lambda t: (not t.is_eligible, -t.score if t.is_eligible else 0, t.number)
    )


def _written(value: object) -> str:
    """A sampled value as on a command line, with the digits that matter."""
    return format_value(value) if isinstance(value, float) else show(value)


def _short(value: object) -> str:
    """A sampled value in few characters."""
    return f"{value:.3g}" if isinstance(value, float) else show(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
