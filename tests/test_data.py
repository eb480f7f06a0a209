import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import REAL_DATA, recipe_of
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_distill.data.collection import (
    JUDGEMENT_FEATURES,
    SPLITS,
    Collection,
    Source,
    SourcePairs,
    is_unicode,
    text_id,
    write_table,
)
from hf_distill.data.load import load_collection, open_collection, write_collection
from hf_distill.data.near_duplicates import (
    NEAR_DUPLICATE_JACCARD,
    NearDuplicates,
    _empty_signature,
    is_among,
    jaccard,
    signatures,
    text_key,
    word_trigrams,
    words_of,
)
from hf_distill.data.read import open_tables
from hf_distill.data.sources.files import read_beir, read_files, read_hub, read_qrecc
from hf_distill.data.sources.pydocs import PASSAGE_CHARACTERS, harvest, passage, read_pydocs
from hf_distill.data.sources.qrecc import extract_pair
from hf_distill.data.split import (
    LEAKED,
    LEAKS,
    NOT_SAID,
    TEST,
    TRAIN,
    VALIDATION,
    PairNumbers,
    arrange,
    deal_groups,
    find_leaks,
    leaks_left,
    seeded_groups,
    split_pairs,
    within_limit,
)
from hf_distill.data.word_grams import word_grams
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import DataArguments, Recipe
from hf_distill.run.folder import RunFolder


def recipe_at(path: Path, **keys: Any) -> Recipe:
    """A recipe whose data keys are the defaults unless given, with its run below `path`."""
    defaults = {"max_pairs": None, "test_fraction": 0.1, "validation_fraction": 0.05, "seed": 0}
    return recipe_of(**{**defaults, "run_dir": path / "run", **keys})


def load(path: Path, **keys: Any) -> Collection:
    return load_collection(recipe_at(path, **keys), RunFolder(path / "run"))


def collect(
    path: Path, rows: Iterable[dict], corpus: Iterable[str] | None = None, **keys: Any
) -> Collection:
    """The collection that some rows become. By default half of the groups are tested on."""
    data = DataArguments(**{"test_fraction": 0.5, "validation_fraction": 0.0, **keys})
    folder = RunFolder(path / "run")
    texts = None if corpus is None else ((text, None) for text in corpus)
    source = SourcePairs(Source("rows"), rows, texts)
    record = write_collection((source, None), data, 0, folder, "key")
    return open_tables(folder.pairs, record)


def texts_of(collection: Collection, split: Any) -> list[tuple[str, str]]:
    pairs = collection.pairs(split)
    queries, documents = (
        collection.query_texts(pairs.queries),
        collection.document_texts(pairs.documents),
    )
    return list(zip(queries, documents, strict=True))


# --- QReCC


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        (
            {"Rewrite": " who is it? ", "Question": "q", "Answer": " a long answer "},
            ("who is it?", "a long answer", None),
        ),
        (
            {"Rewrite": "", "Question": "who is it?", "Answer": "a long answer"},
            ("who is it?", "a long answer", None),
        ),
        (
            {"Rewrite": "  ", "Question": "who is it?", "Answer": "a long answer"},
            ("who is it?", "a long answer", None),
        ),
        (
            {"Question": "who is it?", "Answer": "a long answer"},
            ("who is it?", "a long answer", None),
        ),
        ({"Rewrite": "who is", "Answer": "12345678901"}, ("who is", "12345678901", None)),
        (
            {"Rewrite": "who i", "Answer": "12345678901"},
            ("who i", "12345678901", "query shorter than 6 characters"),
        ),
        (
            {"Rewrite": "who is", "Answer": "1234567890"},
            ("who is", "1234567890", "answer shorter than 11 characters"),
        ),
        ({"Rewrite": "who is", "Answer": "  "}, ("who is", "", "no answer")),
        (
            {"Rewrite": "who is", "Answer": "12345 \ud800 12345"},
            ("who is", "12345 \ud800 12345", "invalid Unicode"),
        ),
        ({"Rewrite": "who is", "Answer": None}, ("who is", "", "no answer")),
    ],
)
def test_the_papers_extraction_rule(turn: dict, expected: tuple) -> None:
    assert extract_pair(turn) == expected


def test_real_qrecc_counts_equal_the_rule_by_hand(qrecc_train: Path, tmp_path: Path) -> None:
    turns = json.loads(qrecc_train.read_text(encoding="utf-8"))
    by_hand = [
        (q, a)
        for t in turns
        if len(q := (t["Rewrite"].strip() or t["Question"].strip())) > 5
        and len(a := t["Answer"].strip()) > 10
    ]
    pairs = read_qrecc(recipe_at(tmp_path, dataset="qrecc", dataset_path=qrecc_train))
    assert [(row["query"], row["document"]) for row in pairs.rows] == by_hand
    collection = load(tmp_path, dataset="qrecc", dataset_path=qrecc_train)
    read = dict(collection.record.read)
    assert read.pop("turns found") == 2711 == sum(read.values())
    assert read["kept"] == len(by_hand)


