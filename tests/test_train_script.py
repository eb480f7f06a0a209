"""What a user runs: `train.py` as a subprocess, end to end on a tiny recipe, refused input, two
processes, the Hub.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import yaml
from conftest import ROOT, sentences
from datasets import load_dataset
from hub_server import TOKEN, Hub, card_errors, running_hub
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling

from hf_distill import commands
from hf_distill.commands import demo as demo_command
from hf_distill.commands import search as search_command
from hf_distill.commands.demo import (
    local_demo,
    write_space,
)
from hf_distill.errors import InputError
from hf_distill.finished_run import open_finished_run
from hf_distill.recipe.arguments import read_recipe
from hf_distill.release.model_card import (
    releases_of,
    write_model_card,
)
from hf_distill.release.onnx import export_onnx
from hf_distill.run.folder import RunFolder
from hf_distill.serving import demo_app
from hf_distill.serving.index import (
    Corpus,
    python_key,
)

RECIPE = {
    "dataset": "files", "group_column": "topic", "test_fraction": 0.2, "validation_fraction": 0.1, "teacher_dtype": "float32",
    "selection": ["invalid", "echo", "duplicate", "percentile=20"], "student_layers": "0,2", "student_dim": 16, "student_init": "pca",
    "student_max_length": 32, "student_dropout": 0.0, "alignment_weight": 1.0, "regression_on": "matrix", "num_train_epochs": 2,
    "per_device_train_batch_size": 16, "learning_rate": 1e-3, "warmup_steps": 0.1, "eval_strategy": "epoch", "save_strategy": "epoch",
    "load_best_model_at_end": True, "early_stopping_patience": 3, "logging_steps": 2, "bf16": False, "shard_size": 100,
}  # fmt: skip


ONE_CORE = {"LOCAL_WORLD_SIZE": str(os.cpu_count() or 1)}
"""A process takes its share of the cores: one, for another test is running beside it."""


def run_script(
    *line: str,
    launcher: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
    check: int | None = 0,
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launcher, str(ROOT / "train.py"), *line]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**ONE_CORE, **os.environ, **(env or {})},
        check=False,
        timeout=600,
    )
    if check is not None:
        assert done.returncode == check, (
            f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
        )
    return done


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, pairs_file: Path, teacher_dir: Path) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(
        yaml.safe_dump({**RECIPE, "dataset_path": str(pairs_file), "teacher": str(teacher_dir)})
    )
    return path


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    done = run_script(str(recipe), "--run_dir", str(folder))
    return folder, done.stdout


def test_a_run_leaves_every_artefact(finished: tuple[Path, str]) -> None:
    folder, output = finished
    for name in (
        "recipe.yaml", "soft_labels/manifest.json", "teacher_soft_labels.json", "selection.json", "dataset/README.md",
        "student_model_sd/README.md", "student_model_sd/modules.json", "evaluation.json", "report.html", "training.json",
    ):  # fmt: skip
        assert (folder / name).is_file(), name
    assert str(folder / "report.html") in output
    assert "The student keeps" in output
    assert not [
        p for p in (folder / "student_model_sd").rglob("*") if p.suffix in {".bin", ".pt", ".pkl"}
    ]


def test_the_student_loads_plainly_and_is_what_was_evaluated(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    student = SentenceTransformer(str(folder / "student_model_sd"), device="cpu")
    embeddings = student.encode(["a cat", "the moon"])
    assert embeddings.shape == (2, 16)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    test = load_dataset(
        str(folder / "dataset"), "selected", split="test", cache_dir=str(folder / "loaded")
    )
    cosines = (
        student.encode_query(list(test["query"])) * student.encode_document(list(test["document"]))
    ).sum(axis=1)
    assert evaluation["pairs"]["student_score"] == pytest.approx(cosines.tolist(), abs=1e-4)
    assert (
        evaluation["efficiency"]["teacher"]["dtype"]
        == evaluation["efficiency"]["student"]["dtype"]
        == "float32"
    )
    assert (
        evaluation["fidelity"]["num_pairs"] == len(test) == evaluation["retrieval"]["num_queries"]
    )
    assert set(evaluation["retrieval"]["systems"]) == {
        "teacher",
        "student",
        "untrained student",
        "bm25",
    }
    values = evaluation["per_query"]["systems"]
    assert list(values) == list(evaluation["retrieval"]["systems"])
    written = evaluation["significance"]["comparisons"]["teacher"]["wilcoxon"]["p"]
    assert written == pytest.approx(
        scipy.stats.wilcoxon(values["teacher"], values["student"]).pvalue, abs=1e-9
    )
    assert 0 < evaluation["ranking_agreement"]["student"]["rbo"]["value"] < 1
    assert len(evaluation["wins_and_losses"]["losses"]) <= 5
    for system in evaluation["retrieval"]["systems"].values():
        for figure in system.values():
            assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1


def test_the_retrieval_figures_are_those_of_the_command_line_of_ir_measures(
    finished: tuple[Path, str],
) -> None:
    folder, _ = finished
    evaluation = json.loads((folder / "evaluation.json").read_text())
    for name, figures in evaluation["retrieval"]["systems"].items():
        files = [
            str(folder / "retrieval" / file)
            for file in ("qrels.txt", f"{name.replace(' ', '-')}.run")
        ]
        command = [sys.executable, "-m", "ir_measures", "--places", "12", *files, *figures]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        values = {
            measure: float(value)
            for measure, value in (line.split() for line in printed.splitlines())
        }
        assert values == pytest.approx(
            {measure: figure["value"] for measure, figure in figures.items()}, abs=1e-9
        )


def test_what_an_index_costs_and_whether_the_old_one_can_be_kept(
    finished: tuple[Path, str],
) -> None:
    evaluation = json.loads((finished[0] / "evaluation.json").read_text())
    assert set(evaluation["index"]) == {"teacher", "student"}
    assert evaluation["index"]["student"]["int8"]["bytes_per_million"] == 16_000_000
    for name, index in evaluation["index"].items():
        assert index["float32"]["nDCG@10"]["value"] == pytest.approx(
            evaluation["retrieval"]["systems"][name]["nDCG@10"]["value"], abs=1e-3
        )
        cost = evaluation["efficiency"][name]
        assert cost["backend"] == "torch"
        assert cost["peak_megabytes"] > cost["megabytes"]
    assert evaluation["compatibility"]["possible"]
    student = finished[0] / "student_model_sd"
    assert evaluation["efficiency"]["student"]["bytes_on_disk"] == sum(
        file.stat().st_size
        for file in student.rglob("*")
        if file.is_file() and file.suffix != ".md"
    )


def test_the_dataset_accounts_for_every_pair(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    everything = load_dataset(str(folder / "dataset"), "all", cache_dir=str(folder / "loaded"))
    selected = load_dataset(str(folder / "dataset"), "selected", cache_dir=str(folder / "loaded"))
    audit = json.loads((folder / "selection.json").read_text())
    assert sum(len(split) for split in everything.values()) == 200
    dropped = [reason for reason in everything["train"]["dropped_by"] if reason]
    assert len(selected["train"]) == audit["kept"] == len(everything["train"]) - len(dropped)
    assert len([r for r in dropped if not r.startswith("leak")]) == sum(
        rule["dropped"] for rule in audit["rules"]
    )


def test_a_second_call_reuses_every_stage(finished: tuple[Path, str], recipe: Path) -> None:
    folder, _ = finished
    watched = [
        "soft_labels/manifest.json",
        "selection.json",
        "training.json",
        "student_model_sd/model.safetensors",
        "evaluation.json",
    ]
    before = {name: (folder / name).stat().st_mtime_ns for name in watched}
    done = run_script(str(recipe), "--run_dir", str(folder))
    assert "The student is there already" in done.stdout
    assert {name: (folder / name).stat().st_mtime_ns for name in watched} == before


def test_a_saved_recipe_runs_again_to_the_same_student(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    folder, _ = finished
    run_script(
        str(folder / "recipe.yaml"), "--run_dir", str(tmp_path / "again"), "--until", "train"
    )
    one, two = (f / "student_model_sd" / "model.safetensors" for f in (folder, tmp_path / "again"))
    assert one.read_bytes() == two.read_bytes()


def test_stages_one_by_one_are_a_whole_run(
    recipe: Path, finished: tuple[Path, str], tmp_path: Path
) -> None:
    folder = tmp_path / "staged"
    run_script(str(recipe), "--run_dir", str(folder), "--until", "score")
    assert (folder / "teacher_soft_labels.json").is_file()
    assert not (folder / "selection.json").exists()
    run_script(str(recipe), "--run_dir", str(folder), "--until", "select")
    assert not (folder / "student_model_sd").exists()
    run_script(str(recipe), "--run_dir", str(folder), "--until", "evaluate")
    assert not (folder / "dataset").exists()
    one, two = (
        json.loads((f / "evaluation.json").read_text())["retrieval"] for f in (finished[0], folder)
    )
    assert one == two


def test_report_and_cards_stand_alone_and_escape_the_data(
    tmp_path: Path, recipe: Path, teacher_dir: Path
) -> None:
    evil = '<script>alert("x")</script> | **bold** [link](http://x)'
    rows = [
        {"query": f"{q} {evil}", "document": f"{d} {evil}", "topic": i}
        for i, (q, d) in enumerate(zip(sentences(60), sentences(60, 900), strict=True))
    ]
    path = tmp_path / "evil.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "run"
    run_script(
        str(recipe),
        "--dataset_path",
        str(path),
        "--run_dir",
        str(folder),
        "--num_train_epochs",
        "1",
        "--selection",
        "percentile=20",
    )
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;" in report
    assert "<script" not in report
    assert 'src="http' not in report
    assert 'href="http' not in report
    card = (folder / "dataset" / "README.md").read_text(encoding="utf-8")
    assert "<script" not in card
    assert r"\*\*bold\*\* \[link\]\(http" in card
    for card in ("dataset/README.md", "student_model_sd/README.md"):
        text = (folder / card).read_text(encoding="utf-8")
        assert str(tmp_path) not in text, "no card names a path of this machine"
        assert str(teacher_dir) not in text


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["--dataset_path", "nowhere.jsonl"], "no file or folder at nowhere.jsonl"),
        (["--selection", "best"], "unknown selection rule 'best'"),
        (["--selection", "percentile=180"], "the value of percentile must be between 0 and 100"),
        (["--teacher", "./nowhere"], "no folder at ./nowhere"),
        (["--per_device_train_batch_size", "500"], "do not fill one batch of 500"),
        (["--tempreature", "1"], "did you mean 'temperature'?"),
        (["--push_to_hub", "true"], "push_to_hub needs --hub_model_id"),
        (["--query_column", "question"], "no column 'question'"),
        (
            ["--teacher_similarity", "dot"],
            "are dot, unbounded: a student's cosine, in [-1, 1], cannot follow them",
        ),
        (["--teacher_kind", "endpoint"], "--teacher_kind endpoint and --teacher_url go together"),
        (["--ensemble", "bi-encoder:x"], "'bi-encoder:x' is no KIND:TEACHER=WEIGHT"),
        (
            ["--hard_negatives_per_pair", "9"],
            "hard_negatives_per_pair is 9, but hard_negatives says to note 4",
        ),
        (
            ["--augmented_texts_per_pair", "2", "--alignment_weight", "0"],
            "makes texts to be aligned, but alignment_weight is 0",
        ),
        (
            ["--augmented_texts_per_pair", "-1"],
            "augmented_texts_per_pair is -1, but must be at least 0",
        ),
        (["--final_weights", "contrast=1"], "'contrast=1' is no TERM=WEIGHT"),
        (["--score_range", "0", "1"], "declares the scale of precomputed scores"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_error_code_2_and_nothing_written(
    recipe: Path, tmp_path: Path, line: list[str], says: str
) -> None:
    folder = tmp_path / "run"
    done = run_script(str(recipe), "--run_dir", str(folder), *line, check=2)
    errors = [row for row in done.stderr.splitlines() if "error" in row.lower()]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("train.py: error: ")
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "recipe.yaml").exists()
    assert not (folder / "soft_labels").exists()


def test_the_run_folder_of_another_recipe_is_refused(
    recipe: Path, finished: tuple[Path, str], tmp_path: Path, pairs_file: Path
) -> None:
    folder, _ = finished
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    other = tmp_path / "other.yaml"
    other.write_text(recipe.read_text())
    done = run_script(str(other), "--run_dir", str(folder), check=2)
    assert "holds another run: its recipe is 'tiny', this one is 'other'" in done.stderr
    copy = tmp_path / "copy.jsonl"
    copy.write_text(pairs_file.read_text())
    done = run_script(str(recipe), "--run_dir", str(folder), "--dataset_path", str(copy), check=2)
    assert "dataset_path is" in done.stderr
    done = run_script(str(recipe), "--run_dir", str(tmp_path), check=2)
    assert "no recipe.yaml, so it is no run" in done.stderr
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_a_teacher_of_nans_is_refused(recipe: Path, teacher_dir: Path, tmp_path: Path) -> None:
    import torch

    model = SentenceTransformer(str(teacher_dir), device="cpu")
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    model.save_pretrained(str(tmp_path / "broken"), create_model_card=False)
    done = run_script(
        str(recipe),
        "--teacher",
        str(tmp_path / "broken"),
        "--run_dir",
        str(tmp_path / "run"),
        check=2,
    )
    assert "returns NaN or infinite embeddings" in done.stderr
    assert not (tmp_path / "run" / "teacher_soft_labels.json").exists()


def test_two_processes_run_through(
    recipe: Path, tmp_path: Path, finished: tuple[Path, str]
) -> None:
    folder = tmp_path / "two"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    run_script(
        str(recipe),
        "--run_dir",
        str(folder),
        "--per_device_train_batch_size",
        "8",
        launcher=launcher,
    )
    training = json.loads((folder / "training.json").read_text())
    assert training["processes"] == 2
    assert (folder / "report.html").is_file()
    labels = [(f / "teacher_soft_labels.json").read_bytes() for f in (folder, finished[0])]
    assert labels[0] == labels[1], "shards dealt out to two ranks give the scores of one"


def test_hard_negatives_and_every_term_run_through(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_script(
        str(recipe), "--run_dir", str(folder), "--hard_negatives_per_pair", "2", "--false_negative_margin", "0.05", "--margin_weight", "1",
        "--distribution_weight", "1", "--teacher_temperature", "0.2", "--regression_loss", "huber", "--final_weights", "alignment=0.5",
        "--log_gradient_norms", "true", "--selection", "rank=50", "--contrastive_symmetric", "true", "--matryoshka_dims", "4", "8",
        "--student_layers", "search=2", "--student_vocabulary", "used", "--augmented_texts_per_pair", "2", "--until", "evaluate",
    )  # fmt: skip
    assert len(json.loads((folder / "layer_search.json").read_text())["subsets"]) == 6
    log = [
        row for row in json.loads((folder / "training.json").read_text())["log"] if "loss" in row
    ]
    terms = ("contrastive", "regression", "distribution", "margin", "alignment")
    assert all(
        {*terms, *(f"{term}_gradient" for term in terms), "ignored_cells"} <= set(row)
        for row in log
    )
    assert sum(log[0][term] for term in terms) == pytest.approx(log[0]["loss"], abs=2e-3)


def test_a_static_student_runs_through(recipe: Path, tmp_path: Path) -> None:
    keys = {
        k: v
        for k, v in yaml.safe_load(recipe.read_text()).items()
        if k not in ("student_layers", "student_dropout")
    }
    own = tmp_path / "static.yaml"
    own.write_text(yaml.safe_dump({**keys, "student_backbone": "static", "learning_rate": 0.05}))
    folder = tmp_path / "run"
    run_script(str(own), "--run_dir", str(folder))
    student = SentenceTransformer(str(folder / "student_model_sd"), device="cpu")
    assert [type(module).__name__ for module in student] == ["StaticEmbedding", "Normalize"]
    log = [
        row["loss"]
        for row in json.loads((folder / "training.json").read_text())["log"]
        if "loss" in row
    ]
    assert log[-1] < log[0]
    assert (
        "The student has no transformer" in (folder / "student_model_sd" / "README.md").read_text()
    )
    with pytest.raises(InputError, match="begins with a StaticEmbedding"):
        export_onnx(folder / "student_model_sd")


@pytest.fixture(scope="module")
def of_pairs(cross_encoder_dir: Path, backbone_dir: Path) -> list[str]:
    """What to change in the recipe for a teacher that only scores pairs."""
    return [
        "--teacher_kind", "cross-encoder", "--teacher", str(cross_encoder_dir), "--student_backbone", str(backbone_dir), "--student_init",
        "random", "--alignment_weight", "0",
    ]  # fmt: skip


def test_a_cross_encoder_teaches_from_pairs_to_cards(
    recipe: Path, of_pairs: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    done = run_script(str(recipe), "--run_dir", str(folder), *of_pairs)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert set(evaluation["retrieval"]["systems"]) == {"student", "untrained student", "bm25"}
    assert evaluation["retrieval"]["student_over_teacher"] is None
    assert "the teacher embeds no texts, so it cannot search the corpus" in done.stdout
    assert "cannot search" in (folder / "report.html").read_text(encoding="utf-8")
    card = (folder / "dataset" / "README.md").read_text(encoding="utf-8")
    assert r"cross\-encoder through sigmoid, in \[0, 1\]" in card
    assert "`cross-encoder`" in (folder / "student_model_sd" / "README.md").read_text(
        encoding="utf-8"
    )
    again = run_script(
        str(recipe), "--run_dir", str(tmp_path / "again"), *of_pairs, "--teacher_kind", "precomputed", "--teacher",
        str(folder / "teacher_soft_labels.json"), "--score_range", "0", "1", "--until", "train",
    )  # fmt: skip
    assert "given, in [0, 1]" in again.stdout


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            ["--student_backbone", "teacher"],
            "is no SentenceTransformer that a student could be cut from",
        ),
        (["--student_init", "pca"], "the teacher's embeddings do not exist"),
        (
            ["--distribution_weight", "1"],
            "embeds no texts, so that it knows no scores but those of the pairs; set distribution_weight: 0",
        ),
        (["--teacher_activation", "identity"], "are cross-encoder through identity, unbounded"),
        (["--selection", "rank=2"], "selection asks for the teacher's ranking of a pool"),
        (
            ["--hard_negatives_per_pair", "1"],
            "hard_negatives_per_pair asks for the teacher's ranking",
        ),
        (["--augmented_texts_per_pair", "1"], "augmented_texts_per_pair is 1, but the teacher"),
        (["--student_layers", "search=2"], "student_layers asks for the teacher's ranking"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_a_teacher_of_pairs_cannot_do_is_said(
    recipe: Path, of_pairs: list[str], tmp_path: Path, line: list[str], says: str
) -> None:
    done = run_script(str(recipe), "--run_dir", str(tmp_path / "run"), *of_pairs, *line, check=2)
    assert says in done.stderr
    assert not (tmp_path / "run").exists(), "refused before anything is scored"


def test_pairs_without_a_score_are_dropped_by_name_and_counted(
    recipe: Path, of_pairs: list[str], pairs_file: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    scores = tmp_path / "scores.jsonl"
    scores.write_text(
        "".join(
            json.dumps({**row, "teacher_score": i / 200}) + "\n"
            for i, row in enumerate(rows)
            if i % 10
        )
    )
    folder = tmp_path / "run"
    done = run_script(
        str(recipe),
        "--run_dir",
        str(folder),
        *of_pairs,
        "--teacher_kind",
        "precomputed",
        "--teacher",
        str(scores),
    )
    assert "20 without a score" in done.stdout
    audit = json.loads((folder / "selection.json").read_text())
    test = load_dataset(
        str(folder / "dataset"), "selected", split="test", cache_dir=str(folder / "loaded")
    )
    scored_test = int(np.isfinite(test["teacher_score"]).sum())
    assert audit["rules"][0]["rule"] == "unscored"
    assert 0 < audit["rules"][0]["dropped"] <= 20
    assert (
        json.loads((folder / "evaluation.json").read_text())["fidelity"]["num_pairs"]
        == scored_test
        < len(test)
    )


def test_real_qrecc_with_the_papers_recipe(
    qrecc_train: Path, teacher_dir: Path, backbone_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "qrecc"
    done = run_script(
        str(ROOT / "recipes" / "qrecc.yaml"), "--dataset_path", str(qrecc_train), "--teacher", str(teacher_dir), "--student_backbone",
        str(backbone_dir), "--teacher_max_length", "32", "--student_max_length", "32", "--num_train_epochs", "1", "--run_dir", str(folder),
        "--teacher_dtype", "float32", "--bf16", "false",
    )  # fmt: skip
    turns = json.loads(qrecc_train.read_text(encoding="utf-8"))
    by_hand = sum(
        len(t["Rewrite"].strip() or t["Question"].strip()) > 5 and len(t["Answer"].strip()) > 10
        for t in turns
    )
    assert len(json.loads((folder / "teacher_soft_labels.json").read_text())) == by_hand
    assert f"kept {by_hand:,}" in done.stdout
    assert "turns found 2,711" in done.stdout


# --- the Hub
# ---------------------------------------------------------------------------------------------------------


def hub_environment(hub: Hub, home: Path, token: str = TOKEN) -> dict[str, str]:
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": token,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }


PUSH = ("--push_to_hub", "true", "--hub_model_id", "you/student", "--hub_dataset_id", "you/pairs")


@pytest.fixture
def copied(finished: tuple[Path, str], tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(finished[0], tmp_path / "copied"))


def test_publishing_and_loading_back(recipe: Path, copied: Path, tmp_path: Path) -> None:
    with running_hub() as hub:
        done = run_script(
            str(recipe),
            "--run_dir",
            str(copied),
            *PUSH,
            env=hub_environment(hub, tmp_path / "home"),
        )
        assert done.stdout.count("Published: ") == done.stdout.count("Loaded back ") == 2
        _, files = hub.files("models", "you/student") or ("", {})
        assert (
            files["model.safetensors"]
            == (copied / "student_model_sd" / "model.safetensors").read_bytes()
        )
        assert b"datasets:\n- you/pairs" in files["README.md"]
        for kind, repo in (("datasets", "you/pairs"), ("models", "you/student")):
            assert hub.commits(kind, repo) == 1
            assert hub.repos[kind, repo].tags == {"v1": hub.repos[kind, repo].commits[-1][0]}
            assert not card_errors(
                (hub.files(kind, repo) or ("", {}))[1]["README.md"].decode(), kind[:-1]
            )
        code = (
            "from sentence_transformers import SentenceTransformer; from datasets import load_dataset\n"
            f"for revision in (None, 'v1', '{hub.repos['models', 'you/student'].tags['v1']}'):\n"
            "    print(SentenceTransformer('you/student', device='cpu', revision=revision).encode('a cat').tolist())\n"
            "print(len(load_dataset('you/pairs', 'selected', split='train')))"
        )
        fresh = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={**os.environ, **hub_environment(hub, tmp_path / "fresh")},
            check=True,
        ).stdout.splitlines()
    local = SentenceTransformer(str(copied / "student_model_sd"), device="cpu").encode("a cat")
    for line in fresh[:3]:
        assert json.loads(line) == pytest.approx(local.tolist(), abs=1e-6)
    assert int(fresh[3]) == json.loads((copied / "selection.json").read_text())["kept"]
    for file in copied.rglob("*"):
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes(), (
            f"the token is in {file}"
        )
    assert TOKEN not in done.stdout + done.stderr


def test_a_dry_run_shows_what_would_be_sent(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [
        "publish",
        str(copied),
        "--model",
        "you/student",
        "--dataset",
        "you/pairs",
        "--license",
        "mit",
        "--dry_run",
    ]
    assert commands.main(line) == 0
    said = capsys.readouterr().out
    assert "model you/student: would be created (the Hub was not asked" in said
    assert ".eval_results/retrieval.yaml" in said
    assert "Dry run: nothing was sent" in said
    card = (copied / "student_model_sd" / "README.md").read_text(encoding="utf-8")
    assert "license: mit" in card
    assert not card_errors(card, "model")
    linked = (
        releases_of(read_recipe([str(copied / "recipe.yaml"), *PUSH]), RunFolder(copied))[0]
        .instead["README.md"]
        .decode()
    )
    assert not card_errors(linked, "dataset")
    assert 'load_dataset("you/pairs", "selected"' in linked
    assert "https://huggingface.co/you/student" in linked
    assert "private" not in said
    with (copied / "recipe.yaml").open("a") as file:
        file.write("hub_private_repo: true\nhub_revision: first\n")
    assert commands.main(line) == 0
    said = capsys.readouterr().out
    assert said.count("would be created, private (the Hub was not asked") == 2, (
        "the recipe of the run is heard"
    )
    assert said.count("in one commit, tagged first\n") == 2
    assert commands.main(["publish", str(copied.parent), "--model", "you/student"]) == 2
    assert "so it is no run" in capsys.readouterr().err


def test_a_run_of_different_calls_is_not_opened(
    recipe: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert open_finished_run(copied).training["pairs"] == open_finished_run(copied).audit["kept"]
    evaluation = json.loads((copied / "evaluation.json").read_text())
    (copied / "evaluation.json").write_text(
        json.dumps({**evaluation, "fingerprint": "another student's"})
    )
    with pytest.raises(
        InputError,
        match=r"not of this student and these pairs.*train.py .*recipe.yaml --run_dir .* --until release",
    ):
        open_finished_run(copied)
    (copied / "evaluation.json").write_text(json.dumps(evaluation))
    run_script(
        str(recipe), "--run_dir", str(copied), "--until", "select", "--selection", "percentile=50"
    )
    assert commands.main(["publish", str(copied), "--model", "you/student", "--dry_run"]) == 2
    assert re.search(
        r"its student was trained on \d+ pairs, and its selection.json keeps \d+: they are of",
        capsys.readouterr().err,
    )


def test_the_card_says_what_selected_and_what_is_kept(copied: Path) -> None:
    run = open_finished_run(copied)

    def card(
        student: dict[str, Any],
        rules: list[dict[str, Any]],
        layers: list[int] | None = None,
        negatives: int = 0,
    ) -> str:
        recipe = dataclasses.replace(
            run.recipe,
            student=dataclasses.replace(run.recipe.student, **student),
            trainer=dataclasses.replace(
                run.recipe.trainer,
                hard_negatives_per_pair=negatives,
                augmented_texts_per_pair=2 * negatives,
            ),
        )
        audit = {**run.audit, "rules": rules}
        write_model_card(
            run.evaluation, {**run.training, "layers": layers}, audit, recipe, run.data, run.folder
        )
        return (copied / "student_model_sd" / "README.md").read_text(encoding="utf-8")

    common = {"pairs_in": 100, "dropped": 0, "weighted": 20}
    by_source = {"column": "source", "min": 0.25, "max": 0.5}
    made = card(
        {"student_layers": "search=2"},
        [
            {**common, "rule": "margin_weight=0.5", "column": "margin", "threshold": 0.125},
            {
                **common,
                "weighted": 0,
                "dropped": 30,
                "rule": "percentile=30",
                "threshold": None,
                "threshold_by": by_source,
            },
        ],
        layers=[0, 2],
        negatives=2,
    )
    assert "| `margin_weight=0.5` | 100 | 0 | 20 | 100 | margin 0.1250 |" in made
    assert "| `percentile=30` | 100 | 30 | – | 70 | 0.2500 to 0.5000, one for each source |" in made
    assert "| `hard_negatives_per_pair` | 2 |" in made
    assert "| `augmented_texts_per_pair` | 4 |" in made
    assert "layers 0, 2 of the teacher's backbone" in made
    assert (
        "Version 2 cannot load it: it reads a head from a pickle only.\n\n### transformers" in made
    )
    static = card({"student_backbone": "static"}, [])
    assert "pickle" not in static
    assert "_per_pair" not in static
    assert "is 1 in 2 layers, from the first, of the teacher's backbone" in card(
        {"student_layers": "every=2"}, []
    )
    assert "The student is the teacher's backbone, mean" in card({"student_layers": None}, [])


def test_every_snippet_of_the_card_runs_and_gives_the_same_embeddings(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.main(["export", str(copied)]) == 0
    assert "held-out queries" in capsys.readouterr().out
    measured = json.loads((copied / "onnx.json").read_text())
    assert abs(measured["variants"]["float32"]["minus_student"]["value"]) < 1e-3
    run = open_finished_run(copied)
    write_model_card(run.evaluation, run.training, run.audit, run.recipe, run.data, run.folder)
    card = (copied / "student_model_sd" / "README.md").read_text(encoding="utf-8")
    blocks = [
        b.replace("path/to/this/folder", str(run.folder.student))
        for b in re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    ]
    assert [
        next(
            name
            for name in (
                "sentence_transformers",
                "langchain_huggingface",
                "onnxruntime",
                "transformers",
            )
            if name in block
        )
        for block in blocks
    ] == ["sentence_transformers", "transformers", "onnxruntime", "langchain_huggingface"]
    cosines = []
    for block in blocks:
        if "langchain" in block and importlib.util.find_spec("langchain_huggingface") is None:
            continue
        names: dict[str, Any] = {}
        exec(block, names)
        cosines.append((np.asarray(names["queries"]) @ np.asarray(names["documents"]).T).item())
    assert len(cosines) >= 3
    np.testing.assert_allclose(cosines, cosines[0], atol=1e-5)


def test_searching_a_runs_documents(
    copied: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    pairs_file: Path,
) -> None:
    assert commands.main(["search", str(copied), "a", "cat", "--top", "3"]) == 0
    first = capsys.readouterr()
    student = SentenceTransformer(str(copied / "student_model_sd"), device="cpu")
    documents = [json.loads(line)["document"] for line in pairs_file.read_text().splitlines()]
    best = documents[
        int((student.encode_document(documents) @ student.encode_query("a cat")).argmax())
    ]
    assert best in first.out.splitlines()[1]
    assert "3 of 200 documents in" in first.err
    kept = {path: path.stat().st_mtime_ns for path in (copied / "search").iterdir()}
    monkeypatch.setattr(sys, "stdin", io.StringIO("a cat\n\nthe moon\n"))
    assert commands.main(["search", str(copied), "--top", "3"]) == 0
    again = capsys.readouterr().out
    assert again.startswith(first.out), "asked again, it answers the same"
    assert len(again.splitlines()) == 12
    assert {path: path.stat().st_mtime_ns for path in (copied / "search").iterdir()} == kept, (
        "nothing is embedded twice"
    )
    assert commands.main(["search", str(copied), "x", "--top", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err


def test_searching_python_with_a_model_alone(
    copied: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    few = Corpus(
        ["csv.reader", "evil"], ["Return a reader.", "escape \x1b[31m sequence"], python_key()
    )
    monkeypatch.setattr(search_command, "corpus_of_python", lambda: few)
    assert commands.main(["search", str(copied / "student_model_sd"), "escape"]) == 0
    said = capsys.readouterr().out
    assert "csv.reader" in said
    assert "\x1b" not in said, "a document does not command the terminal"
    assert len(list((tmp_path / "cache" / "hf_distill" / "search").iterdir())) == 2


def test_the_demo_answers_for_both_models_and_escapes(copied: Path, teacher_dir: Path) -> None:
    title, sides, ids, texts = local_demo(open_finished_run(copied))
    assert title == "tiny: teacher and student"
    assert [side.name for side in sides] == ["teacher: teacher", "student: tiny"]
    assert len(texts) == 200
    teacher = SentenceTransformer(str(teacher_dir), device="cpu")
    scores = teacher.encode(texts) @ teacher.encode("a cat")
    page = demo_app.answer_html(sides[0], "a cat", ids, texts)
    assert page.index(texts[int(scores.argmax())]) < page.index("</li>")
    assert "embedded in" in page
    evil = "<script>alert(1)</script>"
    assert "<script" not in demo_app.answer_html(sides[1], evil, [evil] * 200, [evil] * 200)
    assert demo_app.answer_html(sides[1], " ", ids, texts) == ""


def test_the_demos_teacher_is_the_runs(
    copied: Path, teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (copied / "recipe.yaml").open("a") as file:
        file.write(
            "teacher_pooling: cls\nteacher_max_length: 4\nteacher_similarity: euclidean\nquery_prompt: 'ask '\n"
        )
    run = open_finished_run(copied)
    _, (side, _), _, texts = local_demo(run)
    teacher = SentenceTransformer(str(teacher_dir), device="cpu")
    teacher[1] = Pooling(teacher[1].embedding_dimension, pooling_mode="cls")
    teacher.max_seq_length = 4
    expected = -np.linalg.norm(teacher.encode(texts) - teacher.encode("ask a cat"), axis=1)
    np.testing.assert_allclose(
        side.score(side.embed("a cat"), side.embeddings), expected, atol=1e-4
    )
    with pytest.raises(InputError, match="which a Space cannot load"):
        write_space(run, tmp_path / "space", "you/student")
    monkeypatch.setattr(demo_command, "hub_id", str)
    with pytest.raises(
        InputError,
        match="run with teacher_pooling cls, teacher_max_length 4, teacher_similarity euclidean; a Space",
    ):
        write_space(run, tmp_path / "space", "you/student")
    assert not (tmp_path / "space").exists()


def test_a_space_loads_what_the_demo_here_shows(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_finished_run(copied)
    monkeypatch.setattr(demo_command, "hub_id", str)
    write_space(run, tmp_path, str(run.folder.student))
    _, here, *documents = local_demo(run)
    title, sides, *loaded = demo_app.load(tmp_path)
    assert loaded == documents
    for local, side in zip(here, sides, strict=True):
        expected = local.score(local.embed("a cat"), local.embeddings)
        np.testing.assert_allclose(
            side.score(side.embed("a cat"), side.embeddings), expected, atol=2e-3
        )
    assert yaml.safe_load((tmp_path / "README.md").read_text().split("---")[1])["title"] == title
    assert (tmp_path / "app.py").read_text() == Path(demo_app.__file__).read_text()


def test_the_demo_is_a_gradio_app(copied: Path) -> None:
    gradio = pytest.importorskip("gradio")
    assert isinstance(demo_app.build(*local_demo(open_finished_run(copied))), gradio.Blocks)


def test_a_flipped_byte_on_the_hub_is_noticed(recipe: Path, copied: Path, tmp_path: Path) -> None:
    with running_hub() as hub:
        hub.corrupt = True
        done = run_script(
            str(recipe),
            "--run_dir",
            str(copied),
            *PUSH,
            env=hub_environment(hub, tmp_path / "home"),
            check=1,
        )
        assert not any(repo.tags for repo in hub.repos.values()), (
            "what was not loaded back is not tagged"
        )
    assert "train.py: error: you/student at" in done.stderr
    assert "model.safetensors on the Hub differs from the local file" in done.stderr


def test_a_wrong_token_is_said_before_any_work(recipe: Path, tmp_path: Path) -> None:
    wrong = "hf_wrongwrongwrongwrongwrongwrong"
    with running_hub() as hub:
        done = run_script(
            str(recipe),
            "--run_dir",
            str(tmp_path / "run"),
            *PUSH,
            env=hub_environment(hub, tmp_path / "home", wrong),
            check=2,
        )
        assert not hub.repos
    assert "the Hub does not accept the token" in done.stderr
    assert wrong not in done.stdout + done.stderr
    assert not (tmp_path / "run").exists()
