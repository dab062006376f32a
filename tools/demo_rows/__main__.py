"""Writes the rows of the demo task to the file that the library ships.

It is called as `python -m tools.demo_rows`.
"""

import pyarrow as pa
import pyarrow.parquet as pq

from bertvision_stream.data.demo import DEMO_ROWS
from tools.demo_rows import make_demo


def demo_table() -> pa.Table:
    """Returns the generated rows with the columns `split`, `sentence` and `label`."""
    splits = zip(("train", "validation"), make_demo(seed=0), strict=True)
    rows = [
        {"split": split, "sentence": example.sentence, "label": example.label}
        for split, examples in splits
        for example in examples
    ]
    return pa.Table.from_pylist(rows)


if __name__ == "__main__":
    table = demo_table()
    pq.write_table(table, DEMO_ROWS, compression="zstd", version="2.6")
    print(f"{DEMO_ROWS}: {table.num_rows:,} rows")
