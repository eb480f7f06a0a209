"""Two runs at once do not disturb each other: `python benchmarks/two_at_once.py`.

Two tiny runs begin with a seeded time between them: every second time in one folder, else in two
folders with one `--teacher_cache`. Right is: the artefacts are those of a run alone (times aside),
and there is at most one message, of the run that was refused. The last line is JSON: {"runs",
"right", "tracebacks"}. Exit code 1 if a pair of runs is not right.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from tiny_run import artefacts, prepare, started

from hf_distill.run import shards

shards.LEAST_ITEMS = 32  # several shards, so that there is something to share


def _both(lines: list[list[str]], logs: list[Path], apart: float) -> list[int]:
    """The exit codes of two command lines, the second of which begins `apart` seconds later."""
    processes = [started(lines[0], logs[0])]
    time.sleep(apart)
    processes.append(started(lines[1], logs[1]))
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


def faults(codes: list[int], said: list[str], one_folder: bool) -> list[str]:
    """What is wrong with how two runs ended."""
    found = []
    messages = [line for text in said for line in text.splitlines() if "error: " in line]
    warnings = [line for text in said for line in text.splitlines() if "WARNING" in line]
    refused = [message for message in messages if " is in use by " in message]
    if sorted(codes) not in ([[0, 0], [0, 2]] if one_folder else [[0, 0]]):
        found.append(f"exit codes {codes}")
    if len(refused) != codes.count(2) or messages != refused or warnings:
        found.append(f"messages {messages + warnings}")
    return found


def main() -> int:
    """Run the campaign, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="Pairs of runs. Default: 20.")
    parser.add_argument("--seed", type=int, default=0, help="Of the times. Default: 0.")
    options = parser.parse_args()
    draw, right, tracebacks = random.Random(options.seed), 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recipe, log = prepare(folder), folder / "alone.log"

        def line(run: Path, cache: Path | None) -> list[str]:
            own = [] if cache is None else ["--teacher_cache", str(cache)]
            return [str(recipe), "--run_dir", str(run), *own]

        expected = []
        for name, cache in (("own", None), ("shared", folder / "cache")):
            start = time.perf_counter()
            code = os.waitpid(started(line(folder / name, cache), log), 0)[1]
            if code:
                raise RuntimeError(f"a run alone fails:\n{log.read_text()[-2000:]}")
            duration = time.perf_counter() - start
            expected.append(artefacts(folder / name))
        for number in range(options.runs):
            one_folder = number % 2 == 0
            if one_folder:
                runs, cache = [folder / f"run-{number}"] * 2, None
            else:
                runs, cache = [folder / f"run-{number}-{i}" for i in "ab"], folder / f"c-{number}"
            logs = [folder / f"{number}-{i}.log" for i in "ab"]
            codes = _both([line(run, cache) for run in runs], logs, draw.uniform(0, duration))
            said = [path.read_text(errors="replace") for path in logs]
            wrong = faults(codes, said, one_folder)
            for run in {*runs}:
                ours, theirs = artefacts(run), expected[number % 2]
                names = sorted(ours.keys() | theirs.keys())
                wrong += [name for name in names if ours.get(name) != theirs.get(name)]
            tracebacks += sum(text.count("Traceback") for text in said)
            right += not wrong and "Traceback" not in "".join(said)
            kind = "one folder" if one_folder else "one cache"
            print(f"{number}: {kind}, {codes}: {', '.join(wrong) or 'right'}", flush=True)
            for text in said if wrong else ():
                print(text[-1500:])
    print(json.dumps({"runs": options.runs, "right": right, "tracebacks": tracebacks}))
    return int(right != options.runs)


if __name__ == "__main__":
    sys.exit(main())
