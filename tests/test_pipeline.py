"""A whole run, from data to cards, on a tiny recipe: what it leaves, reuses and refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import yaml
from conftest import call, recipe_of, run_tiny, sentences
from datasets import load_dataset
from sentence_transformers import SentenceTransformer

from hf_distill.commands.main import main
from hf_distill.errors import InputError
from hf_distill.evaluation.results import Evaluation
from hf_distill.finished_run import finished
from hf_distill.pipeline import Run
from hf_distill.recipe.config import DistillationConfig
from hf_distill.release.onnx import export_onnx
from hf_distill.run.stage import read_json, write_result
from hf_distill.selection.clusters import document_clusters

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")

Finished = tuple[Path, str]


def losses_of(folder: Path) -> list[dict[str, Any]]:
    log = json.loads((folder / "training.json").read_text())["log"]
    return [row for row in log if "loss" in row]


def test_a_run_leaves_every_artefact(finished_run: Finished) -> None:
    folder, output = finished_run
    for name in (
        "recipe.yaml", "pairs/manifest.json", "soft_labels/manifest.json",
        "teacher_soft_labels.json", "selection.json", "dataset/README.md",
        "student_model_sd/README.md", "student_model_sd/modules.json", "evaluation.json",
        "report.html", "training.json",
    ):  # fmt: skip
        assert (folder / name).is_file(), name
    assert str(folder / "report.html") in output
    assert "The student keeps" in output
    pickles = {".bin", ".pt", ".pkl"}
    assert not [p for p in (folder / "student_model_sd").rglob("*") if p.suffix in pickles]


def test_each_text_is_written_once(finished_run: Finished) -> None:
    """Nothing but the collection, the soft labels of the paper and the data set holds texts."""
    folder, _ = finished_run
    document = sentences(1, 1000)[0]
    holders = {
        str(file.relative_to(folder).parts[0])
        for file in folder.rglob("*")
        if file.is_file() and document.encode() in file.read_bytes()
    }
    assert holders <= {
        "pairs",
        "teacher_soft_labels.json",
        "dataset",
        "report.html",
        "selection.json",
        "evaluation.json",
    }


def test_the_student_loads_plainly_and_is_what_was_measured(finished_run: Finished) -> None:
    folder, _ = finished_run
    student = SentenceTransformer(str(folder / "student_model_sd"), device="cpu")
    embeddings = student.encode(["a cat", "the moon"])
    assert embeddings.shape == (2, 16)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    evaluation = read_json(folder / "evaluation.json", Evaluation)
    data, cache = str(folder / "dataset"), str(folder.parent / "loaded")
    test = load_dataset(data, "selected", split="test", cache_dir=cache)
    queries = student.encode_query(list(test["query"]))
    cosines = (queries * student.encode_document(list(test["document"]))).sum(axis=1)
    assert list(evaluation.pairs.student) == pytest.approx(cosines.tolist(), abs=1e-4)
    assert evaluation.fidelity.num_pairs == len(test) == evaluation.retrieval.num_queries
    systems = evaluation.retrieval.systems
    assert set(systems) == {"teacher", "student", "untrained student", "bm25"}
    for system in systems.values():
        for estimate in system.values():
            assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1  # type: ignore[operator]
    values = evaluation.per_query.systems
    p = scipy.stats.wilcoxon(values["student"], values["teacher"]).pvalue
    comparison = evaluation.significance.comparisons["teacher"]
    assert comparison.tests["wilcoxon"].p == pytest.approx(p, abs=1e-9)


def test_the_figures_are_those_of_the_command_line_of_ir_measures(finished_run: Finished) -> None:
    folder, _ = finished_run
    evaluation = json.loads((folder / "evaluation.json").read_text())
    for name, figures in evaluation["retrieval"]["systems"].items():
        run = f"{name.replace(' ', '-')}.run"
        files = [str(folder / "retrieval" / file) for file in ("qrels.txt", run)]
        command = [sys.executable, "-m", "ir_measures", "--places", "12", *files, *figures]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        values = {line.split()[0]: float(line.split()[1]) for line in printed.splitlines()}
        ours = {measure: figure["value"] for measure, figure in figures.items()}
        assert values == pytest.approx(ours, abs=1e-9)


def test_the_dataset_accounts_for_every_pair(finished_run: Finished) -> None:
    folder, _ = finished_run
    data, cache = str(folder / "dataset"), str(folder.parent / "loaded")
    everything = load_dataset(data, "all", cache_dir=cache)
    selected = load_dataset(data, "selected", cache_dir=cache)
    audit = json.loads((folder / "selection.json").read_text())
    assert sum(len(split) for split in everything.values()) == 200
    dropped = [reason for reason in everything["train"]["dropped_by"] if reason]
    kept = len(everything["train"]) - len(dropped)
    assert len(selected["train"]) == audit["kept"] == kept
    by_rules = sum(rule["dropped"] for rule in audit["rules"])
    assert len([r for r in dropped if not r.startswith("leak")]) == by_rules


def test_a_second_call_reuses_every_stage(copied: Path, tiny: Path) -> None:
    watched = (
        "pairs/manifest.json", "soft_labels/manifest.json", "selection.json", "training.json",
        "student_model_sd/model.safetensors", "evaluation.json",
    )  # fmt: skip
    before = {name: (copied / name).stat().st_mtime_ns for name in watched}
    for recipe in (tiny, copied / "recipe.yaml"):
        run_tiny(recipe, copied)
        assert {name: (copied / name).stat().st_mtime_ns for name in watched} == before


def test_a_saved_recipe_runs_again_to_the_same_student(
    finished_run: Finished, tmp_path: Path
) -> None:
    folder, again = finished_run[0], tmp_path / "again"
    run_tiny(folder / "recipe.yaml", again, "--until", "train")
    one, two = (f / "student_model_sd" / "model.safetensors" for f in (folder, again))
    assert one.read_bytes() == two.read_bytes()


def test_stages_one_by_one_are_a_whole_run(
    tiny: Path, finished_run: Finished, tmp_path: Path
) -> None:
    folder = tmp_path / "staged"
    run_tiny(tiny, folder, "--until", "read")
    assert not (folder / "teacher_soft_labels.json").exists()
    run_tiny(tiny, folder, "--until", "score")
    assert (folder / "teacher_soft_labels.json").is_file()
    assert not (folder / "selection.json").exists()
    run_tiny(tiny, folder, "--until", "select")
    assert not (folder / "student_model_sd").exists()
    run_tiny(tiny, folder, "--until", "evaluate")
    assert not (folder / "dataset").exists()
    files = [f / "evaluation.json" for f in (finished_run[0], folder)]
    one, two = (json.loads(file.read_text())["retrieval"] for file in files)
    assert one == two


def test_report_and_cards_stand_alone_and_escape_the_data(
    tmp_path: Path, tiny: Path, teacher_dir: Path
) -> None:
    evil = '<script>alert("x")</script> | **bold** [link](http://x)'
    pairs = zip(sentences(60), sentences(60, 900), strict=True)
    rows = [
        {"query": f"{q} {evil}", "document": f"{d} {evil}", "topic": i}
        for i, (q, d) in enumerate(pairs)
    ]
    path, folder = tmp_path / "evil.jsonl", tmp_path / "run"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = ["--dataset_path", path, "--num_train_epochs", "1", "--selection", "percentile=20"]
    run_tiny(tiny, folder, *keys)
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;" in report
    assert "<script" not in report
    assert 'src="http' not in report
    assert 'href="http' not in report
    card = (folder / "dataset" / "README.md").read_text(encoding="utf-8")
    assert "<script" not in card
    assert r"\*\*bold\*\* \[link\]\(http" in card
    for name in ("dataset/README.md", "student_model_sd/README.md"):
        text = (folder / name).read_text(encoding="utf-8")
        assert str(tmp_path) not in text, "no card names a path of this machine"
        assert str(teacher_dir) not in text


REFUSED = {
    "no file": ("nowhere.jsonl", ["--dataset_path", "nowhere.jsonl"]),
    "no source": ("'fils'.*'files'", ["--dataset", "fils"]),
    "no path": ("--dataset_path", ["--dataset", "qrecc", "--dataset_path", "none"]),
    "no rule": ("'best'", ["--selection", "best"]),
    "rule's value": ("percentile=180", ["--selection", "percentile=180"]),
    "no teacher": ("./nowhere", ["--teacher", "./nowhere"]),
    "no kind": ("'biencoder'.*'bi-encoder'", ["--teacher_kind", "biencoder"]),
    "batch": ("500", ["--per_device_train_batch_size", "500"]),
    "no key": ("'temperature'", ["--tempreature", "1"]),
    "no repository": ("--hub_model_id", ["--push_to_hub", "true"]),
    "no column": ("--query_column question", ["--query_column", "question"]),
    "unbounded": ("--regression_weight 0.1.*dot", ["--teacher_similarity", "dot"]),
    "no address": ("--teacher_url", ["--teacher_kind", "endpoint"]),
    "no ranker's address": ("--teacher_url", ["--teacher_kind", "rerank-endpoint"]),
    "member": (
        "--ensemble bi-encoder:x",
        ["--teacher_kind", "ensemble", "--ensemble", "bi-encoder:x"],
    ),
    "no alignment": ("--texts_per_pair 2", ["--texts_per_pair", "2", "--alignment_weight", "0"]),
    "term": ("'nowhere:x=1'|nowhere", ["--terms", "nowhere:x=1"]),
    "range": ("--score_range", ["--score_range", "0", "1"]),
    "static": ("--student_layers", ["--student_backbone", "static"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_one_error_code_2_and_nothing_written(
    tiny: Path, tmp_path: Path, name: str
) -> None:
    says, line = REFUSED[name]
    said = call([tiny, "--run_dir", tmp_path / "run", *line])
    assert said.code == 2
    assert said.err.startswith("train.py: error: ")
    assert said.err.count("error: ") == 1
    assert re.search(says, said.err), said.err
    assert not (tmp_path / "run" / "recipe.yaml").exists()
    assert not (tmp_path / "run" / "soft_labels").exists()


def test_the_run_folder_of_another_recipe_is_refused(
    tiny: Path, finished_run: Finished, tmp_path: Path, pairs_file: Path
) -> None:
    folder, _ = finished_run
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    other, copy = tmp_path / "other.yaml", tmp_path / "copy.jsonl"
    other.write_text(tiny.read_text())
    copy.write_text(pairs_file.read_text())
    assert "'tiny'" in call([other, "--run_dir", folder]).err
    assert "dataset_path is" in call([tiny, "--run_dir", folder, "--dataset_path", copy]).err
    assert "recipe.yaml" in call([tiny, "--run_dir", tmp_path]).err
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_a_teacher_of_nans_is_refused(tiny: Path, teacher_dir: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(str(teacher_dir), device="cpu")
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    model.save_pretrained(str(tmp_path / "broken"), create_model_card=False)
    said = call([tiny, "--teacher", tmp_path / "broken", "--run_dir", tmp_path / "run"])
    assert (said.code, "NaN" in said.err) == (2, True)
    assert not (tmp_path / "run" / "teacher_soft_labels.json").exists()


def test_hard_negatives_and_every_term_run_through(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_tiny(
        tiny, folder, "--hard_negatives_per_pair", "2", "--false_negative_margin", "0.05",
        "--margin_weight", "1", "--kl_weight", "1", "--teacher_temperature", "0.2", "--selection",
        "rank=50", "--contrastive_symmetric", "true", "--matryoshka_dims", "4", "8",
        "--student_layers", "search=2", "--student_vocabulary", "used", "--texts_per_pair", "2",
        "--until", "evaluate",
    )  # fmt: skip
    assert len(json.loads((folder / "layer_search.json").read_text())["subsets"]) == 6
    terms = ("contrastive", "regression", "kl", "margin", "alignment")
    log = losses_of(folder)
    assert all({*terms, "ignored_cells"} <= set(row) for row in log)
    assert sum(log[0][term] for term in terms) == pytest.approx(log[0]["loss"], abs=2e-3)


def test_a_static_student_runs_through(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    keys = {"student_backbone": "static", "student_layers": "none", "student_dropout": "none"}
    line = [token for key, value in keys.items() for token in (f"--{key}", value)]
    run_tiny(tiny, folder, *line, "--learning_rate", "0.05")
    student = SentenceTransformer(str(folder / "student_model_sd"), device="cpu")
    assert [type(module).__name__ for module in student] == ["StaticEmbedding", "Normalize"]
    losses = [row["loss"] for row in losses_of(folder)]
    assert losses[-1] < losses[0]
    assert "no transformer" in (folder / "student_model_sd" / "README.md").read_text()
    with pytest.raises(InputError, match="StaticEmbedding"):
        export_onnx(folder / "student_model_sd")
    pytest.importorskip("model2vec")
    said = call(["export", folder, "--format", "model2vec"], main)
    assert (said.code, "unknown token [UNK]" in said.err) == (2, True), said.err
    assert not (folder / "student_model_sd" / "model2vec").exists()


@pytest.fixture(scope="module")
def of_pairs(cross_encoder_dir: Path, backbone_dir: Path) -> list[object]:
    """What to change in the recipe for a teacher that only scores pairs."""
    return [
        "--teacher_kind", "cross-encoder", "--teacher", cross_encoder_dir, "--student_backbone",
        backbone_dir, "--student_init", "random", "--alignment_weight", "0",
    ]  # fmt: skip


def test_a_cross_encoder_teaches_from_pairs_to_cards(
    tiny: Path, of_pairs: list[object], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    said = run_tiny(tiny, folder, *of_pairs)
    results = finished(folder)
    systems = set(results.evaluation.retrieval.systems)
    assert systems == {"student", "untrained student", "bm25"}
    assert results.evaluation.retrieval.student_over_teacher is None
    assert "cannot search" in said.out
    assert "cannot search" in (folder / "report.html").read_text(encoding="utf-8")
    card = (folder / "dataset" / "README.md").read_text(encoding="utf-8")
    assert r"cross\-encoder through sigmoid, in \[0, 1\]" in card
    model_card = (folder / "student_model_sd" / "README.md").read_text(encoding="utf-8")
    assert "`cross-encoder`" in model_card
    again = run_tiny(
        tiny, tmp_path / "again", *of_pairs, "--teacher_kind", "precomputed", "--teacher",
        folder / "teacher_soft_labels.json", "--score_range", "0", "1", "--until", "train",
    )  # fmt: skip
    assert "given, in [0, 1]" in again.out


@pytest.mark.parametrize(
    ("says", "line"),
    [
        ("--student_backbone teacher", ["--student_backbone", "teacher"]),
        ("--student_init pca", ["--student_init", "pca"]),
        ("--kl_weight 1", ["--kl_weight", "1"]),
        ("--regression_weight", ["--teacher_activation", "identity"]),
        ("rank=2", ["--selection", "rank=2"]),
        ("--texts_per_pair 1", ["--texts_per_pair", "1"]),
        ("--student_layers search=2", ["--student_layers", "search=2"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_teacher_of_pairs_cannot_do_is_said(
    tiny: Path, of_pairs: list[object], tmp_path: Path, says: str, line: list[str]
) -> None:
    said = call([tiny, "--run_dir", tmp_path / "run", *of_pairs, *line])
    assert said.code == 2
    assert says in said.err
    assert not (tmp_path / "run").exists(), "refused before anything is scored"


def test_hard_negatives_that_neither_data_nor_teacher_has_are_refused_before_scoring(
    tiny: Path, of_pairs: list[object], tmp_path: Path
) -> None:
    line = [tiny, "--run_dir", tmp_path / "run", *of_pairs, "--hard_negatives_per_pair", "1"]
    said = call(line)
    assert said.code == 2
    assert "--hard_negatives_per_pair 1" in said.err
    assert not (tmp_path / "run" / "soft_labels").exists()


def test_pairs_without_a_score_are_dropped_by_name_and_counted(
    tiny: Path, of_pairs: list[object], pairs_file: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    scored = [{**row, "teacher_score": i / 200} for i, row in enumerate(rows) if i % 10]
    scores, folder = tmp_path / "scores.jsonl", tmp_path / "run"
    scores.write_text("".join(json.dumps(row) + "\n" for row in scored))
    keys = ["--teacher_kind", "precomputed", "--teacher", scores]
    assert "20 without a score" in run_tiny(tiny, folder, *of_pairs, *keys).out
    results = finished(folder)
    data, cache = str(folder / "dataset"), str(tmp_path / "loaded")
    test = load_dataset(data, "selected", split="test", cache_dir=cache)
    with_score = int(np.isfinite(test["teacher_score"]).sum())
    assert results.audit.rules[0].rule == "unscored"
    assert 0 < results.audit.rules[0].dropped <= 20
    assert results.evaluation.fidelity.num_pairs == with_score < len(test)


def test_real_qrecc_with_the_papers_recipe(
    qrecc_train: Path, teacher_dir: Path, backbone_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "qrecc"
    said = run_tiny(
        Path("qrecc"), folder, "--dataset_path", qrecc_train, "--teacher", teacher_dir,
        "--student_backbone", backbone_dir, "--teacher_max_length", "32", "--student_max_length",
        "32", "--num_train_epochs", "1", "--teacher_dtype", "float32", "--bf16", "false",
    )  # fmt: skip
    turns = json.loads(qrecc_train.read_text(encoding="utf-8"))
    by_hand = sum(
        len(t["Rewrite"].strip() or t["Question"].strip()) > 5 and len(t["Answer"].strip()) > 10
        for t in turns
    )
    assert len(json.loads((folder / "teacher_soft_labels.json").read_text())) == by_hand
    assert f"kept {by_hand:,}" in said.out
    assert "turns found 2,711" in said.out


def test_results_of_different_calls_are_refused(tiny: Path, copied: Path) -> None:
    assert finished(copied).training.pairs == finished(copied).audit.kept
    path = copied / "evaluation.json"
    text = path.read_text()
    other = {**json.loads(text), "training": "another student's"}
    del other["sealed"]
    write_result(path, other, [])
    with pytest.raises(InputError, match=r"evaluation\.json.*hf-distill train .*--until release"):
        finished(copied)
    (copied / "evaluation.json").write_text(text)
    run_tiny(tiny, copied, "--until", "select", "--selection", "percentile=50")
    with pytest.raises(InputError, match=r"recipe\.yaml.*selection is \['percentile=50'\] there"):
        finished(copied)
    run_tiny(tiny, copied, "--until", "read")
    with pytest.raises(InputError, match=r"training\.json.*selection\.json"):
        finished(copied)


def test_a_run_on_a_share_that_covers_all_clusters(tiny: Path, copied: Path) -> None:
    run_tiny(tiny, copied, "--until", "train", "--selection", "coverage=0.25", "echo")
    run = Run.open(recipe_of(tiny, run_dir=copied, selection=["coverage=0.25", "echo"]))
    audit, pairs = run.selection.audit, run.collection.pairs("train")
    assert audit.rules[0].pairs_in - audit.rules[0].dropped == round(0.25 * len(pairs))
    assert run.training.pairs == audit.kept
    clusters = document_clusters(pairs, run.scores.embeddings, 0)
    kept = np.bincount(clusters[run.selection.dropped_by != 0], minlength=clusters.max() + 1)
    left = kept < np.bincount(clusters)
    assert 1 < len(kept) <= round(len(set(pairs.documents)) ** 0.5)
    assert kept.max() - kept[left].min() <= 1, "even, but for clusters that gave all they have"


def test_the_student_of_an_earlier_run_says_what_to_train_on(tiny: Path, copied: Path) -> None:
    student = (copied / "student_model_sd").rename(copied.with_name("first"))
    keys = {"run_dir": copied, "selection": ["disagreement=0.25"], "second_model": student}
    run = Run.open(recipe_of(tiny, **keys))
    pairs = run.collection.pairs("train")
    model = SentenceTransformer(str(student))
    (texts,) = pairs.batches("query", "document", size=len(pairs))
    left, right = (model.encode(texts[side]) for side in ("query", "document"))
    ranks = [
        scipy.stats.rankdata(scores) / len(pairs)
        for scores in (run.selection_inputs.scores, (left * right).sum(axis=1))
    ]
    apart = np.abs(ranks[0] - ranks[1])
    assert apart.max() > 0.1, "the student is not the teacher"
    assert run.selection_inputs.disagreement == pytest.approx(apart, abs=2 / len(pairs))
    assert run.selection_inputs.key != run.ranking.key, "it is another one with another model"
    assert len(run.selection.kept) == round(0.25 * len(pairs))
    assert apart[run.selection.kept].min() > np.median(apart)
    with pytest.raises(InputError, match=r"--second_model .* no selection rule reads it"):
        next(Run.open(recipe_of(tiny, **{**keys, "selection": ["echo"]})).stages())


def test_the_precision_is_decided_once_and_written_down(tiny: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(tiny.read_text())
    for key in ("bf16", "teacher_dtype"):
        del content[key]
    auto = tmp_path / "auto.yaml"
    auto.write_text(yaml.safe_dump(content))
    run_tiny(auto, tmp_path / "run", "--until", "read")
    saved = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert isinstance(saved["bf16"], bool)
    assert saved["teacher_dtype"] == ("bfloat16" if saved["bf16"] else "float32")


def test_another_number_of_processes_is_another_training(
    tiny: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.open(recipe_of(tiny, run_dir=copied))
    one = run.training_inputs(run.selection)
    assert run.training_inputs(run.selection) == one
    monkeypatch.setattr(DistillationConfig, "world_size", property(lambda _: 2))
    assert run.training_inputs(run.selection) != one
