"""Run in a fresh process with an empty cache (see `hf_distill.release.verify`): load what was
published, as anyone would.

Reads {repos: [[kind, id, commit, {path: SHA-256}], ...], probes: [text, ...]} from standard input.
Prints a line of JSON with the SHA-256 of every downloaded file. If all are as expected, it prints
another line with the embeddings of the probes and the rows of each split. Imports nothing of this
project.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    """Download, load, and print what there is."""
    wanted = json.load(sys.stdin)
    digests: dict[str, dict[str, str]] = {}
    for kind, repo, commit, _ in wanted["repos"]:
        folder = Path(snapshot_download(repo, repo_type=kind, revision=commit))
        files = [path for path in folder.rglob("*") if path.is_file()]
        digests[repo] = {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}
    print(json.dumps({"digests": digests}), flush=True)
    if any(
        digests[repo].get(name) != digest
        for _, repo, _, expected in wanted["repos"]
        for name, digest in expected.items()
    ):
        return  # there is no point in loading damaged files

    loaded: dict[str, Any] = {"embeddings": None, "rows": {}}
    for kind, repo, commit, _ in wanted["repos"]:
        if kind == "space":
            continue  # its files are all there is to compare
        # These take seconds to import.
        from datasets import get_dataset_config_names, load_dataset  # noqa: PLC0415
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415

        if kind == "model":
            model = SentenceTransformer(repo, revision=commit, device="cpu")
            loaded["embeddings"] = model.encode(wanted["probes"], show_progress_bar=False).tolist()
        else:
            for config in get_dataset_config_names(repo, revision=commit):
                for name, split in load_dataset(repo, config, revision=commit).items():
                    loaded["rows"][f"{config}/{name}"] = len(split)
    print(json.dumps(loaded), flush=True)


if __name__ == "__main__":
    main()
