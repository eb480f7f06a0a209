"""Quality beside the losses of sentence-transformers: `python benchmarks/quality.py --qrecc FILE
[FILE ...] [--arms ...] [--seeds N]`.

The same student, from the same start, is trained on the same pairs for the same number of examples:
with each loss of sentence-transformers that a distillation could use, through its own
SentenceTransformerTrainer; with the paper's objective; and with this project's recommended recipe
and any other (`--try`). Each is measured at home, on held-out pairs of the domain it was trained
on, and abroad, on those of the other one: the Python documentation installed here, and the
conversations of QReCC files.

Every training is a job of its own whose result is kept in `--out`; a second call goes on, and more
arms or seeds cost only themselves. Writes quality.json, quality.md and quality.svg there, and ends
with one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import logging
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from datasets import Dataset
from hf_distill.study.selection_study import matched_recipe
from quality_table import Results, compile_results, markdown, plot
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer import losses
from torch import nn

from hf_distill.compute.device import (
    cpu_cores,
    keep_freed_memory,
)
from hf_distill.compute.encode import encode
from hf_distill.compute.search import search
from hf_distill.data.collection import PairData
from hf_distill.data.load import load_pair_data
from hf_distill.errors import InputError
from hf_distill.evaluation.retrieval import (
    DEPTH,
    bm25_run,
    make_run,
    per_query,
)
from hf_distill.evaluation.tasks import (
    RetrievalTask,
    held_out_task,
)
from hf_distill.recipe.arguments import (
    Recipe,
    read_recipe,
)
from hf_distill.run.folder import (
    RunFolder,
    fingerprint,
    read_json_if_current,
    write_json,
)
from hf_distill.scoring.ranking import with_signals
from hf_distill.scoring.scores import (
    ScoredPairs,
    score_pairs,
)
from hf_distill.selection.rules import parse_rules
from hf_distill.selection.select import select_pairs
from hf_distill.student.build import (
    Blueprint,
    build_student,
    draw_blueprint,
)
from hf_distill.teachers.bi_encoder import BiEncoderTeacher
from hf_distill.teachers.load import load_teacher
from hf_distill.training.train import (
    student_rows,
    train_student,
    use_plain_attention,
)

FORM = 1
"""Changes when what is measured does: earlier results are then made again."""
DOMAINS = ("pydocs", "conversations")
SPLIT = 42
RECIPES = Path(__file__).parent.parent / "hf_distill" / "recipes"
BASE_RULES = "invalid echo duplicate"
RECOMMENDED, UNTRAINED = "recommended", "untrained"
TOP = 10


@dataclass(frozen=True)
class Arm:
    """A way to train the student: a loss of sentence-transformers (`loss` with its `columns`), or
    an objective of this project.

    Attributes:
        name: How the table calls it.
        keys: The recipe's keys that differ from the recommended ones.
        loss: Of sentence-transformers, made from the student and the teacher; None: this project's
            trainer.
        columns: What that loss reads, made from training rows with the teacher's embeddings and one
            mined negative.
        own: Whether it is this project's, to be compared with the best peer.
    """

    name: str
    keys: tuple[str, ...] = ()
    loss: Any = None
    columns: Any = None
    own: bool = False


def _pair(rows: Dataset, _: torch.Tensor) -> dict[str, Any]:
    return {"query": rows["query"], "document": rows["document"]}


def _scored_pair(rows: Dataset, components: torch.Tensor) -> dict[str, Any]:
    return {**_pair(rows, components), "label": rows["teacher_score"]}


def _embedded_pair(rows: Dataset, components: torch.Tensor) -> dict[str, Any]:
    """The teacher's embeddings in the coordinates of the student's head: the best case of a loss
    that would else learn a projection.
    """
    parts = [
        torch.as_tensor(np.array(rows[f"teacher_{kind}_embedding"], dtype=np.float32))
        for kind in ("query", "document")
    ]
    return {**_pair(rows, components), "label": (torch.stack(parts, 1) @ components.T).tolist()}


def _triple(rows: Dataset, components: torch.Tensor) -> dict[str, Any]:
    return {**_pair(rows, components), "negative": [row[0] for row in rows["negatives"]]}


def _scored_triple(rows: Dataset, components: torch.Tensor) -> dict[str, Any]:
    scores = zip(rows["teacher_score"], rows["negative_scores"], strict=True)
    return {
        **_triple(rows, components),
        "label": [[float(own), float(other[0])] for own, other in scores],
    }


def _margin_triple(rows: Dataset, components: torch.Tensor) -> dict[str, Any]:
    made = _scored_triple(rows, components)
    return {**made, "label": [own - other for own, other in made["label"]]}


def _ranking(student: SentenceTransformer, _: SentenceTransformer) -> nn.Module:
    return losses.MultipleNegativesRankingLoss(student)


def _guided(student: SentenceTransformer, teacher: SentenceTransformer) -> nn.Module:
    return losses.GISTEmbedLoss(student, guide=teacher)


def _cosine(student: SentenceTransformer, _: SentenceTransformer) -> nn.Module:
    return losses.CosineSimilarityLoss(student)


def _embedding(student: SentenceTransformer, _: SentenceTransformer) -> nn.Module:
    return losses.EmbedDistillLoss(student)


def _divergence(student: SentenceTransformer, _: SentenceTransformer) -> nn.Module:
    return losses.DistillKLDivLoss(student, temperature=0.05)


def _margin(student: SentenceTransformer, _: SentenceTransformer) -> nn.Module:
    return losses.MarginMSELoss(student)


BATCH = ("--per_device_train_batch_size", "64")
SLOW, FAST = (*BATCH, "--learning_rate", "1e-4"), (*BATCH, "--learning_rate", "4e-4")
"""Contrast forgets more at a higher rate, alignment learns more (benchmarks/QUALITY.md): each peer
has the one that suits it.
"""
RECOMMENDED_STEPS = ("--per_device_train_batch_size", "16", "--learning_rate", "2e-4")
PAPER = (
    "--contrastive_weight", "1", "--temperature", "0.1", "--regression_weight", "0.1", "--alignment_weight", "0", "--head_dropout", "0.1",
    "--augmented_texts_per_pair", "0", "--false_negative_margin", "-2",
    "--selection", *BASE_RULES.split(), "percentile=80",
)  # fmt: skip
"""Of the recommended keys, none that the paper has not; no two cosines are more than 2 apart, so no
negative is left out.
"""
ARMS = {
    arm.name: arm
    for arm in (
        Arm("MultipleNegativesRankingLoss", SLOW, _ranking, _pair),
        Arm("GISTEmbedLoss", SLOW, _guided, _pair),
        Arm("CosineSimilarityLoss", FAST, _cosine, _scored_pair),
        Arm("EmbedDistillLoss", FAST, _embedding, _embedded_pair),
        Arm("EmbedDistillLoss, batch 16", RECOMMENDED_STEPS, _embedding, _embedded_pair),
        Arm("DistillKLDivLoss", SLOW, _divergence, _scored_triple),
        Arm("MarginMSELoss", FAST, _margin, _margin_triple),
        Arm("the paper", (*SLOW, *PAPER)),
        Arm(RECOMMENDED, own=True),
    )
}


def parse_try(text: str) -> Arm:
    """`NAME: key=value key=value ...` as an arm of this project."""
    name, colon, keys = text.partition(":")
    if not colon or not name.strip() or not all("=" in key for key in keys.split()):
        raise InputError(f'--try {text!r}: expected "NAME: key=value key=value ..."')
    return Arm(
        name.strip(),
        tuple(
            part
            for key in keys.split()
            for part in ("--" + key.split("=", 1)[0], key.split("=", 1)[1])
        ),
        own=True,
    )


@dataclass(frozen=True)
class Domain:
    """What everything trained on, or measured on, a domain shares."""

    recipe: Recipe
    folder: RunFolder
    teacher: BiEncoderTeacher
    data: PairData
    scored: ScoredPairs
    train: Dataset
    train_key: str
    task: RetrievalTask
    blueprint: Blueprint
    teacher_embeddings: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Setting:
    """What is trained and measured on.

    Attributes:
        out: Folder of data and results.
        max_pairs: Of each domain, at most; None: all.
        split: Draws the held-out pairs.
    """

    out: Path
    max_pairs: int | None = None
    split: int = SPLIT

    def folder(self, domain: str) -> Path:
        """Where a domain's pairs and embeddings are."""
        return self.out / (domain if self.split == SPLIT else f"{domain}-{self.split}")