def test_real_qrecc_splits_without_leaks(qrecc_train: Path, tmp_path: Path) -> None:
    collection = load(tmp_path, dataset="qrecc", dataset_path=qrecc_train)
    # Conversations share answers such as "I don't know."
    assert sum(collection.record.leaks_removed.values()) == len(collection.pairs("leaked")) > 0
    assert collection.record.leaks_left == 0
    ids = collection.every_pair().column("pair_id")
    assert len(set(ids)) == len(ids) == collection.record.read["kept"]
    train, validation, test = (
        set(collection.pairs(split).column("group")) for split in ("train", "validation", "test")
    )
    assert train.isdisjoint(validation | test)
    assert validation.isdisjoint(test)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{not json", "bad.json, line 1: .*JSON"),
        ('{"a": 1}', "bad.json .*one object.*'a'"),
        ("[1]", "bad.json, row 0: 1 is a int"),
        ('[{"Question": "x"}]', "row 0 .*'Conversation_no'.* Question"),
    ],
)
def test_a_bad_qrecc_file_is_refused_with_the_place(
    tmp_path: Path, content: str, says: str
) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(InputError, match=says):
        read_qrecc(recipe_at(tmp_path, dataset="qrecc", dataset_path=path))


def test_a_missing_qrecc_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--dataset_path .*nowhere.json"):
        read_qrecc(recipe_at(tmp_path, dataset="qrecc", dataset_path=tmp_path / "nowhere.json"))


@pytest.mark.parametrize(
    ("read", "key"),
    [
        (read_qrecc, "dataset_path"),
        (read_beir, "dataset_path"),
        (read_files, "dataset_path"),
        (read_hub, "dataset_name"),
    ],
)
def test_a_source_without_its_key_is_refused(tmp_path: Path, read: Any, key: str) -> None:
    with pytest.raises(InputError, match=f"needs --{key}"):
        read(recipe_at(tmp_path))


# --- docstrings

MODULE = '''
"""Tools for reading tables.

This module reads tables from files of comma separated values and gives them back as lists of rows.
"""

def read(path):
    """Read a table from a file.

    The file is opened, parsed line by line and closed again; the result is a list of text rows.
    """

class Table:
    def read_again(self):
        """Read a table from a file!

        The very same summary as above, up to its punctuation, with a text that is another one.
        """

    def write(self):
        """Write this table to disk.

        The file is opened, parsed line by line and closed again; the result is a list of text row.
        """

    def close(self):
        """Close it all down."""
'''


def test_pydocs_finds_pairs_and_counts_the_rest(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "tests").mkdir(parents=True)
    (tree / "tables.py").write_text(MODULE)
    (tree / "broken.py").write_text("def (")
    (tree / "tests" / "tables.py").write_text(MODULE)
    pairs = read_pydocs(recipe_at(tmp_path, dataset_path=tree))
    rows = list(pairs.rows)
    assert [row["pair_id"] for row in rows] == ["tables", "tables.read"]
    assert [row["query"] for row in rows] == [
        "Tools for reading tables.",
        "Read a table from a file.",
    ]
    assert {(row["group"], row["source"]) for row in rows} == {("tables", "tables")}
    assert pairs.counts == {
        "docstrings found": 5, "repeated summary": 1, "near-duplicate text": 1, "summary only": 1,
    }  # fmt: skip
    assert pairs.unused == {"files that do not parse": 1}


def test_pydocs_stops_at_the_first_file_after_max_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    for i in range(5):
        number = f"{i}" * 20
        (tmp_path / f"m{i}.py").write_text(
            f'"""Summary of module {number}.\n\n{" ".join(number + str(j) for j in range(9))}\n"""'
        )
    pairs = harvest(tmp_path, 2, 0)
    assert len(list(pairs.rows)) == 2 == pairs.counts["docstrings found"]
    assert len(list(harvest(tmp_path, None, 0).rows)) == 5


def test_a_passage_ends_at_a_space_within_its_limit() -> None:
    text = "word " * 200
    assert len(passage(text)) <= PASSAGE_CHARACTERS
    assert passage(text).endswith("word")
    assert passage("a\n  b\t c ") == "a b c"
    assert passage("x" * 1000) == "x" * PASSAGE_CHARACTERS


def test_pydocs_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \.py file"):
        harvest(tmp_path, None, 0)
    with pytest.raises(InputError, match=r"--dataset_path .*nowhere"):
        harvest(tmp_path / "nowhere", None, 0)


