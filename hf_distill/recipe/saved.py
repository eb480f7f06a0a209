"""The recipe in a run's folder is data, and the folder may be somebody else's. What it says about
the student is read. What it says about this machine counts only if the command line says so too.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from hf_distill.errors import InputError, printable
from hf_distill.recipe.kinds import PLUGIN, RULES, TEACHERS

ENVIRONMENT_KEY = "environment"
"""The only key of a saved recipe that is not a flag: what the run was made with."""

_RUN_FILES = ("pairs/manifest.json", "soft_labels/manifest.json", "student_model_sd/modules.json")
"""What stands beside a recipe in the folder of a run."""

_WRITTEN = ("run_dir", "output_dir", "teacher_cache")
_TRUSTED = ("trust_remote_code", "teacher_url", "chat_url", "hub_token", "push_to_hub", "report_to")
"""Keys that run code, or use the tokens of whoever runs the recipe."""

_CODE = ("dataset", "format", "teacher_kind", "selection", "terms", "ensemble", "ranker")
"""Keys whose values can name code: `package.module:name`."""

_KINDS = {"selection": RULES, "ensemble": TEACHERS, "ranker": TEACHERS}
"""Key -> what may stand before a colon there and is of this package, as in `echo:weight=0.5`."""

_log = logging.getLogger(__name__)


def is_saved(path: Path, content: Mapping[Any, Any]) -> bool:
    """Whether a recipe is that of a run's folder: by what it holds, or by what is beside it."""
    return ENVIRONMENT_KEY in content or any((path.parent / name).exists() for name in _RUN_FILES)


def saved_name(content: Mapping[str, Any], path: Path) -> str:
    """The name of the recipe that a run's folder was made with; else the folder's own."""
    saved = content.get(ENVIRONMENT_KEY)
    name = saved.get("recipe") if isinstance(saved, dict) else None
    plain = isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name
    return str(name) if plain else path.resolve().parent.name


def obeyed(
    content: Mapping[str, Any], path: Path, said: Collection[str], runs: bool
) -> dict[str, Any]:
    """The keys of a saved recipe that are obeyed. A line says which others it holds: it may not
    let code run, nor use a token, nor choose a folder outside its own to write to.

    Args:
        content: All its keys.
        path: The file.
        said: Keys of the command line, which override the file's.
        runs: Whether what it names would run; else it is only shown.

    Raises:
        InputError: It names code of its own, which would run.
    """
    folder = path.resolve().parent
    ignored = {
        key: content[key]
        for key in (*_TRUSTED, *_WRITTEN)
        if key not in said and content.get(key) not in (None, False, "none", "None", [], ["none"])
    }
    for key in set(_WRITTEN) & ignored.keys():
        if Path(str(ignored[key])).resolve().is_relative_to(folder):
            del ignored[key]
    kept = {key: value for key, value in content.items() if key not in ignored}
    if "push_to_hub" in ignored:  # what it would publish, and where
        kept = {key: value for key, value in kept.items() if not str(key).startswith("hub_")}
    if ignored:
        told = ", ".join(
            key if key.endswith("_token") else f"{key} {value}" for key, value in ignored.items()
        )
        _log.warning(
            printable(
                f"{path} is data, which does not decide what runs on this machine. Not obeyed: "
                f"{told}. If you want it, say so on the command line"
            )
        )
    for key in _CODE if runs else ():
        values = content.get(key) if key not in said else None
        for text in map(str, values if isinstance(values, list) else [values]):
            of_package = text.split(":")[0] in _KINDS.get(key, {})
            if PLUGIN.match(text) and not of_package:
                raise InputError(
                    f"--{key} {text}: {path} names code that is not of this package, and a saved "
                    f"recipe runs none; if you trust it, give --{key} on the command line"
                )
    return kept
