"""The scripts in benchmarks/ run, and end with the line of JSON that they promise. What they
measure is not judged here.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import queue
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conversations as benchmark_of_conversations
import datasets
import forked
import frontier
import gpu
import list_scoring
import multilingual
import numpy as np
import pytest
import quality
import quality_cost
import rankers
import scale
import scoring
import selection
import serving
import torch
import training
from conftest import REAL_DATA, ROOT, sentences
from quality_arms import ARMS, further_arm, parse_try
from quality_cost import Cost
from quality_domains import Setting, load_domain, prepare_domain, recipe_of
from quality_lists import PeerMiner
from sentence_transformers import CrossEncoder

from hf_distill.compute.device import device_type
from hf_distill.compute.models import QUICKSTART_PACKAGE, packaged_quickstart_teacher
from hf_distill.data.load import load_collection
from hf_distill.errors import InputError
from hf_distill.recipe.config import DistillationConfig
from hf_distill.recipe.read import read_recipe
from hf_distill.run.folder import RunFolder
from hf_distill.study.arms import matched_recipe
from hf_distill.training.rows import examples, training_rows


def last_line(script: str, *options: object) -> dict[str, Any]:
    """The JSON in the last line of a benchmark's output, in a process as a user starts it."""
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}.py", *map(str, options)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def forked_line(log: Path, script: str, *options: object) -> dict[str, Any]:
    """The same of a benchmark that forks: in a process that has computed nothing, but has imported
    everything.
    """
    said = forked.ended(forked.start(log, forked.script, script, *options), log)
    figures: dict[str, Any] = json.loads(said.splitlines()[-1])
    return figures


Main = Callable[..., dict[str, Any]]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Main:
    """Runs a benchmark in this process, which has imported everything already, without changing
    this process for other tests. Returns the JSON in the last line.
    """
    monkeypatch.setattr(datasets.utils.logging, "disable_progress_bar", lambda: None)

    def run(module: Any, *options: object) -> dict[str, Any]:
        for name in {"be_quiet", "keep_freed_memory", "use_all_cores"} & set(vars(module)):
            monkeypatch.setattr(module, name, lambda *_: None)
        monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, options)])
        module.main()
        figures: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return figures

    return run


@pytest.fixture(autouse=True)
def packaged_teacher() -> None:
    if packaged_quickstart_teacher() is None:
        pytest.skip(f"{QUICKSTART_PACKAGE} is not installed")


@pytest.fixture
def conversations() -> Path:
    path = REAL_DATA / "qrecc_quac_train.json"
    if not path.is_file():
        pytest.skip(f"{path.name}, conversations of QReCC, is not here")
    return path


def test_scoring(main: Main) -> None:
    figures = main(scoring, "--pairs", 40, "--rounds", 1)
    assert {"x_default", "x_best", "peak_share", "mean_diff", "max_diff"} <= set(figures)
    assert figures["pairs"] == 40
    assert 0 < figures["peak_share"] < 1
    assert figures["mean_diff"] <= 2e-3, "the scores stay close to float32"
    assert figures["max_diff"] <= 1e-2


def test_scale(main: Main) -> None:
    forked.server()
    figures = main(scale, "--pairs", 300)
    assert figures["pairs"] == 300
    assert list(figures["stages"]) == [
        "teacher", "collection", "read", "leak check", "scores", "keys", "table", "soft labels",
        "ranking", "selection", "rows",
    ]  # fmt: skip
    for stage in figures["stages"].values():
        assert set(stage) == {"seconds", "peak_mb"}
        assert stage["peak_mb"] > 0


def test_growth_is_what_each_further_pair_takes() -> None:
    of = scale.Figures
    every = [{"read": of(1.0, 0.5, 10.0)}, {"read": of(9.0, 2.5, 12.0)}]
    line = scale.growth([1000, 3000], every).splitlines()[1]
    assert line.split() == ["read", "1000.0", f"{2 * 2**20 / 2000:.1f}"]


