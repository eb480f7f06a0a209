import dataclasses
import json
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.data.collection import (
    PAIR_FEATURES,
    Source,
    SourcePairs,
    dataset_of,
    text_id,
)
from hf_distill.data.load import (
    load_pair_data,
    read_source,
    split_pairs,
)
from hf_distill.data.near_duplicates import (
    NEAR_DUPLICATE_JACCARD,
    NearDuplicates,
    jaccard,
    text_key,
    word_trigrams,
)
from hf_distill.data.sources.pydocs import (
    PASSAGE_CHARACTERS,
    passage,
    read_pydocs,
)
from hf_distill.data.sources.qrecc import (
    extract_pair,
    read_qrecc,
)
from hf_distill.data.split import (
    HeldOut,
    count_leaks,
    split_groups,
)
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import DataArguments
from hf_distill.run.folder import RunFolder


def pairs_of(rows: list[tuple[str, str, str]]) -> SourcePairs:
    data = Dataset.from_dict(
        {
            "pair_id": [str(i) for i in range(len(rows))],
            "query": [r[0] for r in rows],
            "document": [r[1] for r in rows],
            "group": [r[2] for r in rows],
            "source": [None] * len(rows),
        },
        features=PAIR_FEATURES,
    )
    return SourcePairs(pairs=data, counts={"kept": len(rows)}, source=Source("made"))


# --- QReCC
# -----------------------------------------------------------------------------------------------------------


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
            ("who is", "12345 \ud800 12345", "text that is no valid Unicode"),
        ),
        ({"Rewrite": "who is", "Answer": None}, ("who is", "", "no answer")),
    ],
)
def test_the_papers_extraction_rule(turn: dict, expected: tuple) -> None:
    assert extract_pair(turn) == expected


def test_real_qrecc_counts_equal_the_rule_by_hand(qrecc_train: Path, tmp_path: Path) -> None:
    read = read_qrecc(qrecc_train, tmp_path)
    turns = json.loads(qrecc_train.read_text(encoding="utf-8"))
    by_hand = [
        (q, a)
        for t in turns
        if len(q := (t["Rewrite"].strip() or t["Question"].strip())) > 5
        and len(a := t["Answer"].strip()) > 10
    ]
    assert list(zip(read.pairs["query"], read.pairs["document"], strict=True)) == by_hand
    assert (
        read.counts["turns found"]
        == 2711
        == sum(n for reason, n in read.counts.items() if reason != "turns found")
    )
    assert read.counts["kept"] == len(by_hand)
    assert len(set(read.pairs["pair_id"])) == len(by_hand)
    assert set(read.pairs["group"]) <= {str(t["Conversation_no"]) for t in turns}


def test_real_qrecc_splits_without_leaks(qrecc_train: Path, tmp_path: Path) -> None:
    arguments = DataArguments(dataset="qrecc", dataset_path=str(qrecc_train))
    read = read_source(arguments, 0, tmp_path)
    data = split_pairs(read, arguments, 0, tmp_path)
    assert data.counts["leaks"]["left"] == 0
    assert sum(data.counts["leaks"]["removed"].values()) > 0, (
        'answers such as "I don\'t know." are shared by conversations'
    )
    ids = [
        i
        for split in (data.train, data.validation, data.test, data.leaked)
        for i in split["pair_id"]
    ]
    assert sorted(ids) == sorted(read.pairs["pair_id"])
    conversations = [set(split["group"]) for split in (data.train, data.validation, data.test)]
    assert not conversations[0] & conversations[2]
    assert not conversations[1] & conversations[2]
    assert not conversations[0] & conversations[1]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{not json", "line 1, column 2"),
        ('{"a": 1}', "holds a JSON dict, but QReCC is a list"),
        ("[1]", "turn 0 is a int"),
        ('[{"Question": "x"}]', "turn 0 has no 'Conversation_no'; its keys are Question"),
    ],
)
def test_a_bad_qrecc_file_is_said(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(InputError, match=says):
        read_qrecc(path, tmp_path)


def test_a_missing_qrecc_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no QReCC file at .*nowhere.json"):
        read_qrecc(tmp_path / "nowhere.json", tmp_path)


# --- docstrings
# ------------------------------------------------------------------------------------------------------

MODULE = '''
"""Tools for reading tables.

This module reads tables from files of comma separated values and gives them back as lists of rows.
"""

def read(path):
    """Read a table from a file.

    The file is opened, parsed line by line and closed again; the result is a list of rows of strings.
    """

class Table:
    def read_again(self):
        """Read a table from a file!

        The very same summary as above, up to its punctuation, with a text that is another one altogether, on purpose.
        """

    def write(self):
        """Write this table to disk.

        The file is opened, parsed line by line and closed again; the result is a list of rows of string.
        """

    def close(self):
        """Close it all down."""
'''


def test_pydocs_finds_pairs_and_counts_the_rest(tmp_path: Path) -> None:
    (tmp_path / "tables.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "tables.py").write_text(MODULE)
    read = read_pydocs(tmp_path, None, 0, tmp_path / "cache")
    assert read.pairs["pair_id"] == ["tables", "tables.read"]
    assert read.pairs["query"] == ["Tools for reading tables.", "Read a table from a file."]
    assert set(read.pairs["group"]) == {"tables"}
    assert read.counts == {
        "files read": 1, "files that do not parse": 1, "docstrings found": 5, "kept": 2, "repeated summary": 1,
        "near-duplicate text": 1, "summary only": 1,
    }  # fmt: skip


def test_a_passage_ends_at_a_space_within_its_limit() -> None:
    text = "word " * 200
    assert len(passage(text)) <= PASSAGE_CHARACTERS
    assert passage(text).endswith("word")
    assert passage("a\n  b\t c ") == "a b c"
    assert passage("x" * 1000) == "x" * PASSAGE_CHARACTERS


def test_pydocs_of_nothing_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \.py file below"):
        read_pydocs(tmp_path, None, 0, tmp_path)
    with pytest.raises(InputError, match="is no folder"):
        read_pydocs(tmp_path / "nowhere", None, 0, tmp_path)


# --- BEIR, files
# -----------------------------------------------------------------------------------------------------


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
            "train": [(f"q{i}", f"d{i}", 1) for i in range(20)],
            "test": [("q25", "d25", 2), ("q26", "d26", 1), ("q26", "d1", 0), ("q99", "d1", 1)],
        },
    )
    arguments = DataArguments(dataset="beir", dataset_path=str(folder), validation_fraction=0.1)
    data = split_pairs(read_source(arguments, 0, tmp_path), arguments, 0, tmp_path)
    assert data.test["query"] == ["what is thing 25", "what is thing 26"]
    assert data.test["relevance"] == [2, 1]
    assert len(data.corpus) == 30
    assert data.corpus["document"][0] == "title 0 text about thing number 0 and nothing else 0"
    assert (len(data.train), len(data.validation)) == (18, 2)
    assert data.counts["source"] == {
        "judgements found": 24,
        "kept": 22,
        "judged not relevant": 1,
        "unknown or empty query": 1,
    }