@dataclass(frozen=True)
class Job:
    """One training: what a worker is given."""

    setting: Setting
    home: str
    arm: Arm
    seed: int
    examples: int


def recipe_of(domain: str, setting: Setting, keys: Sequence[str] = ()) -> Recipe:
    """The recommended recipe on a domain, with other `keys`."""
    data = {
        "pydocs": ["--dataset", "pydocs", "--test_fraction", "0.05"],
        "conversations": [
            "--dataset",
            "qrecc",
            "--dataset_path",
            str(setting.out / "qrecc.json"),
            "--test_fraction",
            "0.25",
        ],
    }[domain]
    if setting.max_pairs:
        data += ["--max_pairs", str(setting.max_pairs)]
    data += ["--seed", str(setting.split), "--run_dir", str(setting.folder(domain))]
    fixed = ["--validation_fraction", "0.02", "--student_max_length", "128"]
    return read_recipe([str(RECIPES / "recommended.yaml"), *data, *fixed, *keys])


@functools.cache
def load_domain(name: str, setting: Setting) -> Domain:
    """The domain, its texts embedded by the teacher: once for all calls, and read from the disk
    afterwards.
    """
    recipe = recipe_of(name, setting)
    seed = recipe.training.seed
    folder = RunFolder(recipe.run_dir)
    teacher = load_teacher(recipe.teacher, recipe.data, folder.cache)
    assert isinstance(teacher, BiEncoderTeacher)
    data = load_pair_data(recipe.data, seed, folder)
    scored = score_pairs(data, teacher, folder, recipe.teacher)
    train, key = with_signals(
        scored, recipe.teacher.pool_size, recipe.teacher.hard_negatives, seed, folder
    )
    task = held_out_task(data)
    embeddings = teacher.embed([*task.queries.values()]), teacher.embed([*task.documents.values()])
    blueprint = draw_blueprint(recipe.student, teacher, scored, folder, seed)
    return Domain(recipe, folder, teacher, data, scored, train, key, task, blueprint, embeddings)


