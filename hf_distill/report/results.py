"""The results of a finished run: the input of the report, of the cards and of publishing."""

from __future__ import annotations

from dataclasses import dataclass

from hf_distill.data.collection import Collection
from hf_distill.evaluation.results import Evaluation
from hf_distill.evaluation.texts_results import TextsEvaluation
from hf_distill.recipe.arguments import Recipe
from hf_distill.run.folder import RunFolder
from hf_distill.scoring.lists import ListsRecord
from hf_distill.scoring.scores import SoftLabels
from hf_distill.selection.audit import Audit
from hf_distill.student.lengths import TextLengths
from hf_distill.training.train import TrainingRecord


@dataclass(frozen=True, kw_only=True)
class CommonResults:
    """What every run has.

    Attributes:
        recipe: What was run.
        folder: Where its files are.
        collection: Its queries, documents and judgements, or its texts.
        soft_labels: How the teacher scored or embedded them.
        training: How the student was trained.
        lengths: How many texts teacher and student cut.
    """

    recipe: Recipe
    folder: RunFolder
    collection: Collection
    soft_labels: SoftLabels
    training: TrainingRecord
    lengths: TextLengths


@dataclass(frozen=True, kw_only=True)
class RunResults(CommonResults):
    """The results of a run's stages, up to its evaluation.

    Attributes:
        audit: What the selection did.
        evaluation: What was measured on held-out data.
        lists: How its lists were mined and scored; None: there are none.
    """

    audit: Audit
    evaluation: Evaluation
    lists: ListsRecord | None = None


@dataclass(frozen=True, kw_only=True)
class TextsResults(CommonResults):
    """The same of a run on texts alone: there are no pairs to select.

    Attributes:
        evaluation: What was measured on held-out texts.
    """

    evaluation: TextsEvaluation
