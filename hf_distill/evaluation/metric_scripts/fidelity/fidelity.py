"""How closely a student's scores follow its teacher's, as an `evaluate.Metric`."""

# One module per line: `evaluate.load` reads the imports by a pattern.
import dataclasses
from typing import Any

import datasets
import evaluate
import numpy as np

from hf_distill.evaluation.fidelity import fidelity

_DESCRIPTION = """Fidelity of a student's scores to a teacher's scores of the same (query, document)
pairs: Pearson, Spearman, Kendall, mean absolute and root mean squared error, bias, expected
calibration error, and the student as a classifier of the teacher's score."""
_INPUTS = """
Args:
    predictions: the student's scores, one per pair.
    references: the teacher's scores of the same pairs.
    seed: seeds the bootstrap intervals; 0 if not given.
Returns:
    pearson, spearman, kendall, mae, rmse, bias, expected_calibration_error; f1, roc_auc and
    average_precision against the teacher's scores cut at their median: floats, or None where
    undefined. details: each with its 95% interval or the reason why it is undefined, by range of
    the teacher's score, the calibration curve, and a second threshold.
Examples:
    >>> from hf_distill.evaluation.metrics import Fidelity
    >>> scores = {"predictions": [0.2, 0.5, 0.9], "references": [0.1, 0.5, 0.8]}
    >>> Fidelity().compute(**scores)["spearman"]
    1.0
"""


class Fidelity(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """`Fidelity().compute(predictions=student_scores, references=teacher_scores)`; see
    `.inputs_description`.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
        )
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=features
        )

    def _compute(
        self, predictions: list[float], references: list[float], seed: int = 0
    ) -> dict[str, Any]:
        details = fidelity(
            np.asarray(references, dtype=np.float64),
            np.asarray(predictions, dtype=np.float64),
            seed,
        )
        decision = details.decisions["median"]
        return {
            "pearson": details.pearson.value,
            "spearman": details.spearman.value,
            "kendall": details.kendall.value,
            "mae": details.mae.value,
            "rmse": details.rmse.value,
            "bias": details.bias.value,
            "expected_calibration_error": details.calibration.expected_error.value,
            "f1": decision.f1.value,
            "roc_auc": decision.roc_auc.value,
            "average_precision": decision.average_precision.value,
            "details": dataclasses.asdict(details),
        }