# --- BEIR, files


def beir_folder(path: Path, splits: dict[str, list[tuple[str, str, int]]]) -> Path:
    (path / "qrels").mkdir(parents=True)
    documents = [
        {
            "_id": f"d{i}",
            "title": f"title {i}",
            "text": f"text about thing number {i} and nothing else {i}",
        }
        for i in range(30)
    ]
    queries = [{"_id": f"q{i}", "text": f"what is thing {i}"} for i in range(30)]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, judgements in splits.items():
        lines = ["query-id\tcorpus-id\tscore", *(f"{q}\t{d}\t{g}" for q, d, g in judgements)]
        (path / "qrels" / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return path


def test_beir_keeps_its_test_queries_and_searches_its_whole_corpus(tmp_path: Path) -> None:
    folder = beir_folder(
        tmp_path / "b",
        {
            "train": [*((f"q{i}", f"d{i}", 1) for i in range(20)), ("q25", "d3", 1)],
            "test": [("q25", "d25", 2), ("q26", "d26", 1), ("q26", "d1", 0), ("q99", "d1", 1)],
        },
    )
    collection = load(tmp_path, dataset="beir", dataset_path=folder, validation_fraction=0.1)
    assert [query for query, _ in texts_of(collection, "test")] == [
        "what is thing 25",
        "what is thing 26",
    ]
    assert collection.pairs("test").column("grade") == [2, 1]
    assert collection.pairs("test").column("pair_id") == ["q25_d25", "q26_d26"]
    corpus = collection.document_texts(collection.searched)
    assert corpus == [
        f"title {i} text about thing number {i} and nothing else {i}" for i in range(30)
    ]
    # A training pair of a test query is not used.
    assert (len(collection.pairs("train")), len(collection.pairs("validation"))) == (18, 2)
    assert collection.record.read == {
        "judgements found": 25,
        "kept": 23,
        "judged not relevant": 1,
        "unknown or empty query": 1,
    }


def test_beir_with_one_qrels_file_splits_by_query(tmp_path: Path) -> None:
    folder = beir_folder(tmp_path / "b", {"test": [(f"q{i}", f"d{i}", 1) for i in range(30)]})
    collection = load(tmp_path, dataset="beir", dataset_path=folder, test_fraction=0.2)
    test = set(collection.pairs("test").queries)
    assert len(test) == 6
    assert len(collection.searched) == 30
    assert test.isdisjoint(collection.pairs("train").queries)


def test_beir_with_test_judgements_of_nothing_is_refused(tmp_path: Path) -> None:
    folder = beir_folder(
        tmp_path / "b",
        {"train": [(f"q{i}", f"d{i}", 1) for i in range(9)], "test": [("q9", "d99", 1)]},
    )
    with pytest.raises(InputError, match=r"test\.tsv"):
        load(tmp_path, dataset="beir", dataset_path=folder)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("corpus.jsonl", '{"_id": "a", "text": "x"}\n{oops\n', r"corpus.jsonl, line 2: .*JSON"),
        ("corpus.jsonl", '{"_id": "a", "text": "x \\ud800"}\n', "line 1: .*Unicode"),
        ("corpus.jsonl", '{"_id": "a"}\n', "corpus.jsonl has no id and text.*_id"),
        (
            "queries.jsonl",
            '{"_id": "a", "text": "x"}\n{"_id": "a", "text": "y"}\n',
            "line 2: .*'a'",
        ),
        ("qrels/test.tsv", "q1\td1\n", r"test.tsv, line 1: .*\['q1', 'd1'\]"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\thigh\n", "line 2: .*'high'"),
    ],
)
def test_a_bad_beir_folder_is_refused_with_the_line(
    tmp_path: Path, file: str, content: str, says: str
) -> None:
    folder = beir_folder(tmp_path / "b", {"test": [("q1", "d1", 1)]})
    (folder / file).write_text(content)
    with pytest.raises(InputError, match=says):
        list(read_beir(recipe_at(tmp_path, dataset="beir", dataset_path=folder)).rows)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet", ".json"])
