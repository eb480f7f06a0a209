"""The model card, written from measured results alone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    ModelCardData,
    eval_result_entries_to_yaml,
)

from hf_distill.data.further_texts import FurtherRecord
from hf_distill.evaluation.results import STUDENT, TEACHER
from hf_distill.evaluation.texts_results import TextsEvaluation
from hf_distill.recipe.arguments import Recipe
from hf_distill.recipe.saved import ENVIRONMENT_KEY
from hf_distill.release.cards import (
    code,
    front_matter,
    hub_id,
    language_metadata,
    licence_metadata,
    licence_of_texts,
    public_name,
    public_teacher,
    render,
    writer_of_queries,
)
from hf_distill.release.cost import TIMED
from hf_distill.release.model2vec import WEIGHTS, measured_model2vec
from hf_distill.release.onnx import measured_onnx
from hf_distill.release.onnx_encoder import FILES
from hf_distill.release.openvino import GRAPH, INT8, measured_openvino
from hf_distill.release.openvino import WEIGHTS as OPENVINO_WEIGHTS
from hf_distill.release.served import EMBED, name_of
from hf_distill.report.headline import NDCG, verdict
from hf_distill.report.parity import measured_parity
from hf_distill.report.results import CommonResults, RunResults, TextsResults
from hf_distill.report.texts import SHOWN, texts_verdict
from hf_distill.run.folder import read_saved_recipe
from hf_distill.run.stage import read_result, written_whole
from hf_distill.student.build import STATIC

_OBJECTIVE = (
    "contrastive_weight", "regression_weight", "kl_weight", "margin_weight", "alignment_weight",
    "spread_out_weight", "list_kl_weight", "list_margin_weight", "ranker_temperature",
    "positive_cut", "terms", "temperature", "teacher_temperature", "regression_on",
    "false_negative_margin",
    "contrastive_symmetric", "matryoshka_dims", "hard_negatives_per_pair", "texts_per_pair",
)  # fmt: skip
"""Keys of the objective. The card shows those that are set."""

_OF_LISTS = {"ranker_temperature", "positive_cut"}
"""Those of them that mean something where candidates are mined."""

_OF_TEXTS = ("alignment_weight", "terms", "matryoshka_dims", "texts_per_pair")
"""Those of them that mean something where there are no pairs."""


def _model_results(results: RunResults | TextsResults) -> list[EvalResult]:
    """The student's means as a `model-index`, on the held-out pairs and on further tasks. Figures
    that show nothing are left out.
    """
    source, evaluation = results.collection.source.name, results.evaluation
    measured = {}
    if not isinstance(evaluation, TextsEvaluation):
        measured = {f"{source} (held-out)": (source, evaluation.retrieval)}
    measured |= {name: (name, task.retrieval) for name, task in evaluation.tasks.items()}
    measured = {
        f"{name}, documents embedded by the teacher" if of[1].searched == "teacher" else name: of
        for name, of in measured.items()
    }
    return [
        EvalResult(
            task_type="information-retrieval",
            task_name="Information retrieval",
            dataset_type=hub_id(kind) or re.sub(r"[^\w.-]", "-", kind),
            dataset_name=name,
            dataset_split="test",
            metric_type=re.sub(r"\W+", "_", measure).lower(),
            metric_name=measure,
            metric_value=float(f"{estimate.value:.4f}"),
        )
        for name, (kind, retrieval) in measured.items()
        if not retrieval.trivial
        for measure, estimate in retrieval.systems[STUDENT].items()
    ]


_CARD, _RESULTS = "README.md", ".eval_results/retrieval.yaml"


def _eval_results(results: RunResults | TextsResults) -> str | None:
    """The student's nDCG@10 as the Hub's evaluation-results file, which names the published data
    set. None without a data set, or where the figures show nothing.
    """
    dataset, evaluation = results.recipe.run.hub_dataset_id, results.evaluation
    if dataset is None or isinstance(evaluation, TextsEvaluation) or evaluation.retrieval.trivial:
        return None
    retrieval = evaluation.retrieval
    estimate = retrieval.systems[STUDENT][NDCG]
    entry = EvalResultEntry(
        dataset_id=dataset,
        task_id="retrieval",
        value=float(f"{estimate.value:.4f}"),
        notes=(
            f"{NDCG} over {retrieval.num_queries} held-out queries, "
            f"95% interval {estimate.low:.4f} to {estimate.high:.4f}"
            + (", documents embedded by the teacher" * (retrieval.searched == "teacher"))
        ),
    )
    return yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)


def _objective(recipe: Recipe, keys: Sequence[str]) -> dict[str, Any]:
    """Those of `keys` that are set, e.g. no weight of 0."""
    read = [key for key in keys if key not in _OF_LISTS or recipe.lists.candidates]
    values = {key: getattr(recipe.training, key) for key in read}
    return {key: value for key, value in values.items() if value}


def _layers_text(wanted: str | None, chosen: Sequence[int] | None) -> str:
    """Which layers of its backbone a student keeps: those that the training recorded, else what the
    recipe says.
    """
    if chosen:
        return f"layers {', '.join(map(str, chosen))} of "
    if not wanted:
        return ""
    kind, _, number = wanted.partition("=")
    return {
        "every": f"1 in {number} layers, from the first, of ",
        "search": f"{number} layers, chosen by a search, of ",
    }.get(kind, f"layers {wanted.replace(',', ', ')} of ")


def _title(recipe: Recipe) -> str:
    if recipe.training.hub_model_id:
        return str(recipe.training.hub_model_id).split("/")[-1]
    teacher = "ensemble" if recipe.teacher.ensemble else Path(recipe.teacher.teacher).name
    return f"{teacher}-{recipe.name}-student"


def _metadata(results: RunResults | TextsResults, base_model: str | None) -> ModelCardData:
    recipe = results.recipe
    data_sets = (recipe.run.hub_dataset_id, hub_id(results.collection.source.name))
    optional: dict[str, Any] = {
        **language_metadata(recipe.data.language),
        **licence_metadata(recipe.run.student_license),
        "base_model": base_model,
        "base_model_relation": "finetune" if base_model else None,
        "datasets": [name for name in data_sets if name],
    }
    return ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=[
            "sentence-transformers",
            "feature-extraction",
            "knowledge-distillation",
            "hf_distill",
        ],
        model_name=_title(recipe),
        eval_results=_model_results(results),
        **{key: value for key, value in optional.items() if value},
    )


def _saved(results: CommonResults, path: str) -> dict[str, Any]:
    """A JSON file of the saved student."""
    content: dict[str, Any] = json.loads(
        (results.folder.student / path).read_text(encoding="utf-8")
    )
    return content


def _measured(results: RunResults | TextsResults) -> dict[str, Any]:
    """What the card says of pairs, or of texts alone."""
    if isinstance(results, TextsResults):
        return {
            "texts": True,
            "verdict": texts_verdict(results.evaluation),
            "shown": SHOWN,
            "objective": _objective(results.recipe, _OF_TEXTS),
        }
    evaluation = results.evaluation
    return {
        "texts": False,
        "verdict": verdict(evaluation),
        "retrieval": evaluation.retrieval,
        "ranker_name": code(public_name(evaluation.ranker.name)) if evaluation.ranker else "",
        "significance": evaluation.significance,
        "fidelity": evaluation.fidelity,
        "fidelity_untrained": evaluation.fidelity_untrained,
        "audit": results.audit,
        "objective": _objective(results.recipe, _OBJECTIVE),
    }


def write_model_card(results: RunResults | TextsResults) -> None:
    """Write `student_model_sd/README.md`, and the evaluation-results file beside it."""
    student = results.folder.student
    shutil.rmtree(student / Path(_RESULTS).parent, ignore_errors=True)
    for name, content in model_cards(results).items():
        with written_whole(student / name) as temporary:
            temporary.write_bytes(content)


def _further_texts(results: RunResults | TextsResults) -> FurtherRecord | None:
    """The texts beyond the run's own that stood in the pool."""
    if results.recipe.data.pool_path is None:
        return None
    return read_result(results.folder.further_texts / "manifest.json", FurtherRecord)


