"""Try a student in runtimes that are not installed here, each in an environment of its own, and
print the table of docs/serving.md: `python benchmarks/parity.py RUN`.

An environment of Python with torch takes about 1 GB; `--keep FOLDER` keeps all for the next call.
The student must have been exported: `hf-distill export RUN`, and with `--format openvino`.
The comparison is that of `hf-distill verify`. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from hf_distill.commands.main import main as hf_distill
from hf_distill.release.runtimes.table import RUNTIMES
from hf_distill.report.parity import Compared, Parity
from hf_distill.run.stage import read_result


@dataclass(frozen=True)
class Environment:
    """Packages of one time, and the runtimes that they hold. Node has no torch."""

    packages: tuple[str, ...]
    runtimes: tuple[str, ...]
    torch: bool = True

    @property
    def in_node(self) -> bool:
        return RUNTIMES[self.runtimes[0]].in_node


_SENTENCES = ("sentence-transformers",)
ENVIRONMENTS = {
    "here": Environment((), ("sentence-transformers", "transformers", "onnxruntime",
                             "onnxruntime-int8")),
    "sentence-transformers-5": Environment(
        ("sentence-transformers==5.1.2", "transformers==4.57.1"), _SENTENCES
    ),
    "sentence-transformers-3": Environment(
        ("sentence-transformers==3.4.1", "transformers==4.49.0"), _SENTENCES
    ),
    "sentence-transformers-2": Environment(
        ("sentence-transformers==2.7.0", "transformers==4.44.2", "numpy<2"), _SENTENCES
    ),
    "openvino": Environment(("openvino", "tokenizers"), ("openvino", "openvino-int8"), torch=False),
    "fastembed": Environment(("fastembed",), ("fastembed", "fastembed-int8"), torch=False),
    "infinity": Environment(("infinity-emb[torch]",), ("infinity",)),
    "langchain": Environment(("langchain-huggingface", "sentence-transformers"), ("langchain",)),
    "llama-index": Environment(("llama-index-embeddings-huggingface",), ("llama-index",)),
    "haystack": Environment(("haystack-ai", "sentence-transformers-haystack"), ("haystack",)),
    "transformers.js": Environment(
        ("@huggingface/transformers",),
        ("transformers.js", "transformers.js-int8", "transformers.js-chromium",
         "transformers.js-chromium-int8"),
    ),
}  # fmt: skip
"""Name -> what is installed, and tried there. `here` installs nothing. Version 2 cannot read a head
that is not a pickle, and fails.
"""

DEFAULT = [name for name in ENVIRONMENTS if name != "sentence-transformers-2"]


def place_of(environment: Environment, folder: Path) -> str:
    """What `hf-distill verify` is told: the environment's Python, or the folder of `node_modules`.
    It is made if it is not there.

    Raises:
        subprocess.CalledProcessError: A package cannot be installed.
    """
    place = folder if environment.in_node else folder / "bin" / "python"
    if (folder / "ready").exists():
        return str(place)
    if environment.in_node:
        folder.mkdir(parents=True, exist_ok=True)
        # A script of onnxruntime-node fetches what only a GPU needs.
        npm = ["npm", "install", "--silent", "--ignore-scripts", "--prefix", str(folder)]
        subprocess.run([*npm, *environment.packages], check=True)
    else:
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(place), "-m", "pip", "install", "-q"]
        if environment.torch:
            subprocess.run([*pip, f"torch=={torch.__version__.split('+')[0]}"], check=True)
        subprocess.run([*pip, *environment.packages], check=True)
    (folder / "ready").touch()
    return str(place)


def row_of(compared: Compared) -> str:
    """A line of the table, in Markdown. What differs, and why, stands in the lines before it."""
    figures = ((compared.difference, "{:.0e}"), (compared.recall, "{:.3f}"))
    difference, recall = ("–" if v is None else shown.format(v) for v, shown in figures)
    version = compared.versions[RUNTIMES[compared.runtime].packages[0]]
    verdict = "agrees" if compared.agrees else "differs"
    return f"| `{compared.runtime}` | {version} | {difference} | {recall} | {verdict} |"


def main() -> None:
    """Make the environments, verify, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", metavar="RUN", help="Folder of a finished run.")
    parser.add_argument("--only", nargs="+", choices=list(ENVIRONMENTS), default=DEFAULT)
    parser.add_argument("--keep", type=Path, help="Keep the environments in this folder.")
    line = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        attempts = []
        for name in line.only:
            environment = ENVIRONMENTS[name]
            at = "" if name == "here" else "@" + place_of(
                environment, (line.keep or Path(scratch)).resolve() / name
            )  # fmt: skip
            attempts += [f"{runtime}{at}" for runtime in environment.runtimes]
        out = Path(scratch) / "parity.json"
        try:
            code = hf_distill(["verify", line.run_dir, "--with", *attempts, "--json", str(out)])
        except SystemExit as left:  # one does not agree: the table says which
            code = int(left.code or 0)
        if not out.is_file():
            sys.exit(code)
        parity = read_result(out, Parity)
    print(f"\nrecall@10 on {parity.of}:\n")
    print("| runtime | version | largest difference | recall@10 | |")
    print("|---|---|---:|---:|---|")
    for compared in parity.tried:
        print(row_of(compared))
    print(json.dumps(asdict(parity)))
    sys.exit(code)


if __name__ == "__main__":
    main()
