"""Teachers: who scores the pairs. `load_teacher` gives the kind that a recipe names."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hf_distill.compute.models import load_sentence_transformer
from hf_distill.recipe.arguments import (
    DataArguments,
    TeacherArguments,
    parse_member,
)
from hf_distill.teachers.base import (
    SCALES,
    EmbeddingTeacher,
    Kind,
    PairTeacher,
    Scale,
    Teacher,
    pair_similarity,
    similarity,
)
from hf_distill.teachers.bi_encoder import (
    BiEncoderTeacher,
    load_bi_encoder,
)
from hf_distill.teachers.cross_encoder import (
    CrossEncoderTeacher,
    load_cross_encoder,
)
from hf_distill.teachers.endpoint import (
    EndpointTeacher,
    load_endpoint,
)
from hf_distill.teachers.ensemble import EnsembleTeacher
from hf_distill.teachers.precomputed import (
    PrecomputedEmbeddings,
    PrecomputedScores,
    load_precomputed,
)

__all__ = [
    "SCALES",
    "BiEncoderTeacher",
    "CrossEncoderTeacher",
    "EmbeddingTeacher",
    "EndpointTeacher",
    "EnsembleTeacher",
    "Kind",
    "PairTeacher",
    "PrecomputedEmbeddings",
    "PrecomputedScores",
    "Scale",
    "Teacher",
    "load_sentence_transformer",
    "load_teacher",
    "pair_similarity",
    "prompts_of",
    "similarity",
]


def prompts_of(teacher: Teacher) -> dict[str, str]:
    """What stands before each `query` and `document`, for this teacher and its student; empty where
    nothing does.
    """
    kinds: tuple[Kind, ...] = ("query", "document")
    if isinstance(teacher, EmbeddingTeacher):
        return {kind: teacher.prompted("", kind) for kind in kinds}
    return {kind: getattr(teacher, f"{kind}_prompt", "") for kind in kinds}


def load_teacher(arguments: TeacherArguments, data: DataArguments, cache: Path) -> Teacher:
    """Load the teacher that `arguments` describe.

    Args:
        arguments: Which kind, and what of it.
        data: Names of the columns, for a precomputed teacher.
        cache: Where files are prepared for reading.

    Raises:
        InputError: As the loaders of each kind.
    """
    if arguments.teacher_kind == "ensemble":
        members, weights = [], []
        for text in arguments.ensemble:
            kind, name, weight = parse_member(text)
            member = dataclasses.replace(arguments, teacher_kind=kind, teacher=name)
            members.append(load_teacher(member, data, cache))
            weights.append(weight)
        return EnsembleTeacher(tuple(members), tuple(weights), arguments.ensemble_normalization)
    if arguments.teacher_kind == "cross-encoder":
        return load_cross_encoder(arguments)
    if arguments.teacher_kind == "endpoint":
        return load_endpoint(arguments)
    if arguments.teacher_kind == "precomputed":
        return load_precomputed(arguments, data, cache)
    return load_bi_encoder(arguments)
