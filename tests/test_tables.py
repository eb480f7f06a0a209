"""Files and folders as people and their tools write them become tables, or one clear line."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import reading
from conftest import ROOT
from hub_server import Hub, Repo, running_hub
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_distill.data.tables import text as text_module
from hf_distill.data.tables.hub import hub_tables
from hf_distill.data.tables.open import open_tables
from hf_distill.data.tables.table import Table, Tables
from hf_distill.errors import InputError

CASES = ROOT.parent / "shared" / "cases"
ROWS = [
    {"query": "what is NA?", "document": 'a "quoted" word, with a comma'},
    {"query": "NA", "document": "null"},
    {"query": "two\nlines", "document": "a\ttab"},
    {"query": "7", "document": "nan; 0,5 \u2028 \x85 und Größe 東京"},
]


def opened(path: Path) -> Tables:
    return open_tables(path, "dataset_path", path.parent / ".cache")


def only(path: Path) -> Table:
    (table,) = opened(path).tables
    return table


def rows_of(table: Table) -> list[dict[str, Any]]:
    rows = [row for _, row in table.read()]
    assert rows == [row for _, row in table.read()]  # a second reading begins again
    assert table.count in (None, len(rows))
    return rows


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


FRAME = pd.DataFrame(ROWS)
WRITERS: dict[str, Callable[[Path], Any]] = {
    "pandas.csv": lambda p: FRAME.to_csv(p, index=False),
    "pandas.semicolons.csv": lambda p: FRAME.to_csv(p, index=False, sep=";"),
    "pandas.tabs.csv": lambda p: FRAME.to_csv(p, index=False, sep="\t"),
    "pandas.tsv": lambda p: FRAME.to_csv(p, index=False, sep="\t"),
    "quoted.tsv": lambda p: FRAME.to_csv(p, index=False, sep="\t", quoting=csv.QUOTE_ALL),
    "windows.csv": lambda p: FRAME.to_csv(p, index=False, lineterminator="\r\n"),
    "excel.csv": lambda p: FRAME.to_csv(p, index=False, encoding="utf-8-sig"),
    "utf-16.tsv": lambda p: FRAME.to_csv(p, index=False, sep="\t", encoding="utf-16"),
    "columns.json": FRAME.to_json,
    "records.json": lambda p: FRAME.to_json(p, orient="records"),
    "indented.json": lambda p: FRAME.to_json(p, orient="records", indent=2),
    "split.json": lambda p: FRAME.to_json(p, orient="split"),
    "table.json": lambda p: FRAME.to_json(p, orient="table", index=False),
    "lists.json": lambda p: p.write_text(json.dumps(FRAME.to_dict("list"))),
    "lines.json": lambda p: FRAME.to_json(p, orient="records", lines=True),
    "pandas.jsonl": lambda p: FRAME.to_json(p, orient="records", lines=True),
    "pandas.jsonl.gz": lambda p: FRAME.to_json(p, orient="records", lines=True),
    "pandas.csv.bz2": lambda p: FRAME.to_csv(p, index=False),
    "pandas.parquet": FRAME.to_parquet,
    "pandas.feather": FRAME.to_feather,
    "datasets.jsonl": lambda p: datasets.Dataset.from_list(ROWS).to_json(p),
    "datasets.csv": lambda p: datasets.Dataset.from_list(ROWS).to_csv(p),
    "datasets.parquet": lambda p: datasets.Dataset.from_list(ROWS).to_parquet(p),
    "indented.jsonl": lambda p: p.write_text(json.dumps(ROWS, indent=1)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_a_tool_writes_is_read_back_equal(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    table = only(tmp_path / name)
    assert rows_of(table) == ROWS
    assert table.columns == ("query", "document")
    assert (
        opened(tmp_path / name).name
        == name.split(".gz", maxsplit=1)[0].split(".bz2", maxsplit=1)[0].rsplit(".", 1)[0]
    )


@pytest.mark.parametrize("name", ["a.jsonl", "b.csv", "c.parquet", "d.arrow"])
@pytest.mark.parametrize("codec", ["gzip", "zstd", "bz2"])
def test_compressed_files_are_read(name: str, codec: str, tmp_path: Path) -> None:
    plain = tmp_path / name
    {
        ".jsonl": WRITERS["pandas.jsonl"],
        ".csv": WRITERS["pandas.csv"],
        ".parquet": WRITERS["pandas.parquet"],
        ".arrow": WRITERS["pandas.feather"],
    }[plain.suffix](plain)
    ending = {"gzip": ".gz", "zstd": ".zst", "bz2": ".bz2"}[codec]
    pack = {"gzip": gzip.compress, "bz2": bz2.compress}.get(
        codec, lambda data: pa.compress(data, codec="zstd", asbytes=True)
    )
    packed = written(tmp_path / "packed" / (name + ending), pack(plain.read_bytes()))
    assert rows_of(only(packed)) == ROWS
    assert rows_of(only(packed.parent)) == ROWS
    assert opened(packed).name == plain.stem
    half = written(tmp_path / "half" / packed.name, packed.read_bytes()[:-9])
    with pytest.raises(InputError, match=packed.name):
        rows_of(only(half))


def test_quotes_of_ms_marco_are_text(tmp_path: Path) -> None:
    lines = ["1\tplain", '2\t"begins like a cell', '3\t5" screens', '4\tends like one"', "5\tlast"]
    table = only(written(tmp_path / "collection.tsv", "\n".join(lines)))
    assert table.cells is not None
    assert [cells for _, cells in table.cells()] == [line.split("\t") for line in lines]
    assert [place for place, _ in table.cells()] == [1, 2, 3, 4, 5]
    assert "quotes are text" in table.reading
    assert table.columns == ("1", "plain")


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ('q\td\na\t"say ""hi"" now"\nb\tbare\n', 'say "hi" now'),  # as the csv module
        ('q\td\na\t"yes, we can"\nb\tbare\n', "yes, we can"),  # as a spreadsheet
        ('q\td\na\t"yes, we can"\nb\tno, never\n', '"yes, we can"'),  # a spreadsheet quotes commas
        ('q\td\na\t"one"\nb\t"two"\n', "one"),  # a whole column
        ('q\td\na\t"one"\nb\ttwo\n', '"one"'),
        ('"q"\t"d"\n1\t"one"\n', "one"),  # all but numbers
        ('q\td\na\t"two\nlines"\nb\tx\n', "two\nlines"),
    ],
)
def test_the_whole_file_says_whether_quotes_enclose_cells(
    content: str, value: str, tmp_path: Path
) -> None:
    table = only(written(tmp_path / "a.tsv", content))
    assert list(rows_of(table)[0].values())[1] == value


TEXTS = st.text(st.sampled_from('ab"\t\n, é'), max_size=6)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_row_is_lost_from_what_the_csv_module_writes(
    tmp_path: Path, rows: list[tuple[str, str]]
) -> None:
    for name, delimiter in (("a.csv", ","), ("b.csv", ";"), ("c.tsv", "\t")):
        path = tmp_path / name
        if delimiter == "\t" and any("\t" in text and "\n" in text for text in sum(rows, ())):
            continue  # what looks like several rows in a cell may be refused, see below
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
            writer.writerows([("query", "document"), *rows])
        assert [tuple(row.values()) for row in rows_of(only(path))] == [
            (query or None, document or None) for query, document in rows
        ]


@given(st.lists(st.tuples(*2 * [st.text(st.sampled_from('ab",'), max_size=5)]), min_size=1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_tabs_without_quoting_never_lose_a_line(
    tmp_path: Path, rows: list[tuple[str, str]]
) -> None:
    """Quotes may be taken for a writer's, but each line stays one row."""
    path = tmp_path / "a.tsv"
    path.write_text("".join(f"q{a}\td{b}\n" for a, b in [("", ""), *rows]), encoding="utf-8")
    assert rows_of(only(path)) == [{"q": f"q{a}", "d": f"d{b}"} for a, b in rows]