def test_beir_with_one_qrels_file_splits_by_query(tmp_path: Path) -> None:
    folder = beir_folder(tmp_path / "b", {"test": [(f"q{i}", f"d{i}", 1) for i in range(30)]})
    arguments = DataArguments(dataset="beir", dataset_path=str(folder), test_fraction=0.2)
    data = split_pairs(read_source(arguments, 0, tmp_path), arguments, 0, tmp_path)
    assert len(set(data.test["query"])) == 6
    assert len(data.corpus) == 30
    assert not set(data.test["query"]) & set(data.train["query"])


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("corpus.jsonl", '{"_id": "a", "text": "x"}\n{oops\n', r"corpus.jsonl, line 2: not JSON"),
        (
            "corpus.jsonl",
            '{"_id": "a", "text": "x \\ud800"}\n',
            "line 1: text that is no valid Unicode",
        ),
        ("corpus.jsonl", '{"_id": "a"}\n', "line 1: expected an object with _id and text"),
        (
            "queries.jsonl",
            '{"_id": "a", "text": "x"}\n{"_id": "a", "text": "y"}\n',
            "line 2: the id 'a' appears a second time",
        ),
        ("qrels/test.tsv", "q1\td1\n", "line 1: expected query id"),
        (
            "qrels/test.tsv",
            "query-id\tcorpus-id\tscore\nq1\td1\thigh\n",
            "line 2: expected query id",
        ),
    ],
)
def test_a_bad_beir_folder_is_said_with_the_line(
    tmp_path: Path, file: str, content: str, says: str
) -> None:
    folder = beir_folder(tmp_path / "b", {"test": [("q1", "d1", 1)]})
    (folder / file).write_text(content)
    with pytest.raises(InputError, match=says):
        read_source(DataArguments(dataset="beir", dataset_path=str(folder)), 0, tmp_path)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet", ".json"])
def test_tables_of_every_kind_give_the_same_pairs(tmp_path: Path, suffix: str) -> None:
    import pandas as pd

    frame = pd.DataFrame(
        {"q": ["one", None, "  two "], "d": ["first", "second", "third"], "topic": [7, 7, 8]}
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
    arguments = DataArguments(
        dataset="files",
        dataset_path=str(path),
        query_column="q",
        document_column="d",
        group_column="topic",
    )
    read = read_source(dataclasses.replace(arguments, source_column="topic"), 0, tmp_path / "cache")
    assert read.pairs.to_list() == [
        {"pair_id": "0", "query": "one", "document": "first", "group": "7", "source": "7"},
        {"pair_id": "2", "query": "two", "document": "third", "group": "8", "source": "8"},
    ]
    assert read.counts == {"rows found": 3, "kept": 2, "no query": 1}


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        ('{"query": "a", "document": "b"}\n{"query": \n', {}, r"pairs.jsonl, line 2: not JSON"),
        (
            '{"query": "a", "document": "b"}\n',
            {"query_column": "question"},
            "no column 'question'.*columns are query, document",
        ),
        ('{"query": 1, "document": "b"}\n', {}, "column 'query' of pairs is int64"),
        (
            '{"query": "a", "document": "b"}\n',
            {"dataset_path": "nowhere.jsonl"},
            "no file or folder at nowhere.jsonl",
        ),
    ],
)
def test_a_bad_table_is_said(tmp_path: Path, content: str, options: dict, says: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=says):
        read_source(
            DataArguments(**{"dataset": "files", "dataset_path": str(path), **options}),
            0,
            tmp_path / "cache",
        )


