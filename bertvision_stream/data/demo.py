"""The rows of `task=demo`, which come with the package: is this English sentence acceptable?

`tools/demo_rows` in the repository generates the sentences and describes what they measure.
"""

from __future__ import annotations

from pathlib import Path

from bertvision_stream.data.rows import RawData, Rows
from bertvision_stream.settings.tasks import TASKS

DEMO_ROWS = Path(__file__).with_name("demo.parquet")
"""A table with the columns `split`, `sentence` and `label` (1 if the sentence is acceptable)."""


def load_demo() -> RawData:
    """Returns the 4,000 training rows and the 1,000 validation rows of the demo task."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(DEMO_ROWS)

    def rows(split: str) -> Rows:
        part = table.filter(pc.equal(table["split"], split))
        texts: list[tuple[str, ...]] = [(sentence,) for sentence in part["sentence"].to_pylist()]
        return Rows(f"demo ({split})", texts, part["label"].to_numpy())

    return RawData(TASKS["demo"], rows("train"), {"validation": rows("validation")})
