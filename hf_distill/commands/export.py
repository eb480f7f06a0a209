"""`hf-distill export RUN_OR_MODEL --format F`: the student for runtimes other than PyTorch, or a
query encoder together with its teacher.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from hf_distill.errors import InputError
from hf_distill.finished_run import finished
from hf_distill.release.cost import TIMED, Costs
from hf_distill.release.gguf import refuse_gguf
from hf_distill.release.model2vec import export_model2vec, measure_model2vec
from hf_distill.release.onnx import export_onnx, measure_onnx
from hf_distill.release.openvino import export_openvino, measure_openvino
from hf_distill.release.router import export_router
from hf_distill.report.results import RunResults
from hf_distill.run.folder import RunFolder
from hf_distill.run.lock import held
from hf_distill.serving.index import student_of

HELP = (
    "Write a student as ONNX (float32 and int8), for OpenVINO (int8) or, if it is static, for "
    "model2vec into its folder; of a run, also measure what each costs in nDCG@10 and what a query "
    "takes. Or write a query encoder and its teacher as one model."
)

_FORMATS = (
    "onnx: the student as ONNX. openvino: for OpenVINO, in int8. model2vec: a static student for "
    "model2vec. router: a Router of sentence-transformers, RUN/router, with the query encoder of a "
    "run for queries and a copy of its teacher for documents. gguf: says why llama.cpp cannot read "
    "the student. Default: onnx."
)

_ONE_FILE: dict[str, Callable[[Path], Path]] = {
    "openvino": export_openvino,
    "model2vec": export_model2vec,
}
_MEASURE: dict[str, Callable[[RunResults], Costs]] = {
    "onnx": measure_onnx,
    "openvino": measure_openvino,
    "model2vec": measure_model2vec,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "run_or_model",
        metavar="RUN_OR_MODEL",
        help="Folder of a finished run, or of a saved student.",
    )
    parser.add_argument(
        "--format",
        choices=["onnx", "openvino", "model2vec", "router", "gguf"],
        default="onnx",
        help=_FORMATS,
    )


def _export(model: Path, form: str) -> None:
    if form == "gguf":
        refuse_gguf(model)
    elif form == "onnx":
        written = export_onnx(model)
    else:
        written = {form: _ONE_FILE[form](model)}
    for name, path in written.items():
        print(f"{name:<9} {path.stat().st_size / 1e6:7.1f} MB  {path}")


def _show(record: Costs) -> None:
    print(
        f"nDCG@10 over {record.num_queries:,} held-out queries, its difference to PyTorch in "
        f"float32 (95% interval), and the time of a query alone (median of {TIMED}):"
    )
    for name, variant in record.variants.items():
        minus = variant.minus_student
        print(
            f"{name:<9} {variant.ndcg.value:.4f}  {minus.value:+.4f} "
            f"({minus.low:+.4f} to {minus.high:+.4f})  {variant.query_ms:.3g} ms"
        )
    print(
        f"In PyTorch, a query takes {record.query_ms:.3g} ms. Times are of this machine "
        f"({record.processor}); the models took turns."
    )


def run(arguments: argparse.Namespace) -> None:
    """Export, and measure the files where there is held-out data.

    Raises:
        InputError: There is no saved student, the run is not finished, a package of the format's
            extra is not installed, or the student cannot be written in this format.
    """
    model, form = Path(student_of(arguments.run_or_model)), arguments.format
    folder = RunFolder(Path(arguments.run_or_model))
    if not folder.recipe.is_file():
        if form == "router":
            raise InputError(
                f"--format router: {arguments.run_or_model} is no run, so its teacher is not "
                "known; name the folder of a finished run"
            )
        _export(model, form)
        return
    results = finished(folder.path)
    if form == "router":
        with held(folder):
            router = export_router(results)
        print(
            f"{folder.router}: {router.megabytes:.1f} MB, the student for queries, the teacher for "
            f"documents; loaded again (largest difference {router.difference:.1g})"
        )
        return
    with held(folder):
        _export(model, form)
        record = _MEASURE[form](results)
    _show(record)