def test_small_blocks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    rows = [
        {"a": "".join(draw.choices('ax"\n東é', k=9)), "b": [number], "c": None}
        for number in range(50)
    ]
    lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\r\n" for row in rows)
    paths = [
        written(tmp_path / "a.jsonl", lines),
        written(tmp_path / "b.json", json.dumps(rows)),
        written(tmp_path / "c.jsonl", b"\xef\xbb\xbf" + lines.encode()),
        written(tmp_path / "d.jsonl", lines.encode("utf-16")),
        written(tmp_path / "e.jsonl", lines.encode("utf-32")),
    ]
    for size in (1 << 20, 1, 7):
        monkeypatch.setattr(text_module, "BLOCK", size)
        for path in paths:
            assert rows_of(only(path)) == rows


def test_a_key_of_later_rows_is_a_column(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '{"q": "a"}\n\n{"d": NaN, "q": "\\ud83d"}\n')
    table = only(path)
    assert table.columns == ("q", "d")
    rows = list(table.read())
    assert rows[0] == (1, {"q": "a", "d": None})
    assert rows[1][0] == 3
    assert rows[1][1]["q"] == "\ud83d"
    assert rows[1][1]["d"] != rows[1][1]["d"]
    assert table.where(3) == "a.jsonl, line 3"