def measure(student: SentenceTransformer, domain: Domain) -> dict[str, list[float]]:
    """nDCG@10, R@100 and overlap@10 with the teacher of each test query, and the cosine of each
    test pair.
    """
    task = domain.task
    queries, documents = (
        encode(student, [*texts.values()]).numpy() for texts in (task.queries, task.documents)
    )
    scores, found = search(queries, documents, DEPTH)
    values = per_query(
        make_run(list(task.queries), list(task.documents), scores, found), task.qrels
    )
    wanted = search(*domain.teacher_embeddings, TOP)[1]
    query_row, document_row = (
        {text: i for i, text in enumerate(texts.values())}
        for texts in (task.queries, task.documents)
    )
    cosines = [
        float(queries[query_row[query]] @ documents[document_row[document]])
        for query, document in zip(
            domain.data.test["query"], domain.data.test["document"], strict=True
        )
    ]
    shared = [
        len(set(own) & set(other)) / len(other)
        for own, other in zip(found[:, :TOP].tolist(), wanted.tolist(), strict=True)
    ]
    made = {
        "nDCG@10": values["nDCG@10"],
        "R@100": values["R@100"],
        "overlap@10": shared,
        "student_score": cosines,
    }
    return {name: np.round(array, 5).tolist() for name, array in made.items()}


def _train_peer(
    job: Job, recipe: Recipe, domain: Domain, student: SentenceTransformer, rows: Dataset
) -> float:
    """Train with a loss of sentence-transformers; seconds of the training alone."""
    use_plain_attention(student)  # the same mathematics, and faster on a CPU: a peer at its best
    components = domain.blueprint.components
    assert components is not None
    made = Dataset.from_dict(job.arm.columns(rows, torch.from_numpy(components)))
    loss: nn.Module = job.arm.loss(
        student, SentenceTransformer(modules=list(domain.teacher.model), device="cpu")
    )
    trainer = SentenceTransformerTrainer(
        model=student, args=recipe.training, train_dataset=made, loss=loss
    )
    start = time.perf_counter()
    trainer.train()
    student.eval()
    return time.perf_counter() - start


def job_key(job: Job) -> tuple[str, Recipe]:
    """The fingerprint of everything a job's result depends on, and its recipe."""
    recipe = matched_recipe(recipe_of(job.home, job.setting, job.arm.keys), job.examples, job.seed)
    data = [
        RunFolder(job.setting.folder(name)).path / "pairs" / "manifest.json" for name in DOMAINS
    ]
    content = [json.loads(path.read_text(encoding="utf-8"))["fingerprint"] for path in data]
    what = job.arm.name if job.arm.loss or job.arm.name == UNTRAINED else "own"
    objective = (
        (recipe.student, recipe.selection.selection)
        if what != "own"
        else (recipe.of_student, recipe.selection.selection)
    )
    training = (
        {}
        if job.arm.name == UNTRAINED
        else {k: v for k, v in recipe.training_keys().items() if k != "seed"}
    )
    return fingerprint(
        FORM, content, job.home, what, str(objective), training, job.seed, job.examples
    ), recipe


