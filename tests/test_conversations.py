"""Students that read another text than the teacher: the turns of a conversation, the bare
utterance, or a column.
"""

from __future__ import annotations

import io
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, call, recipe_of, run_tiny, sentences
from datasets import load_dataset
from sentence_transformers import SentenceTransformer
from tiny_models import WORDS
from tiny_training import tiny

import hf_distill
from hf_distill.commands.main import main
from hf_distill.data.collection import Collection, Source, SourcePairs, query_id, text_id
from hf_distill.data.conversations import conversation_query, utterance_of
from hf_distill.data.load import load_collection
from hf_distill.data.split import LEAKS, TEST, TRAIN, find_leaks, leaks_left
from hf_distill.errors import InputError
from hf_distill.evaluation import efficiency
from hf_distill.evaluation.results import ON_QUERY, ON_UTTERANCE, STUDENT, Evaluation
from hf_distill.evaluation.tasks import held_out_task, task_of
from hf_distill.evaluation.validation import validation_task
from hf_distill.report.headline import in_a_sentence
from hf_distill.run.folder import RunFolder
from hf_distill.run.stage import read_json
from hf_distill.selection.rules import apply_rules, parse_rules
from hf_distill.selection.select import SelectionInputs, rule_columns
from hf_distill.serving.demo_app import asked
from hf_distill.serving.kept import KeptIndex
from hf_distill.student import initialise
from hf_distill.teachers.base import Prompts
from hf_distill.training.rows import Lookup, examples

Rows = list[dict[str, Any]]


def conversations(count: int, turns: int = 4, offset: int = 0) -> Rows:
    """`count` conversations: each turn's rewrite is the topic and what is asked, the utterance is
    what is asked alone, and the answer is the rewrite's words in another order, and others.
    """
    rows = []
    for number in range(offset, offset + count):
        draw = random.Random(number)
        topic = " ".join(draw.choices(WORDS, k=4)) + f" {draw.choice(WORDS)}"
        history: list[str] = []
        for turn in range(turns):
            asked = " ".join(draw.choices(WORDS, k=4))
            utterance = f"{asked} {topic}" if turn == 0 else asked
            rewrite = f"{asked} {topic}"
            words = rewrite.split()
            draw.shuffle(words)
            rows.append(
                {
                    "id": f"{number}_{turn}", "history": list(history), "query": utterance,
                    "rewrite": rewrite, "passage": " ".join([*words, *draw.choices(WORDS, k=4)]),
                }
            )  # fmt: skip
            history.append(utterance)
    return rows


def as_qrecc(rows: Rows) -> Rows:
    return [
        {
            "Context": row["history"], "Question": row["query"], "Rewrite": row["rewrite"],
            "Answer": row["passage"], "Conversation_no": int(row["id"].split("_")[0]),
            "Turn_no": int(row["id"].split("_")[1]),
        }
        for row in rows
    ]  # fmt: skip


def written(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(exist_ok=True)
    text = json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows))
    path.write_text(text)
    return path


def read(tmp_path: Path, rows: Rows, name: str = "turns.jsonl", **keys: Any) -> Collection:
    folder = RunFolder(tmp_path / "run")
    path = written(tmp_path / name, rows)
    keys = {"dataset": "files", "dataset_path": path, "seed": 0, **keys}
    return load_collection(recipe_of(run_dir=folder.path, **keys), folder)


def texts_of(collection: Collection) -> dict[str, str]:
    """Query -> what the student reads in its place."""
    numbers = np.arange(len(collection.queries))
    both = collection.query_texts(numbers), collection.student_queries(numbers)
    return dict(zip(*both, strict=True))


# --- the form


def test_a_conversation_is_the_utterance_and_the_newest_turns_first() -> None:
    query = conversation_query(["What is  throat\ncancer?", "Is it treatable?"], "And lung cancer?")
    assert query == "And lung cancer?\n| Is it treatable?\n| What is throat cancer?"
    assert utterance_of(query) == "And lung cancer?"
    assert conversation_query([], " who? ") == utterance_of("who?") == "who?"
    assert hf_distill.conversation_query is conversation_query


def test_a_cut_takes_the_oldest_turns(teacher_dir: Path) -> None:
    model = SentenceTransformer(str(teacher_dir), device="cpu")
    history = sentences(9)
    whole, newest = (conversation_query(turns, "what is it") for turns in (history, history[-4:]))
    np.testing.assert_array_equal(model.encode(whole), model.encode(newest))
    other = conversation_query(history, "who is it")
    assert np.abs(model.encode(whole) - model.encode(other)).max() > 1e-3


