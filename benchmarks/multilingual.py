"""A small student of many languages from a teacher of many languages and parallel sentences:
questions in one language against paragraphs in another.

    python benchmarks/multilingual.py FOLDER --teacher T --parallel TATOEBA --sts STSB --test XQUAD

FOLDER gets the run (an earlier call's stages are reused). Of each language, the recipe
`multilingual` reads sentences of Tatoeba (`eng-deu.jsonl`, ...) and the rows of STS-B, which stand
in the same order in all languages (`en.train.jsonl`, `de.train.jsonl`, ...). The test is XQuAD
(`de/queries.jsonl` against `en/corpus.jsonl`, ...); nothing is trained on it. Teachers that want
prompts get them by --keys, e.g. "query_prompt=query: ". The last line is JSON: nDCG@10 of teacher
and student in each language, and the student's parameters.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import hf_distill
from hf_distill.evaluation.results import STUDENT, TEACHER, UNTRAINED
from hf_distill.report.headline import NDCG, with_interval

LANGUAGES = {"de": "deu", "es": "spa", "zh": "cmn"}
"""Names of a language in XQuAD and STS-B, and in Tatoeba."""
SHORT = {
    "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False,
    "early_stopping_patience": None,
}  # fmt: skip


def lines(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a JSONL file."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def parallel_sts(sts: Path, language: str, path: Path) -> None:
    """Write the sentences of STS-B in English and in another language, each pair once."""
    rows = zip(lines(sts / "en.train.jsonl"), lines(sts / f"{language}.train.jsonl"), strict=True)
    pairs = {
        (english[side], other[side])
        for english, other in rows
        for side in ("sentence1", "sentence2")
    }
    text = "".join(
        json.dumps({"english": english, "translation": other}) + "\n"
        for english, other in sorted(pairs)
    )
    path.write_text(text, encoding="utf-8")


def across(xquad: Path, language: str, folder: Path) -> Path:
    """A BEIR folder of questions in one language and paragraphs in English."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    shutil.copy(xquad / language / "queries.jsonl", folder)
    shutil.copy(xquad / "en" / "corpus.jsonl", folder)
    shutil.copy(xquad / language / "qrels" / "test.tsv", folder / "qrels")
    return folder


def main() -> None:
    """Train, measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--teacher", required=True, help="A folder or a Hub id.")
    for name in ("parallel", "sts", "test"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--max_steps", type=int, default=1500, help="Default: 1,500.")
    parser.add_argument(
        "--keys", nargs="*", default=[], metavar="KEY=VALUE", help="Further keys of the recipe."
    )
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    sources, tasks = [], []
    for language, code in LANGUAGES.items():
        sts = given.folder / f"sts-{language}.jsonl"
        parallel_sts(given.sts, language, sts)
        sources += [f"{code}={given.parallel / f'eng-{code}.jsonl'}", f"sts-{language}={sts}"]
        tasks.append(across(given.test, language, given.folder / f"{language}-en"))
    results = hf_distill.train(
        "multilingual",
        run_dir=given.folder / "run",
        sources=sources,
        eval_tasks=tasks,
        teacher=given.teacher,
        max_steps=given.max_steps,
        **SHORT,
        **dict(key.split("=", 1) for key in given.keys),
    )
    figures: dict[str, dict[str, float | None]] = {}
    print(f"| questions | teacher | student | untrained student | of the teacher's {NDCG} |")
    print("|---|---:|---:|---:|---:|")
    for language, task in zip(LANGUAGES, results.evaluation.tasks.values(), strict=True):
        systems, ratio = task.retrieval.systems, task.retrieval.student_over_teacher
        row = [with_interval(systems[name][NDCG]) for name in (TEACHER, STUDENT, UNTRAINED)]
        print(f"| {language} | {' | '.join(row)} | {ratio and with_interval(ratio)} |")
        figures[language] = {name: systems[name][NDCG].value for name in (TEACHER, STUDENT)}
        figures[language]["ratio"] = None if ratio is None else ratio.value
    parameters = results.evaluation.efficiency.systems[STUDENT].parameters
    print(f"The student has {parameters / 1e6:.1f} million parameters.")
    print(json.dumps({"parameters": parameters, **figures}))


if __name__ == "__main__":
    main()
