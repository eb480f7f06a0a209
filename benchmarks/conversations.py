"""A student that reads conversations against one that reads bare utterances, both trained by the
recipe `conversations` for 160 steps, on held-out conversations.

    python benchmarks/conversations.py FOLDER TRAIN TEST [TURNS]

FOLDER gets both runs (an earlier call's are reused). TRAIN and TEST are QReCC's files, TURNS is a
file of the format `turns`, from which nothing is trained. It takes some ten minutes on two cores.
The last line is JSON: nDCG@10 of each system on each test set.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

import hf_distill
from hf_distill.evaluation.results import ON_QUERY, ON_UTTERANCE, STUDENT, TEACHER, TaskResults
from hf_distill.evaluation.significance import compare_systems
from hf_distill.recipe.arguments import CONVERSATION, UTTERANCE
from hf_distill.report.headline import probability, with_interval

SHORT = {
    "max_steps": 160, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False,
    "early_stopping_patience": None,
}  # fmt: skip
"""Minutes on two cores."""


def main() -> None:
    """Train both and print a table for each test set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("folder", "train", "test"):
        parser.add_argument(name, type=Path)
    parser.add_argument("turns", type=Path, nargs="?")
    parser.add_argument("--teacher", default="sentence-transformers/all-MiniLM-L6-v2")
    given = parser.parse_args()
    tasks: dict[str, dict[str, TaskResults]] = {}
    for student_query in (CONVERSATION, UTTERANCE):
        results = hf_distill.train(
            "conversations",
            student_query=student_query,
            run_dir=given.folder / student_query,
            dataset_path=given.train,
            test_path=given.test,
            eval_tasks=[given.turns] if given.turns else None,
            teacher=given.teacher,
            **SHORT,
        )
        tasks[student_query] = results.evaluation.tasks
    figures: dict[str, dict[str, float]] = {}
    for name, task in tasks[CONVERSATION].items():
        other = tasks[UTTERANCE][name]
        systems = {
            "teacher on the rewrite": (task, TEACHER),
            "student of conversations, on the rewrite": (task, ON_QUERY),
            "student of conversations": (task, STUDENT),
            "student of conversations, on the bare utterance": (task, ON_UTTERANCE),
            "student of bare utterances": (other, STUDENT),
        }
        own = np.array(task.per_query.systems[STUDENT])
        compared = compare_systems(
            {
                what: (own, np.array(of.per_query.systems[system]))
                for what, (of, system) in systems.items()
                if what != "student of conversations"
            },
            seed=42,
        )
        print(f"\n{name}: {len(own)} queries")
        print("| | nDCG@10 | student of conversations minus it | p |\n|---|---:|---:|---:|")
        for what, (of, system) in systems.items():
            mean, row = of.retrieval.systems[system]["nDCG@10"], compared.get(what)
            difference, p = ("", "")
            if row is not None:
                difference = with_interval(row.difference)
                p = probability(row.tests["randomisation"].p_holm)
            print(f"| {what} | {with_interval(mean)} | {difference} | {p} |")
            figures.setdefault(name, {})[what] = round(mean.value or 0.0, 4)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
