"""Run in a process of its own, by any Python: a runtime embeds texts with a student (see
`hf_distill.release.parity`).

Reads one JSON object from standard input, writes a .npy, and prints a line of JSON with the
versions of the packages and what is missing. Imports nothing of this project.
"""

from __future__ import annotations

import json
import runpy
import sys
from importlib.metadata import PackageNotFoundError, version


def main() -> None:
    """Look up the packages; embed, if there are texts and all packages are installed."""
    wanted = json.load(sys.stdin)
    versions, missing = {}, []
    for name in wanted["packages"]:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            missing.append(name)
    if wanted["out"] and not missing:
        import numpy as np  # noqa: PLC0415  (an environment without it is told what is missing)

        embed = runpy.run_path(wanted["runtime"])["embed"]
        parts = embed(wanted["student"], wanted["queries"], wanted["documents"])
        np.save(wanted["out"], np.concatenate([np.asarray(p, dtype=np.float32) for p in parts]))
    print(json.dumps({"versions": versions, "missing": missing}), flush=True)


if __name__ == "__main__":
    main()
