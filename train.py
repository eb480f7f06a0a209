"""From pairs to a released student: `accelerate launch train.py [RECIPE] [--key value ...]`.

Each stage is one call whose result feeds the next, and leaves an artefact in the run's folder that
a later call reuses.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

import datasets
import transformers
from accelerate import PartialState
from sentence_transformers import SentenceTransformer

from hf_distill.compute.device import (
    device_type,
    keep_freed_memory,
    use_all_cores,
)
from hf_distill.data.load import load_pair_data
from hf_distill.errors import InputError
from hf_distill.evaluation.evaluate import (
    EVALUATION_FORM,
    evaluate_student,
)
from hf_distill.recipe.arguments import (
    STAGES,
    Recipe,
    read_recipe,
)
from hf_distill.release.dataset_repo import write_dataset
from hf_distill.release.model_card import (
    check_publishing,
    publish_run,
    write_model_card,
)
from hf_distill.release.publish import PublishingError
from hf_distill.report.page import (
    results_table,
    write_report,
)
from hf_distill.run.folder import (
    fingerprint,
    open_run_folder,
    read_json_if_current,
    save_recipe,
    write_json,
)
from hf_distill.scoring.ranking import with_signals
from hf_distill.scoring.scores import score_pairs
from hf_distill.selection.rules import parse_rules
from hf_distill.selection.select import select_pairs
from hf_distill.student.build import (
    backbone_digest,
    build_student,
    draw_blueprint,
)
from hf_distill.student.save import save_student
from hf_distill.teachers.load import load_teacher
from hf_distill.training.train import (
    check_batch,
    check_objective,
    student_rows,
    train_student,
    training_rows,
)

DEFAULT_RECIPE = Path(__file__).parent / "hf_distill" / "recipes" / "quickstart.yaml"


def run(recipe: Recipe) -> None:
    """Run the stages of `recipe` up to `recipe.run.until`."""
    state, seed = PartialState(), recipe.training.seed
    use_all_cores(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    wanted = STAGES[: STAGES.index(recipe.run.until) + 1]

    # Whatever can be refused is refused before anything is written.
    rules = parse_rules(recipe.selection.selection)
    folder = open_run_folder(recipe)
    check_publishing(recipe)
    teacher = load_teacher(recipe.teacher, recipe.data, folder.cache)
    build_student(recipe.student, teacher, None, seed)
    check_objective(recipe, teacher)

    with state.main_process_first():
        data = load_pair_data(recipe.data, seed, folder)
    state.print(data.summary())
    check_batch(len(data.train), recipe.training)
    if state.is_main_process:
        save_recipe(recipe, folder)

    scored = score_pairs(data, teacher, folder, recipe.teacher)
    state.print(scored.summary())
    train, train_key = with_signals(
        scored, recipe.teacher.pool_size, recipe.teacher.hard_negatives, seed, folder
    )
    if "select" not in wanted:
        return

    selected = select_pairs(train, rules, seed, folder, train_key)
    state.print(selected.summary())
    check_batch(len(selected.selected), recipe.training)
    if "train" not in wanted:
        return

    blueprint = draw_blueprint(recipe.student, teacher, scored, folder, seed)
    key = fingerprint(
        selected.key,
        *map(vars, recipe.of_student),
        backbone_digest(recipe.student),
        recipe.training_keys(),
    )
    training = read_json_if_current(folder.training, key)
    if training is not None and folder.student.is_dir():
        state.print(f"The student is there already, trained with these settings: {folder.student}")
    else:
        student = build_student(recipe.student, teacher, blueprint, seed)
        rows = student_rows(selected.selected, train, scored, recipe, teacher, student, folder)
        validation_rows = training_rows(scored.validation, scored.embeddings)
        training = train_student(
            student, recipe, rows, validation_rows, blueprint, scored.scale, key
        )
        if state.is_main_process:
            save_student(student, folder.student)
            write_json(
                folder.training, training
            )  # last: from here on, the student counts as trained
    if "evaluate" not in wanted or not state.is_main_process:
        return  # the other ranks have nothing left to do, and wait for nobody

    # Measured is what was saved, as anyone would load it.
    student = SentenceTransformer(str(folder.student), device=device_type())
    evaluation_key = fingerprint(key, data.key, EVALUATION_FORM)
    evaluation = read_json_if_current(folder.evaluation, evaluation_key)
    if evaluation is None:
        untrained = build_student(recipe.student, teacher, blueprint, seed)
        evaluation = evaluate_student(
            student,
            untrained,
            teacher,
            data,
            scored,
            blueprint.components,
            folder,
            seed,
            evaluation_key,
        )
    write_report(
        evaluation,
        selected.audit,
        training,
        scored.manifest,
        data.counts,
        recipe.keys(),
        recipe.name,
        folder,
    )
    if "release" in wanted:
        write_dataset(scored, selected, recipe, data.source, data.counts, folder)
        write_model_card(evaluation, training, selected.audit, recipe, data, folder)
        for line in publish_run(recipe, folder):
            print(line)
    print(f"\n{results_table(evaluation)}\n\nStudent: {folder.student}\nReport:  {folder.report}")


def main() -> int:
    """Read the command line and run; input that cannot be used is one message and exit code 2."""
    keep_freed_memory()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    warnings.filterwarnings(
        "ignore", message=".*pin_memory.*"
    )  # torch says it once a run where there is no accelerator
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it comes set to DEBUG
    datasets.utils.logging.disable_progress_bar()  # each stage has a bar of its own
    transformers.utils.logging.disable_progress_bar()
    try:
        run(read_recipe(default_recipe=DEFAULT_RECIPE))
    except InputError as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 2
    except PublishingError as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
