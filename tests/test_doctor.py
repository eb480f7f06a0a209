"""`hf-distill doctor`: data with planted faults of every kind."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import Said, call, recipe_of, sentences
from tiny_models import WORDS

from hf_distill.commands.main import main
from hf_distill.pipeline import Run
from hf_distill.recipe.read import read_recipe
from hf_distill.run.folder import RunFolder
from hf_distill.run.stage import read_json
from hf_distill.study.diagnosis import MISMATCHED as RULE
from hf_distill.study.diagnosis import MOST, Diagnosis, Finding, limited
from hf_distill.study.diagnosis_text import examples, summary

KEYS = [
    "--teacher_dtype", "float32", "--student_layers", "0,2", "--student_dim", "16", "--bf16",
    "False", "--max_pairs", "1000",
]  # fmt: skip
GOOD, MISMATCHED = 160, 40


def rows_of(texts: Sequence[str], suffix: str = "the river") -> list[dict[str, str]]:
    return [{"query": text, "document": f"{text} {suffix}"} for text in texts]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a split of its own, and a known number of faults."""
    folder = tmp_path_factory.mktemp("data") / "faults"
    folder.mkdir()
    good = rows_of(sentences(GOOD))
    wrong = rows_of(sentences(MISMATCHED, 500))
    shifted = [
        {"query": row["query"], "document": other["document"]}
        for row, other in zip(wrong, [*wrong[1:], wrong[0]], strict=True)
    ]
    long = " ".join(random.Random(9).choices(WORDS, k=45))
    train = [
        *good,
        *shifted,
        *[{"query": row["query"].upper(), "document": row["document"]} for row in good[:5]],
        {"query": good[9]["query"], "document": good[9]["document"] + " sun"},
        *[{"query": text, "document": f"\x1b\u202e{text}!"} for text in sentences(3, 700)],
        {"query": "sun", "document": "the red sun and the moon"},
        {"query": long, "document": f"{long} lake"},
        *[{"query": text, "document": ""} for text in sentences(2, 800)],
    ]
    test = rows_of(sentences(20, 900))
    write(folder / "train.jsonl", [*train, {**test[0], "query": sentences(1, 990)[0]}])
    write(folder / "test.jsonl", test)
    return folder


@dataclass(frozen=True)
class Doctored:
    """What the command said and wrote."""

    said: Said
    diagnosis: Diagnosis
    run_dir: Path
    line: list[str]

    def of(self, kind: str) -> Finding:
        (finding,) = (one for one in self.diagnosis.findings if one.kind == kind)
        return finding