def test_tables_of_every_kind_give_the_same_pairs(tmp_path: Path, suffix: str) -> None:
    frame = pd.DataFrame(
        {
            "q": ["one", None, "  two ", "three"],
            "d": ["first", "second", "third", "fourth"],
            "topic": ["x", "x", "y", None],
        }
    )
    path = tmp_path / f"pairs{suffix}"
    if suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif suffix == ".json":
        frame.to_json(path, orient="records")
    elif suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    columns = {"query_column": "q", "document_column": "d"}
    keys = {**columns, "group_column": "topic", "source_column": "topic", "dataset": "files"}
    pairs = read_files(recipe_at(tmp_path, dataset_path=path, **keys))
    collection = collect(tmp_path, pairs.rows)
    names = ("pair_id", "query", "document", "group", "source")
    rows = [
        dict(zip(names, row, strict=True))
        for batch in collection.every_pair().batches(*names)
        for row in zip(*batch.values(), strict=True)
    ]
    assert sorted(rows, key=lambda row: row["pair_id"]) == [
        {"pair_id": "0", "query": "one", "document": "first", "group": "x", "source": "x"},
        {"pair_id": "2", "query": "two", "document": "third", "group": "y", "source": "y"},
        # Rows without a group do not share one.
        {"pair_id": "3", "query": "three", "document": "fourth", "group": "three", "source": None},
    ]
    assert collection.record.read == {"rows found": 4, "kept": 3, "no query": 1}


@pytest.mark.parametrize(
    ("content", "keys", "says"),
    [
        ('{"query": "a", "document": "b"}\n{"query": \n', {}, r"pairs.jsonl, line 2: .*JSON"),
        (
            '{"query": "a", "document": "b"}\n',
            {"query_column": "question"},
            "--query_column question.*query, document",
        ),
        (
            '{"query": "a", "document": "b"}\n',
            {"dataset_path": "nowhere.jsonl"},
            "--dataset_path nowhere.jsonl",
        ),
        ("", {}, r"pairs\.jsonl is empty"),
    ],
)
def test_a_bad_table_is_refused(tmp_path: Path, content: str, keys: dict, says: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=says):
        read_files(recipe_at(tmp_path, **{"dataset": "files", "dataset_path": path, **keys}))


# --- what a source hands over


def test_what_cannot_be_used_is_counted_by_its_reason(tmp_path: Path) -> None:
    good = [{"query": f"query {i}", "document": f"document {i} {i}"} for i in range(4)]
    rows = [
        *good,
        {"query": " ", "document": "a document"},
        {"query": "a query"},
        {"query": "a query", "document": "lone \ud800 surrogate"},
        {"query": "a query", "document": "another document", "source": "\ud800"},
        {"query": "a query", "document": "another document", "document_id": "\ud800"},
        {"query": "a query", "document": "a document", "grade": 0},
    ]
    collection = collect(tmp_path, rows)
    read = dict(collection.record.read)
    assert read.pop("rows found") == 10 == sum(read.values())
    assert read == {
        "kept": 4, "no query": 1, "no document": 1, "invalid Unicode": 3, "judged not relevant": 1,
    }  # fmt: skip
    assert len(collection.queries) == 4


def test_reasons_of_the_source_and_of_the_reader_add_up(tmp_path: Path) -> None:
    counts = {"lines found": 5, "comment": 1, "no query": 1}
    rows = [{"query": "one", "document": "first"}, {"query": "two", "document": "second"}, {}]
    pairs = SourcePairs(Source("lines"), rows, counts=counts)
    data = DataArguments(test_fraction=0.5, validation_fraction=0.0)
    record = write_collection((pairs, None), data, 0, RunFolder(tmp_path), "key")
    assert record.read == {"lines found": 5, "comment": 1, "no query": 2, "kept": 2}
    assert counts == {"lines found": 5, "comment": 1, "no query": 1}


