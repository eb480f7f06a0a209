"""Time and peak memory of the quickstart: `python benchmarks/quickstart.py`.

Runs the README's command in a new folder, and measures the whole process tree. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from hf_distill.compute.device import cpu_cores
from hf_distill.evaluation.results import STUDENT, TEACHER, Estimate
from hf_distill.finished_run import finished

ROOT = Path(__file__).resolve().parent.parent
ARTEFACTS = (
    "recipe.yaml", "teacher_soft_labels.json", "training.json", "evaluation.json", "report.html",
)  # fmt: skip


def peak_memory_of(process: subprocess.Popen[bytes], peaks: list[float]) -> None:
    """Append to `peaks` the largest sum of the resident memory of `process` and its children, in
    GB. It looks every fifth of a second.
    """
    tree = psutil.Process(process.pid)
    peak = 0.0
    while process.poll() is None:
        total = 0
        for member in [tree, *tree.children(recursive=True)]:
            try:
                total += member.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        peak = max(peak, total / 1e9)
        time.sleep(0.2)
    peaks.append(peak)


def _rounded(value: Estimate | None) -> float | None:
    return None if value is None or value.value is None else round(value.value, 4)


def main() -> None:
    """Run it, measure it, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--run_dir", type=Path, help="Keep the run in this new folder. Default: a temporary one."
    )
    kept: Path | None = parser.parse_args().run_dir
    with tempfile.TemporaryDirectory() as temporary:
        run = kept or Path(temporary) / "quickstart"
        if run.exists():
            sys.exit(f"{run} exists; a run that reuses stages measures nothing")
        start, wall = time.perf_counter(), time.time()
        command = ["accelerate", "launch", str(ROOT / "train.py"), "quickstart"]
        process = subprocess.Popen(
            [*command, "--run_dir", str(run)], env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
        peaks: list[float] = []
        watcher = threading.Thread(target=peak_memory_of, args=(process, peaks))
        watcher.start()
        code = process.wait()
        watcher.join()
        seconds = time.perf_counter() - start
        if code:
            sys.exit(f"the quickstart ended with code {code}")
        reached = {name: (run / name).stat().st_mtime - wall for name in ARTEFACTS}
        results = finished(run)
    evaluation, [peak] = results.evaluation, peaks
    systems = evaluation.retrieval.systems
    figures = {
        "seconds": round(seconds, 1),
        "peak_gb": round(peak, 2),
        "cores": cpu_cores(),
        "precision": results.training.precision,
        "ndcg_ratio": _rounded(evaluation.retrieval.student_over_teacher),
        "teacher_ndcg": _rounded(systems[TEACHER]["nDCG@10"]),
        "student_ndcg": _rounded(systems[STUDENT]["nDCG@10"]),
        "pearson": _rounded(evaluation.fidelity.pearson),
        "mae": _rounded(evaluation.fidelity.mae),
    }
    print("\nartefact                     there after")
    for name, after in reached.items():
        print(f"{name:<28} {after:7.1f} s")
    print(f"whole run                    {seconds:7.1f} s, peak memory {peak:.2f} GB\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
