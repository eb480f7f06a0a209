"""Reading a recipe: a flat YAML file, and flags that win over it. Nothing is measured or loaded."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import re
import types
from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import torch
from transformers import HfArgumentParser

from hf_distill.errors import InputError, printable
from hf_distill.recipe.arguments import PARTS, STAGE_KEYS, Recipe, trainer_names
from hf_distill.recipe.check import check_recipe
from hf_distill.recipe.config import DistillationConfig
from hf_distill.recipe.no_effect import nearest
from hf_distill.recipe.saved import ENVIRONMENT_KEY, is_saved, obeyed, saved_name
from hf_distill.recipe.yaml_text import read_yaml

DEFAULT = "quickstart"
"""The recipe that is read when the command line names none."""

RECIPES = resources.files("hf_distill") / "recipes"
NONE = "none"


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """One spelling of each flag, defaults where there are any, and no list of fifty optimizers."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, []) else super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        metavar = action.metavar if isinstance(action.metavar, str) else "VALUE"
        values = "" if action.nargs == 0 else f" {metavar}"
        if action.choices:
            shown = [str(choice) for choice in action.choices]
            values = " {" + ",".join(shown[:6]) + (",...}" if len(shown) > 6 else "}")
        return action.option_strings[-1 if action.dest == "help" else 0] + values