def test_list_scoring(
    cross_encoder_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    main: Main,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "data"
    (data / "qrels").mkdir(parents=True)
    texts = sentences(20)
    for name in ("queries", "corpus"):
        rows = [json.dumps({"_id": f"{name}{i}", "text": text}) for i, text in enumerate(texts)]
        (data / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    judged = "\n".join(f"queries{i}\tcorpus{i}\t1" for i in range(20))
    (data / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}\n")
    monkeypatch.setattr(list_scoring, "BATCHES", (4, 8))
    figures = main(list_scoring, cross_encoder_dir, "--data", data, "--queries", 8, "--depth", 5)
    assert figures["pairs"] == 40
    assert figures["than_best"] > 0
    list_scoring.main([str(cross_encoder_dir), "--data", str(data), "--queries", "4", "--profile"])
    assert re.search(r"the model: .* of which\n    \d+\.\d% aten::", capsys.readouterr().out)


def test_search() -> None:
    pytest.importorskip("faiss", reason="faiss-cpu, the extra `benchmarks`, is not installed")
    figures = last_line(
        "search", "--documents", 9000, "--queries", 30, "--rounds", 1, "--depth", 10
    )
    assert {"x_faiss", "peak_share", "memory_mb", "memory_mb_faiss"} <= set(figures)
    assert figures["agreement"] == 1
    assert figures["score_diff"] < 1e-6
    assert figures["recall"] == {"faiss flat": 1}


def test_an_approximate_search_finds_a_part(tmp_path: Path) -> None:
    module = pytest.importorskip("search", reason="faiss-cpu is not installed")
    for name, rows in (("documents", 2000), ("queries", 20)):
        module.write_vectors(tmp_path / f"{name}.npy", (rows, 16), "float32", rows, intrinsic=4)
    queries, documents = (np.load(tmp_path / f"{name}.npy") for name in ("queries", "documents"))
    answers = {name: side(queries, documents, 10)() for name, side in module.SIDES.items()}
    exact = answers[module.OURS]
    assert module.recall(answers[module.THEIRS], exact) == 1
    assert 0.2 < module.recall(answers[module.LISTS], exact) < 1
    assert module.recall(answers[module.GRAPH], exact) > 0.8


@pytest.mark.filterwarnings("ignore")
def test_training(
    main: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def in_this_process(turn: training.Turn) -> training.Figures:
        result: queue.Queue[training.Figures] = queue.Queue()
        training.measure(turn, result)
        return result.get()

    first = iter([training.in_own_process])

    def take(turn: training.Turn) -> training.Figures:
        """Only the first turn in a process of its own, because each loads the models anew."""
        return next(first, in_this_process)(turn)

    monkeypatch.setattr(training, "in_own_process", take)
    server = forked.server()
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: server)
    options = ("--steps", 4, "--turns", 1, "--batch", 4, "--pairs", 40, "--grad_cache")
    figures = main(training, *options)
    assert {"x_fp32", "x_bf16", "examples_per_second"} <= set(figures)
    assert 0 < figures["peak_share"] < 1
    monkeypatch.setattr(sys, "argv", [training.__file__, *map(str, options), "--profile"])
    training.main()
    said = re.search(r"of which\n(?: +(\d+\.\d)% \S+.*\n){15}", capsys.readouterr().out)
    assert said
    assert sum(float(part) for part in re.findall(r"(\S+)% ", said[0])) > 50


def test_selection(main: Main) -> None:
    forked.server()
    figures = main(selection, "--pairs", 300, 600)
    assert set(figures) == {"300", "600"}
    assert figures["600"]["pairs"] == 600
    assert 0 < figures["600"]["kept"] < 600
    assert figures["300"]["mb_before"] <= figures["300"]["mb_peak"]


@pytest.mark.filterwarnings("ignore")
def test_serving(main: Main) -> None:
    options = ("--queries", 2, "--documents", 4, "--rounds", 1, "--most_seconds", 1)
    figures = main(serving, *options)["variants"]
    student = ("PyTorch float32", "PyTorch bfloat16", "ONNX float32", "ONNX int8")
    assert {"teacher, PyTorch float32", *(f"student, {name}" for name in student)} <= set(figures)
    for variant in figures.values():
        assert 0 < variant["p50_ms"] <= variant["p95_ms"]
        assert variant["documents_per_second"] > 0
    megabytes = {name: variant["megabytes"] for name, variant in figures.items()}
    assert megabytes["student, ONNX int8"] < megabytes["student, ONNX float32"] / 3


def test_quality(
    conversations: Path, tmp_path: Path, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    def costs(arm: Any, make: Any, recipe: Any, key: str, turns: int) -> Cost:
        steps = [0.5] * len(recipe.stages)
        return Cost(key, 0.01, 0.001, 0, tuple(0.0 for _ in steps), tuple(steps))

    monkeypatch.setattr(quality, "time_arm", costs)
    peer, texts = "EmbedDistillLoss, batch 16", "MSELoss on texts"
    options = (
        "--domain", f"talk={conversations}", "--max_pairs", 120, "--minutes", 0.1, "--turns", 1,
        "--student", "texts_per_pair=2", "--arms", peer, texts, "recommended",
        "--try", "two: stages=contrastive_weight=1,texts_per_pair=0;contrastive_weight=2,"
        "texts_per_pair=0", "--out", tmp_path,
    )  # fmt: skip
    further = tmp_path / "further.jsonl"
    rows = [
        {"query": f"what is {word}?", "document": f"{word} is a word."} for word in ("blue", "red")
    ]
    further.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    figures = main(quality, *options, "--seeds", 1, "--tasks", further)
    assert set(figures) == {"talk, 0.1 min"}
    rows = figures["talk, 0.1 min"]
    assert set(rows) == {"untrained", peer, texts, "recommended", "two"}
    assert all(0 < row["in_domain ratio"] < 2 for row in rows.values())
    assert all(0 < row["out_of_domain ratio"] < 2 for row in rows.values())
    assert len({row["Pearson"] for row in rows.values()}) == 5, "each is another student"

    def results() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/results/*/trained.json")}

    before = results()
    assert len(before) == 4
    planned = [json.loads(path.read_text(encoding="utf-8"))["planned"] for path in before]
    assert all(4 < seconds <= 6 for seconds in planned), "what is planned fits into six seconds"
    again = main(quality, *options, "--seeds", 2, "--table", "--tasks", further)
    assert again == figures, "the second seed is not there, and is not trained"
    assert results() == before
    monkeypatch.setattr(quality, "FORM", "another")
    with pytest.raises(InputError, match=r"--table: .* holds no training"):
        main(quality, *options, "--seeds", 1, "--table", "--tasks", further)
    assert results() == before, "what another version made is neither used nor made again"


def test_rankers(
    conversations: Path,
    cross_encoder_dir: Path,
    tmp_path: Path,
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lists_cost: dict[str, float] = {}

    def costs(arm: Any, make: Any, recipe: Any, key: str, turns: int) -> Cost:
        lists_cost[arm.name] = quality_cost.time_lists(arm, make(recipe))
        return Cost(key, 0.01, 0.001, 0, (0.0,), (0.5,))

    monkeypatch.setattr(quality, "time_arm", costs)
    for name in ("be_quiet", "keep_freed_memory"):
        monkeypatch.setattr(quality, name, lambda: None)
    ranker = f"cross-encoder:{cross_encoder_dir}"
    names = ["lists, KL", rankers.MINED[1]]
    figures = main(
        rankers, "--ranker", ranker, "--domain", f"talk={conversations}", "--max_pairs", 120,
        "--minutes", 0.02, "--turns", 1, "--seeds", 1, "--student", "texts_per_pair=2",
        "--arms", *names, "--out", tmp_path,
    )  # fmt: skip
    rows = figures["talk, 0.02 min"]
    assert set(rows) == {"untrained", *names}
    assert len({row["Pearson"] for row in rows.values()}) == len(rows), "each is another student"
    assert all(lists_cost[name] > 0 for name in names), "who asks the ranker pays"
    setting = Setting(tmp_path, (("talk", str(conversations)),), max_pairs=120)
    by_name = rankers.list_arms(ranker, tmp_path)
    assert all(arm.name == name for name, arm in by_name.items())
    arms = by_name.values()
    assert len({quality.Job(setting, "talk", arm).kind for arm in arms if arm.loss}) == 3
    asks = {arm.name for arm in arms if recipe_of("talk", setting, arm.keys).lists.ranker}
    others = (*rankers.WITHOUT, *rankers.MINED, *rankers.EMBEDDER)
    assert asks == {*rankers.NAMES} - {*others}


def test_lists_as_a_user_of_sentence_transformers_makes_them(
    conversations: Path, cross_encoder_dir: Path, tmp_path: Path
) -> None:
    exact = ("--teacher_dtype", "float32")
    setting = Setting(tmp_path, (("talk", str(conversations)),), student=exact, max_pairs=120)
    prepare_domain("talk", setting)
    run = load_domain("talk", setting).run
    ranker = f"cross-encoder:{cross_encoder_dir}"
    lists = PeerMiner(ranker, tmp_path).lists(run)
    assert lists.scored == 5 * len(lists.pairs) > 0
    pairs = run.collection.pairs("train").take(run.selection.kept)
    own = pairs.documents[list(lists.pairs)]
    assert not (np.array(lists.negatives) == own[:, None]).any()
    query = run.collection.query_texts(pairs.queries)[lists.pairs[0]]
    texts = run.collection.document_texts(np.array([own[0], *lists.negatives[0]]))
    model = CrossEncoder(str(cross_encoder_dir), activation_fn=torch.nn.Identity())
    said = model.predict([(query, text) for text in texts])
    np.testing.assert_allclose(lists.scores[0], said, atol=1e-4)
    rows = training_rows(run, run.selection, run.untrained())
    arm = rankers.list_arms(ranker, tmp_path)[rankers.MINED[1]]
    assert arm.columns is not None
    columns = arm.columns(examples(list(rows.train), rows.lookup), run)
    assert columns["query"][0] == query
    assert [columns[name][0] for name in ("document", "negative_0", "negative_3")] == [
        texts[0], texts[1], texts[4],
    ]  # fmt: skip
    scores = lists.scores[0]
    assert columns["label"][0] == pytest.approx([0.05 * (scores[0] - s) for s in scores[1:]])


def test_a_step_is_timed(
    conversations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality_cost, "FEW", 1)
    monkeypatch.setattr(quality_cost, "MORE", 3)
    setting = Setting(
        tmp_path, (("talk", str(conversations)),), student=("--texts_per_pair", "2"), max_pairs=120
    )
    prepare_domain("talk", setting)
    for arm in (ARMS["MSELoss on texts"], parse_try("two: stages=texts_per_pair=0")):
        job = quality.Job(setting, "talk", arm, minutes=1)
        cost = job.cost(1)
        assert len(cost.steps) == len(cost.starts) == len(job.recipe.stages)
        assert all(0 < seconds < 60 for seconds in (*cost.steps, cost.text, cost.passage))
        assert job.cost(1) == cost, "it is kept"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--domain", "a"], "--domain a: it must read pydocs, or NAME=PATH"),
        (["--domain", "a/b=HERE"], "--domain a/b=.*: it must read"),
        (["--domain", "a=/nowhere"], "--domain a=/nowhere: there is no such file"),
        (["--domain", "a=HERE", "a=HERE"], "a is the name of two"),
        (["--domain", "a=HERE", "--tasks", "x/one", "y/one"], "one is the name of two"),
        (["--domain", "a=HERE", "--student", "key"], "--student 'key'"),
        (["--domain", "a=HERE", "--train_on", "b"], "--train_on: b"),
        (["--domain", "a=HERE", "--arms", "none"], "--arms: unknown none"),
    ],
)
def test_what_quality_cannot_use_is_one_message(
    tmp_path: Path, main: Main, options: list[str], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        main(quality, *(text.replace("HERE", str(tmp_path)) for text in options))


def test_another_split_of_quality_has_other_held_out_pairs(
    conversations: Path, tmp_path: Path
) -> None:
    held_out = []
    for split in (42, 7):
        setting = Setting(tmp_path, (("talk", str(conversations)),), split=split)
        recipe = recipe_of("talk", setting)
        collection = load_collection(recipe, RunFolder(recipe.run_dir))
        held_out.append({*collection.pairs("test").column("pair_id")})
        assert held_out[-1].isdisjoint(collection.pairs("train").column("pair_id"))
    assert 0 < len(held_out[0] & held_out[1]) < min(map(len, held_out)) / 2


def test_the_papers_arm_of_quality_has_the_papers_objective(tmp_path: Path) -> None:
    ours = recipe_of("pydocs", Setting(tmp_path), ARMS["the paper"].keys)
    paper = read_recipe(["qrecc", "--dataset_path", str(tmp_path / "qrecc.json")])
    names = [name for name in vars(DistillationConfig)["__annotations__"] if "patience" not in name]
    assert "contrastive_weight" in names
    for name in names:
        assert getattr(ours.training, name) == getattr(paper.training, name), name
    assert ours.student.head_dropout == paper.student.head_dropout
    assert ours.selection.selection[-1:] == paper.selection.selection
    assert not ours.further


def test_a_further_arm_of_quality_names_keys_of_the_recipe(tmp_path: Path) -> None:
    arm = parse_try("eight texts: texts_per_pair=8 stages=max_steps=3,kl_weight=1;max_steps=4")
    recipe = recipe_of("pydocs", Setting(tmp_path), arm.keys)
    assert (arm.name, arm.own, arm.loss) == ("eight texts", True, None)
    assert [stage.texts_per_pair for stage in recipe.stages] == [8, 8, 8]
    assert [stage.max_steps for stage in recipe.stages] == [-1, 3, 4]
    with pytest.raises(InputError, match="--try 'eight texts'"):
        parse_try("eight texts")
    peer, kept = "EmbedDistillLoss", "nothing of the recommended objective"
    faster = further_arm(f"{peer}: learning_rate=0.01", ARMS)
    assert (faster.name, faster.own) == (f"{peer}, learning_rate=0.01", False)
    assert faster.loss is ARMS[peer].loss
    recipe = recipe_of("pydocs", Setting(tmp_path), faster.keys)
    assert (recipe.training.learning_rate, recipe.training.alignment_weight) == (0.01, 0), kept
    assert further_arm("recommended: texts_per_pair=8", ARMS).own


def test_epochs_are_a_limit_for_every_arm(tmp_path: Path) -> None:
    peer, eight = "GISTEmbedLoss", "DistillKLDivLoss, 8 epochs"
    flags = ["--domain", "pydocs", "--arms", peer, eight, "--try", "two: texts_per_pair=2"]
    line = quality.options(None, ARMS).parse_args([*flags, "--epochs", "20"])
    arms = quality._wanted(line, ARMS)
    assert [arm.epochs for arm in arms] == [20, 8, 20]
    cost = Cost("key", 0.0, 0.0, 0, (0.0,), (0.01,))
    jobs = [quality.Job(Setting(tmp_path), "pydocs", arm, minutes=10) for arm in arms]
    assert [job.examples(cost, 100) for job in jobs[:2]] == [2000, 800]
    line.epochs = None
    assert [arm.epochs for arm in quality._wanted(line, ARMS)] == [None, 8, None]


def test_examples_fill_the_seconds_of_a_budget(tmp_path: Path) -> None:
    """By hand: a step of 16 pairs takes 1 s and embeds 16 x 16 passages of 1/256 s, and each of the
    64 examples of the second stage that follow 64 of the first takes 1/64 s.
    """
    stages = "num_train_epochs=3, texts_per_pair=0, per_device_train_batch_size=64"
    recipe = recipe_of("pydocs", Setting(tmp_path), ("--stages", stages))
    cost = Cost("key", text=0.5, passage=1 / 256, texts=20, starts=(2.0, 1.0), steps=(1.0, 1.0))
    four = matched_recipe(recipe, 64, 0)
    assert [stage.max_steps for stage in four.stages] == [4, 1]
    seconds = 20 * 0.5 + 4 * 256 / 256 + (2 + 4) + (1 + 1)
    assert cost.seconds(four, 1000) == pytest.approx(seconds)
    assert cost.examples(recipe, 1000, seconds) == 64
    assert cost.examples(recipe, 1000, seconds - 0.1) == 48
    assert cost.examples(recipe, 1000, 0.0) == 16, "at least a batch"
    few = quality.Job(Setting(tmp_path), "pydocs", ARMS["MultipleNegativesRankingLoss, 8 epochs"])
    one = Cost("key", text=0.0, passage=0.0, texts=0, starts=(0.0,), steps=(1.0,))
    assert dataclasses.replace(few, minutes=1).examples(one, 1000) == 60 * 64
    assert dataclasses.replace(few, minutes=1).examples(one, 10) == 80, "8 epochs of 10 pairs"
    longer = recipe_of("pydocs", Setting(tmp_path), ("--stages", stages.replace("=3", "=6")))
    assert [s.max_steps for s in matched_recipe(longer, 640, 0).stages] == [40, 20], "6 of 3 epochs"


def test_conversations(
    conversations: Path, tmp_path: Path, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = json.loads(conversations.read_text(encoding="utf-8"))
    first = {turn["Conversation_no"]: None for turn in turns}
    for name, some in (("train", [*first][:12]), ("test", [*first][12:16])):
        part = [turn for turn in turns if turn["Conversation_no"] in some]
        (tmp_path / f"{name}.json").write_text(json.dumps(part), encoding="utf-8")
    short = {"max_steps": 1, "texts_per_pair": 0, "until": "evaluate", "test_fraction": 0.3}
    monkeypatch.setattr(
        benchmark_of_conversations, "SHORT", benchmark_of_conversations.SHORT | short
    )
    paths = tmp_path / "runs", tmp_path / "train.json", tmp_path / "test.json"
    figures = main(benchmark_of_conversations, *paths)
    assert set(figures) == {"test"}
    assert len(figures["test"]) == 5
    assert all(0 < ndcg <= 1 for ndcg in figures["test"].values())
    forms = ("", ", on the rewrite", ", on the bare utterance")
    assert len({figures["test"][f"student of conversations{form}"] for form in forms}) == 3


def test_multilingual(tmp_path: Path, main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, rows: list[dict[str, str]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    for language, code in multilingual.LANGUAGES.items():
        shouted = [
            {"english": f"sentence {i} of {code}", "translation": f"SENTENCE {i} OF {code}"}
            for i in range(20)
        ]
        write(tmp_path / "tatoeba" / f"eng-{code}.jsonl", shouted)
        for name in ("en", language):
            rows = [
                {"sentence1": f"{name} says {i}", "sentence2": f"{name} asks {i}"} for i in range(9)
            ]
            write(tmp_path / "sts" / f"{name}.train.jsonl", rows)
            write(tmp_path / "xquad" / name / "corpus.jsonl", [
                {"_id": f"p{i}", "text": f"paragraph number {i}"} for i in range(9)
            ])  # fmt: skip
            write(tmp_path / "xquad" / name / "queries.jsonl", [
                {"_id": f"q{i}", "text": f"number {i}?"} for i in range(9)
            ])  # fmt: skip
            qrels = "".join(f"q{i}\tp{i}\t1\n" for i in range(9))
            (tmp_path / "xquad" / name / "qrels").mkdir(exist_ok=True)
            (tmp_path / "xquad" / name / "qrels" / "test.tsv").write_text(
                f"query-id\tcorpus-id\tscore\n{qrels}"
            )
    monkeypatch.setattr(multilingual, "SHORT", multilingual.SHORT | {"texts_per_pair": 0})
    figures = main(
        multilingual, tmp_path / "out", "--teacher", "sentence-transformers/all-MiniLM-L6-v2",
        "--parallel", tmp_path / "tatoeba", "--sts", tmp_path / "sts", "--test", tmp_path / "xquad",
        "--max_steps", 2, "--keys", "until=evaluate", "query_prompt=query: ",
    )  # fmt: skip
    assert set(figures) == {"parameters", *multilingual.LANGUAGES}
    assert figures["parameters"] < 12e6, "the vocabulary was cut"
    assert all(0 < figures[language]["teacher"] <= 1 for language in multilingual.LANGUAGES)


def test_frontier(conversations: Path, tmp_path: Path) -> None:
    options = (
        "--domain", f"talk={conversations}", "--max_pairs", 300, "--examples", 64,
        "--out", tmp_path, "--sizes", "2 layers", "static",
    )  # fmt: skip
    figures = last_line("frontier", *options)
    assert set(figures) == {"static", "2 layers"}
    assert figures["static"]["query_ms"] < figures["2 layers"]["query_ms"]
    [folder] = tmp_path.glob("talk-*/frontier/2-layers")
    [config] = folder.glob("*/config.json")
    assert json.loads(config.read_text(encoding="utf-8"))["num_hidden_layers"] == 2
    assert "binary, rescored by int8" in (tmp_path / "frontier.md").read_text(encoding="utf-8")
    trained = (folder / "training.json").stat().st_mtime_ns
    path = str(conversations.resolve())
    setting = Setting(tmp_path, (("talk", path),), max_pairs=300)
    frontier.train_size("2 layers", "talk", setting, 64)
    assert (folder / "training.json").stat().st_mtime_ns == trained, "it is not trained again"


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_runs_end_as_the_uninterrupted_one(processes: int, tmp_path: Path) -> None:
    options = ("--runs", 1, "--seed", 4, "--processes", processes)
    figures = forked_line(tmp_path / "log", "kills", *options)
    assert figures["same"] == figures["runs"] == 1
    assert figures["kills"], "how many depends on the machine's speed"


def test_no_damaged_file_is_used_without_a_word() -> None:
    figures = last_line("damage", "--runs", 1, "--seed", 2, "--only", "candidates")
    assert (figures["tracebacks"], figures["silent"]) == (0, 0)
    assert figures["right"] == figures["checks"] >= 5


def test_two_runs_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    figures = forked_line(tmp_path / "log", "two_at_once", "--runs", 1, "--seed", 3)
    assert figures == {"runs": 1, "right": 1, "tracebacks": 0}


def test_the_benchmark_of_a_gpu_goes_through_its_stages(capsys: pytest.CaptureFixture[str]) -> None:
    """On the CPU, on next to nothing; and without a GPU it measures nothing."""
    few = gpu.Sizes(
        texts=60, compared=20, queries=20, documents=300, pairs=30, batch=4, steps=5,
        shape=(2, 32, 2, 64),
    )  # fmt: skip
    figures = gpu.measure("cpu", few)
    assert figures["search"]["equal"]
    assert figures["ranking"]["equal_ranks"] == 1.0
    assert figures["scoring"]["fp32"]["max_diff"] < 1e-6
    assert figures["training"]["fp32"]["max_loss_diff"] < 1e-2
    if device_type() == "cpu":
        capsys.readouterr()
        assert gpu.main([]) == 2
        assert "there is no GPU here" in capsys.readouterr().err
