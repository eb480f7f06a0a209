"""BEIR folders, MS MARCO's files and QReCC, as people have them."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pytest
from conftest import REAL_DATA, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.data.collection import SourcePairs
from hf_distill.data.load import write_collection
from hf_distill.data.read import open_tables as open_collection
from hf_distill.data.sources.beir import FORMAT
from hf_distill.data.sources.files import read_path, recognise
from hf_distill.data.tables.table import Table, Tables
from hf_distill.errors import InputError
from hf_distill.evaluation.tasks import load_task, task_of
from hf_distill.recipe.arguments import DataArguments
from hf_distill.run.folder import RunFolder

CORPUS = {
    "10": ("Cats", 'the "blue cat" sleeps'),
    "11": ("", "a red dog, and another"),
    "12": (None, "the sun shines"),
    "13": ("Moon", "NA"),
}
QUERIES = {"1": "where is the cat", "2": "who is red", "3": "what shines"}
QRELS = {
    "train": [("1", "10", 1), ("1", "11", 0), ("2", "11", 2)],
    "dev": [("2", "13", 1)],
    "test": [("3", "12", 1), ("3", "13", -1), ("3", "99", 1)],
}
TEXTS = {
    "10": 'Cats the "blue cat" sleeps',
    "11": "a red dog, and another",
    "12": "the sun shines",
    "13": "Moon NA",
}


def read(path: Path, **keys: Any) -> SourcePairs:
    return read_path(path, "dataset_path", DataArguments(**keys), path.parent / "cache")


def said(pairs: SourcePairs) -> list[tuple[Any, ...]]:
    """What the rows say, and that their texts are those of their ids."""
    rows = []
    for row in pairs.rows:
        key = row["query_id"], row["document_id"]
        assert (row["query"], row["document"]) == (QUERIES.get(key[0]), TEXTS.get(key[1])), row
        kind = "candidate" if row.get("candidate") else row["grade"]
        rows.append((*key, kind, row.get("score"), row["split"]))
    return rows


def expected(*splits: str) -> list[tuple[Any, ...]]:
    """The judgements of some splits, in the order in which they are read."""
    names = {"test": "test", "dev": "validation", "train": "train"}
    return [
        (*row, None, name)
        for split, name in names.items()
        if split in splits
        for row in QRELS[split]
    ]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def corpus_rows() -> list[dict[str, Any]]:
    return [{"_id": key, "title": title, "text": text} for key, (title, text) in CORPUS.items()]


def query_rows() -> list[dict[str, Any]]:
    return [{"_id": key, "text": text} for key, text in QUERIES.items()]


def qrels_rows(split: str) -> list[dict[str, Any]]:
    return [{"query-id": q, "corpus-id": d, "score": g} for q, d, g in QRELS[split]]


def beir(path: Path, **splits: Any) -> Path:
    """The folder as BEIR's own archives have it; `splits` are other judgements than `QRELS`."""
    (path / "qrels").mkdir(parents=True)
    (path / "corpus.jsonl").write_text(lines(corpus_rows()))
    (path / "queries.jsonl").write_text(lines(query_rows()))
    for split, rows in (splits or QRELS).items():
        text = "".join(f"{q}\t{d}\t{g}\n" for q, d, g in rows)
        (path / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{text}")
    return path


def other_qrels(write: Callable[[list[tuple[str, str, int]]], str], suffix: str = ".tsv") -> Any:
    """The folder with judgements in another form."""

    def change(path: Path) -> None:
        for split, rows in QRELS.items():
            (path / "qrels" / f"{split}.tsv").unlink()
            (path / "qrels" / f"{split}{suffix}").write_text(write(rows))

    return change


def joined(pattern: str, header: str = "") -> Any:
    return lambda rows: header + "".join(pattern.format(q=q, d=d, g=g) for q, d, g in rows)


def every_file(change: Callable[[bytes], bytes], suffix: str = "") -> Any:
    def apply(path: Path) -> None:
        for file in [file for file in path.rglob("*") if file.is_file()]:
            content = change(file.read_bytes())
            file.unlink()
            file.with_name(file.name + suffix).write_bytes(content)

    return apply


def zstd_stream(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(content)
    return sink.getvalue().to_pybytes()


def as_tables(suffix: str, texts: bool = True) -> Any:
    """Everything as Parquet or CSV. Ids of the judgements are numbers there."""

    def change(path: Path) -> None:
        frames = {"corpus": corpus_rows(), "queries": query_rows()} if texts else {}
        frames |= {f"qrels/{split}": qrels_rows(split) for split in QRELS}
        for name, rows in frames.items():
            old = path / f"{name}{'.tsv' if name.startswith('qrels') else '.jsonl'}"
            old.unlink()
            frame = pd.DataFrame(rows)
            if name.startswith("qrels"):
                number = float if suffix == ".parquet" else int  # float, as beside a null
                frame = frame.astype({"query-id": int, "corpus-id": number, "score": float})
            if suffix == ".parquet":
                frame.to_parquet(path / f"{name}.parquet")
            else:
                frame.to_csv(path / f"{name}.csv", index=False)

    return change


def quoted_texts(quoting: Literal[1, 2]) -> Any:
    """The texts as TSV, as pandas and R write it. A missing title is a bare empty cell."""

    def change(path: Path) -> None:
        for name, rows in (("corpus", corpus_rows()), ("queries", query_rows())):
            (path / f"{name}.jsonl").unlink()
            frame = pd.DataFrame(rows)
            frame.to_csv(path / f"{name}.tsv", index=False, sep="\t", quoting=quoting)

    return change


def hub_layout(path: Path) -> None:
    """A clone of a data set as mteb writes it: a folder for each configuration, and a card."""
    frames = {
        "corpus/corpus-00000-of-00002": corpus_rows()[:2],
        "corpus/corpus-00001-of-00002": corpus_rows()[2:],
        "queries/queries-00000-of-00001": query_rows(),
        **{f"data/{split}-00000-of-00001": qrels_rows(split) for split in QRELS},
    }
    for file in [*path.glob("*.jsonl"), *path.glob("qrels/*")]:
        file.unlink()
    for name, rows in frames.items():
        (path / name).parent.mkdir(exist_ok=True)
        frame = pd.DataFrame(rows).rename(columns={"_id": "id"})
        frame.to_parquet(path / f"{name}.parquet")
    configs = "".join(
        f"- config_name: {config}\n  data_files:\n  - split: {split}\n    path: {file}\n"
        for config, split, file in (
            ("corpus", "corpus", "corpus/corpus-*"),
            ("queries", "queries", "queries/queries-*"),
            *(("default", split, f"data/{split}-*") for split in QRELS),
        )
    )
    (path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")


def other_names(path: Path) -> None:
    """Texts under other names, one file of queries for each split."""
    renamed = [
        {"docid": row["_id"], "Title": row["title"], "contents": row["text"]}
        for row in corpus_rows()
    ]
    (path / "corpus.jsonl").unlink()
    (path / "documents.jsonl").write_text(lines(renamed))
    (path / "queries.jsonl").unlink()
    for name, kept in (("train", "12"), ("test", "23")):
        rows = [{"qid": int(key), "query": QUERIES[key]} for key in kept]
        (path / f"{name}_queries.jsonl").write_text(lines(rows))


FORMS: Mapping[str, Callable[[Path], Any]] = {
    "as BEIR writes it": lambda _: None,
    "TREC": other_qrels(joined("{q} 0 {d} {g}\n")),
    "TREC, .qrels": other_qrels(joined("{q}\t0\t{d}\t{g}\n"), ".qrels"),
    "JSONL": other_qrels(
        joined('{{"query-id": "{q}", "corpus-id": "{d}", "score": {g}}}\n'), ".jsonl"
    ),
    "other names": other_qrels(
        joined('{{"qid": {q}, "docid": {d}, "relevance": {g}}}\n'), ".jsonl"
    ),
    "floats": other_qrels(joined("{q}\t{d}\t{g}.0\n", "query-id\tcorpus-id\tscore\n")),
    "no header": other_qrels(joined("{q}\t{d}\t{g}\n")),
    "white space": other_qrels(joined("{q} {d} {g}\n")),
    "another header": other_qrels(joined("{q}\t{d}\t{g}\n", "Anfrage\tDokument\tNote\n")),
    "another order": other_qrels(joined("{g}\t{d}\t{q}\n", "grade\tdoc_id\tquery_id\n")),
    "all quoted": other_qrels(
        joined('"{q}"\t"{d}"\t"{g}"\n', '"query-id"\t"corpus-id"\t"score"\n')
    ),
    "words quoted": other_qrels(
        joined('"{q}"\t"{d}"\t{g}\n', '"query-id"\t"corpus-id"\t"score"\n')
    ),
    "texts quoted": quoted_texts(csv.QUOTE_ALL),
    "words and texts quoted": quoted_texts(csv.QUOTE_NONNUMERIC),
    "BOM": every_file(lambda content: b"\xef\xbb\xbf" + content),
    "CRLF": every_file(lambda content: content.replace(b"\n", b"\r\n")),
    "gz": every_file(gzip.compress, ".gz"),
    "zst": every_file(zstd_stream, ".zst"),
    "bz2": every_file(bz2.compress, ".bz2"),
    "Parquet": as_tables(".parquet"),
    "CSV": as_tables(".csv"),
    "Parquet judgements": as_tables(".parquet", texts=False),
    "the Hub's": hub_layout,
    "other texts": other_names,
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_beir_folder_says_the_same_in_every_form(tmp_path: Path, form: str) -> None:
    folder = beir(tmp_path / "b")
    FORMS[form](folder)
    pairs = read(folder)
    assert list(pairs.corpus or ()) == [(text, key) for key, text in TEXTS.items()]
    assert said(pairs) == expected("train", "dev", "test")
    assert pairs.counts == {"judgements found": 7}
    assert pairs.read_as.startswith("BEIR: judgements (test, validation, train)")
    assert all(what.startswith("file ") for what in pairs.unused), pairs.unused


@pytest.mark.parametrize("form", FORMS)
def test_a_beir_folder_is_the_same_task_in_every_form(tmp_path: Path, form: str) -> None:
    folder = beir(tmp_path / "b")
    FORMS[form](folder)
    task = load_task(str(folder))
    assert task.qrels == {"3": {"12": 1, "13": -1, "99": 1}}
    assert task.queries == {"3": QUERIES["3"]}
    assert task.documents == TEXTS


def hub_table(config: str, split: str, rows: list[dict[str, Any]]) -> Table:
    """A split of a data set on the Hub."""
    usual = {"dev": "validation"}.get(split, split)
    return Table(
        f"{config} (split {split})", config if config != "default" else "mine", config, usual,
        tuple(rows[0]), "row", lambda: iter(enumerate(rows)), count=len(rows),
    )  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "en-"])
def test_the_configurations_of_a_hub_data_set_are_a_beir_folder(prefix: str) -> None:
    corpus = [{"id": key, "title": title, "text": text} for key, (title, text) in CORPUS.items()]
    judged = f"{prefix}qrels" if prefix else "default"
    tables = Tables(
        None,
        "me/mine",
        "dataset_name",
        (
            hub_table(f"{prefix}corpus", "corpus", corpus),
            *(hub_table(judged, split, qrels_rows(split)) for split in QRELS),
            hub_table(f"{prefix}queries", "queries", query_rows()),
        ),
        license="mit",
    )
    assert recognise(tables, DataArguments()) is FORMAT
    pairs = FORMAT.read(tables, DataArguments())
    assert said(pairs) == expected("train", "dev", "test")
    assert (pairs.about.name, pairs.about.license) == ("me/mine", "mit")
    assert pairs.unused == {}


@pytest.mark.parametrize("name", ["scifact", "vaswani", "cacm"])
def test_real_folders_are_the_tasks_that_their_files_say(name: str) -> None:
    folder = REAL_DATA / name
    if not folder.is_dir():
        pytest.skip(f"the real data set {name} is not here")
    queries, documents = (
        {
            row["_id"]: " ".join(filter(None, (row.get("title", ""), row["text"]))).strip()
            for row in map(json.loads, (folder / f"{file}.jsonl").read_bytes().splitlines())
        }
        for file in ("queries", "corpus")
    )
    qrels: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, document, grade = line.split("\t")
        qrels.setdefault(query, {})[document] = int(grade)
    task = load_task(str(folder))
    assert task.qrels == qrels
    assert task.queries == {query: queries[query] for query in qrels}
    assert task.documents == documents


# --- BEIR: splits


def test_other_splits_are_counted(tmp_path: Path) -> None:
    pairs = read(beir(tmp_path / "b", **QRELS, dl19=[("1", "12", 3), ("1", "13", 0)]))
    assert said(pairs) == expected("train", "dev", "test")
    assert pairs.unused == {"judgements of qrels/dl19.tsv (dl19)": 2}


@pytest.mark.parametrize("name", ["dev", "test", "train", "dl19"])
def test_the_only_split_is_all_that_there_is(tmp_path: Path, name: str) -> None:
    pairs = read(beir(tmp_path / "b", **{name: QRELS["train"]}))
    assert [row[:3] for row in said(pairs)] == QRELS["train"]
    assert pairs.unused == {"queries without a judgement": 1}


def test_a_file_of_judgements_may_lie_beside_the_texts(tmp_path: Path) -> None:
    folder = beir(tmp_path / "b", train=QRELS["train"])
    (folder / "qrels" / "train.tsv").rename(folder / "qrels.tsv")
    assert said(read(folder)) == [(*row, None, None) for row in QRELS["train"]]


def test_a_split_can_be_named(tmp_path: Path) -> None:
    folder = beir(tmp_path / "b", **QRELS, dl19=[("1", "12", 3)])
    for name, rows in (("dev", QRELS["dev"]), ("dl19", [("1", "12", 3)])):
        assert said(read(folder, dataset_split=name)) == [(*row, None, None) for row in rows]
    with pytest.raises(InputError, match=r"--dataset_split dl20.*dl19.*test"):
        read(folder, dataset_split="dl20")


def test_splits_that_say_nothing_are_refused(tmp_path: Path) -> None:
    folder = beir(tmp_path / "b", dl19=QRELS["train"], dl20=QRELS["test"])
    with pytest.raises(InputError, match=r"dl19, dl20.*--dataset_split"):
        read(folder)


def test_test_judgements_of_nothing_are_refused(tmp_path: Path) -> None:
    folder = beir(tmp_path / "b", train=QRELS["train"], test=[("3", "99", 1), ("3", "12", 0)])
    with pytest.raises(InputError, match=r"qrels/test\.tsv"):
        list(read(folder).rows)


def test_several_collections_in_one_folder_are_refused(tmp_path: Path) -> None:
    for language in ("de", "en"):
        beir(tmp_path / "b" / language)
    with pytest.raises(InputError, match=r"2 collections \(de, en\)"):
        read(tmp_path / "b")


# --- BEIR: what is odd


def test_unknown_ids_and_empty_texts_are_counted(tmp_path: Path) -> None:
    odd = [("1", "10", 1), ("1", "77", 1), ("8", "10", 1), ("1", "14", 1), ("4", "10", 1)]
    folder = beir(tmp_path / "b", train=[*odd, ("2", "11", 1), ("3", "12", 1), ("3", "10", 0)])
    for name, row in (("corpus", {"_id": "14", "text": " "}), ("queries", {"_id": 4, "text": ""})):
        with (folder / f"{name}.jsonl").open("a") as file:
            file.write(lines([row]))
    pairs = read(folder)
    run = RunFolder(tmp_path / "run")
    data = DataArguments(test_fraction=0.4, validation_fraction=0.0)
    record = write_collection((pairs, None), data, 0, run, "key")
    counts = dict(record.read)
    assert counts.pop("judgements found") == 8 == sum(counts.values())
    assert counts == {
        "kept": 3,
        "unknown or empty document": 2,
        "unknown or empty query": 2,
        "judged not relevant": 1,
    }
    collection = open_collection(run.pairs, record)
    assert dict(zip(collection.documents["id"], collection.documents["text"], strict=True)) == TEXTS
    assert set(collection.queries["id"]) == set(QUERIES)


def test_columns_and_files_without_a_use_are_counted(tmp_path: Path) -> None:
    folder = beir(tmp_path / "b")
    rows = [{**row, "metadata": {"url": "x"} if row["_id"] < "12" else {}} for row in corpus_rows()]
    (folder / "corpus.jsonl").write_text(lines(rows))
    (folder / "pairs.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    (folder / "notes.md").write_text("text")
    pairs = read(folder)
    list(pairs.rows)
    assert pairs.unused == {
        "column metadata of corpus.jsonl": 2,
        "file pairs.jsonl": 1,
        "file notes.md": 1,
    }


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("corpus.jsonl", '{"_id": "a", "text": "x \\ud800"}\n', "corpus.jsonl, line 1: .*Unicode"),
        ("corpus.jsonl", '{"_id": "a"}\n', "corpus.jsonl"),
        ("corpus.jsonl", '{"_id": "a", "text": 7}\n', r"line 1: .*'text'.*int.*7"),
        (
            "corpus.jsonl",
            '{"_id": 1, "text": "x"}\n\n{"_id": "1", "text": "y"}\n',
            "corpus.jsonl, line 3: .*'1'.*second",
        ),
        (
            "queries.jsonl",
            '{"_id": "a", "text": "x"}\n{"_id": "a", "text": "y"}\n',
            "queries.jsonl, line 2: .*'a'.*second",
        ),
        ("qrels/test.tsv", "q1\td1\n", r"qrels/test.tsv, line 1: .*\['q1', 'd1'\]"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\thigh\n", "line 2: .*'high'"),
        ("qrels/test.tsv", "1\t10\t1\n1\t11\t0.5\n", "qrels/test.tsv, line 2: .*'0.5'"),
        ("qrels/test.tsv", "1\t10\t1\n1\t11\tnan\n", "qrels/test.tsv, line 2: .*'nan'"),
        ("qrels/test.tsv", "1\t10\thigh\n1\t11\t1\n", "qrels/test.tsv, line 1: .*'high'"),
        ("qrels/test.tsv", "1\t10\t1_0\n", "qrels/test.tsv, line 1: .*'1_0'"),
        ("qrels/dev.txt", "1 0 10 ²\n1 0 11 1\n", "qrels/dev.txt, line 1: .*'²'"),
        ("qrels.txt", "1 10 ²\n1 11 ²\n", "qrels.txt, line 1: .*'²'"),
        ("judged.txt", "1 0 10 ²\n1 0 11 ²\n", "judged.txt, line 1: .*'²'"),
        ("bm25.run", "1 Q0 10 1 7.5 x\n1 Q0 11 2 nan x\n", "bm25.run, line 2: .*'nan'"),
        ("run.txt", "1 Q0 10 1 nan x\n1 Q0 11 2 nan x\n", "run.txt, line 1: .*'nan'"),
        ("a.txt", "1 Q0 10 1 inf x\n1 Q0 11 2 -inf x\n", "a.txt, line 1: .*'inf'"),
        ("a.tsv", "1\t0\t10\t1\t-Infinity\tx\n", "a.tsv, line 1: .*'-Infinity'"),
        ("a.run", "1 Q0 10 1 7,5 x\n1 Q0 11 2 0,5 x\n", "a.run, line 1: .*'7,5'"),
        ("a.run", "1 Q0 10 1 7.5 x\n1 Q0 11 2 6.5\n", "a.run, line 2"),
        ("a.txt", "1 Q0 10 1 7.5 x\n1 Q0 11 2 6.5\n", "a.txt, line 2"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n1\t\t1\n", "line 2: expected"),
        ("qrels/dev.jsonl", '{"a": "1"}\n', "qrels/dev.jsonl.*query-id"),
    ],
)
def test_a_bad_beir_folder_is_refused_with_the_line(
    tmp_path: Path, file: str, content: str, says: str
) -> None:
    folder = beir(tmp_path / "b", test=QRELS["test"])
    (folder / file).write_text(content)
    with pytest.raises(InputError, match=says):
        list(read(folder).rows)


@pytest.mark.parametrize(
    ("without", "says"),
    [
        (["corpus.jsonl"], "documents' texts"),
        (["queries.jsonl"], "queries' texts"),
        (["qrels/test.tsv"], "judgements"),
    ],
)
def test_a_missing_part_is_named(tmp_path: Path, without: list[str], says: str) -> None:
    folder = beir(tmp_path / "b", test=QRELS["test"])
    for name in without:
        (folder / name).unlink()
    with pytest.raises(InputError, match=f"but not .*{says}"):
        read(folder, format="beir")


def test_an_option_about_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--query_column text has no effect"):
        read(beir(tmp_path / "b"), query_column="text")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its open files
def test_beirs_own_loader_reads_the_fixture(tmp_path: Path) -> None:
    loader = pytest.importorskip("beir.datasets.data_loader")
    folder = beir(tmp_path / "b")
    corpus, queries, qrels = loader.GenericDataLoader(str(folder)).load(split="test")
    task = load_task(str(folder))
    assert {key: " ".join(filter(None, row.values())) for key, row in corpus.items()}.keys() == (
        task.documents.keys()
    )
    assert (queries, qrels) == (task.queries, task.qrels)


def test_a_folder_that_beir_writes_is_read(tmp_path: Path) -> None:
    util = pytest.importorskip("beir.util")
    folder = tmp_path / "b"
    (folder / "qrels").mkdir(parents=True)
    corpus = {key: {"title": title, "text": text} for key, (title, text) in CORPUS.items()}
    queries = {key: {"title": "", "text": text} for key, text in QUERIES.items()}
    util.write_to_json(str(folder / "corpus.jsonl"), corpus)
    util.write_to_json(str(folder / "queries.jsonl"), queries)
    for split, rows in QRELS.items():
        qrels: dict[str, dict[str, int]] = {}
        for query, document, grade in rows:
            qrels.setdefault(query, {})[document] = grade
        util.write_to_tsv(str(folder / "qrels" / f"{split}.tsv"), qrels)
    util.save_runfile(str(folder / "bm25.run.trec"), {"1": {"12": 1.5}})
    # An entry of `write_to_json` has a metadata of its own.
    pairs = read(folder)
    assert said(pairs) == [
        *expected("train", "dev", "test"),
        ("1", "12", "candidate", 1.5, None),
    ]


# --- runs and lists


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bm25.run", "1 Q0 12 1 7.5 bm25\n1 Q0 10 2 -1e-3 bm25\n8 Q0 10 1 3 bm25\n"),
        ("dense.trec", "1\tQ0\t12\t1\t7.5\tx\n1\tQ0\t10\t2\t-1e-3\tx\n8\tQ0\t10\t1\t3\tx\n"),
    ],
)
def test_a_trec_run_beside_a_beir_folder_is_candidates(
    tmp_path: Path, name: str, content: str
) -> None:
    folder = beir(tmp_path / "b")
    (folder / name).write_text(content)
    pairs = read(folder)
    rows = said(pairs)
    assert rows[:7] == expected("train", "dev", "test")
    assert rows[7:] == [
        ("1", "12", "candidate", 7.5, None),
        ("1", "10", "candidate", -1e-3, None),
        ("8", "10", "candidate", 3.0, None),
    ]
    assert pairs.counts == {"rows found": 10}
    assert f" and lists ({name})" in pairs.read_as


RUN = "{q} Q0 12 1 {s} bm25\n{q} Q0 10 2 {s} bm25\n"


@pytest.mark.parametrize("names", [("bm25.run", "dense.run"), ("run.train.txt", "run.dev.txt")])
def test_the_scores_of_two_systems_are_not_mixed(tmp_path: Path, names: tuple[str, str]) -> None:
    folder = beir(tmp_path / "b")
    (folder / names[0]).write_text(RUN.format(q=1, s=7.5) + RUN.format(q=2, s=7.5))
    (folder / names[1]).write_text(RUN.format(q=3, s=0.5) + RUN.format(q=2, s=0.5))
    with pytest.raises(InputError, match=rf"{min(names)} and {max(names)} .*'2'"):
        read(folder)


def test_runs_for_other_queries_and_lists_without_scores_go_together(tmp_path: Path) -> None:
    folder = beir(tmp_path / "b")
    (folder / "run.train.txt").write_text(RUN.format(q=1, s=7.5))
    (folder / "run.dev.txt").write_text(RUN.format(q=2, s=0.5))
    (folder / "more.tsv").write_text("1\t13\t1\n1\t12\t2\n")
    assert said(read(folder))[7:] == [
        ("1", "13", "candidate", None, None),
        ("1", "12", "candidate", None, None),
        ("2", "12", "candidate", 0.5, "validation"),
        ("2", "10", "candidate", 0.5, "validation"),
        ("1", "12", "candidate", 7.5, "train"),
        ("1", "10", "candidate", 7.5, "train"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "score"),
    [
        ("a.run", "topic Q0 doc rank score tag\n1 Q0 12 1 7.5 x\n", 7.5),
        ("a.tsv", "qid\tpid\trank\tscore\n1\t12\t1\t7.5\n", 7.5),
        ("a.tsv", "qid\tpid\trank\n1\t12\t1\n", None),
        ("a.tsv", "frage\tdokument\tplatz\n1\t12\t1\n1\t13\t2\n", None),
        ("a.jsonl", '{"query_id": 1, "doc_id": 12, "rank": 1, "score": 7.5}\n', 7.5),
    ],
)
def test_a_run_may_have_a_header(
    tmp_path: Path, name: str, content: str, score: float | None
) -> None:
    folder = beir(tmp_path / "b")
    (folder / name).write_text(content)
    rows = said(read(folder))[7:]
    assert rows[:1] == [("1", "12", "candidate", score, None)]
    assert len(rows) == content.count("\n") - (not name.endswith("jsonl"))


def msmarco(path: Path, **names: str) -> Path:
    """The passage ranking files, under their own names."""
    path.mkdir(parents=True)
    files = {
        "collection.tsv": list(TEXTS.items()),
        "queries.train.tsv": [(key, QUERIES[key]) for key in "12"],
        "queries.dev.tsv": [(key, QUERIES[key]) for key in "23"],
        "queries.dev.small.tsv": [("3", QUERIES["3"])],
        "qrels.train.tsv": [(q, 0, d, g) for q, d, g in QRELS["train"]],
        "qrels.dev.small.tsv": [(q, 0, d, g) for q, d, g in QRELS["test"]],
    }
    for name, rows in files.items():
        text = "".join("\t".join(map(str, row)) + "\n" for row in rows)
        (path / names.get(name, name)).write_text(text)
    return path


MSMARCO = [
    *((*row, None, "validation") for row in QRELS["test"]),
    *((*row, None, "train") for row in QRELS["train"]),
]


def test_ms_marcos_files_are_read_without_headers_and_quotes(tmp_path: Path) -> None:
    pairs = read(msmarco(tmp_path / "m"))
    assert list(pairs.corpus or ()) == [(text, key) for key, text in TEXTS.items()]
    assert said(pairs) == MSMARCO
    assert pairs.counts == {"judgements found": 6}
    assert pairs.read_as.startswith("MS MARCO: judgements (validation, train)")
    assert pairs.unused == {}


def test_ms_marcos_files_need_no_extension(tmp_path: Path) -> None:
    names = ("collection", "queries.train", "queries.dev", "queries.dev.small", "qrels.train")
    folder = msmarco(tmp_path / "m", **{f"{name}.tsv": name for name in names})
    top = f"1\t12\t{QUERIES['1']}\t{TEXTS['12']}\n"
    (folder / "top1000.train").write_text(top)
    (folder / "top1000.dev.gz").write_bytes(gzip.compress(top.replace("12", "13").encode()))
    (folder / "run.bm25-default").write_text("1 Q0 10 1 7.5 x\n")
    for name, content in (
        ("collection.idx", b"\0\1\2"), ("queries.lock", b""), ("run.sh", b"ls\n"),
        ("corpus.npy", b"\x93NUMPY"),
    ):  # fmt: skip
        (folder / name).write_bytes(content)
    pairs = read(folder)
    rows = [
        (row["query_id"], row["document_id"], row.get("grade"), row.get("score"), row["split"])
        if row.get("candidate") is None or "score" in row
        else (row["query_id"], row["document_id"])
        for row in pairs.rows
    ]
    assert rows == [
        *((q, d, g, None, "validation") for q, d, g in QRELS["test"]),
        *((q, d, g, None, "train") for q, d, g in QRELS["train"]),
        ("1", "10", None, 7.5, None),
        ("1", "13"),
        ("1", "12"),
    ]
    assert list(pairs.corpus or ()) == [(text, key) for key, text in TEXTS.items()]
    assert pairs.unused == {
        f"file {name}": 1 for name in ("collection.idx", "queries.lock", "run.sh", "corpus.npy")
    }


def test_an_id_may_stand_twice_with_one_text(tmp_path: Path) -> None:
    folder = msmarco(tmp_path / "m")
    with (folder / "collection.tsv").open("a") as file:
        file.write(f"12\t{TEXTS['12']}\n")
    assert said(read(folder)) == MSMARCO
    task = load_task(str(folder))
    assert task.documents == TEXTS


def test_judgements_of_dev_and_dev_small_count_once(tmp_path: Path) -> None:
    folder = msmarco(tmp_path / "m")
    again = [*QRELS["test"][:2], ("3", "99", 2), ("2", "13", 1)]
    text = "".join(f"{q}\t0\t{d}\t{g}\n" for q, d, g in again)
    (folder / "qrels.dev.tsv").write_text(text)
    pairs = read(folder)
    rows = [row[:3] for row in said(pairs) if row[4] == "validation"]
    assert rows == [*QRELS["test"], ("3", "99", 2), ("2", "13", 1)]
    assert pairs.counts == {"judgements found": 10, "repeated judgements": 2}


def test_files_of_other_names_are_told_apart_by_their_ids(tmp_path: Path) -> None:
    folder = msmarco(
        tmp_path / "m",
        **{"collection.tsv": "a.tsv", "queries.train.tsv": "b.tsv", "queries.dev.tsv": "c.tsv"},
    )
    (folder / "queries.dev.small.tsv").unlink()
    assert said(read(folder)) == MSMARCO


@pytest.mark.parametrize("header", ["", "query\tpositive\tnegative\n"])
def test_triples_of_texts_need_nothing_beside_them(tmp_path: Path, header: str) -> None:
    path = tmp_path / "triples.train.small.tsv"
    path.write_text(
        f'{header}is it blue\tit is "blue\tit is red\nis it blue\tit is "blue\tit is far\n'
        "what is\ta cat is\tNA\n"
    )
    pairs = read(path)
    rows = [(row["query"], row["document"], row.get("candidate", False)) for row in pairs.rows]
    assert rows == [
        ("is it blue", 'it is "blue', False),
        ("is it blue", "it is red", True),
        ("is it blue", "it is far", True),
        ("what is", "a cat is", False),
        ("what is", "NA", True),
    ]
    assert pairs.counts == {"rows found": 6, "repeated positives": 1}
    assert pairs.corpus is None


def test_triples_of_ids_make_pairs_of_what_is_not_judged(tmp_path: Path) -> None:
    folder = msmarco(tmp_path / "m")
    (folder / "qidpidtriples.train.tsv").write_text("1\t10\t12\n1\t10\t13\n2\t12\t10\n")
    pairs = read(folder)
    rows = said(pairs)
    assert rows[:6] == MSMARCO
    assert rows[6:] == [
        ("1", "12", "candidate", None, "train"),
        ("1", "13", "candidate", None, "train"),
        ("2", "12", 1, None, "train"),
        ("2", "10", "candidate", None, "train"),
    ]
    assert pairs.counts == {"rows found": 12, "repeated positives": 2}


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("run.dev.small.tsv", "1\t12\t1\n1\t13\t2\n", [("1", "12"), ("1", "13")]),
        (
            "top1000.dev.tsv",
            f"1\t12\t{QUERIES['1']}\t{TEXTS['12']}\n3\t10\t{QUERIES['3']}\t{TEXTS['10']}\n",
            [("1", "12"), ("3", "10")],
        ),
        (
            "msmarco-hard-negatives.jsonl",
            '{"qid": 1, "pos": [10], "neg": {"bm25": [12], "ance": [{"pid": 13}]}}\n',
            [("1", "12"), ("1", "13")],
        ),
    ],
)
def test_lists_without_scores_are_candidates(
    tmp_path: Path, name: str, content: str, rows: list[tuple[str, str]]
) -> None:
    folder = msmarco(tmp_path / "m")
    (folder / name).write_text(content)
    found = [
        (row["query_id"], row["document_id"])
        for row in read(folder).rows
        if row.get("candidate") and "score" not in row
    ]
    assert found == rows


