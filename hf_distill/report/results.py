"""The results of a finished run: the input of the report, of the cards and of publishing."""

from __future__ import annotations

from dataclasses import dataclass

from hf_distill.data.collection import Collection
from hf_distill.evaluation.results import Evaluation
from hf_distill.recipe.arguments import Recipe
from hf_distill.run.folder import RunFolder
from hf_distill.scoring.scores import SoftLabels
from hf_distill.selection.audit import Audit
from hf_distill.student.lengths import TextLengths
from hf_distill.training.train import TrainingRecord


@dataclass(frozen=True)
class RunResults:
    """The results of a run's stages, up to its evaluation.

    Attributes:
        recipe: What was run.
        folder: Where its files are.
        collection: Its queries, documents and judgements.
        soft_labels: How the teacher scored them.
        audit: What the selection did.
        training: How the student was trained.
        evaluation: What was measured on held-out data.
        lengths: How many texts teacher and student cut.
    """

    recipe: Recipe
    folder: RunFolder
    collection: Collection
    soft_labels: SoftLabels
    audit: Audit
    training: TrainingRecord
    evaluation: Evaluation
    lengths: TextLengths
