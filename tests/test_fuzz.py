"""Whatever a recipe, a table or a text holds: it is used, or refused in one message that says where
it stands. Never a traceback, and nothing that was found is unaccounted for.

The examples at each property are inputs that once broke it.
"""

from __future__ import annotations

import bz2
import dataclasses
import datetime
import functools
import gzip
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import call, recipe_of, sentences
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from hf_distill.data.explain import explain
from hf_distill.data.load import load_collection
from hf_distill.data.tables.open import open_tables
from hf_distill.errors import InputError
from hf_distill.pipeline import Run
from hf_distill.recipe import read as read_module
from hf_distill.recipe.arguments import Recipe
from hf_distill.recipe.read import read_recipe
from hf_distill.run.folder import RunFolder

# Some arguments of the Trainer are about to go, and say so.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

T = TypeVar("T")


def fuzzed(examples: int) -> settings:
    """The same examples each time. A failing one is not made smaller, which takes minutes."""
    quick = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        suppress_health_check=quick,
        phases=(Phase.explicit, Phase.generate),
        database=None,
    )


def tried(act: Callable[[], T]) -> tuple[T | None, str]:
    """What `act` returns, or the message with which it refuses."""
    try:
        return act(), ""
    except InputError as error:
        return None, str(error)


# --- recipes

PARSER = read_module._parser("train.py")
KEYS = sorted({action.dest for action in PARSER._actions} - {"help"})

TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["", " ", "a\0b", "\ud800", "\x1b[2J", "\u202e", "<b>", "[a](b)", "x" * 100_000, "--seed",
         "--", "-", "-x", "=", "a=b", "a:b", "{", "{}", "[]", "none", "true", "no", "nan", "inf",
         "-inf", "1e30", "1e400", "-1e-5", "../..", "/dev/null", "a/" * 3000, "9" * 5000]
    ),
)  # fmt: skip
NUMBERS = st.one_of(
    st.sampled_from([0, -1, *(2**n for n in (16, 31, 32, 63, 64)), 10**400, math.nan, math.inf]),
    st.sampled_from([-math.inf, 1e30, -1e30, 1e-300, -0.5, 0.5, 1.5]),
    st.integers(), st.floats(),
)  # fmt: skip
SCALARS = st.one_of(
    TEXTS, NUMBERS, st.booleans(), st.none(), st.dates(), st.datetimes(), st.binary(max_size=5)
)
KEY_TEXTS = st.one_of(st.text(max_size=3), st.integers(), st.dates(), st.none())
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.dictionaries(KEY_TEXTS, SCALARS, max_size=2),
    st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=2), max_leaves=4),
)


