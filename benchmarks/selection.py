"""Time and memory of every selection rule on synthetic pairs: `python benchmarks/selection.py
[--pairs N ...]`.

Each number of pairs is a process of its own, so that its peak memory is its own. The pairs lie in
an Arrow file, as a run's do: a tenth of them are near-copies of another, some are echoes, and
groups have ten pairs. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, Features, Value

from hf_distill.data.collection import dataset_of
from hf_distill.selection.audit import make_audit
from hf_distill.selection.rules import (
    apply_rules,
    parse_rules,
    rule_columns,
)

RULES = [
    "invalid", "echo", "near_echo=0.8", "duplicate", "near_duplicate", "rank=50", "margin=-0.9", "threshold=-0.99", "percentile=10",
    "percentile=10:by=group", "percentile=10:by=source", "top_k=9:by=group", "stratified=0.9", "stratified=0.9:on=margin", "random=0.9",
    "percentile=50:weight=0.5",
]  # fmt: skip
FEATURES = Features(
    {name: Value("string") for name in ("pair_id", "query", "document", "group", "source")}
    | {"teacher_score": Value("float32"), "rank": Value("int32"), "margin": Value("float32")}
)
QUERY_WORDS, DOCUMENT_WORDS, VOCABULARY = 8, 30, 20_000


def synthetic(pairs: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Pairs of random words: of ten, one is the last one with another last word, and of a hundred,
    one is an echo.
    """
    rng = np.random.default_rng(seed)
    query, document = "", ""
    for number in range(pairs):
        if number % 10 == 9:
            document = document.rsplit(" ", 1)[0] + f" w{rng.integers(VOCABULARY)}"
        else:
            words = [
                f"w{word}" for word in rng.integers(VOCABULARY, size=QUERY_WORDS + DOCUMENT_WORDS)
            ]
            query, document = " ".join(words[:QUERY_WORDS]), " ".join(words[QUERY_WORDS:])
        yield {
            "pair_id": str(number), "query": query, "document": query if number % 100 == 50 else document, "group": str(number // 10),
            "source": str(number % 7), "teacher_score": rng.uniform(-1, 1), "rank": int(rng.integers(1, 100)), "margin": rng.uniform(-1, 1),
        }  # fmt: skip


def memory() -> float:
    """The most memory that this process has held, in MB. Pages of mapped files count: the system
    can take those back.
    """
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def measure(pairs: int, folder: str, answer: Any) -> None:
    """Put the figures of one size into the queue `answer`."""
    table: Dataset = dataset_of(synthetic(pairs), FEATURES, Path(folder), f"pairs-{pairs}")
    before = memory()
    rules = parse_rules(RULES)
    seconds = {}
    for rule in rules:  # each on its own: what it costs to be used alone
        start = time.perf_counter()
        apply_rules(rule_columns(table, [rule], 0), [rule])
        seconds[str(rule)] = round(time.perf_counter() - start, 2)
    start = time.perf_counter()
    columns = rule_columns(table, rules, 0)
    applied = apply_rules(columns, rules)
    audit = make_audit(table, columns, rules, applied, 0)
    assert (
        audit["pairs_in"]
        == pairs
        == audit["kept"] + sum(rule["dropped"] for rule in audit["rules"])
    )
    together = round(time.perf_counter() - start, 2)
    answer.put(
        {
            "pairs": pairs,
            "seconds": together,
            "rules": seconds,
            "mb_before": round(before),
            "mb_peak": round(memory()),
            "kept": audit["kept"],
        }
    )


def main() -> None:
    """Measure every size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, nargs="+", default=[100_000, 1_000_000])
    sizes = parser.parse_args().pairs
    datasets.utils.logging.disable_progress_bar()
    spawn = multiprocessing.get_context("spawn")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for pairs in sizes:
            answer = spawn.Queue()
            process = spawn.Process(target=measure, args=(pairs, folder, answer))
            process.start()
            while answer.empty() and process.is_alive():
                time.sleep(0.1)
            if not process.is_alive() and answer.empty():
                raise SystemExit(
                    f"the process for {pairs:,} pairs ended with code {process.exitcode}"
                )
            found.append(answer.get())
            process.join()
    print(f"{'seconds, each rule alone':<32}" + "".join(f"{f['pairs']:>14,}" for f in found))
    for rule in RULES:
        print(f"{rule:<32}" + "".join(f"{f['rules'][rule]:>14.2f}" for f in found))
    print(
        f"{'all together, with the audit':<32}" + "".join(f"{f['seconds']:>14.2f}" for f in found)
    )
    print(
        f"{'MB before / at the peak':<32}"
        + "".join(f"{f['mb_before']:>7,} /{f['mb_peak']:>5,}" for f in found)
    )
    print(json.dumps({str(f["pairs"]): f for f in found}))


if __name__ == "__main__":
    main()