class _RecipeParser(HfArgumentParser):
    """argparse, but an error is one `InputError` instead of a usage text of two hundred flags."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{_as_flag(message)}. See: {self.prog} --help")


_OF_ARGUMENT = re.compile(r"argument --(\w+)(?:/--[\w-]+)*: (.*)")
_SHOWN = 8
"""Choices that a message lists, at most."""
_VALUES = (
    re.compile(r"invalid (?P<what>choice): (?P<value>'.*?'|\S+) \(choose from (?P<choices>.*)\)"),
    re.compile(r"invalid (?P<what>\w+) value: (?P<value>.*)"),
    re.compile(r"Truthy (?P<what>value) expected: got (?P<value>.*?) but"),
)


def _as_flag(message: str) -> str:
    """What argparse says, in one line that begins with the flag and its value."""
    message = " ".join(message.split())
    of = _OF_ARGUMENT.fullmatch(message)
    if of is None:
        return message
    name, says = of.groups()
    said = next((found for pattern in _VALUES if (found := pattern.match(says))), None)
    if said is None:
        return f"--{name}: {says}"
    value = said["value"].strip("'")
    if said["what"] == "choice":
        choices = [choice.strip("'") for choice in said["choices"].split(", ")]
        if len(choices) > _SHOWN:
            near = difflib.get_close_matches(value, choices, n=_SHOWN, cutoff=0)
            return f"--{name} {value}: it is unknown; the nearest are {', '.join(near)}"
        return f"--{name} {value}: it must be one of {', '.join(choices)}"
    kinds = {"int": "a whole number", "float": "a number", "value": "true or false"}
    return f"--{name} {value}: it must be {kinds.get(said['what'], 'a ' + said['what'])}"


def _parser(program: str) -> _RecipeParser:
    parser = _RecipeParser(
        [*PARTS, DistillationConfig],  # type: ignore[list-item]  # its DataClassType is a NewType of Any
        prog=program,
        usage="%(prog)s [RECIPE] [--key value ...]",
        description=(
            "From pairs to a released student. RECIPE is the name of a recipe of this package "
            f"({', '.join(recipe_names())}; default: {DEFAULT}) or a YAML file of the keys below. "
            "A key on the command line overrides the file; --key none unsets an optional one."
        ),
        allow_abbrev=False,
        formatter_class=_Help,
    )
    for action in parser._actions:
        if action.option_strings[0].startswith("--no_"):
            action.help = argparse.SUPPRESS  # `--key false` says the same
        if action.dest == "report_to":
            action.nargs = "+"  # the Trainer takes a list, and its parser one value
    inherited = trainer_names()
    own = parser.add_argument_group("objective and training")
    trainer = parser.add_argument_group("every argument of SentenceTransformerTrainer")
    ungrouped = [action for action in parser._optionals._group_actions if action.dest != "help"]
    for action in ungrouped:
        parser._optionals._group_actions.remove(action)
        (trainer if action.dest in inherited else own)._group_actions.append(action)
    return parser


def recipe_names() -> list[str]:
    """The recipes of this package."""
    return sorted(file.name.removesuffix(".yaml") for file in RECIPES.iterdir())


def _read_yaml(recipe: str, said: Collection[str], runs: bool) -> tuple[str, dict[str, Any]]:
    """The name of a recipe and its content; `recipe` is a name of this package or a path. `said`
    and `runs` are those of `obeyed`.
    """
    packaged = RECIPES / f"{recipe}.yaml"
    if recipe in recipe_names():
        name, text = recipe, packaged.read_text(encoding="utf-8")
    else:
        path = Path(recipe)
        if not path.is_file():
            beside = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.suffix else []
            raise InputError(
                f"no recipe {recipe}: it is neither a file nor one of {', '.join(recipe_names())}"
                + (f"; beside it there are {', '.join(beside)}" if beside else "")
            )
        try:
            name, text = path.stem, path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{recipe} is not UTF-8 text: {error}") from error
    content = read_yaml(text, recipe)
    if not isinstance(content, (dict, types.NoneType)):
        raise InputError(
            f"{recipe} holds a {type(content).__name__}, but a recipe maps keys to values"
        )
    content = content or {}
    if recipe in recipe_names():
        return name, content
    if name == "recipe":  # a run's own resolved recipe: the run keeps its name
        name = saved_name(content, Path(recipe))
    if is_saved(Path(recipe), content):
        content = obeyed(content, Path(recipe), said, runs)
    return name, content


def _flags(content: Mapping[str, Any], recipe: str, keys: Sequence[str]) -> list[str]:
    """The command line that says what a YAML file says (argparse then converts 2e-5, which YAML
    reads as text).
    """
    line: list[str] = []
    for key, value in content.items():
        if key == ENVIRONMENT_KEY:
            continue
        if key not in keys:
            raise InputError(f"{recipe}: unknown key {key!r}; {nearest(str(key), keys)}")
        line.append(f"--{key}")
        if isinstance(value, list):
            for item in value:
                if isinstance(item, (list, dict)):
                    raise InputError(
                        f"{recipe}: {key} has a {type(item).__name__} in its list; write its "
                        "values one after another"
                    )
            line += [str(item) for item in value] or [NONE]
        elif isinstance(value, dict):
            line.append(json.dumps(value))
        else:
            line.append(NONE if value is None else str(value))
    return line


def _check_unicode(line: Sequence[str]) -> None:
    """Raise InputError if a value is no text that a file can hold, e.g. a path in another
    encoding.
    """
    for flag, token in pairwise(["", *line]):
        try:
            token.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{flag} {printable(token)}: it is not valid Unicode ({error.reason}); rename it, "
                "or write it in UTF-8"
            ) from error


def _optional_keys() -> set[str]:
    """Keys that `none` unsets: those whose default is None, and lists that are empty by default."""
    optional = set()
    for part in (*PARTS, DistillationConfig):
        hints = get_type_hints(part)
        for field in dataclasses.fields(part):
            default_list = field.default_factory is not dataclasses.MISSING
            may_be_none = types.NoneType in get_args(hints[field.name]) and field.default is None
            if may_be_none or (default_list and hints[field.name] in (list[str], list[int])):
                optional.add(field.name)
    return optional


def _without_unset(line: Sequence[str]) -> list[str]:
    """`line` without the keys whose last value is `none`: their default is what `none` means."""
    optional = _optional_keys()
    values: dict[str, list[str]] = {}
    stray: list[str] = []
    name = None
    for token in line:
        if token.startswith("--"):
            flag, equals, value = token[2:].partition("=")
            name = flag.replace("-", "_")
            values.pop(name, None)  # a later one wins
            values[name] = [value] if equals else []
        elif name is None:
            stray.append(token)
        else:
            values[name].append(token)
    kept = [
        [f"--{name}", *given]
        for name, given in values.items()
        if not (name in optional and given == [NONE])
    ]
    return [*stray, *(token for tokens in kept for token in tokens)]


def _keys_in(line: Sequence[str]) -> set[str]:
    """The keys that a command line gives a value."""
    return {token[2:].split("=", 1)[0].replace("-", "_") for token in line if token[:2] == "--"}


def _stage_flags(text: str) -> list[str]:
    """The flags of a stage: `key=value, key=value`."""
    flags: dict[str, str] = {}
    for part in re.split(r"[\s,]+", text.strip(", ")):
        name, equals, value = part.partition("=")
        if not name or not equals or not value:
            raise InputError(
                f"--stages {text!r}: {part!r} is not key=value; write a stage as "
                '"contrastive_weight=1, max_steps=128"'
            )
        if name not in STAGE_KEYS and not name.endswith("_weight"):
            raise InputError(
                f"--stages {text!r}: {name} is the same in every stage; a stage may have its own "
                f"weights of the terms and {', '.join(STAGE_KEYS)}"
            )
        if name in flags:
            raise InputError(f"--stages {text!r}: {name} stands there twice; keep one of them")
        flags[name] = value
    if "num_train_epochs" in flags:
        flags.setdefault("max_steps", "-1")  # the recipe's own would win
    return [token for name, value in flags.items() for token in (f"--{name}", value)]


def read_recipe(argv: Sequence[str] = (), program: str = "train.py", runs: bool = True) -> Recipe:
    """Read `[RECIPE] [--key value ...]` into a :class:`Recipe`.

    Args:
        argv: The command line without the program's name. RECIPE is a name of this package or a
            path; left out, it is `DEFAULT`.
        program: The program's name in `--help` and errors.
        runs: Whether the recipe is going to be run; else its code is not (see
            `hf_distill.recipe.saved.obeyed`).

    Raises:
        InputError: A missing or malformed recipe, an unknown key (the nearest one is suggested), or
            a value that does not fit its key.
    """
    arguments = list(argv)
    named = arguments and not arguments[0].startswith("-")
    recipe = arguments.pop(0) if named else DEFAULT
    parser = _parser(program)
    keys = sorted({action.dest for action in parser._actions} - {"help"})
    name, content = _read_yaml(recipe, _keys_in(arguments), runs)
    line = [*_flags(content, recipe, keys), *arguments]
    _check_unicode(line)
    given = _keys_in(line)
    given = {key.removeprefix("no_") if key not in keys else key for key in given}
    for key in sorted(given - set(keys) - {"help"}):
        raise InputError(f"unknown key --{key}; {nearest(key, keys)}")
    result = _parsed(parser, _without_unset(line), name, given, program)
    further = []
    for text in result.schedule.stages:
        flags = _stage_flags(text)
        for key in sorted(_keys_in(flags) - set(keys)):
            raise InputError(f"--stages {text!r}: unknown key {key}; {nearest(key, keys)}")
        try:
            stage = _parsed(
                parser, _without_unset([*line, *flags]), name, given | _keys_in(flags), program
            )
        except InputError as error:
            raise InputError(f"--stages {text!r}: {error}") from error
        further.append(stage.training)
    return dataclasses.replace(result, further=tuple(further))


def _parsed(
    parser: _RecipeParser, line: list[str], name: str, given: set[str], program: str
) -> Recipe:
    """The checked recipe of a command line whose every key is known; without further stages."""
    if "output_dir" not in given:
        line = [*line, "--output_dir", "unused"]
    if "use_cpu" not in given and not torch.cuda.is_available():
        # Without it, the processes of `torchrun` do not find each other on a CPU.
        line = [*line, "--use_cpu", str(not torch.backends.mps.is_available())]
    try:
        *parts, stray = parser.parse_args_into_dataclasses(
            line, look_for_args_file=False, return_remaining_strings=True
        )
    except InputError:
        raise
    except (ValueError, ImportError, RuntimeError, OSError, TypeError, AttributeError) as error:
        says = re.sub(r"\w+Strategy\.(\w+)", lambda m: m[1].lower(), " ".join(str(error).split()))
        raise InputError(
            says if says.startswith("--") else f"the training arguments do not fit: {says}"
        ) from error
    if stray:
        raise InputError(
            f"{stray[0]!r} belongs to no key; flags look like --key value. See: {program} --help"
        )
    run, data, teacher, selection, student, schedule, training = parts
    result = Recipe(
        name, run, data, teacher, selection, student, schedule, training, frozenset(given)
    )
    if "output_dir" not in given:
        result.training.output_dir = str(result.run_dir / "checkpoints")
    check_recipe(result)
    return result