@pytest.fixture(autouse=True)
def _one_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building the parser takes ten times as long as reading a recipe with it."""
    monkeypatch.setattr(read_module, "_parser", lambda program: PARSER)


def check_read(line: list[str], *names: str) -> None:
    """A recipe whose numbers are all usable, or one message with one of `names`."""
    recipe, says = tried(lambda: read_recipe(line))
    if recipe is None:
        # What the Trainer says itself names its argument in words of its own.
        assert any(name in says for name in (*names, "warmup", "training arguments")), says
        return
    parts = (recipe.run, recipe.data, recipe.teacher, recipe.student, recipe.training)
    for value in (value for part in parts for value in vars(part).values()):
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, (int, float)):
                assert abs(number) < 2**32


@fuzzed(400)
@given(st.sampled_from(KEYS), st.one_of(TEXTS, NUMBERS.map(lambda n: repr(n)[:4000])))
@example("logging_steps", "inf")
@example("save_steps", "1" + "0" * 400)
@example("dataset", "--")
@example("max_steps", "--")
@example("accelerator_config", "x" * 100_000)
def test_no_value_on_a_command_line_is_a_traceback(key: str, value: str) -> None:
    check_read([f"--{key}={value}"], f"--{key}")


@fuzzed(400)
@given(st.sampled_from(KEYS), VALUES)
@example("optim_args", {"a": datetime.date(2020, 1, 1)})
@example("optim_args", {datetime.date(2020, 1, 1): 1})
@example("optim_args", {"a": b"x"})
@example("query_prompt", b"x")
@example("seed", [1, 2])
@example("score_range", [-1e-5, 1])
@example("temperature", -1e30)
@example("student_license", "--trust_remote_code")
@example("selection", ["echo", "--trust_remote_code"])
@example("dataset_path", "a\0b")
@example("teacher", "x" * 300)
def test_no_value_in_a_file_is_a_traceback(tmp_path: Path, key: str, value: Any) -> None:
    path = tmp_path / "a.yaml"
    try:
        path.write_text(yaml.safe_dump({key: value}), encoding="utf-8", errors="surrogatepass")
    except ValueError:  # an int of more digits than Python writes
        return
    check_read([str(path)], f"--{key}", str(path))


@fuzzed(150)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(alphabet="ab:-[]{}&*!|>'\"#%@,? \n\t0", max_size=60).map(str.encode),
        st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6)
        .map(lambda content: yaml.safe_dump(content).encode("utf-8", "replace")),
    )
)  # fmt: skip
@example(b"seed: 0x" + b"f" * 5000)
@example(b"seed: !!set {1}")
@example(b"selection: !!omap [a: 1]")
@example(b'teacher: "\\0"')
def test_no_file_is_a_traceback(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    check_read([str(path)], "--", str(path))


def test_a_value_of_a_saved_recipe_is_no_flag(tmp_path: Path) -> None:
    """A recipe of somebody else's run may not say `trust_remote_code`, and not in this way."""
    path = tmp_path / "recipe.yaml"
    rest = "environment: {recipe: a}\n"
    path.write_text(f"selection: [echo, --trust_remote_code]\n{rest}")
    with pytest.raises(InputError, match=r"--selection --trust_remote_code.*dash"):
        read_recipe([str(path)])
    path.write_text(f"student_license: --trust_remote_code\n{rest}")
    recipe = read_recipe([str(path)])
    assert recipe.run.student_license == "--trust_remote_code"
    assert not recipe.teacher.trust_remote_code


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("language: no", "--language false.*quotes"),
        ("query_prompt: !!binary aGk=", "--query_prompt.*bytes"),
        ("seed: [1, 2]", "--seed 1 2: it takes one value"),
        ("query_column: --", "--query_column --"),
        ("seed: -1", "--seed -1"),
        ("seed: 4294967296", "--seed 4294967296"),
        ("adam_beta2: 1.0", "--adam_beta2 1.0"),
        ("learning_rate: 1e30", "--learning_rate 1e"),
        ("temperature: 1e-30", "--temperature 1e-30"),
        ("kl_weight: 1e30", "--kl_weight 1e"),
        ("dataloader_num_workers: 100000", "--dataloader_num_workers 100000"),
        ("student_dim: 2147483648", "--student_dim"),
        ("max_pairs: 2147483648", "--max_pairs 2147483648.*below 2,147,483,648"),
        ("false_negative_margin: .inf", "--false_negative_margin inf.*finite"),
        ("score_range: [.nan, 1]", "--score_range nan.*finite"),
        ("teacher: \"a\\0\"", r"--teacher a\\x00.*NUL"),
        (f"teacher: {'x' * 300}", "--teacher xxx.*300 characters"),
    ],
)  # fmt: skip
def test_what_no_run_can_have_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        read_recipe([str(path)])


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "/proc/self/mem", "/"])
def test_a_recipe_that_cannot_be_looked_up_is_one_message(name: str) -> None:
    said = call([name])
    assert (said.code, "Traceback" in said.err) == (2, False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", "1000"), ("temperature", "1e-6"), ("contrastive_weight", "1e6"),
        ("adam_epsilon", "0"), ("warmup_steps", "2147483647"), ("head_dropout", "0"),
        ("student_max_length", "2"), ("seed", "4294967295"), ("data_seed", "4294967295"),
    ],
)  # fmt: skip
def test_the_ends_of_a_range_can_be_trained_with(
    tiny: Path, tmp_path: Path, key: str, value: str
) -> None:
    line = [str(tiny), "--run_dir", str(tmp_path / "run"), f"--{key}={value}"]
    assert Run.open(read_recipe(line)).wants("train")


# --- tables and texts

HOSTILE = (
    "", "  ", "\n\t", "\ud800", "a\udfff", "\x1b[31m", "\x07", "\u202e \u05d0", "a\u2028b\x85c",
    "<script>x</script>", "[a](http://b) **c**", "a\tb", "a,b;c", '"q', "'", "\r\n", "a\r", "NA",
    "nan", "null", "\0", "\ufeffa", "\u200b", "\u3000", "e\u0301", "\U0001f600", "\x1c", "q 0 d 1",
    "x" * 100_000, "1" * 5000, "{", "--seed",
)  # fmt: skip
WORDS = st.integers(0, 60).map(lambda number: sentences(1, number)[0])
CELL_TEXTS = st.one_of(WORDS, WORDS, WORDS, st.sampled_from(HOSTILE), st.text(max_size=9))
CELLS = st.recursive(
    st.one_of(
        CELL_TEXTS, st.none(), st.booleans(), st.integers(), st.floats(), st.binary(max_size=4),
        st.dates(), st.datetimes(), st.just(10**400), st.timedeltas(),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["text", "title", "docid", ""]), inner, max_size=2),
    ),
    max_leaves=4,
)  # fmt: skip
COLUMNS = (
    ("query", "document"), ("query", "document", "label"), ("question", "answer", "score"),
    ("anchor", "positive", "negative"), ("query", "pos", "neg"), ("_id", "text", "title"),
    ("query_id", "query", "positive_passages", "negative_passages"),
    ("query", "documents", "labels"), ("query-id", "corpus-id", "score"),
    ("query_id", "document_ids", "scores"), ("text",),
    ("Rewrite", "Question", "Answer", "Conversation_no", "Turn_no"), ("", "\u202e", "<b>"),
)  # fmt: skip
LISTS = {"pos", "neg", "positive_passages", "negative_passages", "documents", "document_ids"}
NUMERIC = {"label", "score", "labels", "scores", "Conversation_no", "Turn_no"}


