"""The metric `fidelity`; `evaluate.load` takes this folder."""
