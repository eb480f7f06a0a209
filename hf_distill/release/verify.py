"""What was published is loaded back by commit, as anyone would load it, and compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, HfApi
from sentence_transformers import SentenceTransformer

from hf_distill.errors import PublishingError
from hf_distill.release.access import shown, token_of
from hf_distill.release.remote import Release, digest_of

TOLERANCE = 1e-6
"""Largest difference of an embedding from the local one."""

PROBES = (
    "how do I read a csv file",
    "Parse a file of comma-separated values.",
    "a",
    "Ünïcödé – 漢字 🙂",
    "one long text " * 100,
)
"""Texts whose embeddings are compared."""

_SCRIPT = Path(__file__).with_name("load_back.py")
_UNSET = (
    "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ASSETS_CACHE", "HF_XET_CACHE",
    "TRANSFORMERS_CACHE", "SENTENCE_TRANSFORMERS_HOME", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE",
    "TRANSFORMERS_OFFLINE",
)  # fmt: skip
"""Environment variables that would let the fresh process find another cache, or no network."""


def local_rows(folder: Path) -> dict[str, int]:
    """`config/split` -> rows, of the dataset repository in `folder` as its card declares them."""
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*.parquet")}

    def rows(patterns: str | list[str]) -> int:
        patterns = [patterns] if isinstance(patterns, str) else patterns
        matching = [path for name, path in files.items() if any(fnmatch(name, p) for p in patterns)]
        return sum(pq.ParquetFile(path).metadata.num_rows for path in matching)

    return {
        f"{config['config_name']}/{part['split']}": rows(part["path"])
        for config in DatasetCard.load(folder / "README.md").data["configs"]
        for part in config["data_files"]
    }


def _load_in_fresh_process(
    api: HfApi, commits: Sequence[tuple[Release, str]], digests: Mapping[str, Mapping[str, str]]
) -> tuple[list[dict[str, Any]], str]:
    """The answers of `load_back.py`, and how its error output ends; empty if it did not fail."""
    wanted = {
        "repos": [[r.kind, r.repo, commit, digests[r.repo]] for r, commit in commits],
        "probes": PROBES,
    }
    with tempfile.TemporaryDirectory() as home:
        environment = {name: value for name, value in os.environ.items() if name not in _UNSET}
        environment |= {
            "HF_HOME": home,
            "HF_TOKEN": token_of(api),
            "HF_ENDPOINT": api.endpoint,
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        # -P: the script's folder holds names such as `onnx`, which must not hide the libraries.
        done = subprocess.run(
            [sys.executable, "-P", str(_SCRIPT)],
            input=json.dumps(wanted),
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not done.returncode:
        return answers, ""
    tail = shown("\n".join(done.stderr.splitlines()[-12:]), api)
    return answers, tail or f"exit code {done.returncode}"


def _compare_model(release: Release, commit: str, embeddings: list[list[float]]) -> str:
    """How near the embeddings of `PROBES` are to those of the local model."""
    model = SentenceTransformer(str(release.folder), device="cpu")
    local = model.encode(list(PROBES), show_progress_bar=False)
    difference = float(np.abs(local - np.array(embeddings, dtype=np.float32)).max())
    if not difference <= TOLERANCE:
        raise PublishingError(
            f"{release.repo} at {commit}: embeddings differ from the local ones by up to "
            f"{difference:.2g}. It was not tagged"
        )
    return f"{len(PROBES)} embeddings equal (largest difference {difference:.1g})"


def _compare_dataset(release: Release, commit: str, rows: Mapping[str, int]) -> str:
    """How many rows each split has, there as here."""
    local = local_rows(release.folder)
    if rows != local:
        raise PublishingError(
            f"{release.repo} at {commit}: the rows are {rows}, and locally {local}. It was not "
            "tagged"
        )
    return "rows equal: " + ", ".join(f"{name} {count:,}" for name, count in local.items())


def load_back(api: HfApi, commits: Sequence[tuple[Release, str]]) -> list[str]:
    """Load what was published by commit, in a fresh process with an empty cache, and compare.

    Compared are the SHA-256 of every file, the embeddings of some texts (within `TOLERANCE`), and
    the rows of every config and split.

    Returns:
        What is equal, a line for each repository.

    Raises:
        PublishingError: Something differs, or cannot be loaded.
    """
    digests = {
        release.repo: {name: digest_of(content) for name, content in release.files().items()}
        for release, _ in commits
    }
    answers, failure = _load_in_fresh_process(api, commits, digests)
    downloaded = next((answer["digests"] for answer in answers if "digests" in answer), None)
    if downloaded is None:
        raise PublishingError(f"what was published cannot be downloaded again:\n{failure}")
    for release, commit in commits:
        here, there = digests[release.repo], downloaded[release.repo]
        for name, digest in here.items():
            if there.get(name) != digest:
                raise PublishingError(
                    f"{release.repo} at {commit}: {name} on the Hub differs from the local file "
                    f"(SHA-256 {there.get(name, 'none')[:16]}, here {digest[:16]}). It was not "
                    "tagged; publish it again"
                )
    loaded = next((answer for answer in answers if "rows" in answer), None)
    if failure or loaded is None:
        raise PublishingError(f"what was published can be downloaded, but not loaded:\n{failure}")
    lines = []
    for release, commit in commits:
        equal = [f"{len(digests[release.repo])} files with equal SHA-256"]
        if release.kind == "model":
            equal.append(_compare_model(release, commit, loaded["embeddings"]))
        elif release.kind == "dataset":
            equal.append(_compare_dataset(release, commit, loaded["rows"]))
        lines.append(f"{release.repo} at {commit[:10]}: {'; '.join(equal)}")
    return lines