def test_lines_that_are_lists_have_numbered_columns(tmp_path: Path) -> None:
    table = only(written(tmp_path / "a.jsonl", '["q", "d"]\n["r", "e"]\n'))
    assert rows_of(table) == [{"0": "q", "1": "d"}, {"0": "r", "1": "e"}]


def test_cells_of_csv_begin_with_the_first_line_and_name_lines(tmp_path: Path) -> None:
    table = only(written(tmp_path / "a.csv", 'q,d\n"two\nlines",\n\nx,y\n'))
    assert table.cells is not None
    assert list(table.cells()) == [(1, ["q", "d"]), (2, ["two\nlines", ""]), (5, ["x", "y"])]
    assert list(table.read()) == [
        (2, {"q": "two\nlines", "d": None}),
        (5, {"q": "x", "d": "y"}),
    ]


@pytest.mark.parametrize("name", ["2019qrels-pass.txt", "a.qrels", "noextension"])
def test_trec_qrels_are_cells(name: str, tmp_path: Path) -> None:
    table = only(written(tmp_path / name, "19 Q0 7  2\n19 Q0 8\t0\n"))
    assert table.cells is not None
    assert [cells for _, cells in table.cells()] == [["19", "Q0", "7", "2"], ["19", "Q0", "8", "0"]]


def test_folders_that_name_a_column_give_it_to_their_rows(tmp_path: Path) -> None:
    """As Spark and Hive partition a table; the column is not in the files."""
    data = tmp_path / "data"
    folders = {"lang=en/kind=a": ("en", "a"), "lang=de%2Fat/kind=__HIVE_DEFAULT_PARTITION__":
               ("de/at", None), "lang=fr/kind=c": ("fr", "own")}  # fmt: skip
    for folder in folders:
        (data / folder).mkdir(parents=True)
        rows: dict[str, list[str]] = {"query": [f"{folder}?"], "document": ["yes"]}
        if "kind=c" in folder:  # what is in the file stays
            rows["kind"] = ["own"]
        pq.write_table(pa.table(rows), data / folder / "part-00000.snappy.parquet")
    tables = opened(data).tables
    found = {row["query"]: (row["lang"], row["kind"]) for t in tables for row in t.head()}
    assert found == {f"{folder}?": values for folder, values in folders.items()}
    assert {table.config for table in tables} == {None}
    assert all({"lang", "kind"} <= {*table.columns} for table in tables)


def test_a_trec_run_and_a_text_with_tabs_are_told_apart(tmp_path: Path) -> None:
    run = only(written(tmp_path / "bm25.run", "1\tQ0\td 1\n".replace("d 1", "d1 1 2.5 tag")))
    assert run.columns == ("1", "Q0", "d1", "1", "2.5", "tag")
    queries = only(written(tmp_path / "queries.dev.txt", "1\twhat is it\n2\twho\n"))
    assert queries.columns == ("1", "what is it")
    assert (queries.stem, queries.split) == ("queries", "validation")
    poem = only(written(tmp_path / "poem.txt", "a line\nanother one here\n"))
    assert poem.cells is not None
    assert [cells for _, cells in poem.cells()] == [["a line"], ["another one here"]]


