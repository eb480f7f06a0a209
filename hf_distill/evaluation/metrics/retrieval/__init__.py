"""The metric `retrieval`; `evaluate.load` takes this folder."""