# --- reading


def test_both_formats_read_the_same_conversations(tmp_path: Path) -> None:
    rows = conversations(12)
    turns = read(tmp_path / "a", rows, student_query="conversation")
    qrecc = read(tmp_path / "b", as_qrecc(rows), "q.json", student_query="conversation")
    expected = {row["rewrite"]: conversation_query(row["history"], row["query"]) for row in rows}
    assert texts_of(turns) == texts_of(qrecc) == expected
    assert turns.num_student_queries == 36, "a first turn is its own rewrite"
    assert set(turns.queries["id"]) == {row["id"] for row in rows}
    assert "the student reads another text than the teacher in 36 of 48 queries" in turns.summary()
    assert turns.record.unused == qrecc.record.unused == {}


@pytest.mark.parametrize("student_query", ["utterance", "query"])
def test_the_bare_utterance_is_a_column_too(tmp_path: Path, student_query: str) -> None:
    rows = conversations(12)
    collection = read(tmp_path, rows, student_query=student_query)
    assert texts_of(collection) == {row["rewrite"]: row["query"] for row in rows}
    unused = {} if student_query == "utterance" else {"column history of turns.jsonl": 48}
    assert collection.record.unused == unused


def test_without_it_teacher_and_student_read_the_rewrite(tmp_path: Path) -> None:
    collection = read(tmp_path, conversations(12))
    assert all(text == own for text, own in texts_of(collection).items())
    assert held_out_task(collection).student_queries is None
    assert collection.num_student_queries == 0


def test_a_column_is_read_in_any_format_of_rows(tmp_path: Path) -> None:
    queries, documents = sentences(40), sentences(40, 400)
    typed = [query.replace(" ", "  ", 1).upper() for query in queries]
    rows = [
        {"query": q, "pos": [d], "neg": [documents[i - 1]], "typed": t if i else " "}
        for i, (q, d, t) in enumerate(zip(queries, documents, typed, strict=True))
    ]
    collection = read(tmp_path, rows, student_query="typed")
    assert collection.record.read_as.startswith("FlagEmbedding")
    assert texts_of(collection) == dict(zip(queries[1:], typed[1:], strict=True))
    assert collection.record.read["no query for the student"] == 2, "its positive and its negative"


def test_a_conversation_is_in_one_split(tmp_path: Path) -> None:
    """Without a group, all turns after the same first one are together."""
    collection = read(tmp_path, conversations(20), student_query="conversation")
    sides = [
        {text.split("\n| ")[-1] for text in collection.student_queries(collection.pairs(s).queries)}
        for s in ("train", "validation", "test")
    ]
    assert all(sides)
    assert not (sides[0] & sides[1]) | (sides[0] & sides[2]) | (sides[1] & sides[2])
    assert collection.record.leaks_left == 0


def test_one_query_may_be_asked_in_two_conversations(tmp_path: Path) -> None:
    rows = conversations(12)
    for row in (rows[1], rows[45]):
        row["rewrite"] = "where is the old house"
    collection = read(tmp_path, rows, student_query="conversation")
    numbers = np.flatnonzero(np.array(collection.queries["text"]) == "where is the old house")
    assert len(numbers) == 2
    first, second = collection.student_queries(numbers)
    assert first != second
    assert len(set(collection.query_ids(numbers))) == 2
    assert collection.first_of_text[numbers].tolist() == [numbers[0]] * 2
    assert len(np.unique(collection.first_of_text)) == len(collection.queries) - 1
    assert query_id("a", None) == text_id("a") != query_id("a", "b")


def test_a_pair_is_repeated_if_the_student_reads_the_same_too(tmp_path: Path) -> None:
    queries, documents = sentences(40), sentences(40, 400)
    rows = [
        {"query": q, "document": d, "typed": f"{typed} {q}"}
        for q, d in zip(queries, documents, strict=True)
        for typed in ("please", "Please!", "now")
    ]
    pairs = read(tmp_path, rows, student_query="typed").pairs("train")
    assert len(pairs) > 60
    given = SelectionInputs(pairs, np.zeros(len(pairs), dtype=np.float32), None, "key")
    rules = parse_rules(["duplicate"])
    kept = apply_rules(rule_columns(given, rules, 0), rules).kept
    assert len(kept) == 2 * len(pairs) / 3