def usual(column: str) -> st.SearchStrategy[Any]:
    """What a column of this name usually holds."""
    cell = st.integers(0, 2) if column in NUMERIC else CELL_TEXTS
    return st.lists(cell, max_size=3) if column in LISTS | {"labels", "scores"} else cell


@st.composite
def tables(draw: st.DrawFn) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    columns = draw(st.sampled_from(COLUMNS))
    odd = draw(st.booleans())
    row = {name: st.one_of(usual(name), CELLS) if odd else usual(name) for name in columns}
    rows = st.lists(st.fixed_dictionaries(row), max_size=30)
    return columns, draw(rows)


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def as_arrow(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> pa.Table:
    arrays = []
    for name in columns:
        cells = [row[name] for row in rows]
        try:
            arrays.append(pa.array(cells))
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            texts = [as_text(cell).encode("utf-8", "replace").decode() for cell in cells]
            arrays.append(pa.array(texts))
    return pa.Table.from_arrays(arrays, names=list(columns))


def as_bytes(suffix: str, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> bytes:
    """The content of a file with this suffix."""
    buffer = io.BytesIO()
    if suffix == ".parquet":
        pq.write_table(as_arrow(columns, rows), buffer)
        return buffer.getvalue()
    if suffix == ".arrow":
        pyarrow.feather.write_feather(as_arrow(columns, rows), buffer)
        return buffer.getvalue()
    if suffix == ".jsonl":
        text = "".join(json.dumps(row, default=str) + "\n" for row in rows)
    elif suffix == ".json":
        text = json.dumps(rows, default=str)
    else:
        mark = "," if suffix == ".csv" else "\t"
        lines = [columns, *([as_text(cell) for cell in row.values()] for row in rows)]
        text = "".join(mark.join(line) + "\n" for line in lines)
    return text.encode("utf-8", "surrogatepass")


RECODED = {
    encoding: functools.partial(
        lambda content, name: content.decode("utf-8", "replace").encode(name, "replace"),
        name=encoding,
    )
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "latin-1", "utf-32")
}
PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}
SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".json", ".parquet", ".arrow")


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """The name and content of a file: whole, in another encoding, compressed, cut or flipped."""
    suffix = draw(st.sampled_from(SUFFIXES))
    content = as_bytes(suffix, *draw(tables()))
    name = draw(st.sampled_from(["pairs", "corpus", "queries", "qrels", "train", "test"])) + suffix
    harm = draw(st.sampled_from(["", "", "", "", "encoding", "packed", "cut", "flipped"]))
    if harm == "encoding" and suffix not in (".parquet", ".arrow"):
        content = RECODED[draw(st.sampled_from(sorted(RECODED)))](content)
    if harm == "packed":
        ending = draw(st.sampled_from(sorted(PACKED)))
        name, content = name + ending, PACKED[ending](content)
    if harm == "cut":
        content = content[: draw(st.integers(0, len(content)))]
    if harm == "flipped" and content:
        place = draw(st.integers(0, len(content) - 1))
        flipped = content[place] ^ (1 << draw(st.integers(0, 7)))
        content = content[:place] + bytes([flipped]) + content[place + 1 :]
    return name, content


BASE = recipe_of(test_fraction=0.3, validation_fraction=0.1, max_pairs=None)


def check_data(recipe: Recipe, path: Path, folder: Path) -> None:
    """What was found is what was used and what was left out for a reason; or one message that names
    a flag or a file.
    """
    run = RunFolder(folder / "run")
    recipe = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, run_dir=str(run.path)))
    collection, says = tried(lambda: load_collection(recipe, run))
    if collection is None:
        places = [path, *(path.rglob("*") if path.is_dir() else [])]
        known = {place.name.partition(".")[0] for place in places} | {
            "--",
            "no pair is left",
            "QReCC has no",
        }
        assert any(name in says for name in known), says
        assert not run.path.exists()
        return
    (total, found), *rest = collection.record.read.items()
    assert total.endswith(" found")
    assert found == sum(number for _, number in rest)
    kept = collection.judgements if collection.record.texts is None else collection.texts
    assert len(kept) == collection.record.read["kept"]
    assert collection.record.leaks_left == 0
    assert collection.summary()
    assert explain(collection)


