"""A student in the teacher's own space: a query encoder for documents that the teacher has embedded
(`student_space: teacher`).
"""

from __future__ import annotations

import dataclasses
from typing import cast

from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, Pooling

from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe, StudentArguments
from hf_distill.recipe.check import check_matryoshka
from hf_distill.teachers.base import EmbeddingTeacher, Teacher

TEACHER = "teacher"
"""The `student_space` of a query encoder."""


def in_space(recipe: Recipe, teacher: Teacher) -> Recipe:
    """`recipe` with the student's dimension decided: in the teacher's space it is the teacher's.

    Raises:
        InputError: The teacher has no such space, or does not compare by cosine; or the recipe
            wants other dimensions, or a head that leads elsewhere.
    """
    student = recipe.student
    if recipe.training.student_space != TEACHER:
        return recipe
    if not teacher.embeds:
        raise InputError(
            f"--student_space teacher: {teacher.name} scores pairs and embeds no texts, so there "
            "is no space to embed into; name a teacher that embeds texts, or set --student_space "
            "own"
        )
    if teacher.scale.similarity != "cosine":
        raise InputError(
            f"--student_space teacher: the scores of {teacher.name} are {teacher.scale}, and a "
            "student's embedding has unit length, so it cannot follow them; set "
            "--teacher_similarity cosine, and let the index of the documents compare by cosine "
            "(with embeddings of unit length, a dot product is the same)"
        )
    dimension = cast(EmbeddingTeacher, teacher).dimension
    if "student_dim" in recipe.given and student.student_dim != dimension:
        raise InputError(
            f"--student_dim {student.student_dim}: --student_space teacher, and the embeddings of "
            f"{teacher.name} have {dimension} dimensions; set it to {dimension}, or leave it out"
        )
    if student.student_init != "random":
        raise InputError(
            f"--student_init {student.student_init}: in the teacher's space the head leads there "
            "from the start, and not to principal components; leave it out, or set --student_space "
            "own"
        )
    recipe = dataclasses.replace(
        recipe,
        student=dataclasses.replace(student, student_dim=dimension),
        given=recipe.given | {"student_dim"},
    )
    check_matryoshka(recipe)
    return recipe


def starts_as_teacher(arguments: StudentArguments, teacher: Teacher) -> bool:
    """Whether the backbone, with all of its layers and no head, is the teacher: then the identity
    leads into the teacher's space.
    """
    if arguments.student_backbone != "teacher" or teacher.backbone is None:
        return False
    modules = [m for m in teacher.backbone if not isinstance(m, (Dropout, Normalize))]
    if [type(module) for module in modules] != [Transformer, Pooling]:
        return False
    pooling = modules[1]
    return bool(pooling.pooling_mode == arguments.student_pooling and pooling.include_prompt)