BROKEN: dict[str, tuple[str, str | bytes, str]] = {
    "an empty file": ("a.jsonl", b"", "a.jsonl"),
    "white space": ("a.json", " \n", "a.json"),
    "blank lines": ("a.csv", "\n\n", "a.csv"),
    "a mark alone": ("a.tsv", b"\xef\xbb\xbf", "a.tsv"),
    "not JSON": ("a.jsonl", '{"a": 1}\n{"a": \n', "a.jsonl, line 2"),
    "a number as row": ("a.jsonl", '{"a": 1}\n5\n', "a.jsonl, line 2"),
    "one object": ("a.json", '{"query": "a", "document": "b"}', "'query', 'document'"),
    "unequal columns": ("a.json", '{"query": ["a"], "document": []}', "'query'"),
    "splits in a file": ("a.json", '{"train": [{"q": "a"}], "test": [{"q": "a"}]}', "'train'"),
    "a list cut off": ("a.json", '[{"a": "b"},\n{"a": "', "a.json, line 2.*cut off"),
    "a list of words": ("a.json", '["a", "b"]', "row 0: 'a'"),
    "a comma too many": ("a.json", '[{"a": 1},\n]', "a.json, line 2"),
    "text after the list": ("a.json", '[{"a": 1}] x', "a.json, line 1"),
    "Windows-1252": ("a.jsonl", b'{"a": 1}\n{"a": "caf\xe9 x"}\n', "line 2: byte 0xe9.*'é'"),
    "Windows-1252 CSV": ("a.csv", b"q,d\na,b\nc,\x96x\n", "line 3: byte 0x96"),
    "Shift-JIS": ("a.tsv", "q\td\n東京\t京都\n".encode("shift-jis"), "line 2: byte 0x93"),
    "GB18030": ("a.csv", "q,d\n北京,中国\n".encode("gb18030"), "line 2: byte 0xb1"),
    "half of UTF-16": ("a.csv", "q,d\n".encode("utf-16")[:-1], "byte 0x0a.*UTF-16"),
    "UTF-16 without mark": ("a.csv", "q,d\n".encode("utf-16-le"), "line 1: a NUL"),
    "NUL": ("a.tsv", "q\td\na\t\0\n", "line 2: a NUL"),
    "ragged TSV": ("a.tsv", "q\td\na\tb\nc\n", "line 3: 1 cells.*2"),
    "ragged TSV with quotes": ("a.tsv", 'q\td\na\t"b\nc\td\ne\n', "line 4: 1 cells.*2"),
    "rows inside quotes": ("a.tsv", 'q\td\na\t"b\nc\td\ne\tf"\ng\n', "line 5: 1 cells.*2"),
    "ragged CSV": ("a.csv", "q,d\na,b\nc,d,e\n", "line 3: 3 cells.*2"),
    "a quote left open": ("a.csv", 'q,d\na,b\n"c,d\n', "line 3"),
    "quotes not doubled": ("a.csv", 'q,d\n"a "b" c",d\n', "line 2"),
    "a column twice": ("a.csv", "q,d,q\na,b,c\n", "'q'"),
    "no Parquet": ("a.parquet", "PAR1", "a.parquet"),
    "no Arrow": ("a.arrow", "x" * 99, "a.arrow"),
    "LFS": ("a.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "lfs pull"),
    "LFS of text": ("a.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "lfs"),
    "no gzip": ("a.jsonl.gz", b"\x1f\x8b\x08nonsense", "a.jsonl.gz"),
    "another kind": ("a.docx", b"PK\x03\x04\0\0\0", "dataset_path .*a.docx"),
    "too many keys": ("a.jsonl", json.dumps({str(i): i for i in range(1001)}), "1,000"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("in_folder", [False, True])
def test_what_is_broken_is_refused_with_its_place(
    kind: str, in_folder: bool, tmp_path: Path
) -> None:
    name, content, place = BROKEN[kind]
    path = written(tmp_path / "data" / name, content)
    with pytest.raises(InputError, match=place if not in_folder else "data") as error:
        rows_of(only(path.parent if in_folder else path))
    assert "\n" not in str(error.value)


def test_a_long_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "LONGEST", 1000)
    monkeypatch.setattr(text_module, "BLOCK", 100)
    path = written(tmp_path / "a.tsv", "q\td\na\t" + "x" * 2000 + "\n")
    with pytest.raises(InputError, match=r"a\.tsv, line 2"):
        only(path)


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_an_arrow_file_that_was_cut_off_is_refused(kind: str, tmp_path: Path) -> None:
    table = pa.table({"q": [str(i) * 50 for i in range(1000)]})
    path = tmp_path / "a.arrow"
    new = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    assert len(rows_of(only(path))) == 1000
    content = path.read_bytes()
    for share in (0.3, 0.5, 0.9):
        written(path, content[: int(len(content) * share)])
        with pytest.raises(InputError, match=r"a\.arrow"):
            only(path)


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["q", "q"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match="'q'"):
        only(tmp_path / "a.parquet")


def test_brackets_and_asterisks_in_a_path_are_plain(tmp_path: Path) -> None:
    folder = tmp_path / "x [v2] *"
    for name, write in WRITERS.items():
        (folder / name.replace(".", "[1]*.", 1)).parent.mkdir(exist_ok=True)
        write(folder / name.replace(".", "[1]*.", 1))
        assert rows_of(only(folder / name.replace(".", "[1]*.", 1))) == ROWS
    written(tmp_path / "y [v3]" / "a[b].csv", "q,d\na,b\n")
    assert rows_of(only(tmp_path / "y [v3]")) == [{"q": "a", "d": "b"}]


@pytest.mark.parametrize("name", ["no", "nothing.jsonl"])
def test_a_path_that_is_not_there_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"--dataset_path .*{name}"):
        opened(tmp_path / name)


def test_a_folder_without_tables_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "README.md", "# nothing")
    written(tmp_path / "config.json", '{"a": 1}')
    with pytest.raises(InputError, match=r"README\.md"):
        opened(tmp_path)


def test_one_table_in_two_forms_is_not_read_twice(tmp_path: Path) -> None:
    written(tmp_path / "a.csv", "q,d\n")
    written(tmp_path / "a.jsonl.gz", gzip.compress(b'{"q": 1}'))
    with pytest.raises(InputError, match=r"a\.csv and a\.jsonl\.gz"):
        opened(tmp_path)


def named(tables: Tables) -> dict[str, tuple[str, str | None, str | None]]:
    return {table.name: (table.stem, table.config, table.split) for table in tables.tables}


def test_names_tell_stem_folder_and_split(tmp_path: Path) -> None:
    files = {
        "corpus.jsonl": ("corpus", None, None),
        "queries.dev.small.jsonl": ("queries", None, "validation"),
        "qrels/test.jsonl": ("qrels", "qrels", "test"),
        "qrels/dev.jsonl": ("qrels", "qrels", "validation"),
        "de/qrels/eval.jsonl": ("qrels", "de/qrels", "validation"),
        "data/train-00000-of-00002.jsonl": ("train", None, "train"),
        "data/train-00001-of-00002.jsonl": ("train", None, "train"),
        "data/extra-00000-of-00001.jsonl": ("extra", None, "extra"),
        "pair/train/0000.jsonl": ("pair", "pair", "train"),
        "train-test-split.jsonl": ("split", None, None),
        "my_pairs_valid.jsonl": ("my-pairs", None, "validation"),
        "documents/train-00000-of-00001.jsonl": ("documents", "documents", "train"),
        "triples.train.small.jsonl": ("triples", None, "train"),
    }
    for name in files:
        written(tmp_path / name, '{"a": "b"}\n')
    for hidden in (".git/x.jsonl", ".cache.csv", "__MACOSX/a.csv"):
        written(tmp_path / hidden, "broken \0")
    written(tmp_path / "README.md", "---\nlicense: mit\n---\n")
    written(tmp_path / "statistics.json", '{"rows": 5}')
    tables = opened(tmp_path)
    assert named(tables) == files
    assert tables.others == ("README.md", "statistics.json")
    assert tables.license == "mit"
    assert [table.name for table in tables.named("qrels")] == [
        "de/qrels/eval.jsonl", "qrels/dev.jsonl", "qrels/test.jsonl",
    ]  # fmt: skip


def test_a_card_says_which_files_belong_where(tmp_path: Path) -> None:
    written(
        tmp_path / "README.md",
        """---
license: [cc-by-4.0, mit]
configs:
- config_name: default
  data_files:
  - split: dev
    path: ["judged/a*.jsonl"]
- config_name: corpus
  data_files: texts/**
- config_name: queries
  data_dir: asked
---
""",
    )
    for name in ("judged/a1.jsonl", "judged/b.jsonl", "texts/x/y.jsonl", "asked/all.jsonl"):
        written(tmp_path / name, '{"a": "b"}\n')
    tables = opened(tmp_path)
    assert named(tables) == {
        "asked/all.jsonl": ("queries", "queries", None),
        "judged/a1.jsonl": ("a1", "default", "validation"),
        "texts/x/y.jsonl": ("corpus", "corpus", None),
    }
    assert tables.others == ("README.md", "judged/b.jsonl")
    assert tables.license == "cc-by-4.0, mit"


def test_a_saved_dataset_is_read(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "saved", num_shards=2)
    written(tmp_path / "saved" / "cache-1.arrow", b"left by a map")
    saved = opened(tmp_path / "saved")
    assert [row for table in saved.tables for row in rows_of(table)] == ROWS
    assert {table.split for table in saved.tables} == {None}
    assert {table.stem for table in saved.tables} == {"saved"}
    assert saved.others == ("cache-1.arrow",)
    datasets.DatasetDict({"train": data, "dev": data.select([1]), "corpus": data}).save_to_disk(
        tmp_path / "dict"
    )
    assert {(t.stem, t.split): t.count for t in opened(tmp_path / "dict").tables} == {
        ("corpus", "corpus"): 4,
        ("dict", "validation"): 1,
        ("dict", "train"): 4,
    }
    (tmp_path / "saved" / "data-00000-of-00002.arrow").unlink()
    with pytest.raises(InputError, match="data-00000-of-00002"):
        opened(tmp_path / "saved")


def test_links_are_read_and_circles_end(tmp_path: Path) -> None:
    real = written(tmp_path / "real" / "a.csv", "q,d\na,b\n")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "linked.csv").symlink_to(real)
    (folder / "up").symlink_to(folder)
    assert rows_of(only(folder)) == [{"q": "a", "d": "b"}]