def test_a_pair_id_that_comes_again_gets_a_suffix(tmp_path: Path) -> None:
    ids = ["a", "a", "a.2", "a", None, "4"]
    rows = [
        {"pair_id": name, "query": f"query {i}", "document": f"text number {i} {i} {i}"}
        for i, name in enumerate(ids)
    ]
    collection = collect(tmp_path, rows)
    by_query = dict(
        zip(
            collection.query_texts(collection.every_pair().queries),
            collection.every_pair().column("pair_id"),
            strict=True,
        )
    )
    assert [by_query[f"query {i}"] for i in range(6)] == ["a", "a.2", "a.2.2", "a.3", "4", "4.2"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"query": 7, "document": "b"}, r"row 1 of rows: the query holds a int \(7\)"),
        ({"query": "a", "document": ["b"]}, r"row 1 of rows: the document holds a list"),
        ({"query": "a", "document": "b", "grade": "high"}, "row 1 of rows: the grade is 'high'"),
        ({"query": "a", "document": "b", "grade": 0.5}, "row 1 of rows: the grade is 0.5"),
        ({"query": "a", "document": "b", "grade": 2**31}, "row 1 of rows: the grade is 2147483648"),
        ({"query": "a", "document": "b", "grade": float("nan")}, "row 1 of rows: the grade is nan"),
        ({"query": "a", "document": "b", "score": "x"}, "row 1 of rows: the score is 'x'"),
        ({"query": "a", "document": "b", "score": 10**400}, "row 1 of rows: the score is 1000"),
        ({"query": "a", "document": "b", "score": 1e39}, r"row 1 of rows: the score is 1e\+39"),
    ],
)
def test_a_row_that_is_not_a_pair_of_texts_is_refused(tmp_path: Path, row: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        collect(tmp_path, [{"query": "a", "document": "b"}, row])


def test_each_text_is_written_once_and_searched_documents_come_first(tmp_path: Path) -> None:
    rows = [
        {"query": "q1", "document": "shared", "split": "train"},
        {"query": "q2", "document": "alone", "split": None},
        {"query": "q2", "document": "in the corpus too"},
        {"query": "q3", "document": "tested", "split": "test", "grade": 2},
        {"query": "q3", "document": "shared", "split": "test"},
    ]
    corpus = ["in the corpus too", "only in the corpus", "", "in the corpus too"]
    collection = collect(tmp_path, rows, corpus)
    assert collection.document_texts(collection.searched) == [
        "in the corpus too",
        "only in the corpus",
        "tested",
        "shared",
    ]
    assert list(collection.documents["text"]) == [
        "in the corpus too", "only in the corpus", "tested", "shared", "alone",
    ]  # fmt: skip
    assert list(collection.queries["text"]) == ["q2", "q3", "q1"]
    assert texts_of(collection, "train") == [("q2", "alone"), ("q2", "in the corpus too")]
    assert texts_of(collection, "test") == [("q3", "tested"), ("q3", "shared")]
    assert texts_of(collection, "leaked") == [("q1", "shared")]
    assert collection.pairs("leaked").column("reason") == ["same document"]
    assert collection.pairs("test").column("grade") == [2, 1]
    assert collection.record.split == {
        "pairs": 5, "groups": 2, "train": 2, "validation": 0, "test": 2, "leaked": 1,
        "test queries": 1, "corpus documents": 4, "candidates": 0,
    }  # fmt: skip


def test_an_empty_table_can_be_written_and_read(tmp_path: Path) -> None:
    write_table([], JUDGEMENT_FEATURES, tmp_path / "none.arrow")
    assert Dataset.from_file(str(tmp_path / "none.arrow")).to_list() == []


# --- near-duplicates and splits


def test_text_key_and_trigrams() -> None:
    assert text_key("  Hello,   WORLD! ") == "hello world"
    assert text_key("?!") == "?!"
    a, b = word_trigrams("a b c d e"), word_trigrams("a b c d f")
    assert (len(a), len(b), jaccard(a, b)) == (3, 3, 2 / 4)
    assert text_id("a") != text_id("b")
    text_id("\ud800")  # a lone surrogate has an id, too
    assert is_unicode("naïve 🙂")
    assert not is_unicode("a \udfff")


def test_near_duplicates_are_reported_and_strangers_are_not() -> None:
    words = [f"w{i}" for i in range(60)]
    index = NearDuplicates([" ".join(words)])
    assert index.has(" ".join(words[:-3]))
    assert index.has(" ".join(words).upper() + "!")
    assert not index.has(" ".join(words[:30]))
    assert not index.has(" ".join(reversed(words)))


texts = st.lists(st.sampled_from([f"word{i}" for i in range(12)]), min_size=1, max_size=12).map(
    " ".join
)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(texts, texts, st.integers(0, 12).map(str)), min_size=1, max_size=60),
    seed=st.integers(0, 3),
)
def test_nothing_is_shared_and_nothing_is_lost(
    tmp_path_factory: pytest.TempPathFactory, rows: list, seed: int
) -> None:
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    data = DataArguments(test_fraction=0.3, validation_fraction=0.2)
    names = ("query", "document", "group")
    pairs = SourcePairs(Source("drawn"), [dict(zip(names, row, strict=True)) for row in rows])
    if (count := len({group for _, _, group in rows})) < 3:
        with pytest.raises(InputError, match=f"{count} groups"):
            write_collection((pairs, None), data, seed, folder, "key")
        return
    try:
        record = write_collection((pairs, None), data, seed, folder, "key")
    except InputError:  # every training pair shared something with a held-out one
        return
    collection = open_tables(folder.pairs, record)
    everything = collection.every_pair()
    whole = {
        pair_id: row
        for batch in everything.batches("pair_id", *names)
        for pair_id, *row in zip(*batch.values(), strict=True)
    }
    assert whole == {str(i): list(row) for i, row in enumerate(rows)}
    assert everything.column("split") == [
        split for split in SPLITS for _ in range(len(collection.pairs(split)))
    ]
    assert sorted(collection.queries["text"]) == sorted({query for query, _, _ in rows})
    assert sorted(collection.documents["text"]) == sorted({document for _, document, _ in rows})
    for left, right in (("train", "test"), ("train", "validation"), ("validation", "test")):
        groups = [set(collection.pairs(split).column("group")) for split in (left, right)]
        assert not groups[0] & groups[1]
        a, b = texts_of(collection, left), texts_of(collection, right)
        for side in (0, 1):
            assert not {text_key(x[side]) for x in a} & {text_key(x[side]) for x in b}
        worst = [jaccard(word_trigrams(x), word_trigrams(y)) for _, x in a for _, y in b]
        assert max(worst, default=0) < NEAR_DUPLICATE_JACCARD


