"""`hf-distill dataset RUN --format FORMAT`: the pairs of a run, in the files of another tool."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from hf_distill.data.collection import Split
from hf_distill.release.formats.export import EXPORT_FORMATS, EXPORTED, export_collection
from hf_distill.run.folder import RunFolder

HELP = (
    "Write the pairs and lists of a run in the format of another tool, to train and measure there. "
    "The run needs its pairs only (train --until read)."
)

FORMATS = (
    "flagembedding: JSONL with query, pos, neg and their scores. tevatron: JSONL with "
    "positive_passages and negative_passages. sentence-transformers: Parquet with anchor, "
    "positive, negatives and scores, or lists where the number of negatives differs. beir: "
    "corpus.jsonl, queries.jsonl and qrels. trec: qrels, runs of the candidates, and the texts as "
    "TSV."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "run_dir", metavar="RUN", type=Path, help="Folder of a run that has read its pairs."
    )
    parser.add_argument("--format", required=True, choices=[*EXPORT_FORMATS], help=FORMATS)
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        type=Path,
        help="A new folder, or one of an earlier export, which is replaced. Default: "
        "RUN/export/FORMAT.",
    )
    parser.add_argument(
        "--split",
        nargs="+",
        choices=EXPORTED,
        help="Which splits. Default: all that have pairs.",
    )


def run(arguments: argparse.Namespace) -> None:
    """Export, and say what was written, changed and left out.

    Raises:
        InputError: See `export_collection`.
    """
    export(arguments.run_dir, arguments.format, arguments.split, arguments.output)


def export(
    run_dir: Path, name: str, splits: Sequence[Split] | None, output: str | Path | None
) -> None:
    """Write the run in the folder `run_dir` in the format `name`, and say what was written.

    Raises:
        InputError: See `export_collection`.
    """
    folder = RunFolder(run_dir)
    output = output or folder.path / "export" / name
    where = Path(os.path.realpath(output))  # `resolve` raises where links lead in a circle
    for line in export_collection(folder, name, splits, where):
        print(line)
    print(f"Written: {output} (README.md says how to read it)")