def test_leaks_are_looked_for_in_what_the_student_reads() -> None:
    long = "the long text of a conversation on a subject that nobody else has"
    own = [long, "other", long + " indeed", "strange", "plain"]
    keys = np.array([(0, 0, 0, 9), (1, 1, 1, 9), (2, 2, 2, 8), (3, 3, 3, 7), (4, 4, 4, 4)])
    split = np.array([TEST, TRAIN, TRAIN, TRAIN, TRAIN])
    leaks = find_leaks(
        keys,
        split,
        lambda places: [f"d{i}" for i in places],
        lambda places: [own[i] for i in places],
    )
    assert [LEAKS[leak] if leak >= 0 else None for leak in leaks] == [
        None, "same query of the student", "near-duplicate query of the student", None, None,
    ]  # fmt: skip
    assert leaks_left(keys, split) == 1


WRONG: dict[str, tuple[str, Rows, dict[str, Any]]] = {
    "no turns": (
        "t.jsonl.*line 1.*needs the turns.*read as pairs.*--student_query none",
        [{"query": q, "document": d} for q, d in zip(sentences(9), sentences(9, 99), strict=True)],
        {"student_query": "conversation"},
    ),
    "no column": (
        "--student_query typed: t has no such column; the columns are",
        conversations(4),
        {"student_query": "typed"},
    ),
    "same texts": (
        "--student_query rewrite: .*what the teacher reads in all 16 pairs of t;",
        conversations(4),
        {"student_query": "rewrite"},
    ),
    "no list": (
        r"'history' holds a str \('who'\)",
        [{**row, "history": "who"} for row in conversations(4)],
        {"student_query": "conversation"},
    ),
    "no texts": (
        "'history' holds a int.*are texts",
        [{**row, "history": [7]} for row in conversations(4)],
        {"student_query": "conversation"},
    ),
    "no document": (
        "without a document.*--document_column rewrite",
        [{k: v for k, v in row.items() if k != "passage"} for row in conversations(4)],
        {"student_query": "conversation"},
    ),
    "no context": (
        "no 'Context', which --student_query conversation needs",
        [{k: v for k, v in row.items() if k != "Context"} for row in as_qrecc(conversations(4))],
        {"student_query": "conversation"},
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read_is_one_message(tmp_path: Path, name: str) -> None:
    message, rows, keys = WRONG[name]
    with pytest.raises(InputError, match=message):
        read(tmp_path, rows, "t.jsonl", **keys)
    assert not (tmp_path / "run").exists()


# --- training and evaluation


def test_the_tasks_hold_both_texts(tmp_path: Path) -> None:
    rows = conversations(12)
    collection = read(tmp_path, rows, student_query="conversation")
    expected = {row["rewrite"]: conversation_query(row["history"], row["query"]) for row in rows}
    for task in (held_out_task(collection), validation_task(collection, 0)):
        assert task.student_queries is not None
        expected = {
            row["rewrite"]: conversation_query(row["history"], row["query"]) for row in rows
        }
        assert list(task.student_queries) == list(task.queries)
        for name, text in task.queries.items():
            assert task.student_queries[name] == expected[text]


def test_a_batch_holds_the_students_texts_and_the_teachers_embeddings(
    tmp_path: Path, teacher_dir: Path
) -> None:
    parts = tiny(teacher_dir, pairs=8, pool=8)
    table = parts.lookup.collection
    assert table is not None
    own = [f"own {i}" if i % 2 else None for i in range(8)]
    queries = table.queries.remove_columns("student_text").add_column("student_text", own)
    collection = Collection(queries, table.documents, table.judgements, table.record)
    batch = examples(
        [parts.numbers[i] for i in range(4)], Lookup(collection, parts.lookup.embeddings)
    )
    assert batch.queries == [table.queries[0]["text"], "own 1", table.queries[2]["text"], "own 3"]
    plain = examples([parts.numbers[i] for i in range(4)], parts.lookup)
    assert (batch.sides.query_embedding == plain.sides.query_embedding).all()  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def conversational(tmp_path_factory: pytest.TempPathFactory, teacher_dir: Path) -> tuple[Path, str]:
    """A whole run of a student that reads conversations, and what it printed."""
    folder = tmp_path_factory.mktemp("conversational")
    train = written(folder / "train.json", as_qrecc(conversations(50)))
    test = written(folder / "later.jsonl", conversations(12, offset=900))
    plain = folder / "plain"
    (plain / "qrels").mkdir(parents=True)
    for name in ("corpus", "queries"):
        texts = [{"_id": f"{name[0]}{i}", "text": text} for i, text in enumerate(sentences(9))]
        written(plain / f"{name}.jsonl", texts)
    (plain / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\tc{(i + 1) % 9}\t1\n" for i in range(9))
    )
    recipe = folder / "recipe.yaml"
    keys = {
        **TINY, "dataset": "qrecc", "group_column": None, "dataset_path": str(train),
        "teacher": str(teacher_dir), "student_query": "conversation", "test_path": str(test),
        "eval_tasks": [str(plain)], "selection": ["invalid"], "num_train_epochs": 1,
        "student_layers": "search=2",
    }  # fmt: skip
    recipe.write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in keys.items()))
    with pytest.MonkeyPatch.context() as patch:
        for module, name, at in ((initialise, "encode", 1), (efficiency, "_latency", 1)):
            patch.setattr(module, name, _listening(getattr(module, name), HEARD[name], at))
        return folder / "run", run_tiny(recipe, folder / "run").out