def result_of(job: Job) -> dict[str, Any] | None:
    """The result of a job, if it is there."""
    key, _ = job_key(job)
    found = read_json_if_current(job.setting.out / "results" / f"{key}.json", key)
    return (
        None if found is None else {**found, "arm": job.arm.name}
    )  # an arm of the same keys may have had another name


def rows_of(domain: Domain, recipe: Recipe, student: SentenceTransformer, folder: Path) -> Dataset:
    """What `student` is trained on: the recipe's selection of the domain's pairs; what that writes
    goes to `folder`.
    """
    rules = parse_rules(recipe.selection.selection)
    selected = select_pairs(
        domain.train, rules, recipe.training.seed, RunFolder(folder), domain.train_key
    ).selected
    return student_rows(
        selected, domain.train, domain.scored, recipe, domain.teacher, student, domain.folder
    )


def run_job(job: Job, threads: int) -> dict[str, Any]:
    """Train and measure one student, and keep what came out."""
    be_quiet()
    keep_freed_memory()  # peers, too, are faster with it
    torch.set_num_threads(threads)
    key, recipe = job_key(job)
    domain = load_domain(job.home, job.setting)
    if job.arm.loss:  # its columns are made of the pairs, and of one mined negative
        needs_negative = job.arm.columns in (_scored_triple, _margin_triple)
        further = dataclasses.replace(
            recipe.trainer, hard_negatives_per_pair=int(needs_negative), augmented_texts_per_pair=0
        )
        recipe = dataclasses.replace(recipe, trainer=further)
    with tempfile.TemporaryDirectory() as temporary:
        student = build_student(recipe.student, domain.teacher, domain.blueprint, job.seed)
        rows = rows_of(domain, recipe, student, Path(temporary))
        recipe.training.output_dir, recipe.training.disable_tqdm = temporary, True
        steps = recipe.training.max_steps if job.examples else 0
        seconds = 0.0
        with contextlib.redirect_stdout(
            io.StringIO()
        ):  # the Trainer's own summary; several workers share the terminal
            if job.arm.loss:
                seconds = _train_peer(job, recipe, domain, student, rows)
            elif job.arm.name != UNTRAINED:
                seconds = train_student(
                    student,
                    recipe,
                    rows,
                    rows.select([]),
                    domain.blueprint,
                    domain.scored.scale,
                    key,
                )["seconds"]
    student.eval()
    abroad = next(name for name in DOMAINS if name != job.home)
    made = {
        "fingerprint": key, "home": job.home, "arm": job.arm.name, "seed": job.seed, "pairs": len(rows), "steps": steps,
        "examples": steps * recipe.training.train_batch_size, "precision": "bf16" if recipe.training.bf16 else "fp32",
        "training_seconds": round(seconds, 1), "threads": threads,
        "at_home": measure(student, domain), "abroad": measure(student, load_domain(abroad, job.setting)),
    }  # fmt: skip
    write_json(job.setting.out / "results" / f"{key}.json", made)
    return made


def references(domain: Domain) -> dict[str, Any]:
    """What a domain's students are compared with: the teacher's scores of the test pairs, its
    nDCG@10 and that of BM25, per query.
    """
    task = domain.task
    ids = list(task.queries), list(task.documents)
    teacher = per_query(make_run(*ids, *search(*domain.teacher_embeddings, DEPTH)), task.qrels)
    bm25 = per_query(
        bm25_run(ids[0], [*task.queries.values()], ids[1], [*task.documents.values()]), task.qrels
    )
    return {
        "teacher_score": np.asarray(domain.scored.test["teacher_score"], dtype=np.float64),
        "teacher": teacher,
        "bm25": bm25,
        "leaks": domain.data.counts["leaks"],
    }


def write_conversations(files: Sequence[Path], out: Path) -> None:
    """The turns of all `files` as one, where `recipe_of` looks for them."""
    out.mkdir(parents=True, exist_ok=True)
    merged = json.dumps(
        [turn for path in files for turn in json.loads(path.read_text(encoding="utf-8"))]
    )
    if (
        not (out / "qrecc.json").exists()
        or (out / "qrecc.json").read_text(encoding="utf-8") != merged
    ):
        (out / "qrecc.json").write_text(merged, encoding="utf-8")