def test_documents_have_a_title_and_a_body(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "msmarco-docs.tsv").write_text("D1\thttp://a\tCats\tblue cat\nD2\thttp://b\t\ttwo\n")
    (folder / "msmarco-doctrain-queries.tsv").write_text("1\twho is it\n")
    (folder / "msmarco-doctrain-qrels.tsv").write_text("1 0 D1 1\n1 0 D2 1\n")
    pairs = read(folder)
    assert [(row["document"], row["split"]) for row in pairs.rows] == [
        ("Cats blue cat", None),
        ("two", None),
    ]
    assert pairs.unused == {"column url of msmarco-docs.tsv": 2}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("bm25.run", "1 Q0 12 1 7.5 bm25\n", "judgements.*documents' texts.*queries' texts"),
        ("qrels.train.tsv", "1\t0\t12\t1\n", "documents' texts.*queries' texts"),
        ("triples.train.tsv", "1\t120\t3000\n", "documents' texts.*queries' texts"),
    ],
)
def test_ids_without_texts_are_refused(tmp_path: Path, name: str, content: str, says: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError, match=f"{name}, but not .*{says}"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "question\tanswer\ttopic name\nwho is it\tit is me\tthe first\n"),
        ("a.csv", "id,group,query,document\n1,2,who is it,it is me\n"),
        ("a.tsv", "query\tdocument\tlabel\nq1\td1\t1\nq2\td2\t0\n"),
        ("a.csv", "query_id,query,document_id,document,score\n1,who is,2,it is,0.5\n"),
    ],
)
def test_tables_of_pairs_are_not_taken_for_files_of_ids(
    tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    columns = {"query_column": "question", "document_column": "answer"}
    keys = columns if "question" in content else {}
    assert "MS MARCO" not in read(tmp_path / name, **keys).read_as


# --- QReCC

TURNS = [
    {
        "Context": ["a"] * (i % 3), "Question": f"and what is {i}", "Rewrite": f"what is thing {i}",
        "Answer": f"it is the thing {i}" if i % 4 else "", "Conversation_no": i // 3,
        "Turn_no": i % 3, "Conversation_source": "quac", "Answer_URL": "",
    }
    for i in range(8)
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("turns.json", json.dumps(TURNS).encode()),
        ("turns.json.gz", gzip.compress(json.dumps(TURNS, indent=1).encode())),
        ("turns.jsonl", lines(TURNS).encode()),
        ("turns.jsonl.zst", zstd_stream(b"\xef\xbb\xbf" + lines(TURNS).encode())),
    ],
)
def test_qrecc_is_recognised_by_its_keys(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    pairs = read(tmp_path / name)
    rows = [(row["pair_id"], row["query"], row["group"], row["source"]) for row in pairs.rows]
    assert rows == [
        (f"{i // 3}_{i % 3}", f"what is thing {i}", i // 3, "quac") for i in range(8) if i % 4
    ]
    assert pairs.counts == {"turns found": 8, "no answer": 2}
    assert (pairs.about.name, pairs.read_as) == ("QReCC", "QReCC")
    assert pairs.unused == {"column Context": 5}


def test_qreccs_two_files_are_train_and_test(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"qrecc_{split}.json").write_text(json.dumps(TURNS))
    rows = list(read(tmp_path, format="qrecc").rows)
    assert [row["split"] for row in rows] == ["test"] * 6 + ["train"] * 6
    assert len({row["group"] for row in rows}) == 6, "conversation 0 of each is another one"


# --- properties

IDS = st.sampled_from(["1", "2", "3", "4", "x9"])
GRADES = st.integers(-1, 3)


@settings(max_examples=25, deadline=None)
@given(
    judged=st.dictionaries(
        st.sampled_from(["train", "dev", "test"]),
        st.lists(st.tuples(IDS, IDS, GRADES), min_size=1, max_size=12),
        min_size=1,
    ),
    listed=st.lists(st.tuples(IDS, IDS), max_size=6),
    empty=st.sampled_from(["1", "2"]),
    trec=st.booleans(),
)
def test_every_row_is_used_or_has_a_reason(
    tmp_path_factory: pytest.TempPathFactory,
    judged: dict[str, list[tuple[str, str, int]]],
    listed: list[tuple[str, str]],
    empty: str,
    trec: bool,
) -> None:
    folder = tmp_path_factory.mktemp("b")
    pattern = "{q} 0 {d} {g}\n" if trec else "{q}\t{d}\t{g}\n"
    texts = {key: "" if key == empty else f"text {key}" for key in "1234"}
    if trec:
        for name in ("collection", "queries"):
            content = "".join(f"{key}\t{name} {text}\n" for key, text in texts.items())
            (folder / f"{name}.tsv").write_text(content)
    else:
        for name in ("corpus", "queries"):
            rows = [{"_id": key, "text": text} for key, text in texts.items()]
            (folder / f"{name}.jsonl").write_text(lines(rows))
    for split, rows in judged.items():
        content = "".join(pattern.format(q=q, d=d, g=g) for q, d, g in rows)
        (folder / f"qrels.{split}.tsv").write_text(content)
    if listed:
        content = "".join(f"{q} Q0 {d} {i} {i}.5 x\n" for i, (q, d) in enumerate(listed))
        (folder / "a.run").write_text(content)
    try:
        pairs = read(folder)
        record = write_collection(
            (pairs, None), DataArguments(), 0, RunFolder(folder / "run"), "key"
        )
    except InputError as error:
        if not re.search("no valid|too few|no pair is left|nothing to test with", str(error)):
            raise
        return
    counts = dict(record.read)
    found = [name for name in counts if name.endswith(" found")]
    assert len(found) == 1
    assert (
        counts.pop(found[0])
        == sum(counts.values())
        == (sum(map(len, judged.values())) + len(listed))
    )
    every = [row for rows in judged.values() for row in rows]
    relevant = {(q, d) for q, d, grade in every if grade > 0}
    not_relevant = {(q, d) for q, d, grade in every if grade <= 0}
    collection = open_collection(RunFolder(folder / "run").pairs, record)
    kept = collection.every_pair()
    ids = collection.queries["id"], collection.documents["id"]
    names = {
        (ids[0][q], ids[1][d])
        for q, d in zip(kept.queries.tolist(), kept.documents.tolist(), strict=True)
    }
    assert names <= relevant - not_relevant


# --- the recorded cases


CASES = ROOT.parent / "shared" / "cases" / "22-beir-variants"


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("beirdev", {"validation": 50, "train": 100}),
        ("beirdevonly", {"validation": 50}),
        ("beirfloat", {"test": 40, "train": 120}),
        ("beirtrec", {"test": 40, "train": 120}),
        ("beirmteb", {"test": 40, "train": 120}),
        ("beirbom", {"test": 40, "train": 120}),
        ("beirgz", {"test": 40, "train": 120}),
    ],
)
def test_the_recorded_beir_folders_are_read(
    tmp_path: Path, name: str, splits: dict[str, int]
) -> None:
    if not CASES.is_dir():
        pytest.skip("the recorded cases are not here")
    folder = tmp_path / name
    folder.mkdir()
    start = {"beirdevonly": "beirdev", "beirtrec": "beirfloat", "beirgz": "beirfloat"}
    for file in (CASES / start.get(name, name)).rglob("*.*"):
        target = folder / file.relative_to(CASES / start.get(name, name))
        target.parent.mkdir(exist_ok=True)
        content = file.read_bytes()
        if name == "beirtrec" and file.suffix == ".tsv":
            rows = [line.split("\t") for line in content.decode().splitlines()[1:]]
            content = "".join(f"{q} 0 {d} {float(g):.0f}\n" for q, d, g in rows).encode()
        if name == "beirgz":
            target, content = target.with_name(f"{target.name}.gz"), gzip.compress(content)
        if name != "beirdevonly" or file.stem != "train":
            target.write_bytes(content)
    pairs = read(folder)
    assert len(list(pairs.corpus or ())) == 200
    rows = list(pairs.rows)
    assert {split: sum(r["split"] == split for r in rows) for split in splits} == splits
    assert len(rows) == sum(splits.values())
    assert {row["grade"] for row in rows} == {1}
    assert all(row["query"] and row["document"] for row in rows)
    task = task_of(read(folder), name)
    assert sum(map(len, task.qrels.values())) == next(iter(splits.values()))