def model_cards(results: RunResults | TextsResults) -> dict[str, bytes]:
    """The card of the student and its evaluation results: path in its folder -> content."""
    recipe, evaluation, student = results.recipe, results.evaluation, results.recipe.student
    static = student.student_backbone == STATIC
    from_teacher = student.student_backbone in ("teacher", STATIC)
    backbone = recipe.teacher.teacher if from_teacher else student.student_backbone
    named = "the teacher's backbone" if from_teacher else code(public_name(backbone))
    prompts = _saved(results, "config_sentence_transformers.json").get("prompts") or {}
    environment = read_saved_recipe(results.folder)[ENVIRONMENT_KEY]  # of the machine that ran it
    metadata = _metadata(results, hub_id(backbone))
    card = render(
        "model_card_template.md",
        metadata=front_matter(metadata),
        title=metadata.model_name,
        repo=recipe.training.hub_model_id,
        dataset=recipe.run.hub_dataset_id,
        license=recipe.run.student_license,
        language=recipe.data.language,
        # What it is.
        teacher_name=public_teacher(recipe.teacher),
        teacher_id=hub_id(recipe.teacher.teacher) or Path(recipe.teacher.teacher).name,
        encodes_queries=recipe.training.student_space == "teacher",
        layers=_layers_text(student.student_layers, results.training.layers),
        backbone=named,
        static=static,
        pooling=student.student_pooling,
        vocabulary=student.student_vocabulary,
        max_length=student.student_max_length,
        bias=not static and _saved(results, "2_Dense/config.json")["bias"],
        prompts={kind: prompts.get(kind) or "" for kind in ("query", "document")},
        # What was measured.
        **_measured(results),
        student_query=recipe.data.student_query,
        further_texts=_further_texts(results),
        evaluation=evaluation,
        efficiency=evaluation.efficiency,
        student=evaluation.efficiency.systems[STUDENT],
        teacher=evaluation.efficiency.systems.get(TEACHER),
        processor=environment["hardware"]["processor"],
        onnx=measured_onnx(results),
        onnx_files=FILES,
        openvino=measured_openvino(results),
        openvino_graph=GRAPH,
        openvino_files={INT8: OPENVINO_WEIGHTS},
        model2vec=measured_model2vec(results),
        model2vec_file=WEIGHTS,
        queries_timed=TIMED,
        parity=measured_parity(results),
        server=name_of(EMBED),
        # How it was made.
        source=results.collection.source,
        queries_by=writer_of_queries(results.collection.source),
        record=results.collection.record,
        license_of_texts=licence_of_texts(results),
        soft_labels=results.soft_labels,
        lengths=results.lengths,
        training=results.training,
    )
    measured = _eval_results(results)
    return {_CARD: card.encode()} | ({_RESULTS: measured.encode()} if measured else {})
