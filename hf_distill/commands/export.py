"""`hf-distill export RUN_OR_MODEL --format onnx`: the student for runtimes other than PyTorch."""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_distill.pipeline import finished
from hf_distill.release.onnx import export_onnx, measure_onnx
from hf_distill.run.folder import RunFolder
from hf_distill.run.lock import held
from hf_distill.serving.index import student_of

HELP = (
    "Write a student as ONNX (float32 and int8) into its folder; of a run, also measure what each "
    "costs in nDCG@10."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "run_or_model",
        metavar="RUN_OR_MODEL",
        help="Folder of a finished run, or of a saved student.",
    )
    parser.add_argument("--format", choices=["onnx"], default="onnx", help="Default: onnx.")


def _export(model: Path) -> None:
    for precision, path in export_onnx(model).items():
        print(f"{precision:<8} {path.stat().st_size / 1e6:7.1f} MB  {path}")


def run(arguments: argparse.Namespace) -> None:
    """Export, and measure the files where there is held-out data.

    Raises:
        InputError: There is no saved student, the run is not finished, or onnx is not installed.
    """
    model = Path(student_of(arguments.run_or_model))
    folder = RunFolder(Path(arguments.run_or_model))
    if not folder.recipe.is_file():
        _export(model)
        return
    results = finished(folder.path)
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
