"""Lists that the student mines between two stages of its training.

What a miner finds is hard for the student only as long as the student confuses it. So the negatives
are refreshed by the model that is trained, as in ANCE (Xiong et al. 2020, arXiv:2007.00808). It
happens between stages: the student is then on disk as a result of its own, so lists mined by it
depend on files alone, and a killed training goes on as if nothing had happened.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from accelerate import PartialState
from sentence_transformers import SentenceTransformer

from hf_distill.candidates.mine import GIVEN, WORDS
from hf_distill.scoring.lists import ScoredLists, Sources, score_lists
from hf_distill.student.save import save_student
from hf_distill.teachers.ranker import load_miner

STUDENT = "student"
"""The name of the miner."""


def mine_again(sources: Sources, student: SentenceTransformer, folder: Path) -> ScoredLists:
    """Lists in which the student takes the place of the bi-encoders that mined, or, if there were
    none, stands beside the other miners. Pairs that the ranker has scored are not scored again. All
    processes call it together.

    Args:
        sources: What the lists before were mined and scored with.
        student: As it is now; not changed, but it may be on the CPU afterwards.
        folder: The lists are kept in it, with the student and its embeddings.
    """
    saved = folder / STUDENT
    if PartialState().is_main_process:
        save_student(student, saved)
    PartialState().wait_for_everyone()
    recipe = sources.recipe
    others = [name for name in recipe.lists.candidates if name in (GIVEN, WORDS)]
    lists = dataclasses.replace(recipe.lists, candidates=[STUDENT, *others])
    again = dataclasses.replace(
        sources,
        recipe=dataclasses.replace(recipe, lists=lists),
        miners={STUDENT: load_miner(recipe, str(saved))},
        place=folder,
        texts=folder / "texts",
    )
    return score_lists(again)
