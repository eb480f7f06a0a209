"""Which of many texts are equal: sorted 64-bit keys in numpy (`hf_distill.data.keys`), DuckDB and
Polars do the same job: `python benchmarks/equal_keys.py {numpy,duckdb,polars} [--keys N]`.

The job: keys lie in a file, a tenth of them twice; for every row, the first row with its key goes
to a file. Memory is what the job holds beyond the start. `pip install duckdb polars` first, and set
POLARS_MAX_THREADS=1, as the others use one thread. The last line is JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import peak_memory

from hf_distill.data.keys import first_places, numbered, taken
from hf_distill.run.scratch import keep_scratch_in

_LIMIT = "512MB"


def with_numpy(folder: Path) -> np.ndarray:
    keep_scratch_in(folder)
    keys = np.load(folder / "keys.npy", mmap_mode="r")
    once, which = numbered(keys)
    np.save(folder / "first.npy", taken(first_places(which, len(once)), which))
    return np.asarray(np.load(folder / "first.npy", mmap_mode="r"))


def with_duckdb(folder: Path) -> np.ndarray:
    duckdb = importlib.import_module("duckdb")
    database = duckdb.connect()
    database.execute(f"SET memory_limit='{_LIMIT}'; SET threads=1; SET temp_directory='{folder}'")
    database.execute(
        f"COPY (SELECT first FROM '{folder}/keys.parquet' JOIN (SELECT key, min(row) AS first FROM "
        f"'{folder}/keys.parquet' GROUP BY key) USING (key) ORDER BY row) TO "
        f"'{folder}/first.parquet'"
    )
    return np.asarray(pq.read_table(folder / "first.parquet")["first"])


def with_polars(folder: Path) -> np.ndarray:
    polars = importlib.import_module("polars")
    rows = polars.scan_parquet(folder / "keys.parquet")
    least = rows.group_by("key").agg(polars.col("row").min().alias("first"))
    joined = rows.join(least, on="key").sort("row").select("first")
    joined.sink_parquet(folder / "first.parquet")
    return np.asarray(pq.read_table(folder / "first.parquet")["first"])


ENGINES: dict[str, Callable[[Path], np.ndarray]] = {
    "numpy": with_numpy,
    "duckdb": with_duckdb,
    "polars": with_polars,
}


def main() -> None:
    """Do the job with one engine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("engine", choices=list(ENGINES))
    parser.add_argument("--keys", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys = np.random.default_rng(0).integers(1 << 62, size=options.keys, dtype=np.uint64)
        keys[::10] = keys[5::10][: len(keys[::10])]
        np.save(folder / "keys.npy", keys)
        rows = np.arange(options.keys)
        pq.write_table(pa.table({"key": keys, "row": rows}), folder / "keys.parquet")
        with peak_memory() as peak:
            start, processor = time.perf_counter(), time.process_time()
            first = ENGINES[options.engine](folder)
            seconds = time.perf_counter() - start
            used = time.process_time() - processor
            peak_mb = peak()
    moved = (first != rows) & (rows % 10 == 5)
    if moved.sum() != len(keys[::10]) or not np.array_equal(keys[first], keys):
        raise SystemExit(f"{options.engine} gives a wrong result")
    figures = {"seconds": seconds, "processor": used, "peak_mb": peak_mb}
    rounded = {what: round(value, 2) for what, value in figures.items()}
    print(json.dumps({"engine": options.engine, "keys": options.keys, **rounded}))


if __name__ == "__main__":
    main()
