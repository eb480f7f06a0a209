"""How long reading takes, and how much memory: for each format of files, from the files to the
tables of a collection.

    python benchmarks/reading.py [--rows 1000000] [--formats csv tsv ...]

Each format is read by a process of its own, whose peak memory is its own. `tables`: seconds to open
the files and to go through their rows. `whole`: seconds from the files to the collection.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
from machine import peak_memory

from hf_distill.data.read import read_pairs
from hf_distill.data.sources.files import read_path
from hf_distill.data.tables.open import open_tables
from hf_distill.recipe.arguments import DataArguments

WORDS = [f"{a}{b}{c}" for a in ("ka", "lo", "mi", "ter") for b in ("ra", "sen", "") for c in "nstx"]
NEGATIVES = 7
_ROWS = 10_000


def pairs(rows: int) -> Iterator[dict[str, str]]:
    """Queries of 8 words and documents of 40, no two alike."""
    draw = random.Random(0).choices
    for number in range(rows):
        yield {
            "query": f"{number} " + " ".join(draw(WORDS, k=7)),
            "document": f"{number} " + " ".join(draw(WORDS, k=39)),
        }


def _columns(rows: int) -> Iterator[pa.Table]:
    batch: list[dict[str, str]] = []
    for row in pairs(rows):
        batch.append(row)
        if len(batch) == _ROWS:
            yield pa.Table.from_pylist(batch)
            batch = []
    if batch:
        yield pa.Table.from_pylist(batch)


def write_delimited(delimiter: str) -> Callable[[Path, int], None]:
    """Writes as the csv module does."""

    def write(path: Path, rows: int) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerow(["query", "document"])
            writer.writerows(row.values() for row in pairs(rows))

    return write


def write_lines(path: Path, rows: Iterator[object]) -> None:
    """An object a line, compressed if the name ends in .gz."""
    with gzip.open(path, "wt", compresslevel=1) if path.suffix == ".gz" else path.open("w") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in rows)


def write_parquet(path: Path, rows: int) -> None:
    """Row groups as pyarrow makes them: up to a million rows."""
    pq.write_table(pa.concat_tables(_columns(rows)), path)


def write_arrow(path: Path, rows: int) -> None:
    """As `datasets` writes: a stream of batches of 1,000 rows."""
    schema = pa.schema({"query": pa.string(), "document": pa.string()})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        for table in _columns(rows):
            stream.write_table(table, max_chunksize=1000)


def triplets(rows: int) -> Iterator[dict[str, str]]:
    """Rows of sentence-transformers: the negative is another row's document."""
    texts = pairs(rows)
    last = "no document of any row"
    for row in texts:
        yield {"anchor": row["query"], "positive": row["document"], "negative": last}
        last = row["document"]


def lists(rows: int) -> Iterator[dict[str, object]]:
    """Rows of FlagEmbedding, with scores."""
    last = [f"no document {number} of any row" for number in range(NEGATIVES)]
    for row in pairs(rows):
        yield {
            "query": row["query"],
            "pos": [row["document"]],
            "neg": list(last),
            "pos_scores": [0.9],
            "neg_scores": [0.1] * NEGATIVES,
        }
        last = [*last[1:], row["document"]]


FORMATS: dict[str, tuple[str, int, Callable[[Path, int], None]]] = {
    "CSV": ("pairs.csv", 1, write_delimited(",")),
    "TSV": ("pairs.tsv", 1, write_delimited("\t")),
    "JSONL": ("pairs.jsonl", 1, lambda path, rows: write_lines(path, pairs(rows))),
    "JSONL.gz": ("pairs.jsonl.gz", 1, lambda path, rows: write_lines(path, pairs(rows))),
    "Parquet": ("pairs.parquet", 1, write_parquet),
    "Arrow": ("pairs.arrow", 1, write_arrow),
    "triplets": ("triplets.jsonl", 2, lambda path, rows: write_lines(path, triplets(rows))),
    "FlagEmbedding": ("flag.jsonl", 8, lambda path, rows: write_lines(path, lists(rows))),
}
"""Name -> file, (query, document) in a row, and what writes it."""


def read_once(path: Path, whole: bool) -> dict[str, float]:
    """Seconds and peak memory of reading `path` in this process, beyond what its imports hold."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, peak_memory() as peak:
        start = time.perf_counter()
        cache = Path(folder)
        if whole:
            source = read_path(path, "dataset_path", DataArguments(), cache / "cache")
            count = len(read_pairs(source, cache).rows)
        else:
            tables = open_tables(path, "dataset_path", cache).tables
            count = sum(1 for table in tables for _ in table.read())
        seconds = time.perf_counter() - start
        return {"rows": count, "seconds": round(seconds, 2), "peak_mb": round(peak())}


def _in_own_process(path: Path, whole: bool) -> dict[str, float]:
    what = "whole" if whole else "tables"
    line = [sys.executable, __file__, "--read", str(path), "--what", what]
    done = subprocess.run(line, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(names: list[str], rows: int, whole: bool) -> dict[str, dict[str, dict[str, float]]]:
    """What reading each format takes; a line is printed for each."""
    results: dict[str, dict[str, dict[str, float]]] = {}
    print(f"{'format':<14}{'rows':>10}{'MB':>7}{'tables':>12}{'whole':>12}{'peak of whole':>15}")
    for name in names:
        file, size, write = FORMATS[name]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / file
            write(path, rows // size)
            megabytes = path.stat().st_size / 1e6
            results[name] = {"tables": _in_own_process(path, whole=False)}
            if whole:
                results[name]["whole"] = _in_own_process(path, whole=True)
        last = results[name].get("whole", results[name]["tables"])
        took = f"{results[name]['whole']['seconds']:.1f} s" if whole else "-"
        print(
            f"{name:<14}{rows // size:>10,}{megabytes:>7.0f}"
            f"{results[name]['tables']['seconds']:>10.1f} s{took:>12}{last['peak_mb']:>12.0f} MB",
            flush=True,
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000, help="(query, document) a format")
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--tables_only", action="store_true", help="not as far as the collection")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--what", choices=["tables", "whole"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read is not None:
        print(json.dumps(read_once(options.read, options.what == "whole")))
    else:
        results = measure(options.formats, options.rows, not options.tables_only)
        print(json.dumps({"rows": options.rows, "results": results}))


if __name__ == "__main__":
    main()
