"""`evaluate.Metric`s: instantiate them, or give their folder to `evaluate.load`, here or pushed to
a Space of the Hub.

Several processes that compute at the same time need `keep_in_memory=True`, or an `experiment_id`
each.
"""

from pathlib import Path

from hf_distill.evaluation.metric_scripts.fidelity.fidelity import Fidelity
from hf_distill.evaluation.metric_scripts.retrieval.retrieval import Retrieval

__all__ = ["FIDELITY", "RETRIEVAL", "Fidelity", "Retrieval"]

_SCRIPTS = Path(__file__).parent / "metric_scripts"
FIDELITY = str(_SCRIPTS / "fidelity")
"""The folder for `evaluate.load(FIDELITY)`."""
RETRIEVAL = str(_SCRIPTS / "retrieval")
"""The folder for `evaluate.load(RETRIEVAL)`."""