def be_quiet() -> None:
    """Only results on the terminal."""
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    datasets.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def run_jobs(jobs: Sequence[Job], workers: int) -> Iterator[dict[str, Any]]:
    """The results of jobs, as they come; `workers` at a time, which share the cores."""
    threads = max(1, cpu_cores() // workers)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(run_job, job, threads) for job in jobs]):
            yield future.result()


def _say(result: Mapping[str, Any], done: int, wanted: int, seconds: float) -> None:
    left = seconds / done * (wanted - done) / 60
    print(
        f"{done}/{wanted} {result['home']}, {result['arm']}, seed {result['seed']}: nDCG@10 {np.mean(result['at_home']['nDCG@10']):.3f} at "
        f"home, {np.mean(result['abroad']['nDCG@10']):.3f} abroad; {result['training_seconds']:.0f} s, about {left:.0f} min left",
        flush=True,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--qrecc",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="QReCC JSON files: the conversations.",
    )
    parser.add_argument(
        "--home", nargs="+", choices=DOMAINS, default=list(DOMAINS), help="Domains to train on."
    )
    parser.add_argument(
        "--arms",
        nargs="*",
        default=list(ARMS),
        metavar="NAME",
        help=f"Of: {', '.join(ARMS)}. Default: all.",
    )
    parser.add_argument(
        "--try", dest="tries", action="append", default=[], metavar='"NAME: KEY=VALUE ..."',
        help="A further arm: the recommended recipe with other keys. Once for each.",
    )  # fmt: skip
    parser.add_argument(
        "--examples",
        type=int,
        default=10_240,
        help="Pairs that each student sees. Default: 10,240.",
    )
    parser.add_argument("--seeds", type=int, default=3, help="Students of each arm. Default: 3.")
    parser.add_argument(
        "--table",
        action="store_true",
        help="Train nothing: compare what is there. Arms may then differ in their seeds.",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=cpu_cores(),
        help="Trainings at a time. Default: one for each core.",
    )
    parser.add_argument(
        "--max_pairs", type=int, help="Pairs of each domain at most, to try the script out."
    )
    parser.add_argument(
        "--split",
        type=int,
        default=SPLIT,
        help=f"Draws other held-out pairs than those of {SPLIT}, the default.",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/quality"), help="Folder of data and results."
    )
    return parser.parse_args()


def main() -> None:
    """Train what is missing, compare, and say it."""
    line = _options()
    keep_freed_memory()  # here, too: a part of it is an environment variable, which the workers inherit
    be_quiet()
    arms = [*(ARMS[name] for name in line.arms if name in ARMS), *map(parse_try, line.tries)]
    if unknown := set(line.arms) - set(ARMS):
        raise SystemExit(
            f"--arms: unknown {', '.join(sorted(unknown))}; known are {', '.join(ARMS)}"
        )
    out = line.out.resolve()
    write_conversations(line.qrecc, out)
    setting = Setting(out, line.max_pairs, line.split)
    domains = {name: load_domain(name, setting) for name in DOMAINS}
    jobs = [Job(setting, home, Arm(UNTRAINED), 0, 0) for home in line.home]
    jobs += [
        Job(setting, home, arm, seed, line.examples)
        for seed in range(line.seeds)
        for arm in arms
        for home in line.home
    ]
    results = [found for job in jobs if (found := result_of(job)) is not None]
    missing = [job for job in jobs if result_of(job) is None]
    print(f"{len(results)} of {len(jobs)} trainings are there", flush=True)
    if line.table:
        missing = []
    start = time.perf_counter()
    for done, result in enumerate(run_jobs(missing, line.jobs) if missing else [], 1):
        results.append(result)
        _say(result, done, len(missing), time.perf_counter() - start)
    own = [arm.name for arm in arms if arm.own]
    if absent := [
        home for home in line.home if not any(result["home"] == home for result in results)
    ]:
        raise SystemExit(
            f"--table: no training at home in {', '.join(absent)} is there yet, in {out}"
        )
    found = Results(results, {name: references(domain) for name, domain in domains.items()}, own)
    content = compile_results(found, line.home, line.seeds, line.examples)
    write_json(out / "quality.json", content)
    text = markdown(content)
    (out / "quality.md").write_text(text, encoding="utf-8")
    for suffix in ("svg", "png"):
        plot(content).savefig(
            out / f"quality.{suffix}", bbox_inches="tight", facecolor="white", dpi=150
        )
    print(f"\n{text}\nWritten to {out}")
    print(json.dumps(content["summary"]))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"quality.py: error: {error}") from error
