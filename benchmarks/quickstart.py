"""Time and peak memory of the quickstart: `python benchmarks/quickstart.py`.

Runs the README's command in a new folder and measures the whole process tree. Prints a table and
ends with one line of JSON.
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

ROOT = Path(__file__).resolve().parent.parent
ARTEFACTS = (
    "recipe.yaml",
    "teacher_soft_labels.json",
    "training.json",
    "evaluation.json",
    "report.html",
)


def peak_memory_of(process: subprocess.Popen[bytes], result: dict[str, float]) -> None:
    """Largest sum of the resident memory of `process` and its children, in GB, sampled every fifth
    of a second.
    """
    tree = psutil.Process(process.pid)
    while process.poll() is None:
        total = 0
        for member in [tree, *tree.children(recursive=True)]:
            try:
                total += member.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        result["peak_gb"] = max(result.get("peak_gb", 0.0), total / 1e9)
        time.sleep(0.2)


def main() -> None:
    """Run it, measure it, say it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--run_dir", type=Path, help="Keep the run in this new folder. Default: a temporary one."
    )
    kept: Path | None = parser.parse_args().run_dir
    with tempfile.TemporaryDirectory() as temporary:
        run = kept or Path(temporary) / "quickstart"
        if run.exists():
            sys.exit(f"{run} exists: a run that reuses stages measures nothing")
        start, wall = time.perf_counter(), time.time()
        command = [
            "accelerate",
            "launch",
            str(ROOT / "train.py"),
            "quickstart",
            "--run_dir",
            str(run),
        ]
        process = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        memory: dict[str, float] = {}
        watcher = threading.Thread(target=peak_memory_of, args=(process, memory))
        watcher.start()
        code = process.wait()
        watcher.join()
        seconds = time.perf_counter() - start
        if code:
            sys.exit(f"the quickstart ended with code {code}")
        reached = {name: (run / name).stat().st_mtime - wall for name in ARTEFACTS}
        evaluation = json.loads((run / "evaluation.json").read_text())
        training = json.loads((run / "training.json").read_text())
    systems = evaluation["retrieval"]["systems"]
    figures = {
        "seconds": round(seconds, 1),
        "peak_gb": round(memory["peak_gb"], 2),
        "cores": len(os.sched_getaffinity(0)),
        "precision": training["precision"],
        "ndcg_ratio": round(evaluation["retrieval"]["student_over_teacher"]["value"], 4),
        "teacher_ndcg": round(systems["teacher"]["nDCG@10"]["value"], 4),
        "student_ndcg": round(systems["student"]["nDCG@10"]["value"], 4),
        "pearson": round(evaluation["fidelity"]["pearson"]["value"], 4),
        "mae": round(evaluation["fidelity"]["mae"]["value"], 4),
    }
    print("\nartefact                     there after")
    for name, after in reached.items():
        print(f"{name:<28} {after:7.1f} s")
    print(
        f"whole run                    {seconds:7.1f} s, peak memory {memory['peak_gb']:.2f} GB\n"
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
