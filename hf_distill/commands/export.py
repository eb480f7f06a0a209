"""`hf-distill export RUN_OR_MODEL --format onnx|router`: the student for runtimes other than
PyTorch, or a query encoder together with its teacher.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_distill.errors import InputError
from hf_distill.finished_run import finished
from hf_distill.release.onnx import export_onnx, measure_onnx
from hf_distill.release.router import export_router
from hf_distill.run.folder import RunFolder
from hf_distill.run.lock import held
from hf_distill.serving.index import student_of

HELP = (
    "Write a student as ONNX (float32 and int8) into its folder; of a run, also measure what each "
    "costs in nDCG@10. Or write a query encoder and its teacher as one model."
)

_FORMATS = (
    "onnx: the student as ONNX. router: a Router of sentence-transformers, RUN/router, with the "
    "query encoder of a run for queries and a copy of its teacher for documents. Default: onnx."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "run_or_model",
        metavar="RUN_OR_MODEL",
        help="Folder of a finished run, or of a saved student.",
    )
    parser.add_argument("--format", choices=["onnx", "router"], default="onnx", help=_FORMATS)


def _export(model: Path) -> None:
    for precision, path in export_onnx(model).items():
        print(f"{precision:<8} {path.stat().st_size / 1e6:7.1f} MB  {path}")


def run(arguments: argparse.Namespace) -> None:
    """Export, and measure the files where there is held-out data.

    Raises:
        InputError: There is no saved student, the run is not finished, onnx is not installed, or
            there is no router of this student.
    """
    model = Path(student_of(arguments.run_or_model))
    folder = RunFolder(Path(arguments.run_or_model))
    if not folder.recipe.is_file():
        if arguments.format == "router":
            raise InputError(
                f"--format router: {arguments.run_or_model} is no run, so its teacher is not "
                "known; name the folder of a finished run"
            )
        _export(model)
        return
    results = finished(folder.path)
    if arguments.format == "router":
        with held(folder):
            router = export_router(results)
        print(
            f"{folder.router}: {router.megabytes:.1f} MB, the student for queries, the teacher for "
            f"documents; loaded again (largest difference {router.difference:.1g})"
        )
        return
    with held(folder):
        _export(model)
        record = measure_onnx(results)
    print(
        f"nDCG@10 over {record.num_queries:,} held-out queries, and its difference to PyTorch in "
        "float32 (95% interval):"
    )
    for precision, variant in record.variants.items():
        minus = variant.minus_student
        print(
            f"{precision:<8} {variant.ndcg.value:.4f}  {minus.value:+.4f} "
            f"({minus.low:+.4f} to {minus.high:+.4f})"
        )
