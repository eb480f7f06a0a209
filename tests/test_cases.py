"""Inputs that users brought and that once gave a wrong result or a traceback: each one, as it was
brought, gives the right value or one message and exit code 2.
"""

from __future__ import annotations

import contextlib
import json
import logging
import runpy
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Said, call

from hf_distill.data.load import open_collection
from hf_distill.run.folder import RunFolder

CASES = ROOT.parent / "shared" / "cases"
SMALL = (
    "--student_backbone", "BERT", "--student_layers", "0,2", "--student_init", "random",
    "--alignment_weight", "0", "--student_dim", "32", "--student_max_length", "48",
)  # fmt: skip

pytestmark = [
    pytest.mark.skipif(not CASES.is_dir(), reason="the recorded cases are not here"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of all cases."""
    folder = tmp_path_factory.mktemp("cases")
    return Path(shutil.copytree(CASES, folder / "cases", ignore=shutil.ignore_patterns("reli*")))


@pytest.fixture
def case(cases: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Said]]:
    """Go to the folder of a case, and run its command there."""
    runs: list[Path] = []

    def run(name: str, *line: object, recipe: str = "../quick.yaml") -> Said:
        monkeypatch.chdir(cases / name)
        runs.append(cases / name / "r")
        return call([recipe, *line, "--run_dir", "r"])

    yield run
    for folder in runs:
        shutil.rmtree(folder, ignore_errors=True)


def make(script: Path) -> None:
    """Run the script of a case in its folder, in this process, which has imported everything."""
    with (
        contextlib.chdir(script.parent),
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(action="ignore"),  # it leaves files open
    ):
        patch.setattr(sys, "argv", [script.name])
        runpy.run_path(script.name, run_name="__main__")
    logging.disable(logging.NOTSET)  # a script turns warnings off


@pytest.fixture(scope="session")
def models(cases: Path) -> Path:
    """The folder of the tiny models that the cases build."""
    for script in ("mkm.py", "mkce.py"):
        make(cases / script)
    return cases / "m"


def refused(said: Said, *says: str) -> None:
    """Exit code 2 and one message, without a traceback."""
    assert said.code == 2, said.out + said.err
    assert "Traceback" not in said.err
    assert said.err.count("error:") == 1
    for what in says:
        assert what in said.err


def ran(said: Said) -> Said:
    assert said.code == 0, said.err[-2000:]
    return said


def evaluation() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("r/evaluation.json").read_text())
    return content


def soft_labels(path: str = "r") -> list[dict[str, Any]]:
    labels: list[dict[str, Any]] = json.loads(Path(path, "teacher_soft_labels.json").read_text())
    return labels


def read_counts() -> dict[str, int]:
    counts: dict[str, int] = dict(open_collection(RunFolder(Path("r"))).record.read)
    return counts


def test_01_a_scored_list_is_not_all_positive(case: Callable[..., Said], models: Path) -> None:
    line = (
        "--dataset_path", "scored.jsonl", "--teacher_kind", "precomputed",
        "--teacher", "scored.jsonl", *SMALL[:1], str(models / "bert-bb"), *SMALL[2:],
    )  # fmt: skip
    refused(case("01-scored-list", *line), "--positives")
    ran(case("01-scored-list", *line, "--positives", "best"))
    retrieval = evaluation()["retrieval"]
    assert (retrieval["num_queries"], retrieval["num_documents"]) == (16, 66)
    assert [retrieval["systems"]["bm25"][f"R@{k}"]["value"] for k in (1, 10)] == [0.5, 0.875]
    assert read_counts() == {"rows found": 400, "kept": 80, "candidates": 320}


def test_02_a_label_of_0_is_not_a_pair(case: Callable[..., Said]) -> None:
    said = ran(case("02-label-column", "--dataset_path", "label.csv", "--until", "read"))
    assert read_counts() == {"rows found": 200, "kept": 100, "judged not relevant": 100}
    assert "label" in said.out


def test_03_quotes_in_a_tsv_are_text(case: Callable[..., Said]) -> None:
    ran(case("03-tsv-quotes", "--dataset_path", "quotes.tsv", "--until", "score"))
    labels = soft_labels()
    assert len(labels) == 120
    with Path("quotes.tsv").open(encoding="utf-8") as lines:
        documents = {line.rstrip("\n").split("\t")[1].strip() for line in list(lines)[1:]}
    assert {label["document"] for label in labels} == documents


def test_04_bm25_of_chinese_finds_something(case: Callable[..., Said]) -> None:
    said = ran(case("04-bm25-chinese", "--dataset_path", "zh.jsonl", "--language", "zh"))
    assert evaluation()["retrieval"]["systems"]["bm25"]["nDCG@10"]["value"] > 0.3
    assert "BM25" in said.out


def library_scores(teacher: str, labels: list[dict[str, Any]]) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(teacher, device="cpu")
    queries = model.encode_query([label["query"] for label in labels])
    documents = model.encode_document([label["document"] for label in labels])
    lengths = np.linalg.norm(queries, axis=1) * np.linalg.norm(documents, axis=1)
    return np.asarray((queries * documents).sum(axis=1) / lengths)


@pytest.mark.parametrize(
    ("name", "teacher", "line"),
    [
        ("05-include-prompt", "noinclude", ()),
        ("25-truncate-dim", "trunc", ("--student_init", "random", "--alignment_weight", "0")),
    ],
)
def test_05_25_a_teacher_scores_as_its_library_does(
    case: Callable[..., Said], cases: Path, name: str, teacher: str, line: tuple[str, ...]
) -> None:
    make(cases / name / "make.py")
    ran(
        case(name, "--dataset_path", "../base.jsonl", "--teacher", teacher, "--until", "score",
             *line)
    )  # fmt: skip
    labels = soft_labels()
    scores = np.array([label["teacher_score"] for label in labels])
    assert np.abs(scores - library_scores(teacher, labels)).max() < 1e-3


def test_06_prompts_of_other_names_are_said(
    case: Callable[..., Said], cases: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = cases / "06-prompt-names"
    make(folder / "make.py")
    caplog.clear()
    line = ("--dataset_path", "../base.jsonl", "--teacher", "s2p", "--until", "score")
    said = ran(case("06-prompt-names", *line))
    assert "prompts: none" in said.out
    (warning,) = caplog.messages
    assert "s2p_query" in warning
    assert "--query_prompt" in warning


def test_07_a_flag_without_effect_is_refused(case: Callable[..., Said]) -> None:
    prompts = '{"query": "query: ", "document": "passage: "}'
    line = ("--dataset_path", "../base.jsonl", "--prompts", prompts, "--until", "train")
    refused(case("07-st-prompts-flag", *line), "--prompts", "--query_prompt")


def test_09_brackets_in_a_path_are_characters(case: Callable[..., Said], cases: Path) -> None:
    folder = cases / "09-brackets-in-path" / "x [v2]"
    folder.mkdir(exist_ok=True)
    shutil.copy(cases / "base.jsonl", folder)
    ran(case("09-brackets-in-path", "--dataset_path", "x [v2]/base.jsonl", "--until", "read"))
    assert read_counts()["kept"] == 200


def test_10_another_encoding_is_one_message(case: Callable[..., Said]) -> None:
    said = case("10-jsonl-cp1252", "--dataset_path", "cp1252.jsonl", "--until", "score")
    if said.code == 0:  # detected: then the dash and the quotes are those of Windows-1252
        assert soft_labels()[0]["query"].endswith("“fast”")
    else:
        refused(said, "cp1252.jsonl", "line 1")


def test_11_positions_are_counted_before_any_work(case: Callable[..., Said], models: Path) -> None:
    data = ("--dataset_path", "../base.jsonl")
    until = ("--until", "score", "--student_dim", "32", "--student_max_length", "48")
    student = ("--student_backbone", str(models / "bert-bb"), "--student_layers", "0,2")
    others = (*student, "--student_init", "random", "--alignment_weight", "0")
    said = case("11-roberta-514", *data, "--teacher", models / "roberta66", *until, *others)
    refused(said, "66", "64")
    assert not Path("r").exists()
    backbone = ("--student_backbone", models / "roberta-bb", "--student_layers", "0,2")
    said = case(
        "11-roberta-514", *data, *backbone, "--student_init", "random", "--alignment_weight", "0",
        "--student_max_length", "66", "--until", "score",
    )  # fmt: skip
    refused(said, "--student_max_length 66", "64")
    said = case(
        "11-roberta-514", *data, "--teacher", models / "bert", "--teacher_max_length", "512",
        *until, *others,
    )  # fmt: skip
    refused(said, "--teacher_max_length 512", "64")


def test_12_a_teacher_without_a_padding_token_is_refused(
    case: Callable[..., Said], models: Path
) -> None:
    said = case(
        "12-no-pad-token", "--dataset_path", "../base.jsonl", "--teacher", models / "gpt2",
        "--student_layers", "0,2", "--student_dim", "32", "--student_max_length", "48",
        "--until", "score",
    )  # fmt: skip
    refused(said, "--teacher", "padding token")
    assert not Path("r").exists()


@pytest.mark.parametrize(
    ("name", "flag", "value"),
    [("13-report-to", "--report_to", "wandb"), ("14-resume-true", "--resume_from_checkpoint", "x")],
)
def test_13_14_what_the_training_needs_is_looked_for_first(
    case: Callable[..., Said], name: str, flag: str, value: str
) -> None:
    said = case(name, "--dataset_path", "../base.jsonl", flag, value, "--until", "train")
    refused(said, f"{flag} {value}")
    assert not Path("r").exists()


def test_14_true_is_not_a_model(case: Callable[..., Said]) -> None:
    line = ("--dataset_path", "../base.jsonl", "--resume_from_checkpoint", "true")
    said = case("14-resume-true", *line, "--until", "train")
    assert said.code in (0, 2)
    assert "huggingface.co" not in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize("folder", ["saved", "saveddict"])
def test_17_a_folder_of_save_to_disk_is_read(case: Callable[..., Said], folder: str) -> None:
    ran(case("17-save-to-disk", "--dataset_path", folder, "--until", "read"))
    assert read_counts() == {"rows found": 120, "kept": 120}


def test_18_a_clone_of_a_dataset_repository_is_read(case: Callable[..., Said]) -> None:
    ran(case("18-hf-clone", "--dataset_path", "clone", "--until", "read"))
    assert read_counts() == {"rows found": 120, "kept": 120}


@pytest.mark.parametrize(
    ("file", "read_as"), [("flag.jsonl", "FlagEmbedding"), ("tevatron.jsonl", "Tevatron")]
)
def test_19_lists_are_read_as_what_they_are(
    case: Callable[..., Said], file: str, read_as: str
) -> None:
    with (CASES / "19-flagembedding-tevatron" / file).open() as lines:
        rows = [json.loads(line) for line in lines]
    keys = ("pos", "neg") if "pos" in rows[0] else ("positive_passages", "negative_passages")
    positives, negatives = (sum(len(row[key]) for row in rows) for key in keys)
    said = ran(case("19-flagembedding-tevatron", "--dataset_path", file, "--until", "read"))
    assert read_as in said.out
    counts = read_counts()
    assert counts["kept"] == positives
    assert sum(counts.values()) == 2 * (positives + negatives)


@pytest.mark.parametrize("folder", ["beirdev", "beirfloat", "beirmteb", "beirbom"])
def test_22_beir_folders_of_every_form_are_read(case: Callable[..., Said], folder: str) -> None:
    said = ran(
        case("22-beir-variants", "--dataset", "beir", "--dataset_path", folder, "--until", "read")
    )
    collection = open_collection(RunFolder(Path("r")))
    own = "validation" if folder == "beirdev" else "test"
    assert collection.record.held_out == f"the data's own {own} split"
    assert len(collection.pairs("test")) > 0
    assert said.code == 0


def test_23_a_full_disk_is_one_message(case: Callable[..., Said], cases: Path) -> None:
    command = (
        f"ulimit -f 20000; exec {sys.executable} {ROOT / 'train.py'} ../quick.yaml "
        "--dataset_path ../base.jsonl --until train --run_dir r"
    )
    said = subprocess.run(
        ["bash", "-c", command], cwd=cases / "23-disk-full", capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    shutil.rmtree(cases / "23-disk-full" / "r", ignore_errors=True)
    assert said.returncode in (1, 2)
    assert "Traceback" not in said.stderr
    assert said.stderr.count("error:") == 1


@pytest.mark.parametrize("trust", [(), ("--trust_remote_code", "true")])
def test_26_a_multi_vector_model_is_refused_in_a_sentence(
    case: Callable[..., Said], models: Path, trust: tuple[str, ...]
) -> None:
    said = case(
        "26-pylate-teacher", "--dataset_path", "../base.jsonl", "--teacher", models / "pylate",
        "--student_layers", "0,2", "--student_dim", "32", "--student_max_length", "48",
        "--until", "score", *trust,
    )  # fmt: skip
    refused(said, "pylate")
    assert "trust_remote_code=True" not in said.err


def test_28_the_negatives_of_triplets_are_candidates(case: Callable[..., Said]) -> None:
    ran(case("28-triplet-negatives", "--dataset_path", "triplet.jsonl", "--until", "read"))
    collection = open_collection(RunFolder(Path("r")))
    with Path("triplet.jsonl").open() as lines:
        rows = [json.loads(line) for line in lines]
    assert collection.record.read["kept"] == len(rows)
    train = collection.pairs("train")
    lists = collection.lists(train.queries)
    listed = zip(
        np.repeat(collection.query_texts(train.queries), np.diff(lists.starts)).tolist(),
        collection.document_texts(lists.documents),
        strict=True,
    )
    assert set(listed) <= {(row["anchor"].strip(), row["negative"].strip()) for row in rows}
    assert len(lists.documents) > 0


def test_29_a_reranker_gets_its_own_prompt(case: Callable[..., Said], models: Path) -> None:
    from sentence_transformers import CrossEncoder

    line = (
        "--dataset_path", "../base.jsonl", "--teacher_kind", "cross-encoder",
        "--teacher", models / "llmce", *SMALL[:1], models / "bert-bb", *SMALL[2:],
        "--until", "score",
    )  # fmt: skip
    ran(case("29-llm-reranker-prompt", *line))
    labels = soft_labels()
    pairs = [(label["query"], label["document"]) for label in labels]
    expected = CrossEncoder(str(models / "llmce"), device="cpu").predict(pairs)
    scores = np.array([label["teacher_score"] for label in labels])
    if not (expected.min() >= 0 and expected.max() <= 1):
        expected = 1 / (1 + np.exp(-expected))
    assert np.abs(scores - expected).max() < 1e-3


def test_31_texts_alone_are_refused_before_any_work(case: Callable[..., Said]) -> None:
    columns = ("--query_column", "text", "--document_column", "text")
    refused(case("31-texts-only", "--dataset_path", "corpus.jsonl", *columns), "text")
    assert not Path("r").exists()
    refused(case("31-texts-only", "--dataset_path", "corpus.jsonl"), "corpus")
    assert not Path("r").exists()