@pytest.fixture(scope="module")
def doctored(data: Path, words_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Doctored:
    folder = tmp_path_factory.mktemp("doctor")
    line = [data, "--teacher", words_dir, *KEYS, "--run_dir", folder / "run"]
    said = call(["doctor", *line, "--json", folder / "doctor.json"], main)
    assert said.code == 0, said.err[-3000:]
    later = ["recommended", "--dataset_path", *map(str, line), "--student_max_length", "32"]
    return Doctored(said, read_json(folder / "doctor.json", Diagnosis), folder / "run", later)


def test_every_planted_fault_is_counted(doctored: Doctored, data: Path) -> None:
    counts = {finding.kind: finding.count for finding in doctored.diagnosis.findings}
    assert {kind: n for kind, n in counts.items() if kind != "mismatched"} == {
        "too short": 1, "echoed": 3, "duplicated": 4, "nearly duplicated": 1, "cut": 2, "empty": 2,
        "leaking": 1,
    }  # fmt: skip
    diagnosis, mismatched = doctored.diagnosis, doctored.of("mismatched")
    train = Run(read_recipe(doctored.line), RunFolder(doctored.run_dir)).collection.pairs("train")
    (texts,) = train.batches("query", "document", size=len(train))
    wrong = {*sentences(MISMATCHED, 500)}
    planted = [query in wrong for query in texts["query"]]
    said = diagnosis.mismatches
    assert 0.75 * sum(planted) < mismatched.count <= sum(planted)
    assert (said.detection.pairs, said.detection.nothing) == (len(train), None)
    assert said.detection.low < sum(planted) / len(train) < said.detection.high
    assert said.detection.pool == len({*texts["document"]})
    assert said.wrongly + said.missed < 12
    assert sum(planted) <= len(train) - said.first <= sum(planted) + 2
    assert 0 < said.far <= mismatched.count
    assert f"from rank {said.detection.half} of" in mismatched.because
    assert all(example.query in wrong for example in mismatched.examples)
    best = f"the teacher's best: {mismatched.examples[0].query} the river"
    assert mismatched.examples[0].said == best, "its own document is another pair's"
    assert (diagnosis.pairs, diagnosis.held_out, diagnosis.beyond) == (len(train), 31, 0)


def test_the_selection_that_it_names_does_what_it_says(doctored: Doctored) -> None:
    diagnosis, out = doctored.diagnosis, doctored.said.out
    assert RULE in read_recipe(["recommended"]).selection.selection
    assert diagnosis.selection == ("invalid", "echo", "duplicate", "near_duplicate", RULE)
    assert f"\nselection: [{', '.join(diagnosis.selection)}]\n" in out
    recipe = read_recipe([*doctored.line, "--selection", *diagnosis.selection])
    run = Run(recipe, RunFolder(doctored.run_dir))
    assert len(run.selection.kept) == diagnosis.kept
    weighed = int((run.selection.weight_ranking[run.selection.kept] == 0).sum())
    assert 0.75 * MISMATCHED < diagnosis.without_contrast == weighed
    assert f"leave {diagnosis.kept} of {diagnosis.pairs} pairs" in out


def test_a_later_training_embeds_nothing_again(
    doctored: Doctored, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(read_recipe(doctored.line), RunFolder(doctored.run_dir))
    monkeypatch.setattr(type(run.teacher), "embed_as", None)
    monkeypatch.setattr(type(run.teacher), "embed", None)
    assert len(run.scores.values) == len(run.collection.judgements)
    assert not (doctored.run_dir / "training.json").exists()


def test_its_lines_fit_a_terminal_and_cannot_command_it(doctored: Doctored) -> None:
    out = doctored.said.out
    shown = out[out.index("mismatched:") :]
    assert max(map(len, shown.splitlines())) <= 100
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert r"-> \x1b\u202e" in shown
    screen = shown[shown.index("Looked at") :]
    assert len(screen.splitlines()) <= 24
    for finding in doctored.diagnosis.findings:
        assert re.search(rf"^  {finding.kind} +{finding.count} ", screen, re.MULTILINE)
    more = dataclasses.replace(doctored.diagnosis, found=300, beyond=68)
    text = "\n".join(summary(more, "run"))
    assert "68 of 300 pairs were left out" in text
    healthy = dataclasses.replace(
        more,
        findings=tuple(
            dataclasses.replace(one, count=None if one.kind == "mismatched" else 0, because="why")
            for one in more.findings
        ),
    )
    text = "\n".join(summary(healthy, "run"))
    assert re.search(r"mismatched +– +–  why", text)
    assert re.search(r"echoed +0 +0.0%  none", text)
    assert not list(examples(healthy))


def test_it_looks_at_a_sample_unless_told_otherwise() -> None:
    assert limited(recipe_of("recommended")).data.max_pairs == MOST
    assert limited(recipe_of("recommended", max_pairs=7)).data.max_pairs == 7
    assert limited(recipe_of("recommended", max_pairs=None)).data.max_pairs is None


def test_a_teacher_that_only_scores_pairs_finds_no_mismatches(
    data: Path, cross_encoder_dir: Path, tmp_path: Path
) -> None:
    teacher = ["--teacher_kind", "cross-encoder", "--teacher", cross_encoder_dir]
    said = call(["doctor", data, *teacher, *KEYS, "--run_dir", tmp_path / "run"], main)
    assert said.code == 0, said.err[-3000:]
    assert re.search(r"mismatched +– +–  this teacher embeds no texts", said.out)
    assert "selection: [invalid, echo, duplicate, near_duplicate]" in said.out


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ([], "name the data first, e.g.: hf-distill doctor pairs.jsonl"),
        (["{tmp}/nowhere.jsonl", "--teacher", "{teacher}"], "nowhere.jsonl"),
        (["{tmp}/texts.jsonl", "--teacher", "{teacher}"], "holds 40 texts and no pairs of a query"),
        (["{data}", "--json", "{tmp}/no/doctor.json"], "--json"),
        (["{data}", "--teacher", "{tmp}/nobody"], "nobody"),
        (["{data}", "--json"], "expected one argument"),
    ],
)
def test_a_bad_line_is_one_message(
    line: list[str], says: str, data: Path, words_dir: Path, tmp_path: Path
) -> None:
    write(tmp_path / "texts.jsonl", [{"text": text} for text in sentences(40)])
    tokens = [token.format(tmp=tmp_path, data=data, teacher=words_dir) for token in line]
    said = call(
        ["doctor", *tokens, *([*KEYS, "--run_dir", tmp_path / "run"] if line else [])], main
    )
    assert said.code == 2, said.out
    assert says in said.err
    assert len(said.err.strip().splitlines()) <= 3
    assert not (tmp_path / "run").exists()