def in_recipe(**keys: Any) -> Recipe:
    return dataclasses.replace(BASE, data=dataclasses.replace(BASE.data, dataset="files", **keys))


@fuzzed(150)
@given(files())
@example(("pairs.ndjson", b'{"query": ' + b"[" * 5000))
@example(("pairs.json", b"true"))
@example(("pairs.txt", b"1" * 20_000 + b"x 2 3\n"))
def test_no_file_of_rows_is_a_traceback(file: tuple[str, bytes]) -> None:
    name, content = file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        check_data(in_recipe(dataset_path=str(path)), path, Path(folder))


@fuzzed(60)
@given(st.lists(st.tuples(st.sampled_from([".", "qrels", "data", "en"]), files()), max_size=3))
def test_no_folder_of_files_is_a_traceback(parts: list[tuple[str, tuple[str, bytes]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data")
        path.mkdir()
        for below, (name, content) in parts:
            (path / below).mkdir(exist_ok=True)
            (path / below / name).write_bytes(content)
        check_data(in_recipe(dataset_path=str(path)), path, Path(folder))


@fuzzed(60)
@given(st.lists(st.tuples(CELL_TEXTS, CELL_TEXTS, CELL_TEXTS), max_size=30), st.text(min_size=1))
def test_no_text_and_no_name_is_a_traceback(rows: list[tuple[str, ...]], column: str) -> None:
    if not column.strip() or column in ("query", "document"):
        return
    names = ("query", "document", column)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pairs.jsonl")
        lines = (json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
        path.write_text("".join(lines))
        check_data(in_recipe(dataset_path=str(path), group_column=column), path, Path(folder))


def features(value: object) -> bytes:
    table = pa.table({"query": ["one"], "document": ["two"]})
    said = value if isinstance(value, str) else json.dumps(value)
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"huggingface": said}), buffer)
    return buffer.getvalue()


def of_array(array: pa.Array) -> bytes:
    buffer = io.BytesIO()
    names = ["query", "document"]
    pyarrow.feather.write_feather(
        pa.Table.from_arrays([array, array], names=names), buffer, "uncompressed"
    )
    return buffer.getvalue()


def not_utf8() -> pa.Array:
    starts = b"".join(place.to_bytes(4, "little") for place in (0, 2))
    return pa.StringArray.from_buffers(1, pa.py_buffer(starts), pa.py_buffer(b"\xff\xfe"))


def out_of_the_file() -> bytes:
    """Text that ends far behind the end of the file, which crashes Arrow if it is read."""
    content = of_array(pa.array(["x" * 77]))
    ends = b"".join(place.to_bytes(4, "little") for place in (0, 77))
    before, _, after = content.rpartition(ends)
    return before + ends[:4] + (2**31 - 1).to_bytes(4, "little") + after


def damaged() -> Iterator[tuple[str, bytes]]:
    """Files beside or inside a table that say something which is not so."""
    for number, value in enumerate(
        ("{", "[]", "null", {"info": None}, {"info": {"features": []}}, {"info": 5})
    ):
        yield f"features{number}.parquet", features(value)
    yield "utf8.arrow", of_array(not_utf8())
    yield "offsets.arrow", out_of_the_file()
    yield "time.arrow", of_array(pa.array([2**62], pa.timestamp("s")))
    yield "days.arrow", of_array(pa.array([2**31 - 1], pa.date32()))
    for text in ('{"_data_files": 5}', '{"_data_files": [5]}', "[" * 5000, '{"_split": 5}'):
        yield "state.json", text.encode()
    yield "state.json", json.dumps({"_data_files": [{"filename": "a" * 300}]}).encode()
    yield "README.md", b"---\nconfigs:\n- data_files: a**b.csv\n---\n"
    yield "README.md", b"---\nconfigs: " + b"[" * 3000 + b"\n---\n"


def rows_below(folder: Path) -> int:
    """The number of rows that are read there."""
    tables = open_tables(folder, "dataset_path", folder / ".cache").tables
    return sum(len(list(table.read())) for table in tables)


@pytest.mark.parametrize(("name", "content"), list(damaged()))
def test_what_is_damaged_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        rows_below(tmp_path)


@pytest.mark.parametrize("front", ["license: 5", "configs: 1", "x: 2020-13-45", "license: {a: 1}"])
def test_a_card_that_says_nothing_of_use_is_no_fault(tmp_path: Path, front: str) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n")
    (tmp_path / "pairs.jsonl").write_text('{"query": "one", "document": "two"}\n')
    assert rows_below(tmp_path) == 1
