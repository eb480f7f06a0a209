"""Find out which versions of sentence-transformers load a saved student with equal embeddings:
`python benchmarks/layouts.py MODEL`.

Each version gets a virtual environment of about 1 GB (`--keep FOLDER` keeps it for the next call).
It loads the model there and compares the embeddings with those of the version that is installed
here. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

VERSIONS = {
    "5.1.2": ["transformers==4.57.1"],
    "3.4.1": ["transformers==4.49.0"],
    "2.7.0": ["transformers==4.44.2", "numpy<2"],
}
"""sentence-transformers -> packages of the same time."""
TOLERANCE = 1e-5
TEXTS = [
    "how do I read a csv file",
    "Parse a file of comma-separated values.",
    "a",
    "Ünïcödé – 漢字 🙂",
    "one long text " * 100,
]
SCRIPT = """
import json, sys
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu")
print(json.dumps(model.encode(json.loads(sys.argv[2]), show_progress_bar=False).tolist()))
"""


def python_with(version: str, folder: Path) -> Path:
    """The interpreter of an environment with `version`, which is made if necessary."""
    python = folder / version / "bin" / "python"
    if not (folder / version / "ready").exists():
        venv.create(folder / version, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "-q"]
        subprocess.run([*pip, f"torch=={torch.__version__.split('+')[0]}"], check=True)
        subprocess.run([*pip, f"sentence-transformers=={version}", *VERSIONS[version]], check=True)
        (folder / version / "ready").touch()
    return python


def compare(
    version: str, model: Path, expected: np.ndarray, folder: Path
) -> dict[str, str | float]:
    """Load `model` with `version`: `max_diff` of the embeddings, or the `error`."""
    try:
        python = python_with(version, folder)
    except subprocess.CalledProcessError as error:
        return {"error": f"not installed: {error}"}
    done = subprocess.run(
        [str(python), "-c", SCRIPT, str(model), json.dumps(TEXTS)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return {"error": (done.stderr.splitlines() or ["no message"])[-1][:160]}
    return {
        "max_diff": float(
            np.abs(np.array(json.loads(done.stdout.splitlines()[-1])) - expected).max()
        )
    }


def main() -> None:
    """Load the model with each version, and print what differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="Folder of a saved student.")
    parser.add_argument("--versions", nargs="*", choices=list(VERSIONS), default=list(VERSIONS))
    parser.add_argument("--keep", type=Path, help="Keep the environments in this folder.")
    line = parser.parse_args()
    expected = SentenceTransformer(str(line.model), device="cpu").encode(
        TEXTS, show_progress_bar=False
    )
    with tempfile.TemporaryDirectory() as temporary:
        results = {
            version: compare(version, line.model, expected, line.keep or Path(temporary))
            for version in line.versions
        }
    print(f"{'sentence-transformers':<24}{'largest difference'}")
    for version, result in results.items():
        print(f"{version:<24}{result.get('error') or format(result['max_diff'], '.2g')}")
    equal = [
        version
        for version, result in results.items()
        if result.get("max_diff", np.inf) <= TOLERANCE
    ]
    print(json.dumps({"equal": equal, "versions": results}))
    sys.exit(len(equal) < len(results))


if __name__ == "__main__":
    main()