@pytest.mark.skipif(not CASES.is_dir(), reason="the recorded cases are not here")
def test_the_recorded_cases_are_read_or_refused() -> None:
    quotes = CASES / "03-tsv-quotes" / "quotes.tsv"
    lines = quotes.read_text(encoding="utf-8").splitlines()
    assert [tuple(row.values()) for row in rows_of(only(quotes))] == [
        tuple(line.split("\t")) for line in lines[1:]
    ]
    with pytest.raises(InputError, match="line 1: byte 0x96"):
        opened(CASES / "10-jsonl-cp1252" / "cp1252.jsonl")
    for folder in ("17-save-to-disk/saved", "17-save-to-disk/saveddict", "18-hf-clone/clone"):
        table = only(CASES / folder)
        assert len(rows_of(table)) == 120
        assert table.columns == ("query", "document")
    for folder in (CASES / "22-beir-variants").glob("beir*"):
        assert [t.stem for t in opened(folder).tables] == ["corpus", "qrels", "qrels", "queries"]
        for table in opened(folder).tables:
            assert not table.columns[0].startswith("\ufeff")


CARD = b"""---
license: mit
configs:
- config_name: corpus
  data_files:
  - split: corpus
    path: corpus.jsonl
- config_name: default
  data_files:
  - split: train
    path: qrels/train.jsonl
  - split: dev
    path: qrels/dev.jsonl
---
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with running_hub() as hub:
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield hub


def test_configurations_and_splits_of_the_hub_are_tables(hub: Hub, tmp_path: Path) -> None:
    hub.repos["datasets", "you/beir"] = Repo([("0" * 40, {})])
    judged = b'{"query-id": "q", "corpus-id": "1", "score": 1}\n'
    files = {"corpus.jsonl": b'{"_id": "1", "text": "NA"}\n', "qrels/train.jsonl": judged}
    hub.commit("datasets", "you/beir", {"README.md": CARD, "qrels/dev.jsonl": judged, **files})
    tables = hub_tables("you/beir", None, None, tmp_path / "x [v2]")
    assert named(tables) == {
        "corpus (split corpus)": ("corpus", "corpus", "corpus"),
        "default (split train)": ("beir", "default", "train"),
        "default (split dev)": ("beir", "default", "validation"),
    }
    assert rows_of(tables.tables[0]) == [{"_id": "1", "text": "NA"}]
    assert (tables.license, tables.path) == ("mit", None)
    dev = hub_tables("you/beir", None, "dev", tmp_path / "x [v2]")
    assert list(named(dev)) == ["corpus (split corpus)", "default (split dev)"]
    for config, split, match in (("no", None, "config no"), (None, "no", "split no")):
        with pytest.raises(InputError, match=f"--dataset_{match}"):
            hub_tables("you/beir", config, split, tmp_path / "x [v2]")
    with pytest.raises(InputError, match="--dataset_name you/none"):
        hub_tables("you/none", None, None, tmp_path / "x [v2]")


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--dataset_name you/beir") as error:
        hub_tables("you/beir", None, None, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", reading.FORMATS)
def test_the_benchmark_reads_every_row_that_it_writes(name: str, tmp_path: Path) -> None:
    file, _, write = reading.FORMATS[name]
    write(tmp_path / file, 40)
    assert reading.read_once(tmp_path / file, whole=False)["rows"] == 40
    assert reading.read_once(tmp_path / file, whole=True)["rows"] == 40
