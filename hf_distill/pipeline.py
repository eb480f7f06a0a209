"""`Run`: a recipe, its folder, and the result of each stage. The one place that knows their order.

A stage's result is made when it is first needed, kept in the run's folder, and reused as long as
its inputs are the same. `train.py`, the study, the benchmarks and the commands all open a `Run`.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from accelerate import PartialState
from sentence_transformers import SentenceTransformer

from hf_distill.candidates.mine import NAMED
from hf_distill.compute.device import device_type, use_all_cores
from hf_distill.data.collection import Collection
from hf_distill.data.explain import explain
from hf_distill.data.further_texts import FurtherTexts, check_pool_path, load_further_texts
from hf_distill.data.load import load_collection
from hf_distill.errors import InputError
from hf_distill.evaluation.evaluate import Subject, evaluate
from hf_distill.evaluation.further import (
    FurtherTasks,
    check_tasks,
    embed_by_teacher,
    load_tasks,
    with_shared_texts,
)
from hf_distill.evaluation.passages import held_out_passages
from hf_distill.evaluation.ranker import Reranking
from hf_distill.evaluation.results import Evaluation
from hf_distill.evaluation.texts import evaluate_texts
from hf_distill.evaluation.texts_results import TextsEvaluation
from hf_distill.evaluation.validation import point_measure, validation_evaluator, watched_measure
from hf_distill.recipe.arguments import STAGES, Recipe, deciding
from hf_distill.recipe.check import check_each_stage
from hf_distill.recipe.kinds import SOURCES, digests_of_plugins, load_kind
from hf_distill.recipe.read import read_recipe
from hf_distill.release.dataset_repo import write_dataset
from hf_distill.release.hub import check_publishing, publish_run
from hf_distill.release.model_card import write_model_card
from hf_distill.release.router import remove_router
from hf_distill.report.headline import results_table
from hf_distill.report.page import write_report, write_texts_report
from hf_distill.report.results import RunResults, TextsResults
from hf_distill.report.texts import texts_table
from hf_distill.run.disk import (
    Sizes,
    check_files,
    check_folders,
    check_space,
    plan,
    written_folders,
)
from hf_distill.run.environment import describe_environment
from hf_distill.run.folder import (
    RunFolder,
    open_run_folder,
    save_made_with,
    save_recipe,
)
from hf_distill.run.lock import held
from hf_distill.run.processes import check_same, check_shared, done, end_together
from hf_distill.run.scratch import keep_scratch_in
from hf_distill.run.stage import key_of, listed, stage
from hf_distill.scoring.lists import (
    ScoredLists,
    Sources,
    check_candidates,
    open_lists,
    score_lists,
)
from hf_distill.scoring.ranking import LEAST_NEGATIVES, Ranking, rank_in_pool
from hf_distill.scoring.scores import Scores, score_collection, shards_of
from hf_distill.scoring.second import second_view
from hf_distill.selection.rules import Rule, parse_rules
from hf_distill.selection.second import check_second_model
from hf_distill.selection.select import Selection, SelectionInputs, select_pairs
from hf_distill.serving.index import keep_index
from hf_distill.student.build import backbone_identity, build_student
from hf_distill.student.initialise import Initialisation, initialise
from hf_distill.student.lengths import TextLengths, text_lengths
from hf_distill.student.save import save_student
from hf_distill.student.space import TEACHER, in_space
from hf_distill.teachers.base import EmbeddingTeacher, PairTeacher, Teacher
from hf_distill.teachers.load import load_teacher
from hf_distill.teachers.ranker import load_miner, load_ranker, load_second
from hf_distill.training.between import Measure
from hf_distill.training.hardware import on_this_machine
from hf_distill.training.mined_again import mine_again
from hf_distill.training.rehearsal import check_strategy, check_training
from hf_distill.training.rows import Chosen, EveryText, Rows, check_negatives, training_rows
from hf_distill.training.sources import check_mixing, check_sources
from hf_distill.training.stages import StageRecord, TrainingTask, check_batch, lists_again
from hf_distill.training.terms import parse_terms
from hf_distill.training.texts import wanted_pool
from hf_distill.training.train import (
    TrainingRecord,
    check_amounts,
    check_lists_scale,
    check_objective,
    check_place,
    sizes_with,
    student_sizes,
    train_student,
)

_SHARED = ("teacher", "second", "collection", "scores")
"""Results that do not depend on what a study changes: selection, student, objective, training."""
_OF_LISTS = ("ranker", "miners", "lists", "ranking")
"""The same, if both mine the same lists."""


def _timed(say: Callable[[], str]) -> str:
    """What `say` returns, with the seconds that it took at the end of its first line."""
    start = time.perf_counter()
    first, *rest = say().split("\n", 1)
    return "\n".join([f"{first}, {time.perf_counter() - start:,.1f} s", *rest])


class Run:
    """A recipe, its folder, and each stage's result.

    Attributes:
        recipe: The resolved recipe.
        folder: Where the results are kept.
        sizes: How large the student is, once the run is open.
    """

    def __init__(self, recipe: Recipe, folder: RunFolder) -> None:
        self.recipe = recipe
        self.folder = folder
        self.sizes = Sizes()
        keep_scratch_in(folder.cache)

    @classmethod
    def open(cls, recipe: Recipe) -> Run:
        """Open the run of `recipe`, after every check that is possible before any work. Nothing is
        written.

        Raises:
            InputError: The folder belongs to another run, a model cannot be loaded, the student
                cannot be built, or the objective needs something that the teacher does not have.
        """
        use_all_cores(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        check_each_stage(recipe, lambda stage: check_strategy(stage.training))
        end_together()
        check_folders(recipe)
        check_files(recipe)
        recipe = on_this_machine(recipe)
        versions = describe_environment()["packages"]
        check_same({**deciding(recipe.keys()), "device": device_type(), **versions})
        check_shared(written_folders(recipe))
        run = cls(recipe, open_run_folder(recipe))
        check_publishing(recipe)
        load_kind(recipe.data.dataset, SOURCES, "dataset")
        check_tasks(recipe.data)
        check_pool_path(recipe)
        check_each_stage(recipe, lambda stage: parse_terms(stage.training))
        check_each_stage(recipe, lambda stage: check_mixing(stage.training))
        if not run.wants("score"):
            return run
        recipe = run.recipe = in_space(recipe, run.teacher)
        run.load_beside()
        scorer = run.ranker or run.teacher
        check_each_stage(recipe, lambda stage: check_lists_scale(stage.training, scorer))
        check_each_stage(recipe, lambda stage: check_objective(stage, run.teacher, run.rules))
        student = build_student(recipe.student, run.teacher, None, recipe.seed)
        run.sizes = student_sizes(student)
        check_space(recipe, plan(recipe, run.sizes))
        if run.wants("train"):
            watched_measure(recipe)
            check_training(recipe, student)
        return run

    def with_recipe(self, recipe: Recipe) -> Run:
        """A run of `recipe` in the same folder, which shares teacher, collection and scores with
        this one, and lists, if it has the same.
        """
        recipe = on_this_machine(recipe)
        if recipe.training.student_space == TEACHER:
            recipe = in_space(recipe, self.teacher)
        other = Run(recipe, self.folder)
        same_lists = recipe.lists == self.recipe.lists
        for name in (*_SHARED, *(_OF_LISTS if same_lists else ())):
            if name in vars(self):
                vars(other)[name] = vars(self)[name]
        return other

    def wants(self, name: str) -> bool:
        """Whether the recipe goes as far as this stage. After the training, the main process works
        alone.
        """
        alone = STAGES.index(name) > STAGES.index("train")
        if alone and not PartialState().is_main_process:
            return False
        return STAGES.index(name) <= STAGES.index(self.recipe.run.until)

    def stages(self) -> Iterator[str]:
        """Make or reuse the wanted stages in their order, and yield a summary of each. Meanwhile a
        second call in the same folder is refused.
        """
        with held(self.folder):
            yield from self._stages()
        done()

    def _stages(self) -> Iterator[str]:
        # Not in `open`: a study opens a run for other rules.
        check_second_model(self.rules, self.recipe.selection.second_model)
        read = _timed(lambda: self.collection.summary())  # noqa: PLW0108  # the property makes it
        yield explain(self.collection) if self.recipe.run.explain else read
        if PartialState().is_main_process:
            save_recipe(self.recipe, self.folder)
        evaluates = STAGES.index(self.recipe.run.until) >= STAGES.index("evaluate")
        if self.wants("score"):
            recipe, teacher = self.recipe, self.teacher
            miners = self.miners.values()
            sizes = sizes_with(self.sizes, self.collection, teacher, recipe, miners)
            yield check_space(recipe, plan(recipe, sizes))
            if self.wants("train") and self.further_texts is not None:
                yield self.further_texts.summary()
            if evaluates and self.further_tasks.summary:
                yield self.further_tasks.summary
            yield self.lengths.summary()
            yield self.scores.summary()
        if self.wants("select") and self.lists is not None:
            yield self.lists.summary()
        if self.wants("select") and self.has_pairs:
            yield _timed(lambda: self.selection.summary())  # noqa: PLW0108  # the property makes it
        if self.wants("train"):
            yield self.training.summary()
            yield from self._mined_again()
        if self.wants("evaluate"):
            yield _timed(self._report)
            yield from self._index()
            save_made_with(self.recipe, self.folder)
        if self.wants("release"):
            yield from self.release()
        if self.wants("evaluate"):
            yield self.conclusion()

    def _mined_again(self) -> Iterator[str]:
        """The lists that the student mined between the stages of its training."""
        if not self.has_pairs:
            return
        for folder in self._stage_folders(self.selection, self._checkpoints):
            lists = open_lists(lists_again(folder), self.collection)
            if lists is not None:
                yield lists.summary()

    def _report(self) -> str:
        """Evaluate, and write the report. Returns what was measured on, for a terminal."""
        if isinstance(self.results, RunResults):
            write_report(self.results)
            retrieval = self.results.evaluation.retrieval
            return (
                f"Measured {len(retrieval.systems)} systems on {retrieval.num_queries:,} held-out "
                "queries"
            )
        write_texts_report(self.results)
        held_out = self.collection.record.texts
        number = 0 if held_out is None else held_out.test
        return f"Measured the student on {number:,} held-out texts"

    def _index(self) -> Iterator[str]:
        """Keep an index of the documents for the first search, where the student embeds them."""
        results = self.results
        if isinstance(results, RunResults) and results.recipe.training.student_space == "own":
            yield _timed(lambda: keep_index(results))

    # --- the stages -------------------------------------------------------------------------------

    @cached_property
    def rules(self) -> list[Rule]:
        """The selection's rules."""
        return parse_rules(self.recipe.selection.selection)

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher, loaded."""
        return load_teacher(self.recipe)

    @cached_property
    def ranker(self) -> PairTeacher | None:
        """What scores the lists, loaded; None: the teacher does."""
        return load_ranker(self.recipe)

    @cached_property
    def miners(self) -> dict[str, EmbeddingTeacher]:
        """The bi-encoders beside the teacher that mine candidates, loaded."""
        named = [name for name in self.recipe.lists.candidates if name not in NAMED]
        return {name: load_miner(self.recipe, name) for name in named}

    @cached_property
    def second(self) -> EmbeddingTeacher | None:
        """The second model of the selection, loaded; None if none is named."""
        return load_second(self.recipe)

    def load_beside(self) -> None:
        """Load the models beside the teacher, so that what cannot be loaded is said at once."""
        _ = self.ranker, self.miners, self.second

    @cached_property
    def collection(self) -> Collection:
        """The pairs, read and split without leaks."""
        collection = load_collection(self.recipe, self.folder)
        if self.wants("score"):
            checks: list[Callable[[Recipe], object]] = [
                lambda stage: check_amounts(collection, stage.training),
                lambda stage: check_sources(collection, stage.training),
                lambda stage: check_negatives(collection, self.teacher, stage),
                lambda stage: check_candidates(collection, self.teacher, stage),
            ]
            for check in checks:
                check_each_stage(self.recipe, check)
            validation = len(collection.pairs("validation"))
            check_place(self.recipe.specialise, validation)
        return collection

    @cached_property
    def further_texts(self) -> FurtherTexts | None:
        """Texts beyond the run's own, for the pool; None if none are named."""
        return load_further_texts(self.recipe, self.collection, self.folder)

    @property
    def has_pairs(self) -> bool:
        """Whether the run is on pairs, and not on texts alone."""
        return self.collection.record.texts is None

    @cached_property
    def lengths(self) -> TextLengths:
        """How long the texts are for teacher and student, and how many they cut."""
        return text_lengths(self)

    @cached_property
    def scores(self) -> Scores:
        """The teacher's score of every pair, and its embedding of every text."""
        return score_collection(self.collection, self.teacher, self.recipe, self.folder)

    @cached_property
    def further_tasks(self) -> FurtherTasks:
        """The further tasks of the evaluation. They are read before any scoring, and the teacher
        embeds their texts while all processes are there.
        """
        tasks = with_shared_texts(load_tasks(self.recipe), self.collection)
        for _, task in tasks.values():
            embed_by_teacher(task, self.teacher, self._shards)
        return FurtherTasks.of(tasks)

    @property
    def _shards(self) -> Path:
        return shards_of(self.folder, self.recipe.teacher.teacher_cache)

    @cached_property
    def lists(self) -> ScoredLists | None:
        """The candidates of the training queries, scored; None if none are mined."""
        if not self.recipe.lists.candidates or not self.has_pairs:
            return None
        return score_lists(self._list_sources)

    @property
    def _list_sources(self) -> Sources:
        return Sources(
            recipe=self.recipe,
            folder=self.folder,
            collection=self.collection,
            scores=self.scores,
            teacher=self.teacher,
            ranker=self.ranker,
            miners=self.miners,
            place=self.folder.candidates,
            texts=self._shards,
        )

    @cached_property
    def ranking(self) -> Ranking | None:
        """Where each training pair stands in the list of its query, for the ranker; without lists
        in a pool, for the teacher; None if it embeds no texts.
        """
        if not self.has_pairs:
            return None
        if self.lists is not None:
            most = max(stage.hard_negatives_per_pair for stage in self.recipe.stages)
            return self.lists.ranking(max(LEAST_NEGATIVES, most))
        return rank_in_pool(self.collection, self.scores, self.recipe, self.folder)

    @cached_property
    def selection(self) -> Selection:
        """Which training pairs the student is trained on."""
        selection = select_pairs(self.selection_inputs, self.rules, self.recipe.seed, self.folder)
        kept = len(selection.kept)
        check_each_stage(self.recipe, lambda stage: check_batch(kept, stage.training))
        return selection

    @property
    def chosen(self) -> Chosen:
        """The training rows that are used: a selection, or every text where there are no pairs."""
        if self.has_pairs:
            return self.selection
        return EveryText(self.scores.key, np.arange(self.collection.trained("train")))

    @cached_property
    def selection_inputs(self) -> SelectionInputs:
        """What the rules can read about the training pairs."""
        collection, scores = self.collection, self.scores
        key, view = self.ranking.key if self.ranking else scores.key, None
        if self.second is not None:
            view = second_view(collection, scores, self.second, self.recipe, self.folder)
            key = f"{key} {view.key}"
        return SelectionInputs(
            pairs=collection.pairs("train"),
            scores=scores.of(collection.rows("train")),
            ranking=self.ranking,
            key=key,
            embeddings=scores.embeddings,
            disagreement=None if view is None else view.disagreement,
        )

    @cached_property
    def initialisation(self) -> Initialisation:
        """What is decided about the student from the training pairs, before any training."""
        return initialise(self.recipe, self.teacher, self.collection, self.scores, self.folder)

    def untrained(self) -> SentenceTransformer:
        """The student before training."""
        recipe = self.recipe
        return build_student(recipe.student, self.teacher, self.initialisation, recipe.seed)

    @cached_property
    def training(self) -> TrainingRecord:
        """How the student was trained. The student itself is in `folder.student`."""

        folder = self.folder
        own = listed(folder.training)
        if own is not None:  # what the run added to the student goes with it
            own |= {folder.student / "README.md"}
            exports = (folder.onnx, folder.openvino, folder.model2vec)
            own = own.union(*(listed(path) or () for path in exports))

        def make(key: str) -> TrainingRecord:
            student, record = self.student_on(selection, self._checkpoints, key)
            if PartialState().is_main_process:
                save_student(student, self.folder.student, own)
                remove_router(self.folder)
            return record

        selection = self.chosen
        inputs, files = self.training_inputs(selection), [self.folder.student]
        return stage(self.folder.training, TrainingRecord, inputs, make, files, together=True)

    def training_inputs(self, selection: Chosen) -> list[Any]:
        """Everything that a student trained on `selection` depends on."""
        last = len(self.recipe.stages)
        return [*self._stage_inputs(selection, last), self.recipe.specialise]

    def _stage_inputs(self, selection: Chosen, stages: int) -> list[Any]:
        """Everything that the first stages of its training depend on. What follows them is not
        among it: another last stage, or another place before it, needs no other first one.
        """
        recipe = self.recipe
        identities = backbone_identity(recipe.student), digests_of_plugins(recipe.training.terms)
        return [
            selection.key, vars(recipe.student), identities, recipe.training_keys(stages),
            recipe.training.world_size, wanted_pool(len(selection.kept), recipe.stages),
            *([] if self.further_texts is None else [self.further_texts.record.key]),
            *([] if self.lists is None else [self.lists.key, recipe.lists.choose_candidates]),
        ]  # fmt: skip

    @property
    def _checkpoints(self) -> Path:
        return Path(str(self.recipe.training.output_dir))

    def _stage_folders(self, selection: Chosen, checkpoints: Path) -> tuple[Path, ...]:
        """The folder of each stage of a training in `checkpoints`. Its name says what it is of."""
        return tuple(
            checkpoints / key_of(StageRecord, self._stage_inputs(selection, number))
            for number in range(1, len(self.recipe.stages) + 1)
        )

    def student_on(
        self, selection: Chosen, checkpoints: Path, key: str
    ) -> tuple[SentenceTransformer, TrainingRecord]:
        """Train a student on `selection`, all processes together.

        Args:
            selection: The pairs.
            checkpoints: Folder for checkpoints. Those of a stage are in a folder of its own there,
                whose name says what they are of; an interrupted training resumes from them.
            key: The fingerprint of the training.

        Returns:
            The trained student in evaluation mode, and how it was trained.
        """

        def rows_again(student: SentenceTransformer, place: Path) -> Rows:
            other = copy.copy(self)  # the same results, but for the lists
            vars(other)["lists"] = mine_again(self._list_sources, student, place)
            return training_rows(other, selection, student)

        student = self.untrained()
        rows = training_rows(self, selection, student)
        task = TrainingTask(
            student=student,
            stages=self.recipe.stages,
            names=tuple(self.recipe.schedule.stages),
            rows=rows,
            rows_again=rows_again,
            components=self.initialisation.components,
            scale=self.scores.scale,
            layers=self.initialisation.layers,
            checkpoints=self._stage_folders(selection, checkpoints),
            evaluator=validation_evaluator(self.recipe, self.collection, self.scores),
            specialise=self.recipe.specialise,
            measured=None if self.recipe.specialise is None else self._point_measure(student),
        )
        return student, train_student(task, key)

    def _point_measure(self, student: SentenceTransformer) -> Measure | None:
        """What compares students between the last two stages."""
        collection, scores, seed = self.collection, self.scores, self.recipe.seed
        of = (self.teacher, student, self._shards, seed)
        passages = held_out_passages(collection, scores, *of)
        space = self.recipe.training.student_space
        return point_measure(collection, scores, seed, space, passages)

    @cached_property
    def evaluation(self) -> Evaluation:
        """Every figure, on held-out data. What is measured is what was saved."""

        def make(key: str) -> Evaluation:
            return evaluate(self._subject(), self.folder, self.recipe.seed, key)

        beside = [self.folder.retrieval]
        return stage(self.folder.evaluation, Evaluation, self._evaluated(), make, beside)

    @cached_property
    def texts_evaluation(self) -> TextsEvaluation:
        """The same of a run on texts alone."""

        def make(key: str) -> TextsEvaluation:
            return evaluate_texts(self._subject(), self.folder, self.recipe.seed, key)

        beside = [self.folder.retrieval] if self.further_tasks.digests else []
        return stage(self.folder.evaluation, TextsEvaluation, self._evaluated(), make, beside)

    def _subject(self) -> Subject:
        return Subject(
            student=SentenceTransformer(str(self.folder.student), device=device_type()),
            untrained=self.untrained(),
            teacher=self.teacher,
            collection=self.collection,
            scores=self.scores,
            components=self.initialisation.components,
            training=self.training.key,
            language=self.recipe.data.language,
            space=self.recipe.training.student_space,
            tasks=with_shared_texts(load_tasks(self.recipe), self.collection),
            shards=self._shards,
            student_query=self.recipe.data.student_query,
            reranking=self._reranking,
        )

    @property
    def _reranking(self) -> Reranking | None:
        """What the ranker is measured with; None if nothing ranks lists."""
        options, ranker = self.recipe.lists, self.ranker
        if ranker is None and self.teacher.scores_pairs:
            ranker = cast(PairTeacher, self.teacher)
        if not options.candidates or not options.rerank_queries or ranker is None:
            return None
        shards = shards_of(self.folder, self.recipe.teacher.teacher_cache, "pair")
        return Reranking(ranker, options.rerank_queries, shards)

    def _evaluated(self) -> list[Any]:
        """Everything that an evaluation depends on."""
        return [
            self.training.key, self.collection.key, self.scores.key, self.recipe.data.language,
            list(self.further_tasks.digests.items()),
            *([] if self.lists is None else [self.lists.key, self.recipe.lists.rerank_queries]),
        ]  # fmt: skip

    @cached_property
    def results(self) -> RunResults | TextsResults:
        """Everything that the report and the cards show."""
        common: dict[str, Any] = {
            "recipe": self.recipe,
            "folder": self.folder,
            "collection": self.collection,
            "soft_labels": self.scores.record,
            "training": self.training,
            "lengths": self.lengths,
        }
        if not self.has_pairs:
            return TextsResults(**common, evaluation=self.texts_evaluation)
        return RunResults(
            **common,
            audit=self.selection.audit,
            evaluation=self.evaluation,
            lists=None if self.lists is None else self.lists.record,
        )

    def release(self) -> list[str]:
        """Write the data set and both cards, and publish them if the recipe says so. Returns a
        line for what was written, and for each repository that was published.
        """
        results = self.results
        return [_timed(lambda: self._written(results)), *publish_run(results)]

    def _written(self, results: RunResults | TextsResults) -> str:
        """Write the data set and the cards. Returns what was written, for a terminal."""
        if not isinstance(results, RunResults):
            write_model_card(results)
            return "Written  the student's card; without scored pairs there is no data set"
        write_dataset(results, self.scores, self.ranking, self.selection)
        write_model_card(results)
        return "Written  the data set and both cards"

    def conclusion(self) -> str:
        """The headline figures, and where student and report are."""
        results = self.results
        table = (
            results_table(results.evaluation)
            if isinstance(results, RunResults)
            else texts_table(results.evaluation)
        )
        return f"\n{table}\n\nStudent: {self.folder.student}\nReport:  {self.folder.report}"


def train(recipe: str = "quickstart", **keys: Any) -> RunResults | TextsResults:
    """Run a recipe from data to released student, as `hf-distill train` does.

    Args:
        recipe: A recipe of this package, or the path of a YAML file.
        **keys: Keys that override the recipe's, e.g. `dataset_path="pairs.jsonl"`; None unsets one.

    Returns:
        The results: `folder.student` is the student's folder.

    Raises:
        InputError: Something in the recipe or the data cannot be used; or `until` names a stage
            before the evaluation, where there are no results yet.
    """
    line = [recipe]
    for name, value in keys.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        texts = [
            "none" if v is None else json.dumps(v) if isinstance(v, dict) else str(v)
            for v in values
        ]
        line += [f"--{name}", *(texts or ["none"])]
    run = Run.open(read_recipe(line))
    if STAGES.index(run.recipe.run.until) < STAGES.index("evaluate"):
        raise InputError(
            f"--until {run.recipe.run.until}: train() returns results, which the evaluation makes; "
            "go through Run.open(recipe).stages() instead"
        )
    for said in run.stages():
        PartialState().print(said)
    return run.results
