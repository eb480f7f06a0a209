"""Which of many texts are equal: sorted 64-bit keys in numpy (`hf_distill.data.keys`), DuckDB and
Polars do the same job: `python benchmarks/equal_keys.py [--keys N]`.

The job: keys lie in a file, a tenth of them twice; for every row, the first row with its key goes
to a file. Each engine has a process of its own, on one thread. `pip install duckdb polars` first.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import peak_memory

from hf_distill.data.keys import first_places, numbered

_LIMIT = "512MB"


def with_numpy(folder: Path) -> np.ndarray:
    keys = np.load(folder / "keys.npy", mmap_mode="r")
    once, which = numbered(keys)
    np.save(folder / "first.npy", first_places(which, len(once))[which])
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


def work(name: str, folder: Path, answer: Any) -> None:
    """Do the job once, and put its figures and the sum of its result into `answer`."""
    with peak_memory() as peak:
        start, processor = time.perf_counter(), time.process_time()
        first = ENGINES[name](folder)
        seconds = time.perf_counter() - start
        used = time.process_time() - processor
        figures = {"seconds": seconds, "processor": used, "peak_mb": peak()}
    answer.put(({what: round(value, 2) for what, value in figures.items()}, int(first.sum())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--keys", type=int, default=1_000_000)
    count = parser.parse_args().keys
    spawn = multiprocessing.get_context("spawn")
    results, sums = {}, set()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys = np.random.default_rng(0).integers(1 << 62, size=count, dtype=np.uint64)
        keys[::10] = keys[5::10][: len(keys[::10])]
        np.save(folder / "keys.npy", keys)
        pq.write_table(pa.table({"key": keys, "row": np.arange(count)}), folder / "keys.parquet")
        for engine in ENGINES:
            answer = spawn.Queue()
            process = spawn.Process(target=work, args=(engine, folder, answer))
            process.start()
            figures, total = answer.get()
            process.join()
            results[engine] = figures
            sums.add(total)
            print(f"{engine:<8}" + "".join(f"{what:>12} {n:<8}" for what, n in figures.items()))
    if len(sums) > 1:
        raise SystemExit("the engines give different results")
    print(json.dumps({"keys": count, "engines": results}))


if __name__ == "__main__":
    main()