def test_a_leak_is_counted_by_its_first_reason() -> None:
    documents = [
        "the long text of a document on a subject",
        "other",
        "other",
        "the long text of a document on a subject",
        "the long text of a document on a subject indeed",
        "strange",
    ]
    keys = np.array([(1, 1, 1), (1, 2, 2), (2, 1, 2), (2, 2, 1), (2, 2, 3), (2, 2, 4)])
    split = np.array([TEST, TRAIN, TRAIN, TRAIN, TRAIN, TRAIN])
    leaks = find_leaks(keys, split, lambda places: [documents[i] for i in places])
    assert [LEAKS[leak] if leak >= 0 else None for leak in leaks] == [
        None, "same group", "same query", "same document", "near-duplicate document", None,
    ]  # fmt: skip
    assert leaks_left(keys, split) == 3
    assert leaks_left(keys, np.where(leaks < 0, split, LEAKED)) == 0


def test_train_gives_way_to_validation_and_validation_to_test() -> None:
    # The second pair leaves validation for the test's query; then train may keep its document.
    keys = np.array([(0, 0, 0), (1, 0, 1), (2, 2, 2), (3, 3, 1), (4, 4, 2)])
    split = np.array([TEST, VALIDATION, VALIDATION, TRAIN, TRAIN])
    leaks = find_leaks(keys, split, lambda places: [f"d{keys[i, 2]}" * 3 for i in places])
    assert [LEAKS[leak] if leak >= 0 else None for leak in leaks] == [
        None, "same query", None, None, "same document",
    ]  # fmt: skip


def test_a_text_is_looked_up_once_however_many_pairs_hold_it() -> None:
    asked: list[int] = []

    def documents(places: np.ndarray) -> Iterator[str]:
        asked.extend(places.tolist())
        return (f"document {keys[i, 2]} of these" for i in places)

    keys = np.array([(0, 0, 0), *((i, i, 1) for i in range(1, 50))])
    split = np.array([TEST, *[TRAIN] * 49])
    find_leaks(keys, split, documents)
    assert sorted(asked) == [0, 1]


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(InputError, match="2 groups"):
        deal_groups(2, 0.1, 0.1)
    assert deal_groups(2, 0.1, 0.0)[0].tolist() == [TEST, TRAIN]
    assert deal_groups(10, 0.2, 0.1)[0].tolist() == [TEST] * 2 + [VALIDATION] + [TRAIN] * 7


