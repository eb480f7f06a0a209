"""No damaged file is used without a word: `python benchmarks/damage.py`.

Every kind of file of a finished run, with mined lists, a pool and a search page, is cut, emptied,
filled with zeros, or gets one flipped bit. Then the recipe runs again, and each command reads the
run. Right is: the result is that of the undamaged run, or one message names the file. The last line
is JSON: {"checks", "right", "tracebacks", "silent"}. Exit code 1 if a check is not right.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tiny_run import artefacts, prepare, started


def _cut(content: bytes, _: random.Random) -> bytes:
    return content[: len(content) // 2]


def _emptied(content: bytes, _: random.Random) -> bytes:
    return b""


def _zeroed(content: bytes, _: random.Random) -> bytes:
    return bytes(len(content))


def _flipped(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": _cut, "emptied": _emptied, "zeroed": _zeroed, "flipped": _flipped,
}  # fmt: skip

_READ_BY_NOBODY = re.compile(
    r".*/lock|.*\.lock|report\.html|.*\.md|.*\.svg|export/.*|page/(?!page\.json).*"
)

_READ_FOR = {
    "pool/": "training.json",
    "checkpoints/": "training.json",
    "cache/text_keys": "soft_labels/manifest.json",
    "soft_labels/texts/": "soft_labels/manifest.json",
    "soft_labels/pairs/": "candidates/manifest.json",
    "study/selections/": "study/study.json",
    "study/results/": "study/study.json",
}
"""Files that only a stage reads that has no result yet -> its result, which is gone then."""

_SLOW = ("export", "study", "mine", "page")
"""Checks of many seconds: each kind of file gets them with one damage."""


def kinds(run: Path) -> dict[str, list[Path]]:
    """Kind of file -> the files: one kind for all shards, and so on."""
    found: dict[str, list[Path]] = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.is_file() and path.stat().st_size and not _READ_BY_NOBODY.fullmatch(name):
            found.setdefault(re.sub(r"[0-9a-f]{8,}|\d+", "N", name), []).append(path)
    return found


def _run(line: list[str], log: Path, command: bool) -> tuple[int, str]:
    process = started(line, log, command)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return code, log.read_text(errors="replace")


def checks(run: Path, recipe: Path) -> dict[str, tuple[list[str], bool]]:
    """Name of a check -> its command line, and whether it is one of `hf-distill`."""
    dry = ["--model", "you/x", "--dataset", "you/y", "--dry_run"]
    study = ["--rules", "percentile=60", "--examples", "32", "--seeds", "1"]
    teacher = str(recipe.parent / "teacher")
    return {
        "rerun": ([str(recipe), "--run_dir", str(run)], False),
        "publish": (["publish", str(run), *dry], True),
        "search": (["search", str(run), "a cat"], True),
        "dataset": (["dataset", str(run), "--format", "beir"], True),
        "compare": (["compare", str(run), teacher, "--task", str(run)], True),
        "export": (["export", str(run)], True),
        "mine": (["mine", str(recipe), "--run_dir", str(run), "--format", "trec"], True),
        "page": (["page", str(run), str(run / "page"), "--cdn"], True),
        "study": (["study", str(recipe), "--run_dir", str(run), *study], True),
    }


def judged(said: str, code: int, damaged: str, same: bool) -> str:
    """What came of a check: right, traceback, or silent."""
    if "Traceback" in said or code not in (0, 1, 2):
        return "traceback"
    names = damaged in said or Path(damaged).name in said
    if code:
        return "right" if names else "silent"
    return "right" if same or names else "silent"


def main() -> int:
    """Run the campaign, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=0, help="Damaged files. Default: all kinds.")
    parser.add_argument("--seed", type=int, default=0, help="Of files and bits. Default: 0.")
    parser.add_argument(
        "--only", default="", metavar="REGEX", help="Kinds of files that match. Default: all."
    )
    options = parser.parse_args()
    draw = random.Random(options.seed)
    counts = {"right": 0, "traceback": 0, "silent": 0}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recipe, whole = prepare(folder), folder / "whole" / "run"
        log, run = folder / "log", folder / "damaged" / "run"  # a comparison shows its last name
        for line, command in checks(whole, recipe).values():
            code, said = _run(line, log, command)
            if code:
                raise RuntimeError(f"{' '.join(line)} ends with code {code}:\n{said[-2000:]}")
        expected, answers = artefacts(whole), {}
        for name, (line, command) in checks(whole, recipe).items():
            answers[name] = _run(line, log, command)[1].replace(str(whole), "")
        found = {name: p for name, p in kinds(whole).items() if re.search(options.only, name)}
        slow = {name: draw.choice([*DAMAGES]) for name in found}
        cases = [(name, damage) for name in found for damage in DAMAGES]
        draw.shuffle(cases)
        for kind, damage in cases[: options.runs or None]:
            files = found[kind]
            path = draw.choice(files)
            damaged = path.relative_to(whole).as_posix()
            for check in checks(run, recipe):
                if check in _SLOW and damage != slow[kind]:
                    continue
                shutil.rmtree(run, ignore_errors=True)
                shutil.copytree(whole, run)
                (run / damaged).write_bytes(DAMAGES[damage](path.read_bytes(), draw))
                for start, result in _READ_FOR.items():
                    if check in ("rerun", "study") and damaged.startswith(start):
                        (run / result).unlink(missing_ok=True)
                line, command = checks(run, recipe)[check]
                code, said = _run(line, log, command)
                if check == "rerun":
                    same = artefacts(run) == expected
                else:
                    shown = said.replace(str(run), "")
                    same = _untimed(shown) == _untimed(answers[check])
                outcome = judged(said, code, damaged, same)
                counts[outcome] += 1
                if outcome != "right":
                    print(f"{outcome}: {damaged} {damage}, {check}: {said[-300:]!r}", flush=True)
    total = sum(counts.values())
    figures = {
        "checks": total,
        "right": counts["right"],
        "tracebacks": counts["traceback"],
        "silent": counts["silent"],
    }
    print(json.dumps(figures))
    return int(counts["right"] != total)


def _untimed(said: str) -> list[str]:
    """The lines of an answer that name no time, progress or free space."""
    lines = re.split(r"[\n\r]", said)
    return [line for line in lines if not re.search(r"\d+(\.\d+)? m?s\b|it/s|\d%\||free", line)]


if __name__ == "__main__":
    sys.exit(main())
