"""`evaluate.Metric`s: instantiate them, or give their folder to `evaluate.load`, here or pushed to
a Space of the Hub.

Several processes that compute at the same time need `keep_in_memory=True` or an `experiment_id` of
their own.
"""

from pathlib import Path

from hf_distill.evaluation.metrics.fidelity.fidelity import Fidelity
from hf_distill.evaluation.metrics.retrieval.retrieval import Retrieval

__all__ = ["FIDELITY", "RETRIEVAL", "Fidelity", "Retrieval"]

FIDELITY = str(Path(__file__).parent / "fidelity")
"""The folder for `evaluate.load(FIDELITY)`."""
RETRIEVAL = str(Path(__file__).parent / "retrieval")
"""The folder for `evaluate.load(RETRIEVAL)`."""