# --- cleaning and splits
# ---------------------------------------------------------------------------------------------


def test_text_key_and_trigrams() -> None:
    assert text_key("  Hello,   WORLD! ") == "hello world"
    assert text_key("?!") == "?!"
    a, b = word_trigrams("a b c d e"), word_trigrams("a b c d f")
    assert (len(a), len(b), jaccard(a, b)) == (3, 3, 2 / 4)
    assert text_id("a") != text_id("b")
    text_id("\ud800")  # a lone surrogate has an id, too


def test_near_duplicates_are_found_and_strangers_are_not() -> None:
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
    arguments = DataArguments(test_fraction=0.3, validation_fraction=0.2)
    cache = tmp_path_factory.mktemp("cache")
    if len({group for _, _, group in rows}) < 3:
        with pytest.raises(InputError, match="groups cannot be split"):
            split_pairs(pairs_of(rows), arguments, seed, cache)
        return
    try:
        data = split_pairs(pairs_of(rows), arguments, seed, cache)
    except InputError:  # every training pair shared something with a held-out one
        return
    splits = {name: getattr(data, name) for name in ("train", "validation", "test", "leaked")}
    assert sorted(i for split in splits.values() for i in split["pair_id"]) == sorted(
        str(i) for i in range(len(rows))
    )
    for left, right in (("train", "test"), ("train", "validation"), ("validation", "test")):
        a, b = splits[left], splits[right]
        assert not set(a["group"]) & set(b["group"])
        assert not set(map(text_key, a["query"])) & set(map(text_key, b["query"]))
        assert not set(map(text_key, a["document"])) & set(map(text_key, b["document"]))
        # far above the threshold, locality-sensitive hashing misses practically nothing
        worst = [
            jaccard(word_trigrams(x), word_trigrams(y))
            for x in a["document"]
            for y in b["document"]
        ]
        assert max(worst, default=0) < NEAR_DUPLICATE_JACCARD + 0.2


def test_a_leak_is_counted_by_its_first_reason(tmp_path: Path) -> None:
    held_out = HeldOut()
    held_out.add(pairs_of([("who is it", "the long text of a document on a subject", "g1")]).pairs)
    others = pairs_of(
        [
            ("another", "other", "g1"),
            ("Who is it?", "other", "g2"),
            ("another", "The long text of a document, on a subject.", "g2"),
            ("another", "other", "g2"),
        ]
    ).pairs
    assert count_leaks(others, held_out) == {
        "same group": 1,
        "same query": 1,
        "same document": 1,
        "near-duplicate document": 0,
    }


def test_too_few_groups_is_said() -> None:
    with pytest.raises(InputError, match="2 groups cannot be split"):
        split_groups(["a", "b", "a"], 0.1, 0.1, 0)


def test_a_group_keeps_its_split_order_under_another_seed() -> None:
    groups = [str(i) for i in range(50)]
    first, again, other = (split_groups(groups, 0.2, 0.1, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert sum(split == "test" for split in first.values()) == 10


def test_pairs_are_read_once(
    tmp_path: Path, pairs_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hf_distill.data as module

    folder, arguments = (
        RunFolder(tmp_path / "run"),
        DataArguments(dataset="files", dataset_path=str(pairs_file), group_column="topic"),
    )
    first = load_pair_data(arguments, 0, folder)
    monkeypatch.setattr(module, "read_source", lambda *_: pytest.fail("the pairs were read again"))
    again = load_pair_data(arguments, 0, folder)
    assert again.train.to_list() == first.train.to_list()
    assert again.counts == first.counts
    assert len(again.leaked) == 0
    with pytest.raises(pytest.fail.Exception):  # another seed, another split
        load_pair_data(arguments, 1, folder)


def test_a_refused_source_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text('{"query": "", "document": "b"}\n')
    with pytest.raises(
        InputError, match=r"no valid \(query, document\) pair \(rows found: 1, no query: 1\)"
    ):
        load_pair_data(
            DataArguments(dataset="files", dataset_path=str(path)), 0, RunFolder(tmp_path / "run")
        )
    assert not (tmp_path / "run").exists()


def test_an_empty_table_can_be_written_and_read(tmp_path: Path) -> None:
    assert dataset_of([], PAIR_FEATURES, tmp_path, "none").to_list() == []
