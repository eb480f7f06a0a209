"""`hf-distill compare`: its options, its table, its files, and the tasks it takes."""

import argparse
import importlib.util
import json
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import scipy.stats
from conftest import recipe_of, sentences
from datasets import Dataset

from hf_distill.commands.compare import ModelComparison, add_arguments, names_of, run
from hf_distill.data.collection import Collection
from hf_distill.errors import InputError
from hf_distill.evaluation.tasks import held_out_task, load_task, mteb_task
from hf_distill.run.folder import RunFolder, save_recipe
from hf_distill.run.stage import read_json


def compare(*line: str) -> None:
    """Run the command with its own options."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    run(parser.parse_args(line))


@pytest.fixture(scope="session")
def beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beir") / "sentences"
    (folder / "qrels").mkdir(parents=True)
    texts = sentences(60)
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(texts))
    )
    halves = (" ".join(text.split()[:5]) for text in texts[:40])
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": f"q{i}", "text": text}) + "\n" for i, text in enumerate(halves))
    )
    (folder / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i in range(40))
    )
    return folder


def test_models_and_bm25_side_by_side(
    beir: Path,
    teacher_dir: Path,
    backbone_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.json"
    models = [str(teacher_dir), str(backbone_dir)]
    files = ["--json", str(out), "--runs", str(tmp_path / "runs")]
    compare(*models, "--task", str(beir), "--bm25", *files, "--measures", "nDCG@10", "AP@50")
    printed = capsys.readouterr().out
    assert "sentences: 40 judged queries, 60 documents" in printed
    result = read_json(out, ModelComparison)
    assert list(result.systems) == ["teacher", "backbone", "bm25"]
    per = {name: np.array(row["nDCG@10"]) for name, row in result.per_query.items()}
    for name, values in per.items():
        assert result.systems[name]["nDCG@10"].value == pytest.approx(values.mean())
        assert f"{values.mean():.3f}" in printed
    assert result.baseline == "teacher"
    row = result.comparisons["nDCG@10"]["bm25"]
    assert row.difference.value == pytest.approx((per["bm25"] - per["teacher"]).mean())
    assert f"{row.difference.value:+.4f}" in printed
    expected = scipy.stats.ttest_rel(per["bm25"], per["teacher"]).pvalue
    assert row.tests["paired_t_test"].p == pytest.approx(expected, abs=1e-9)
    assert row.wins + row.losses + row.ties == 40
    files = [str(tmp_path / "runs" / name) for name in ("qrels.txt", "bm25.run")]
    done = subprocess.run(
        [sys.executable, "-m", "ir_measures", "--places", "12", *files, "AP@50"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(done.stdout.split()[-1]) == pytest.approx(
        result.systems["bm25"]["AP@50"].value, abs=1e-9
    )


def test_the_held_out_pairs_of_a_run_are_a_task(collection: Collection, folder: RunFolder) -> None:
    with pytest.raises(InputError, match=r"recipe\.yaml"):
        load_task(str(folder.path))
    save_recipe(recipe_of(run_dir=folder.path), folder)
    task, expected = load_task(str(folder.path)), held_out_task(collection)
    assert task.name == "held-out pairs of run"
    assert (task.queries, task.documents) == (expected.queries, expected.documents)
    assert task.qrels == expected.qrels


def test_names_tell_models_apart() -> None:
    assert names_of(["a/x", "b/x", "c/y"]) == {"a/x": "a/x", "b/x": "b/x", "y": "c/y"}
    with pytest.raises(InputError, match="a model is named twice"):
        names_of(["a", "a"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL", "--task", "BEIR"], "add --bm25"),
        (["MODEL", "--bm25", "--task", "nowhere"], "--task nowhere"),
        (
            ["MODEL", "--bm25", "--task", "BEIR", "--measures", "nope"],
            "measure 'nope'",
        ),
        (["/no/model", "--bm25", "--task", "BEIR"], "/no/model"),
    ],
)
def test_input_that_cannot_be_used_is_refused(
    arguments: list[str], message: str, beir: Path, teacher_dir: Path
) -> None:
    places = {"MODEL": str(teacher_dir), "BEIR": str(beir)}
    with pytest.raises(InputError, match=message):
        compare(*(places.get(token, token) for token in arguments))


# --- mteb -----------------------------------------------------------------------------------------


class Task:
    """A task of `mteb`, with the attributes of version 2 that are read."""

    def __init__(
        self,
        kind: str = "Retrieval",
        subsets: tuple[str, ...] = ("default",),
        error: Exception | None = None,
    ) -> None:
        self.metadata = SimpleNamespace(
            type=kind, modalities=["text"], dataset={"path": "mteb/X", "revision": "abc"}
        )
        self.hf_subsets, self.eval_splits, self.error, self.dataset = (
            list(subsets),
            ["train"],
            error,
            {},
        )

    def load_data(self) -> None:
        if self.error:
            raise self.error
        documents = Dataset.from_dict({"id": ["2", "1"], "title": ["Two", ""], "text": ["b", "a"]})
        queries = Dataset.from_dict({"id": ["q"], "text": ["what"]})
        self.dataset = {
            "default": {
                "train": {
                    "corpus": documents,
                    "queries": queries,
                    "relevant_docs": {"q": {"2": 1}},
                    "top_ranked": None,
                }
            }
        }


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> dict[str, Task]:
    """A stand-in for the package `mteb`, which is large and has its data on the Hub."""
    module, known = ModuleType("mteb"), {"NanoXRetrieval": Task()}
    module.__spec__ = ModuleSpec("mteb", None)

    def get_task(name: str) -> Task:
        if name not in known:
            raise KeyError(f"KeyError: '{name}' not found")
        return known[name]

    module.get_task = get_task  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mteb", module)
    return known


def test_a_task_of_mteb_keeps_its_ids(tasks: dict[str, Task]) -> None:
    task = load_task("nano:X")
    assert (task.name, list(task.documents.items()), task.qrels) == (
        "NanoXRetrieval",
        [("1", "a"), ("2", "Two b")],
        {"q": {"2": 1}},
    )
    assert load_task("mteb:NanoXRetrieval") == task


def test_a_task_of_mteb_that_cannot_be_loaded_is_refused(tasks: dict[str, Task]) -> None:
    tasks |= {
        "Away": Task(error=ConnectionError("Couldn't reach 'mteb/X' on the Hub")),
        "Banking": Task("Classification"),
        "Many": Task(subsets=("en", "de")),
    }
    for name, message in (
        ("Away", r"mteb:Away.*data set mteb/X, revision abc.*ConnectionError"),
        ("Banking", "mteb:Banking is a Classification task"),
        ("Many", r"mteb:Many has 2 subsets \(en, de\)"),
        ("Nope", "mteb:Nope is unknown"),
    ):
        with pytest.raises(InputError, match=message):
            load_task(f"mteb:{name}")


@pytest.mark.skipif(importlib.util.find_spec("mteb") is not None, reason="mteb is installed")
def test_without_mteb_it_is_said() -> None:
    with pytest.raises(InputError, match=r"pip install 'hf_distill\[mteb\]'"):
        mteb_task("NanoSciFactRetrieval")
