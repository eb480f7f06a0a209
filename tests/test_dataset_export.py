"""`hf-distill dataset`: a run's pairs and lists in the files of other tools."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import Said, call, recipe_of
from datasets import Dataset, load_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import (
    MarginMSELoss,
    MultipleNegativesRankingLoss,
)
from small_collections import (
    CORPUS,
    Rows,
    everything,
    read_run,
    row,
    score_run,
    text,
    triplets,
    without,
)

from hf_distill.commands.main import main
from hf_distill.data.collection import Collection, Source, text_id
from hf_distill.data.sources.files import read_path
from hf_distill.release.formats import contents
from hf_distill.release.formats import export as export_module
from hf_distill.release.formats.export import EXPORT_FORMATS

DATA_FILES = {"flagembedding": "json", "tevatron": "json", "sentence-transformers": "parquet"}


def export(run: Path, name: str, *line: object) -> Said:
    """Export the run to the folder beside it that is called as the format."""
    return call(["dataset", run, "--format", name, "--output", run.parent / name, *line], main)


def exported(tmp_path: Path, name: str, rows: Rows, *line: object) -> tuple[Path, str]:
    """The folder of an export of `rows`, and what was printed."""
    read_run(tmp_path / "run", rows, CORPUS)
    said = export(tmp_path / "run", name, *line)
    assert said.code == 0, said.err
    return tmp_path / name, said.out


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def documents(*numbers: int) -> list[str]:
    return [text("document", number) for number in numbers]


def test_flagembedding_gets_positives_negatives_and_their_scores(tmp_path: Path) -> None:
    folder, said = exported(tmp_path, "flagembedding", everything())
    first, second, third, fourth = lines_of(folder / "train.jsonl")
    assert first == {
        "query": text("query", 1),
        "pos": documents(1, 2),
        "neg": documents(3, 4, 5),
        "pos_scores": [0.9, 0.8],
        "neg_scores": [0.1, 0.3, 0.25],
    }
    assert (second["pos_scores"], second["neg_scores"]) == ([0.7], [0.5])
    assert (third["pos_scores"], third["neg"]) == ([12.5], [])
    assert (fourth["pos_scores"], fourth["neg_scores"]) == ([-1.5], [-2.0])
    assert [len(lines_of(folder / f"{s}.jsonl")) for s in ("validation", "test")] == [1, 2]
    assert "\n2 queries have an empty neg" in said  # queries 3 and 7
    assert "\n3 positives of grade 2 or more" in said
    assert "\n4 documents judged not relevant" in said
    assert "\n2 further documents that held-out queries search" in said
    assert "\n21 ids are left out" in said  # of 7 queries and 14 documents


def test_flagembedding_has_a_score_for_every_text_of_a_file_or_for_none(tmp_path: Path) -> None:
    rows = everything()
    del rows[3]["score"]
    folder, said = exported(tmp_path, "flagembedding", rows)
    assert all(line.keys() == {"query", "pos", "neg"} for line in lines_of(folder / "train.jsonl"))
    assert all("neg_scores" in line for line in lines_of(folder / "test.jsonl"))
    assert "\n9 given scores are left out" in said


def test_tevatron_gets_passages_with_ids(tmp_path: Path) -> None:
    folder, said = exported(tmp_path, "tevatron", everything())
    line = lines_of(folder / "train.jsonl")[1]
    assert line == {
        "query_id": "q2",
        "query": text("query", 2),
        "positive_passages": [{"docid": "d6", "title": "", "text": text("document", 6)}],
        "negative_passages": [{"docid": "d4", "title": "", "text": text("document", 4)}],
    }
    assert "\n16 given scores are left out" in said


@pytest.mark.parametrize("name", DATA_FILES)
def test_the_line_of_the_readme_loads_the_files(tmp_path: Path, name: str) -> None:
    folder, _ = exported(tmp_path, name, everything())
    readme = (folder / "README.md").read_text(encoding="utf-8")
    code = readme.split("```python\n")[1].split("```")[0].replace("FOLDER", str(folder))
    told: dict[str, Any] = {}
    exec(code, told)
    loaded = next(value for value in told.values() if isinstance(value, Dataset))
    assert len(loaded) == 4


def test_sentence_transformers_gets_a_row_a_positive_where_all_have_as_many_negatives(
    tmp_path: Path,
) -> None:
    folder, _ = exported(tmp_path, "sentence-transformers", triplets())
    table = pq.read_table(folder / "train.parquet")
    assert table.column_names == ["anchor", "positive", "negative_1", "negative_2"]
    rows = [list(one.values()) for one in table.to_pylist()]
    assert rows == [
        [text("query", 1), *documents(10, 11, 12)],
        [text("query", 1), *documents(19, 11, 12)],
        [text("query", 2), *documents(20, 21, 22)],
        [text("query", 3), *documents(30, 31, 32)],
    ]


def test_sentence_transformers_gets_scores_in_the_order_of_the_texts(tmp_path: Path) -> None:
    rows = [{**one, "score": i / 8} for i, one in enumerate(triplets(negatives=1))]
    folder, _ = exported(tmp_path, "sentence-transformers", rows)
    table = pq.read_table(folder / "train.parquet")
    assert table.column_names == ["anchor", "positive", "negative", "scores"]
    assert table["scores"].to_pylist() == [[0, 0.25], [0.125, 0.25], [0.375, 0.5], [0.625, 0.75]]


def test_sentence_transformers_gets_one_score_beside_a_pair(tmp_path: Path) -> None:
    rows = [one for one in everything() if one.get("grade") != 0 and "candidate" not in one]
    folder, _ = exported(tmp_path, "sentence-transformers", rows)
    table = pq.read_table(folder / "train.parquet")
    assert table.column_names == ["anchor", "positive", "score"]
    assert table["score"].to_pylist() == pytest.approx([0.9, 0.8, 0.7, 12.5, -1.5])


def test_sentence_transformers_gets_lists_where_the_number_of_negatives_differs(
    tmp_path: Path,
) -> None:
    folder, said = exported(tmp_path, "sentence-transformers", everything())
    table = pq.read_table(folder / "train.parquet")
    assert table.column_names == ["query", "documents", "labels", "scores"]
    assert table["documents"].to_pylist()[0] == documents(1, 2, 3, 4, 5)
    assert table["labels"].to_pylist() == [[2, 1, 0, 0, 0], [1, 0], [3], [1, 0]]
    assert table["scores"].to_pylist()[3] == [-1.5, -2]
    assert "\n3 documents of train that nobody judged have the label 0" in said


@pytest.mark.parametrize("scored", [False, True])
def test_the_trainer_of_sentence_transformers_takes_the_rows(
    tmp_path: Path, teacher_dir: Path, scored: bool
) -> None:
    rows = [{**one, **({"score": i / 8} if scored else {})} for i, one in enumerate(triplets())]
    folder, _ = exported(tmp_path, "sentence-transformers", rows)
    train = load_dataset(
        "parquet", data_files=str(folder / "train.parquet"), split="train", cache_dir=str(tmp_path)
    )
    model = SentenceTransformer(str(teacher_dir), device="cpu")
    loss = MarginMSELoss(model) if scored else MultipleNegativesRankingLoss(model)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=1, report_to="none", use_cpu=True,
        dataloader_pin_memory=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = SentenceTransformerTrainer(model, arguments, train, loss=loss)
    assert np.isfinite(trainer.train().training_loss)


def test_beir_gets_the_corpus_and_graded_qrels_with_zeros(tmp_path: Path) -> None:
    folder, said = exported(tmp_path, "beir", everything())
    qrels = {name: (folder / f"qrels/{name}.tsv").read_text() for name in ("train", "dev", "test")}
    assert qrels["test"] == "query-id\tcorpus-id\tscore\nq6\td11\t2\nq6\td12\t0\nq7\td14\t1\n"
    assert qrels["dev"].splitlines()[1:] == ["q5\td10\t1", "q5\td3\t0"]
    assert qrels["train"].splitlines()[1:] == [
        "q1\td1\t2", "q1\td2\t1", "q1\td3\t0", "q2\td6\t1", "q3\td7\t3", "q4\td8\t1", "q4\td9\t0",
    ]  # fmt: skip
    corpus = {line["_id"]: line["text"] for line in lines_of(folder / "corpus.jsonl")}
    judged = (1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 14)
    searched = {**{name: text for text, name in CORPUS}, "d13": text("document", 13)}
    assert corpus == {**{f"d{i}": text("document", i) for i in judged}, **searched}
    queries = {line["_id"]: line["text"] for line in lines_of(folder / "queries.jsonl")}
    assert queries == {f"q{i}": text("query", i) for i in range(1, 8)}
    assert "\n4 documents that nobody judged are left out" in said


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # it leaves files open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_beirs_own_loader_reads_the_folder(tmp_path: Path) -> None:
    loader = pytest.importorskip("beir.datasets.data_loader").GenericDataLoader
    folder, _ = exported(tmp_path, "beir", everything())
    corpus, queries, qrels = loader(str(folder)).load(split="test")
    assert qrels == {"q6": {"d11": 2, "d12": 0}, "q7": {"d14": 1}}
    assert queries == {"q6": text("query", 6), "q7": text("query", 7)}
    assert corpus["d11"] == {"title": "", "text": text("document", 11)}


def test_only_the_named_splits_are_written(tmp_path: Path) -> None:
    folder, said = exported(tmp_path, "beir", everything(), "--split", "test")
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {"README.md", "corpus.jsonl", "queries.jsonl", "qrels/test.tsv"}
    ids = {line["_id"] for line in lines_of(folder / "corpus.jsonl")}
    assert ids == {"corpus-1", "c2", "d11", "d12", "d13", "d14"}  # what test queries searched
    assert {line["_id"] for line in lines_of(folder / "queries.jsonl")} == {"q6", "q7"}
    assert "\n6 pairs are left out: they are in other splits" in said


def test_trec_files_are_measured_by_ir_measures(tmp_path: Path) -> None:
    folder, _ = exported(tmp_path, "trec", everything())
    qrels = list(ir_measures.read_trec_qrels(str(folder / "qrels.train.txt")))
    run = list(ir_measures.read_trec_run(str(folder / "run.train.txt")))
    assert (qrels[0].query_id, qrels[0].doc_id, qrels[0].relevance) == ("q1", "d1", 2)
    order = [line.doc_id for line in run if line.query_id == "q1"]
    assert order == ["d1", "d2", "d4", "d5", "d3"]
    assert {line.score for line in run if line.query_id == "q4"} == {-1.5, -2.0}
    assert ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, run)[
        ir_measures.nDCG @ 10
    ] == pytest.approx(1)


def test_trec_texts_stay_on_one_line_and_the_changed_ones_are_counted(tmp_path: Path) -> None:
    rows = triplets()
    rows[0]["document"] = 'The first line\r\nthe "second"\tone'
    folder, said = exported(tmp_path, "trec", rows)
    lines = (folder / "collection.tsv").read_text(encoding="utf-8").splitlines()
    assert 'd10\tThe first line the "second" one' in lines
    assert "\n1 texts have a space" in said


def test_a_trec_run_has_a_line_for_each_candidate_and_says_which_have_no_score(
    tmp_path: Path,
) -> None:
    rows = everything()
    del rows[3]["score"], rows[2]["score"]  # a candidate, and a judgement that is no candidate
    folder, said = exported(tmp_path, "trec", rows)
    first = [line.split()[2:5] for line in (folder / "run.train.txt").read_text().splitlines()[:4]]
    assert first == [
        ["d1", "1", "0.9"],
        ["d2", "2", "0.8"],
        ["d5", "3", "0.25"],
        ["d4", "4", "-0.75"],
    ]
    assert "q1 0 d3 0\n" in (folder / "qrels.train.txt").read_text()
    assert "\n1 candidates have no score" in said


def test_a_trec_run_is_written_only_where_there_are_scores_or_candidates(tmp_path: Path) -> None:
    rows = [one for one in triplets() if "candidate" not in one]
    folder, _ = exported(tmp_path, "trec", rows)
    assert not list(folder.glob("run.*"))


def test_texts_without_an_id_are_named_by_their_text(tmp_path: Path) -> None:
    rows = without(triplets(), "query_id", "document_id")
    folder, said = exported(tmp_path, "tevatron", rows)
    line = lines_of(folder / "train.jsonl")[0]
    assert line["query_id"] == text_id(text("query", 1))
    assert line["negative_passages"][1]["docid"] == text_id(text("document", 12))
    assert "\n21 texts have no id" in said


def test_an_id_of_several_texts_or_with_white_space_is_replaced(tmp_path: Path) -> None:
    rows = triplets()
    rows[0]["document_id"] = rows[1]["document_id"] = "twice"
    for one in rows[-3:]:
        one["query_id"] = "the last"
    folder, said = exported(tmp_path, "trec", rows)
    ids = [line.split("\t")[0] for line in (folder / "collection.tsv").read_text().splitlines()]
    assert len(set(ids)) == len(ids) == 18
    assert {text_id(text("document", 10)), text_id(text("document", 19))} < set(ids)
    assert (folder / "qrels.test.txt").read_text() == f"{text_id(text('query', 5))} 0 d50 1\n"
    assert "\n3 ids are replaced" in said


def test_leaked_pairs_are_left_out_and_are_no_negatives(tmp_path: Path) -> None:
    leaked = row(1, 50, score=0.5)  # the document of the test pair
    rows = triplets()
    read_run(tmp_path / "run", [*rows[:4], leaked, *rows[4:]])
    said = export(tmp_path / "run", "flagembedding")
    first = lines_of(tmp_path / "flagembedding/train.jsonl")[0]
    assert (first["pos"], first["neg"]) == (documents(10, 19), documents(11, 12))
    assert "\n1 pairs are left out, because they share something" in said.out


def test_a_repeated_pair_is_written_once_with_its_highest_grade(tmp_path: Path) -> None:
    rows = [*triplets(), row(3, 30, grade=2)]
    folder, said = exported(tmp_path, "trec", rows)
    assert (folder / "qrels.train.txt").read_text().count("q3 0 d30") == 1
    assert "q3 0 d30 2\n" in (folder / "qrels.train.txt").read_text()
    assert "\n1 pairs repeat a query and a document" in said


def test_groups_and_sources_are_counted(tmp_path: Path) -> None:
    rows = triplets()
    rows[0]["group"], rows[4]["source"] = "a topic", "a book"
    _, said = exported(tmp_path, "beir", rows)
    assert "\n1 groups of pairs are left out" in said
    assert "\n1 sources of pairs are left out" in said


@pytest.mark.parametrize(
    ("collection", "expected"), [("key", [0.0, 0.125, 0.25, 0.375, 0.5]), ("another", None)]
)
def test_the_teachers_scores_are_written_if_they_are_of_these_pairs(
    tmp_path: Path, collection: str, expected: list[float] | None
) -> None:
    rows = [one for one in everything() if one.get("grade") != 0 and "candidate" not in one]
    read_run(tmp_path / "run", without(rows, "score"))
    score_run(tmp_path / "run", np.arange(8) / 8, collection)
    said = export(tmp_path / "run", "sentence-transformers", "--split", "train")
    table = pq.read_table(tmp_path / "sentence-transformers/train.parquet")
    assert (table["score"].to_pylist() if "score" in table.column_names else None) == expected
    assert ("by some/teacher" in said.out) == (expected is not None)
    assert ("\n8 scores by the teacher are left out" in said.out) == (expected is None)


def test_a_finished_run_is_exported_with_its_teachers_scores(
    finished_run: tuple[Path, str], tmp_path: Path
) -> None:
    said = call(
        ["dataset", finished_run[0], "--format", "flagembedding", "--output", tmp_path / "out"],
        main,
    )
    assert said.code == 0, said.err
    labels = json.loads((finished_run[0] / "teacher_soft_labels.json").read_text())
    scores = {(one["query"], one["document"]): one["teacher_score"] for one in labels}
    lines = [line for path in tmp_path.glob("out/*.jsonl") for line in lines_of(path)]
    assert len(lines) > 100
    for line in lines:
        for document, score in zip(line["pos"], line["pos_scores"], strict=True):
            assert score == pytest.approx(scores[line["query"], document], abs=1e-5)


def test_a_list_has_one_scale_the_given_one_where_the_teacher_scored_only_the_pairs(
    tmp_path: Path,
) -> None:
    read_run(tmp_path / "run", everything())
    score_run(tmp_path / "run", np.full(8, 0.5))
    said = export(tmp_path / "run", "flagembedding")
    assert lines_of(tmp_path / "flagembedding/train.jsonl")[0]["pos_scores"] == [0.9, 0.8]
    assert "\n8 scores by the teacher are left out" in said.out


def test_all_texts_pass_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    for size in (1, 2, 256):
        monkeypatch.setattr(contents, "_QUERIES", size)
        base = tmp_path / str(size)
        for name in EXPORT_FORMATS:
            exported(base, name, everything())
        files = [path for name in EXPORT_FORMATS for path in (base / name).rglob("*.*")]
        written.append({path.relative_to(base): path.read_bytes() for path in files})
    assert written[0] == written[1] == written[2]


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_was_read_each_judgement_and_candidate_is_written_once(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    kinds = st.sampled_from([{"grade": 1}, {"grade": 2}, {"grade": 0}, {"candidate": True}])
    some = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 12), kinds), max_size=25)
    rows = [row(9, 99), row(8, 98, "test"), row(7, 97, "validation")]
    rows += [row(query, document, **kind) for query, document, kind in data.draw(some)]
    rows.sort(key=lambda one: str(one["query_id"]))
    base = tmp_path_factory.mktemp("export")
    collection = read_run(base / "run", rows)
    export(base / "run", "trec")
    judged = Counter(
        int(line.split()[-1] != "0")
        for path in base.glob("trec/qrels.*")
        for line in path.read_text().splitlines()
    )
    run = [
        line.split() for path in base.glob("trec/run.*") for line in path.read_text().splitlines()
    ]
    pairs = collection.every_pair()
    grades = collection.candidates["grade"]
    assert judged[1] == len(set(zip(pairs.queries, pairs.documents, strict=True)))
    assert judged[0] == list(grades).count(0)
    assert len(run) == list(grades).count(None)
    positives = {
        tuple(line.split()[::2])
        for path in base.glob("trec/qrels.*")
        for line in path.read_text().splitlines()
        if not line.endswith(" 0")
    }
    assert not any((line[0], line[2]) in positives for line in run)


@pytest.mark.parametrize("stranger", ["notes.txt", "README.md", "qrels/mine.tsv"])
def test_a_folder_of_somebody_else_is_not_replaced(tmp_path: Path, stranger: str) -> None:
    read_run(tmp_path / "run", triplets())
    file = tmp_path / "beir" / stranger
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    said = export(tmp_path / "run", "beir")
    assert said.code == 2
    assert stranger in said.err
    assert [p for p in (tmp_path / "beir").rglob("*") if p.is_file()] == [file]


def test_an_export_replaces_an_earlier_one_unless_something_else_was_put_there(
    tmp_path: Path,
) -> None:
    folder, _ = exported(tmp_path, "beir", triplets())
    run = tmp_path / "run"
    assert call(["dataset", run, "--format", "trec", "--output", folder], main).code == 0
    assert not (folder / "corpus.jsonl").exists()
    (folder / "notes.txt").write_text("mine")
    assert call(["dataset", run, "--format", "beir", "--output", folder], main).code == 2
    assert (folder / "collection.tsv").exists()


def test_a_run_folder_and_a_file_are_no_output(tmp_path: Path) -> None:
    read_run(tmp_path / "run", triplets())
    (tmp_path / "file").write_text("x")
    for output in (tmp_path / "run", tmp_path / "file", tmp_path / "file" / "below"):
        said = call(["dataset", tmp_path / "run", "--format", "beir", "--output", output], main)
        assert said.code == 2
        assert str(output) in said.err
    assert (tmp_path / "run" / "recipe.yaml").is_file()


def test_nothing_is_left_of_an_export_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_run(tmp_path / "run", triplets())

    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(export_module, "render", full)
    said = export(tmp_path / "run", "flagembedding")
    assert said.code == 2
    assert "No space left" in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_without_pairs_and_a_split_without_pairs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "recipe.yaml" in export(tmp_path / "empty", "beir").err
    read_run(tmp_path / "run", [one for one in triplets() if one["split"] != "validation"])
    said = export(tmp_path / "run", "beir", "--split", "train", "validation")
    assert said.code == 2
    assert "--split validation" in said.err
    assert not (tmp_path / "beir").exists()


def test_the_default_folder_is_in_the_run(tmp_path: Path) -> None:
    read_run(tmp_path / "run", triplets())
    assert call(["dataset", tmp_path / "run", "--format", "trec"], main).code == 0
    assert (tmp_path / "run/export/trec/queries.tsv").is_file()


def test_the_readme_escapes_what_the_data_says(tmp_path: Path) -> None:
    source = Source("<script>x</script> | *y*", license="`mit`", description="a\n# heading")
    read_run(tmp_path / "run", triplets(), source=source)
    export(tmp_path / "run", "beir")
    readme = (tmp_path / "beir/README.md").read_text(encoding="utf-8")
    assert "<script>" not in readme
    assert "\n# heading" not in readme
    assert r"\| \*y\*" in readme
    assert "| train | 3 | 4 | 0 | 6 | none |" in readme


Told = tuple[set[tuple[Any, ...]], set[tuple[Any, ...]]]


def told(collection: Collection, ids: bool = True) -> Told:
    """The judgements and the candidates of a collection, by text and id."""
    queries, listed = (
        [(one["text"], one["id"] if ids else None) for one in table]
        for table in (collection.queries, collection.documents)
    )
    judgements = {
        (*queries[one["query"]], *listed[one["document"]], one["grade"], one["split"])
        for one in collection.judgements
    }
    candidates = {
        (*queries[one["query"]], *listed[one["document"]], one["grade"], one["score"])
        for one in collection.candidates
    }
    return judgements, candidates


def all_alike(of: Told) -> Told:
    """Without grades, and with negatives that nobody judged."""
    judgements, candidates = of
    return (
        {(*texts, 1, split) for *texts, _, split in judgements},
        {(*texts, 1 if grade else None, score) for *texts, grade, score in candidates},
    )


def without_scores(of: Told) -> Told:
    """A pair that was listed for its score is no candidate then."""
    judgements, candidates = of
    return judgements, {(*texts, grade, None) for *texts, grade, _ in candidates if not grade}


def judged(of: Told) -> Told:
    """The judgements alone."""
    judgements, candidates = without_scores(of)
    return judgements, {one for one in candidates if one[-2] is not None}


def labelled(of: Told) -> Told:
    """What nobody judged has the label 0."""
    judgements, candidates = of
    return judgements, {(*texts, grade or 0, score) for *texts, grade, score in candidates}


def placed(of: Told) -> Told:
    """In a run, a candidate without a score has one that keeps its place."""
    judgements, candidates = of
    return judgements, {(*texts, grade) for *texts, grade, _ in candidates}


LISTS = [*everything(), row(8, 15, "validation", score=0.35)]
"""In each split, the number of documents differs from query to query."""


@pytest.mark.parametrize(
    ("name", "rows", "can_hold"),
    [
        ("flagembedding", everything(), lambda c: all_alike(told(c, ids=False))),
        ("flagembedding", triplets(), lambda c: told(c, ids=False)),
        ("tevatron", everything(), lambda c: without_scores(all_alike(told(c)))),
        ("tevatron", triplets(), told),
        ("sentence-transformers", LISTS, lambda c: labelled(told(c, ids=False))),
        ("sentence-transformers", triplets(), lambda c: told(c, ids=False)),
        ("sentence-transformers", triplets(1), lambda c: told(c, ids=False)),
        ("beir", everything(), lambda c: judged(told(c))),
        ("beir", triplets(), lambda c: judged(told(c))),
        ("trec", everything(), told),
        ("trec", triplets(), lambda c: placed(told(c))),
        ("trec", without(everything(), "query_id", "document_id"), lambda c: told(c, ids=False)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_export_is_read_back_as_the_same_collection(
    tmp_path: Path, name: str, rows: Rows, can_hold: Callable[[Collection], Told]
) -> None:
    before = read_run(tmp_path / "run", rows)
    assert export(tmp_path / "run", name).code == 0
    again = read_path(tmp_path / name, "dataset_path", recipe_of().data, tmp_path / "cache")
    after = read_run(tmp_path / "again", again.rows, again.corpus)
    assert can_hold(after) == can_hold(before)
    assert again.read_as