HEARD: dict[str, list[str]] = {"encode": [], "_latency": []}
"""What the student (and for its latency the teacher) was asked in the run `conversational`."""


def _listening(function: Any, heard: list[str], at: int) -> Any:
    def listen(*arguments: Any, **named: Any) -> Any:
        asked = arguments[at]
        heard.extend([asked] if isinstance(asked, str) else asked)
        return function(*arguments, **named)

    return listen


def test_layers_are_searched_and_time_is_taken_with_what_the_student_reads(
    conversational: tuple[Path, str],
) -> None:
    collection = hf_distill.finished(conversational[0]).collection
    train, test = (collection.pairs(split).queries for split in ("train", "test"))
    heard = set(HEARD["encode"])
    assert set(collection.student_queries(train)) <= heard
    assert any("\n| " in text for text in heard)
    assert not heard & (set(collection.query_texts(train)) - set(collection.student_queries(train)))
    timed = set(HEARD["_latency"])
    assert timed <= {*collection.query_texts(test), *collection.student_queries(test)}
    assert any("\n| " in text for text in timed)


def test_the_vocabulary_is_that_of_what_the_student_reads(tmp_path: Path) -> None:
    collection = read(tmp_path, conversations(12), student_query="conversation")
    numbers = np.unique(collection.pairs("train").queries)
    queries, _ = next(initialise._training_texts(collection, Prompts(query="q: ")))
    assert queries == [f"q: {text}" for text in collection.student_queries(numbers)]


def test_the_student_is_measured_on_its_own_form_and_on_the_others(
    conversational: tuple[Path, str],
) -> None:
    folder, printed = conversational
    evaluation = read_json(folder / "evaluation.json", Evaluation)
    collection = hf_distill.finished(folder).collection
    task = held_out_task(collection)
    model = SentenceTransformer(str(folder / "student_model_sd"), device="cpu")
    assert task.student_queries is not None
    documents = model.encode_document(list(task.documents.values()))
    forms = {
        STUDENT: list(task.student_queries.values()),
        ON_UTTERANCE: [utterance_of(text) for text in task.student_queries.values()],
        ON_QUERY: list(task.queries.values()),
    }
    for name, texts in forms.items():
        scores = model.encode_query(texts) @ documents.T
        order = np.argsort(-scores, axis=1, kind="stable")[:, :100]
        values = task.ndcg((np.take_along_axis(scores, order, axis=1), order))
        measured = evaluation.retrieval.systems[name]["nDCG@10"].value
        assert measured == pytest.approx(values.mean(), abs=1e-4)
        assert (folder / "retrieval" / f"{name.replace(' ', '-')}.run").is_file()
    assert {ON_UTTERANCE, ON_QUERY} < set(evaluation.significance.comparisons)
    later, plain = evaluation.tasks["later"], evaluation.tasks["plain"]
    assert {ON_UTTERANCE, ON_QUERY} < set(later.retrieval.systems)
    assert ON_QUERY not in plain.retrieval.systems
    assert any("reads what the teacher reads" in note for note in plain.retrieval.notes)
    assert "student, bare utterance" in printed
    assert "Teacher and BM25 read the rewritten question; the student reads" in printed


