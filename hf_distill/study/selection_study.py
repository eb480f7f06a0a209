"""Does selection help? The same student, trained for the same number of examples on what different
rules keep, over several seeds.

Each selection meets two controls: random pairs of the same number, which only a better choice of
pairs can beat, and all pairs, which a selection must beat to be worth having. All see the same
number of examples: without that, fewer pairs also mean less training.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from datasets import Dataset
from matplotlib.figure import Figure as Plot
from sentence_transformers import SentenceTransformer
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_distill.compute.device import use_all_cores
from hf_distill.compute.encode import encode
from hf_distill.compute.search import search
from hf_distill.data.collection import PairData
from hf_distill.data.load import load_pair_data
from hf_distill.errors import InputError
from hf_distill.evaluation.fidelity import (
    mae,
    pearson,
)
from hf_distill.evaluation.intervals import (
    LEVEL,
    figure,
    mean,
)
from hf_distill.evaluation.retrieval import (
    DEPTH,
    make_run,
    per_query,
)
from hf_distill.evaluation.significance import (
    ALPHA,
    crossed_interval,
    holm,
    paired_tests,
)
from hf_distill.evaluation.tasks import (
    RetrievalTask,
    held_out_task,
)
from hf_distill.recipe.arguments import Recipe
from hf_distill.run.folder import (
    RunFolder,
    fingerprint,
    open_run_folder,
    read_json_if_current,
    save_recipe,
    write_json,
    written_whole,
)
from hf_distill.scoring.ranking import with_signals
from hf_distill.scoring.scores import (
    ScoredPairs,
    score_pairs,
)
from hf_distill.selection.rules import (
    UNSCORED,
    Columns,
    Rule,
    apply_rules,
    parse_rules,
    rule_columns,
)
from hf_distill.selection.select import with_outcome
from hf_distill.student.build import (
    Blueprint,
    backbone_digest,
    build_student,
    draw_blueprint,
)
from hf_distill.teachers.base import Teacher
from hf_distill.teachers.load import load_teacher
from hf_distill.training.train import (
    check_batch,
    check_objective,
    student_rows,
    train_student,
)

FULL, BOTTOM, RANDOM = "all pairs", "bottom", "random"
SAME_SIZE = 0.1
"""Selections whose sizes differ by at most this share meet the same random control; one this near
to all pairs needs none.
"""


@dataclass(frozen=True)
class Arm:
    """A way of choosing the pairs that a student is trained on.

    Attributes:
        name: How the table calls it.
        rules: The selection; None for the bottom control.
        size: Of the random and the bottom control: how many pairs. 0 otherwise.
        control: The random control of the same size; None if the selection is (nearly) all pairs,
            or is a control.
    """

    name: str
    rules: tuple[Rule, ...] | None
    size: int = 0
    control: str | None = None

    def rows(self, columns: Columns) -> np.ndarray:
        """Indices (m,) of the pairs to train on. Ties and random draws are those of
        `columns.order`.
        """
        if self.size:
            known = np.flatnonzero(~np.isnan(columns.score))
            by_score = () if self.rules is not None else (columns.score[known],)
            return np.sort(known[np.lexsort((columns.order[known], *by_score))[: self.size]])
        return apply_rules(columns, self._applied_rules).kept

    @property
    def _applied_rules(self) -> list[Rule]:
        return [Rule(UNSCORED), *(self.rules or ())]

    def pairs(self, train: Dataset, columns: Columns) -> Dataset:
        """The pairs to train on, with their `weight` if a rule gives any."""
        rows = self.rows(columns)
        if not any(rule.weight is not None for rule in self.rules or ()):
            return train.select(rows)
        return with_outcome(
            train, self._applied_rules, apply_rules(columns, self._applied_rules)
        ).select(rows)


def parse_selections(texts: Sequence[str]) -> dict[str, tuple[Rule, ...]]:
    """Read lists of rules, each one text with spaces between the rules: its name in the table ->
    the rules.

    Raises:
        InputError: No selection, one given twice, one without a rule, or a bad rule.
    """
    if not texts:
        raise InputError(
            'name at least one selection to try, e.g. --rules "echo duplicate percentile=80"'
        )
    selections: dict[str, tuple[Rule, ...]] = {}
    for text in texts:
        rules = tuple(parse_rules(text.split()))
        name = " ".join(map(str, rules))
        if not rules or name in selections:
            raise InputError(
                f"--rules {text!r} "
                + ("is given twice" if rules else "names no rule; all pairs are a control anyway")
            )
        selections[name] = rules
    return selections


def plan_arms(selections: Mapping[str, tuple[Rule, ...]], columns: Columns) -> list[Arm]:
    """The selections, in the order given, and their controls: random pairs of each size, the bottom
    of the first's size, all pairs.

    Args:
        selections: As from `parse_selections`.
        columns: The scored training pairs.

    Raises:
        InputError: A selection keeps nothing.
    """
    full = Arm(FULL, ())
    available = len(full.rows(columns))
    arms: list[Arm] = []
    controls: list[Arm] = []
    for name, rules in selections.items():
        size = len(Arm(name, rules).rows(columns))
        if not size:
            raise InputError(
                f"--rules {name!r} keeps none of {available} pairs: there is nothing to train on"
            )
        control = None
        if size < (1 - SAME_SIZE) * available:
            near = (arm for arm in controls if abs(arm.size - size) <= SAME_SIZE * arm.size)
            found = next(near, None) or Arm(f"{RANDOM} {size:,}", (), size)
            controls += [] if found in controls else [found]
            control = found.name
        arms.append(Arm(name, rules, control=control))
    bottom = [Arm(f"{BOTTOM} {controls[0].size:,}", None, controls[0].size)] if controls else []
    return [full, *controls, *bottom, *arms]


def matched_recipe(recipe: Recipe, examples: int, seed: int) -> Recipe:
    """`recipe` with `seed` and `examples` training examples, rounded up to whole batches; without
    validation and checkpoints.

    Without `dataloader_drop_last` a small selection would end each of its many epochs with a
    smaller batch, and see fewer examples.
    """
    training = copy.copy(recipe.training)
    batch = training.train_batch_size * training.gradient_accumulation_steps
    training.max_steps = -(-examples // batch)
    training.seed, training.data_seed = seed, None
    training.eval_strategy = training.logging_strategy = IntervalStrategy.NO
    training.save_strategy = SaveStrategy.NO
    training.load_best_model_at_end = False
    training.output_dir = str(
        recipe.run_dir / "study" / "checkpoints"
    )  # none are written, and none of a run's are gone on from
    training.dataloader_drop_last = True
    training.resume_from_checkpoint = None
    trainer = dataclasses.replace(recipe.trainer, early_stopping_patience=None)
    return dataclasses.replace(
        recipe, training=training, trainer=trainer, given=recipe.given - {"output_dir"}
    )


def measure(
    student: SentenceTransformer, task: RetrievalTask, data: PairData
) -> dict[str, list[float]]:
    """nDCG@10 and R@100 of each test query, and the cosine of each test pair."""

    def embed(kind: str, texts: Mapping[str, str]) -> np.ndarray:
        prompt = student.prompts.get(kind) or ""
        return encode(student, [prompt + text for text in texts.values()]).numpy()

    queries, documents = embed("query", task.queries), embed("document", task.documents)
    values = per_query(
        make_run(list(task.queries), list(task.documents), *search(queries, documents, DEPTH)),
        task.qrels,
    )
    query_row = {text: i for i, text in enumerate(task.queries.values())}
    document_row = {text: i for i, text in enumerate(task.documents.values())}
    pairs = zip(data.test["query"], data.test["document"], strict=True)
    rows = np.array([(query_row[query], document_row[document]) for query, document in pairs])
    cosines = np.einsum("nd,nd->n", queries[rows[:, 0]], documents[rows[:, 1]])
    return {
        "nDCG@10": values["nDCG@10"].round(6).tolist(),
        "R@100": values["R@100"].round(6).tolist(),
        "student_score": [round(float(x), 6) for x in cosines],
    }


def _difference(ours: np.ndarray, theirs: np.ndarray, seed: int) -> dict[str, Any]:
    """nDCG@10 of one arm less another's, (seeds, queries) each, with an interval and a p for other
    queries *and* other seeds.

    With one seed: the bootstrap over queries and the paired t-test, which say nothing about other
        seeds.
    """
    gaps = ours - theirs
    by_seed = [round(float(x), 5) for x in gaps.mean(axis=1)]
    if len(gaps) > 1:
        made = crossed_interval(gaps)
        return {**made["difference"], "p": made["p"], "by_seed": by_seed}
    tests = paired_tests(ours[0], theirs[0], seed)
    return {**tests["difference"], "p": tests["paired_t_test"]["p"], "by_seed": by_seed}


def compare(
    arms: Sequence[Arm], results: Sequence[Mapping[str, Any]], teacher_scores: np.ndarray, seed: int
) -> list[dict[str, Any]]:
    """One row for each arm: its figures over all seeds, and its differences to its random control
    and to all pairs.

    Figures of an arm are means over its seeds, with intervals over queries (over pairs for the
    fidelity). Differences have intervals over queries and seeds
    (`hf_distill.evaluation.significance.crossed_interval`), and Holm's p-values, of all comparisons
    with one control.

    Args:
        arms: As from `plan_arms`.
        results: What each (arm, seed) left; of every arm the same seeds.
        teacher_scores: (n,) of the test pairs, NaN where unknown.
        seed: Seeds the bootstrap.
    """
    known = ~np.isnan(teacher_scores)
    of = {arm.name: [result for result in results if result["arm"] == arm.name] for arm in arms}
    ndcg = {name: np.array([result["nDCG@10"] for result in found]) for name, found in of.items()}
    rows: list[dict[str, Any]] = []
    for arm in arms:
        found = of[arm.name]
        scores = [np.array(result["student_score"])[known] for result in found]
        rows.append(
            {
                "arm": arm.name,
                "is_control": arm.name == FULL or arm.size > 0,
                "pairs": round(float(np.mean([result["pairs"] for result in found]))),
                "seeds": len(found),
                "nDCG@10": figure(mean, [ndcg[arm.name].mean(axis=0)], seed),
                "nDCG@10 by seed": [round(float(x), 5) for x in ndcg[arm.name].mean(axis=1)],
                "R@100": figure(
                    mean, [np.array([result["R@100"] for result in found]).mean(axis=0)], seed
                ),
                "pearson": figure(_over_seeds(pearson), [teacher_scores[known], *scores], seed),
                "mae": figure(_over_seeds(mae), [teacher_scores[known], *scores], seed),
                "control": arm.control,
                "minus_random": _difference(ndcg[arm.name], ndcg[arm.control], seed)
                if arm.control
                else None,
                "minus_all": _difference(ndcg[arm.name], ndcg[FULL], seed)
                if arm.name != FULL
                else None,
            }
        )
    for key in ("minus_random", "minus_all"):
        compared = [row[key] for row in rows if row[key]]
        for difference, p in zip(compared, holm([d["p"] for d in compared]), strict=True):
            difference["p_holm"] = p
    return rows


def _over_seeds(statistic: Any) -> Any:
    """The mean over students of a statistic of (teacher's scores, a student's scores)."""
    return lambda teacher, *students: np.mean(
        [statistic(teacher, student) for student in students], axis=0
    )


def verdict(row: Mapping[str, Any]) -> str:
    """What an arm's two comparisons allow to say: a difference counts if Holm's p is below .05."""
    said = []
    for key, control in (("minus_random", "random pairs of its size"), ("minus_all", FULL)):
        difference = row[key]
        if difference is None:
            continue
        clear = difference["p_holm"] is not None and difference["p_holm"] < ALPHA
        word = "better than" if clear else "no clear difference from"
        said.append(
            f"{'worse than' if word == 'better than' and difference['value'] < 0 else word} {control}"
        )
    return "; ".join(said)


def _plain(value: Mapping[str, Any], sign: str = "") -> str:
    return f"{value['value']:{sign}.3f} ({value['low']:{sign}.3f} to {value['high']:{sign}.3f})"


def _gap(difference: Mapping[str, Any] | None) -> str:
    if not difference:
        return "–"
    p = difference["p_holm"]
    return f"{_plain(difference, '+')}, p {'undefined' if p is None else '< .001' if p < 0.001 else format(p, '.3f')}"


def markdown_table(study: Mapping[str, Any]) -> str:
    """The study as Markdown: a table, what it is over, and a verdict for each selection."""
    lines = [
        "| trained on | pairs | nDCG@10 | minus random of its size | minus all pairs | Recall@100 | Pearson | MAE |",
        "|---|---:|---|---|---|---|---|---|",
    ]
    for row in study["arms"]:
        name = row["arm"].replace("|", r"\|")
        lines.append(
            f"| `{name}` | {row['pairs']:,} | {_plain(row['nDCG@10'])} | {_gap(row['minus_random'])} | {_gap(row['minus_all'])} "
            f"| {row['R@100']['value']:.3f} | {row['pearson']['value']:.3f} | {row['mae']['value']:.3f} |"
        )
    seeds = study["seeds"]
    lines += [
        "",
        f"{study['examples']:,} examples for each student, {len(seeds)} seed{'s' * (len(seeds) > 1)} ({', '.join(map(str, seeds))}); "
        f"{study['num_queries']:,} held-out queries over {study['num_documents']:,} documents, {study['num_pairs']:,} held-out pairs. In "
        "parentheses 95% intervals: of figures by the bootstrap over queries, of differences "
        + (
            "over queries and seeds"
            if len(seeds) > 1
            else "over queries (one seed says nothing about others)"
        )
        + "; p-values corrected by Holm for the number of comparisons with the same control.",
        "",
    ]
    lines += [f"- `{row['arm']}`: {verdict(row)}." for row in study["arms"] if row["arm"] != FULL]
    return "\n".join(lines) + "\n"


def plot_study(rows: Sequence[Mapping[str, Any]]) -> Plot:
    """nDCG@10 of every arm: mean and interval, each seed as a point, and a line at all pairs."""
    with mpl.rc_context(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "svg.hashsalt": "hf_distill",
        }
    ):
        plot = Plot(figsize=(7.0, 0.8 + 0.42 * len(rows)))
        axes = plot.subplots()
        for place, row in enumerate(reversed(rows)):
            value = row["nDCG@10"]
            colour = "#8a8f98" if row["is_control"] else "#2f6fb3"
            axes.plot(
                [value["low"], value["high"]],
                [place, place],
                color=colour,
                linewidth=5,
                alpha=0.4,
                solid_capstyle="butt",
            )
            axes.plot(
                row["nDCG@10 by seed"], [place] * row["seeds"], "|", color=colour, markersize=11
            )
            axes.plot(value["value"], place, "o", color=colour)
        axes.axvline(
            next(row["nDCG@10"]["value"] for row in rows if row["arm"] == FULL),
            color="#c8642b",
            linewidth=1,
        )
        axes.set_yticks(
            range(len(rows)), [f"{row['arm']} ({row['pairs']:,})" for row in reversed(rows)]
        )
        axes.set_xlabel(
            f"nDCG@10: mean, {LEVEL:.0%} interval over queries, each seed; the line is {FULL}"
        )
    return plot


@dataclass(frozen=True)
class _Study:
    """What every training of a study shares."""

    recipe: Recipe
    folder: RunFolder
    teacher: Teacher
    data: PairData
    scored: ScoredPairs
    train: Dataset
    train_key: str
    task: RetrievalTask
    blueprint: Blueprint
    examples: int

    def result(self, arm: Arm, seed: int, columns: Columns) -> dict[str, Any]:
        """Train and measure one student, unless its result is there already."""
        recipe = matched_recipe(self.recipe, self.examples, seed)
        key = fingerprint(
            self.train_key, self.data.key, arm.name, seed, *map(vars, recipe.of_student), backbone_digest(recipe.student),
            recipe.training_keys(),
        )  # fmt: skip
        path = self.folder.path / "study" / "results" / f"{key}.json"
        found = read_json_if_current(path, key)
        if found is not None:
            return found
        start = time.perf_counter()
        selected = arm.pairs(self.train, columns)
        student = build_student(recipe.student, self.teacher, self.blueprint, seed)
        rows = student_rows(
            selected, self.train, self.scored, recipe, self.teacher, student, self.folder
        )
        training = train_student(
            student, recipe, rows, rows.select([]), self.blueprint, self.scored.scale, key
        )
        shutil.rmtree(
            str(recipe.training.output_dir), ignore_errors=True
        )  # the trainer makes it, and leaves it empty
        made = {
            "fingerprint": key, "arm": arm.name, "seed": seed, "pairs": len(selected), "steps": training["steps"],
            "examples": training["examples"], "precision": training["precision"], **measure(student, self.task, self.data),
            "training_seconds": training["seconds"], "seconds": round(time.perf_counter() - start, 1),
        }  # fmt: skip
        write_json(path, made)
        return made


def run_study(
    recipe: Recipe, selections: Sequence[str], examples: int, seeds: int
) -> dict[str, Any]:
    """Score once, train every (arm, seed) that has no result yet, and write `study/study.json`,
    `study.md`, `study.svg` and `recipe.yaml`.

    The results lie in the recipe's run folder, as soon as each is there; a second call goes on, and
    more seeds or selections cost only themselves. Seeds are the outer loop: what is done when a
        study is stopped compares all arms.

    Args:
        recipe: What to train; its own `selection` is not used.
        selections: Lists of rules, each as one text.
        examples: Training examples for each student.
        seeds: How many, from the recipe's seed on. A seed also draws the random pairs and breaks
            the rules' ties.

    Returns:
        What `study.json` holds.

    Raises:
        InputError: No examples, seeds or selections, a bad rule, fewer pairs than a batch, and
            whatever a run refuses.
    """
    if examples < 1 or seeds < 1:
        raise InputError(f"--examples {examples} and --seeds {seeds}: both must be at least 1")
    parsed = parse_selections(
        selections
    )  # whatever can be refused is refused before anything is written
    use_all_cores(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    seed = recipe.training.seed
    folder = open_run_folder(recipe)
    teacher = load_teacher(recipe.teacher, recipe.data, folder.cache)
    build_student(recipe.student, teacher, None, seed)
    check_objective(recipe, teacher)
    data = load_pair_data(recipe.data, seed, folder)
    print(data.summary(), flush=True)
    if (
        not folder.recipe.exists()
    ):  # one that is there is a run's, and says how its student was made
        save_recipe(recipe, folder)
    save_recipe(recipe, RunFolder(folder.path / "study"))
    scored = score_pairs(data, teacher, folder, recipe.teacher)
    print(scored.summary(), flush=True)
    train, train_key = with_signals(
        scored, recipe.teacher.pool_size, recipe.teacher.hard_negatives, seed, folder
    )
    blueprint = draw_blueprint(recipe.student, teacher, scored, folder, seed)
    study = _Study(
        recipe,
        folder,
        teacher,
        data,
        scored,
        train,
        train_key,
        held_out_task(data),
        blueprint,
        examples,
    )

    columns = rule_columns(train, [rule for rules in parsed.values() for rule in rules], seed)
    arms = plan_arms(parsed, columns)
    matched = matched_recipe(recipe, examples, seed).training
    for arm in arms:
        pairs = len(arm.rows(columns))
        check_batch(pairs, matched)
        print(f"  {arm.name}: {pairs:,} pairs, {examples / pairs:.1f} epochs", flush=True)
    wanted = [(arm, each) for each in range(seed, seed + seeds) for arm in arms]
    results: list[dict[str, Any]] = []
    start, trained = time.perf_counter(), 0
    for number, (arm, each) in enumerate(wanted, 1):
        before = time.perf_counter()
        result = study.result(
            arm, each, dataclasses.replace(columns, order=rule_order(columns, each))
        )
        results.append(result)
        trained += time.perf_counter() - before > 1
        left = (time.perf_counter() - start) / max(1, trained) * (len(wanted) - number) / 60
        print(
            f"{number}/{len(wanted)} {arm.name}, seed {each}: nDCG@10 {np.mean(result['nDCG@10']):.4f} ({result['seconds']} s)"
            + (f", about {left:.0f} min left" if trained and number < len(wanted) else ""),
            flush=True,
        )

    teacher_scores = np.asarray(scored.test["teacher_score"], dtype=np.float64)
    content = {
        "fingerprint": fingerprint([result["fingerprint"] for result in results]),
        "examples": results[0]["examples"],
        "seeds": list(range(seed, seed + seeds)),
        "num_queries": len(study.task.queries),
        "num_documents": len(study.task.documents),
        "num_pairs": int((~np.isnan(teacher_scores)).sum()),
        "num_training_pairs": len(train),
        "arms": compare(arms, results, teacher_scores, seed),
    }
    out = folder.path / "study"
    write_json(out / "study.json", json.loads(json.dumps(content)))
    text = markdown_table(content)
    with written_whole(out / "study.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    with written_whole(out / "study.svg") as temporary:
        plot_study(content["arms"]).savefig(
            temporary, format="svg", bbox_inches="tight", facecolor="white", metadata={"Date": None}
        )
    print(f"\n{text}\nStudy: {out}")
    return content


def rule_order(columns: Columns, seed: int) -> np.ndarray:
    """The permutation (n,) that breaks ties and draws at random with `seed`."""
    return np.random.default_rng(seed).permutation(len(columns.score))