@given(
    st.lists(st.text(max_size=3), min_size=1, max_size=20),
    st.integers(0, 3),
    st.one_of(st.none(), st.integers(1, 20)),
    st.booleans(),
)
def test_groups_are_taken_and_dealt_in_the_order_of_their_seeded_digests(
    names: list[str], seed: int, most: int | None, said: bool
) -> None:
    groups = seeded_groups(names, seed, len(names))
    order = sorted({*names}, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    assert [order[group] for group in groups] == names

    taken: list[str] = []
    while len(taken) < len(order) and (most is None or sum(name in taken for name in names) < most):
        taken.append(order[len(taken)])
    assert [name in taken for name in names] == within_limit(groups, most).tolist()

    given_splits = np.full(len(names), NOT_SAID, dtype=np.int8)
    given_splits[: 2 * said] = TEST
    free = [name for name in order if name not in names[: 2 * said]]
    keys = np.stack([groups, np.arange(len(names)), groups], axis=1)
    if not said and len(order) < 3:
        with pytest.raises(InputError, match="groups are too few"):
            split_pairs(keys, given_splits, DataArguments(held_out_queries=None))
        return
    split, _ = split_pairs(keys, given_splits, DataArguments(held_out_queries=None))
    number = max(1, round(0.1 * len(free))), max(1, round(0.05 * len(free)))
    tested = [] if said else free[: number[0]]
    validated = free[len(tested) :][: number[1]]
    expected = [
        TEST if i < 2 * said or name in tested else VALIDATION if name in validated else TRAIN
        for i, name in enumerate(names)
    ]
    assert split.tolist() == expected


def test_whole_groups_are_taken_up_to_the_limit() -> None:
    groups = np.array([2, 0, 0, 1, 1, 1])
    assert within_limit(groups, 2).tolist() == [False, True, True, False, False, False]
    assert within_limit(groups, 3).tolist() == [False, True, True, True, True, True]
    assert within_limit(groups, None).all()


def test_test_and_validation_hold_at_most_so_many_queries() -> None:
    # Of 20 groups in order, 8 are for test and 4 for validation. The first has three queries of
    # two pairs each, the others one of one pair.
    groups = np.array([0] * 6 + list(range(1, 20)))
    queries = np.array([0, 0, 1, 1, 2, 2, *range(3, 22)])
    keys, free = np.stack([groups, queries, queries], axis=1), np.full(25, NOT_SAID, dtype=np.int8)
    for most, test, validation, said in (
        (None, 8, 4, ""), (10, 8, 4, ""), (9, 7, 4, "test"),
        (3, 1, 3, "test and validation"), (1, 1, 1, "test and validation"),
    ):  # fmt: skip
        data = DataArguments(test_fraction=0.4, validation_fraction=0.2, held_out_queries=most)
        split, capped = split_pairs(keys, free, data)
        of_groups = split[5:].tolist()  # the last pair of the first group and those of the others
        expected = [TEST] * test + [VALIDATION] * validation + [TRAIN] * (20 - test - validation)
        assert (of_groups, set(split[:6].tolist())) == (expected, {TEST})
        assert capped == said


def test_the_data_keeps_its_own_test_split_whole_and_the_cap_is_said() -> None:
    rows = [{"query": f"query {i}", "document": f"the document {i} of many"} for i in range(40)]
    own = [{**row, "split": "test" if i % 2 else "train"} for i, row in enumerate(rows)]
    data = DataArguments(test_fraction=0.5, held_out_queries=3, validation_fraction=0.2)
    for given_rows, test, validation, held_out in (
        (rows, 3, 3, "drawn by group, test and validation with at most 3 queries"),
        (own, 20, 3, "the data's own test split, validation with at most 3 queries"),
    ):
        with tempfile.TemporaryDirectory() as folder:
            source = SourcePairs(Source("forty"), given_rows)
            record = write_collection((source, None), data, 0, RunFolder(Path(folder)), "key")
        assert (record.split["test"], record.split["validation"]) == (test, validation)
        assert record.held_out == f"{held_out} (held_out_queries)"


def test_a_group_that_the_source_holds_out_is_not_trained_on() -> None:
    groups = np.array([4, 3, 2, 2, 1, 0])
    keys = np.stack([groups, groups, groups], axis=1)
    given = np.array([NOT_SAID, NOT_SAID, NOT_SAID, TEST, TEST, NOT_SAID])
    split, _ = split_pairs(keys, given, DataArguments(validation_fraction=0.3))
    # The third pair stays in train, where it shares its group with a held-out one: it is a leak.
    assert split.tolist() == [TRAIN, TRAIN, TRAIN, TEST, TEST, VALIDATION]


@pytest.mark.parametrize("recent", [0, 4, 1 << 16])
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    held=st.lists(texts, max_size=12),
    later=st.lists(texts, max_size=3),
    others=st.lists(texts, max_size=12),
)
def test_every_near_duplicate_is_found(
    monkeypatch: pytest.MonkeyPatch,
    recent: int,
    held: list[str],
    later: list[str],
    others: list[str],
) -> None:
    """One by one and all at once, also of texts that were added after a look-up."""
    monkeypatch.setattr("hf_distill.data.near_duplicates._RECENT", recent)
    index, known = NearDuplicates(), list[str]()
    for added in (held, later):
        for text in added:
            index.add(text)
        known += added
        expected = [
            any(
                jaccard(word_trigrams(text), word_trigrams(one)) >= NEAR_DUPLICATE_JACCARD
                for one in known
            )
            for text in others
        ]
        assert [index.has(text) for text in others] == expected
        assert list(index.have(others)) == expected


@given(st.lists(st.text(alphabet="abcü ", max_size=20), min_size=1, max_size=9))
def test_signatures_are_those_of_datasketch(drawn: list[str]) -> None:
    expected = []
    for text in drawn:
        signature = _empty_signature().copy()
        signature.update_batch(sorted(word_trigrams(text)))
        expected.append(signature.hashvalues)
    assert np.array_equal(signatures(*word_grams(list(map(words_of, drawn)), 3)), expected)


@given(st.lists(st.integers(0, 9)), st.sets(st.integers(0, 9)))
def test_what_is_among_ascending_values(values: list[int], others: set[int]) -> None:
    found = is_among(np.array(values, dtype=np.int64), np.array(sorted(others), dtype=np.int64))
    assert found.tolist() == [value in others for value in values]