def test_report_cards_and_data_say_what_the_student_reads(conversational: tuple[Path, str]) -> None:
    folder, _ = conversational
    report, card = (
        (folder / name).read_text() for name in ("report.html", "student_model_sd/README.md")
    )
    for page in (report, card):
        assert "the student reads the utterance and the turns before it" in page
        assert "student, teacher" in page
    assert "the student read</dt>" in report
    snippet = card[card.index("def conversation_query") :].split("\n\n\n")[0]
    space: dict[str, Any] = {}
    exec(snippet, space)  # what the card tells people to run
    turns = ["What  is it?", "Why\nso?"]
    assert space["conversation_query"](turns, "Who?") == conversation_query(turns, "Who?")
    data = load_dataset(
        str(folder / "dataset"), "selected", split="test", cache_dir=str(folder.parent / "loaded")
    )
    rows = {row["rewrite"]: row for row in conversations(50)}
    for row in data:
        turn = rows[row["query"]]
        assert row["student_query"] == conversation_query(turn["history"], turn["query"])
    assert "`student_query`" in (folder / "dataset" / "README.md").read_text()


def test_lengths_are_those_of_what_each_reads(conversational: tuple[Path, str]) -> None:
    lengths = hf_distill.finished(conversational[0]).lengths
    (teacher,) = lengths.teachers
    assert teacher.of["queries"].longest == 11, "nine words between two special tokens"
    assert lengths.student.of["queries"].longest > teacher.of["queries"].longest
    assert lengths.student.of["documents"].mean == teacher.of["documents"].mean


def test_an_export_keeps_the_students_texts_or_says_so(
    conversational: tuple[Path, str], tmp_path: Path
) -> None:
    folder, _ = conversational
    flag = call(
        ["dataset", folder, "--format", "flagembedding", "--output", tmp_path / "flag"], main
    )
    assert flag.code == 0, flag.err
    assert "student reads" not in flag.out
    path = tmp_path / "flag" / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    again = read(tmp_path / "again", rows, student_query="student_query")
    collection = hf_distill.finished(folder).collection
    train = collection.pairs("train").queries
    assert set(texts_of(again).values()) == set(collection.student_queries(train))
    beir = call(["dataset", folder, "--format", "beir", "--output", tmp_path / "beir"], main)
    assert "texts that the student reads in place of queries are left out" in beir.out


def test_lines_that_are_searched_for_are_turns(
    conversational: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        KeptIndex, "ask", lambda self, question, depth=1: asked.append(question) or []
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("what is it\n who else\n\nwhere\n"))
    assert call(["search", conversational[0]], main).code == 0
    assert asked[1:] == ["what is it", "who else\n| what is it", "where"]


def test_compare_gives_each_model_its_own_texts(
    conversational: tuple[Path, str], teacher_dir: Path, tmp_path: Path
) -> None:
    folder, file = conversational[0], tmp_path / "compared.json"
    said = call(["compare", folder, teacher_dir, "--task", folder, "--json", file], main)
    assert said.code == 0, said.err
    compared = json.loads(file.read_text())["systems"]
    systems = read_json(folder / "evaluation.json", Evaluation).retrieval.systems
    for name, system in ((folder.name, STUDENT), (teacher_dir.name, "teacher")):
        expected = systems[system]["nDCG@10"].value
        assert compared[name]["nDCG@10"]["value"] == pytest.approx(expected, abs=1e-3)
    assert "other models, and BM25, read the queries" in said.out


def test_a_row_of_a_test_set_without_a_text_for_the_student_is_left_out() -> None:
    rows = [
        {"query": f"q{i}", "document": f"d{i}", "student_query": own}
        for i, own in enumerate(["a", "a", " "])
    ]
    task = task_of(SourcePairs(Source("test"), rows), "test")
    assert task.student_queries == {query_id(f"q{i}", "a"): "a" for i in range(2)}
    assert list(task.queries.values()) == ["q0", "q1"]
    assert "1 rows without a query or a document are left out" in task.notes


def test_the_names_of_systems_in_a_sentence() -> None:
    names = [in_a_sentence(name) for name in (ON_UTTERANCE, ON_QUERY)]
    assert names == ["the student on the bare utterance", "the student on the teacher's text"]


def test_a_demo_asks_with_the_turns_of_the_box() -> None:
    box = "what is it\n\n who  else \n"
    assert asked(box, conversation=True) == conversation_query(["what is it"], "who else")
    assert asked(box, conversation=False) == "who else"
    assert asked(" one line ", conversation=True) == "one line"
