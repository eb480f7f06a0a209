"""What both cards share: rendering, escaping, and the names that may be told."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData, ModelCardData

from hf_distill.recipe.arguments import (
    TeacherArguments,
    parse_member,
)
from hf_distill.report.page import environment


def escape_markdown(text: str) -> str:
    """`text` on one line, so that no character of it is read as Markdown or HTML."""
    flat = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#+!|~$-])", r"\\\1", flat)


def _interval(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return f"undefined ({figure['undefined']})"
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def render(template: str, **values: Any) -> str:
    jinja = environment()
    jinja.filters["escape_markdown"] = escape_markdown
    jinja.filters["interval"] = _interval
    return jinja.get_template(template).render(**values)


def front_matter(data: DatasetCardData | ModelCardData) -> str:
    return f"---\n{data.to_yaml()}\n---\n"


def hub_id(name: str) -> str | None:
    """`name` if it can be a Hub id and is no folder here, else None: cards never name local
    paths.
    """
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else None


def public_name(name: str) -> str:
    """How a card calls a model: its Hub id, or the last part of a local path."""
    return hub_id(name) or Path(name).name


def public_teacher(arguments: TeacherArguments) -> str:
    """How a card calls the teacher, in Markdown: its public name, or each member's of an ensemble
    with its weight.
    """
    if not arguments.ensemble:
        return f"`{public_name(arguments.teacher)}`"
    members = [parse_member(text) for text in arguments.ensemble]
    return "an ensemble of " + ", ".join(
        f"`{public_name(name)}` ({kind}, weight {weight:g})" for kind, name, weight in members
    )
