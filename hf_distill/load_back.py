"""Run in a fresh process with an empty cache (see `hf_distill.publishing.load_back`): load what was published, as anyone would.

Reads {repos: [[kind, id, commit], ...], probes: [text, ...]} from standard input. Prints a line of JSON with the SHA-256 of every file as
it was downloaded, then one with the embeddings of the probes and the rows of every config and split. Imports nothing of this project.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from datasets import get_dataset_config_names, load_dataset
from huggingface_hub import snapshot_download
from sentence_transformers import SentenceTransformer


def main() -> None:
    """Load and tell."""
    wanted = json.load(sys.stdin)
    digests: dict[str, dict[str, str]] = {}
    for kind, repo, commit in wanted["repos"]:
        folder = Path(snapshot_download(repo, repo_type=kind, revision=commit))
        digests[repo] = {}
        for path in (p for p in folder.rglob("*") if p.is_file()):
            with path.open("rb") as file:
                digests[repo][path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    print(json.dumps({"digests": digests}), flush=True)  # before anything is loaded: damaged files may fail to

    loaded: dict[str, Any] = {"embeddings": None, "rows": {}}
    for kind, repo, commit in wanted["repos"]:
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