def test_leaked_pairs_of_train_stand_before_those_of_validation() -> None:
    # Group 0 is held out; of the others the first in order is validation.
    validation, *train = 1, 2, 3
    keys = np.array(
        [(validation, 9, 1), (train[0], 9, 2), (0, 9, 3), (train[0], 4, 4), (validation, 5, 5)]
    )
    given = np.where(keys[:, 0] == 0, np.int8(TEST), np.int8(NOT_SAID))
    pairs = PairNumbers(keys, given)
    data = DataArguments(validation_fraction=0.5)
    result = arrange(pairs, data, lambda rows: [f"{keys[i, 2]}" * 9 for i in rows])
    assert result.rows.tolist() == [3, 4, 2, 1, 0]
    assert result.split.tolist() == [TRAIN, VALIDATION, TEST, LEAKED, LEAKED]
    assert [LEAKS[i] for i in result.leaks if i >= 0] == ["same query"] * 2
    assert (result.groups, result.leaks_left) == (2, 0)


# --- the stage


def faq(recipe: Recipe) -> SourcePairs:
    """A source from outside the package."""
    lines = Path(str(recipe.data.dataset_path)).read_text().splitlines()
    rows = (
        dict(zip(("query", "document", "group"), line.split("|"), strict=True)) for line in lines
    )
    return SourcePairs(Source("FAQ", license="mit"), rows)


def test_a_source_from_outside_is_named_by_module_and_function(tmp_path: Path) -> None:
    path = tmp_path / "faq.txt"
    path.write_text("".join(f"question {i}|answer number {i} {i}|{i % 5}\n" for i in range(20)))
    collection = load(tmp_path, dataset=f"{__name__}:faq", dataset_path=path)
    assert collection.record.read == {"rows found": 20, "kept": 20}
    assert collection.source == Source("FAQ", license="mit")
    with pytest.raises(InputError, match=f"--dataset {__name__}:fap"):
        load(tmp_path, dataset=f"{__name__}:fap", dataset_path=path)


def test_pairs_are_read_again_only_when_an_input_changed(tmp_path: Path, pairs_file: Path) -> None:
    keys = {"dataset": "files", "group_column": "topic"}
    first = load(tmp_path, dataset_path=pairs_file, **keys)
    manifest = tmp_path / "run" / "pairs" / "manifest.json"
    written = manifest.stat().st_mtime_ns
    again = load(tmp_path, dataset_path=pairs_file, dataset_license="mit", language="de", **keys)
    assert manifest.stat().st_mtime_ns == written
    assert again.source.license == "mit"
    assert first.source.license is None
    assert again.key == first.key == open_collection(RunFolder(tmp_path / "run")).key
    assert again.judgements.to_list() == first.judgements.to_list()
    other = load(tmp_path, dataset_path=pairs_file, seed=1, **keys)
    assert other.key != first.key
    assert other.pairs("test").column("pair_id") != first.pairs("test").column("pair_id")
    (tmp_path / "run" / "pairs" / "queries.arrow").unlink()
    assert len(load(tmp_path, dataset_path=pairs_file, seed=1, **keys).queries) == 200


def test_a_refused_source_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text('{"query": "", "document": "b"}\n')
    with pytest.raises(InputError, match=r"rows found: 1, no query: 1"):
        load(tmp_path, dataset="files", dataset_path=path)
    assert not (tmp_path / "run").exists()


def test_a_refused_change_leaves_the_pairs_as_they_were(tmp_path: Path, pairs_file: Path) -> None:
    load(tmp_path, dataset="files", dataset_path=pairs_file)
    pairs = tmp_path / "run" / "pairs"
    before = {path.name: path.read_bytes() for path in pairs.iterdir()}
    path = tmp_path / "bad.jsonl"
    path.write_text('{"query": "a", "document": "b"}\n')
    with pytest.raises(InputError, match="1 groups"):
        load(tmp_path, dataset="files", dataset_path=path)
    assert {path.name: path.read_bytes() for path in pairs.iterdir()} == before
    assert [path for path in pairs.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["scifact", "vaswani"])
def test_real_beir_folders_are_read_whole(tmp_path: Path, name: str) -> None:
    if not (REAL_DATA / name).is_dir():
        pytest.skip(f"the real data set {name} is not here")
    collection = load(tmp_path, dataset="beir", dataset_path=REAL_DATA / name)
    read = dict(collection.record.read)
    assert read.pop("judgements found") == sum(read.values())
    assert len(collection.pairs("test")) > 0
    assert collection.record.leaks_left == 0
    assert len(set(collection.documents["text"])) == len(collection.documents)
