"""Reading a recipe: a flat YAML file, and flags that win over it. Nothing is measured or loaded."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import difflib
import json
import math
import re
import types
from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import torch
from transformers import HfArgumentParser

from hf_distill.errors import InputError, printable
from hf_distill.recipe.arguments import PARTS, STAGE_KEYS, Recipe, trainer_names
from hf_distill.recipe.check import check_lists, check_recipe
from hf_distill.recipe.config import DistillationConfig
from hf_distill.recipe.no_effect import nearest
from hf_distill.recipe.saved import ENVIRONMENT_KEY, is_saved, obeyed, saved_name
from hf_distill.recipe.yaml_text import read_yaml

DEFAULT = "quickstart"
"""The recipe that is read when the command line names none."""

RECIPES = resources.files("hf_distill") / "recipes"
NONE = "none"

_FAULTS = (
    ValueError, ImportError, RuntimeError, OSError, TypeError, AttributeError, ArithmeticError,
    LookupError,
)  # fmt: skip
"""What the arguments of the Trainer raise for values that do not fit."""


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
_DDP_SECONDS = 24 * 60 * 60
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
    kinds = {"int": "a whole number", "_finite": "a number, and finite", "value": "true or false"}
    return f"--{name} {value}: it must be {kinds.get(said['what'], 'a ' + said['what'])}"


def _finite(text: str) -> float:
    """A number that is one: the Trainer's arguments take NaN and infinity, or fail at them."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


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
    parser._negative_number_matcher = re.compile("-(?!-)")  # argparse knows no -1e-5, nor -inf
    for action in parser._actions:
        if action.type is float:
            action.type = _finite
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
        try:
            there = path.is_file()
        except OSError as error:
            raise InputError(f"no recipe {recipe}: {error.strerror}; name another one") from error
        if not there:
            beside = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.suffix else []
            raise InputError(
                f"no recipe {recipe}: it is neither a file nor one of {', '.join(recipe_names())}"
                + (f"; beside it there are {', '.join(beside)}" if beside else "")
            )
        try:
            name, text = path.stem, path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{recipe} is not UTF-8 text: {error}") from error
        except OSError as error:
            raise InputError(f"{recipe} cannot be read: {error}; name another one") from error
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


Given = dict[str, list[str]]
"""Key -> its values as texts: none of a flag alone, several of a list."""


def _of_file(content: Mapping[Any, Any], recipe: str, keys: Sequence[str]) -> Given:
    """The values in a YAML file, as the command line would say them (argparse then converts 2e-5,
    which YAML reads as text). A value is never a flag, whatever it begins with.
    """
    given: Given = {}
    texts = _keys_of_texts()
    for key, value in content.items():
        if key == ENVIRONMENT_KEY:
            continue
        if key not in keys:
            raise InputError(f"{recipe}: unknown key {key!r}; {nearest(str(key), keys)}")
        items = value if isinstance(value, list) else [value]
        given[key] = [_text(item, key, recipe, key in texts) for item in items] or [NONE]
        if isinstance(value, list) and any(isinstance(item, (list, dict)) for item in items):
            kind = next(type(i).__name__ for i in items if isinstance(i, (list, dict)))
            raise InputError(
                f"{recipe}: {key} has a {kind} in its list; write its values one after another"
            )
    return given


def _text(value: object, key: str, recipe: str, is_text: bool) -> str:
    """A value of a YAML file as the command line would say it."""
    if value is None:
        return NONE
    if isinstance(value, bool) and is_text:
        raise InputError(
            f"{recipe}: --{key} {str(value).lower()}: YAML reads yes, no, on and off as true and "
            f"false, and this is a text; write it in quotes, e.g. {key}: 'no'"
        )
    try:
        if isinstance(value, dict):
            return json.dumps(value)
        if isinstance(value, (str, int, float, datetime.date)):
            return str(value)
        raise TypeError(f"a {type(value).__name__} is no value of a recipe")
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{recipe}: --{key}: {error}; write a text, a number, true or false, or a list of them"
        ) from error


def _of_line(line: Sequence[str]) -> tuple[Given, list[str]]:
    """The values on a command line, of which a later one wins; and what stands before any flag."""
    given: Given = {}
    stray: list[str] = []
    values = stray
    for token in line:
        if token.startswith("--") or token == "-h":
            flag, equals, value = token.removeprefix("--").partition("=")
            values = [value] if equals else []
            given["help" if flag == "-h" else flag.replace("-", "_")] = values
        else:
            values.append(token)
    return given, stray


def _check_texts(given: Given) -> None:
    """Raise InputError if a value is no text that a file or its name can hold, e.g. a path in
    another encoding.
    """
    for key, texts in given.items():
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InputError(
                    f"--{key} {printable(text)}: it is not valid Unicode ({error.reason}); rename "
                    "it, or write it in UTF-8"
                ) from error
            if "\0" in text:
                raise InputError(
                    f"--{key} {printable(text)}: it holds a NUL character, which no name and no "
                    "text can; remove it"
                )


def _keys_of_texts() -> set[str]:
    """The options of this package that are texts, or lists of them."""
    kinds: tuple[Any, ...] = (str, str | None, list[str])
    return {name for part in PARTS for name, kind in get_type_hints(part).items() if kind in kinds}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


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


def _flags(given: Given, parser: argparse.ArgumentParser) -> list[str]:
    """The command line that says `given`, without the keys whose value is `none`: their default is
    what `none` means.

    Raises:
        InputError: Several values of a key that takes one, or one that looks like a flag.
    """
    optional = _optional_keys()
    takes_several = {action.dest for action in parser._actions if action.nargs == "+"}
    line: list[str] = []
    for key, values in given.items():
        if len(values) > 1 and key not in takes_several:
            raise InputError(
                f"--{key} {' '.join(values)}: it takes one value, and {values[1]!r} belongs to no "
                "key; remove it, or write a text with spaces in quotes"
            )
        if "--" in values:
            raise InputError(f"--{key} --: it is no value; give one, or leave --{key} out")
        for value in values if len(values) > 1 else ():
            if value.startswith("-") and not _is_number(value):
                raise InputError(
                    f"--{key} {value}: one of several values cannot begin with a dash; write a "
                    "path as ./-name"
                )
        if len(values) == 1 and not (key in optional and values == [NONE]):
            line.append(f"--{key}={values[0]}")
        elif len(values) != 1:
            line += [f"--{key}", *values]
    return line


def _of_stage(text: str, keys: Collection[str]) -> Given:
    """What a stage of the training gives for itself: `key=value, key=value`.

    Raises:
        InputError: Another form, a key twice, an unknown one, or one that all stages share.
    """
    given: Given = {}
    for part in re.split(r"[\s,]+", text.strip(", ")):
        name, _, value = part.partition("=")
        if not name or not value:
            raise InputError(
                f"--stages {text!r}: {part!r} is not key=value; write a stage as "
                '"contrastive_weight=1, max_steps=128"'
            )
        if name not in keys:
            raise InputError(f"--stages {text!r}: unknown key {name}; {nearest(name, keys)}")
        if name not in STAGE_KEYS and not name.endswith("_weight"):
            raise InputError(
                f"--stages {text!r}: {name} is the same in every stage; a stage may have its own "
                f"weights of the terms and {', '.join(STAGE_KEYS)}"
            )
        if name in given:
            raise InputError(f"--stages {text!r}: {name} stands there twice; keep one of them")
        given[name] = [value]
    if "num_train_epochs" in given:
        given.setdefault("max_steps", ["-1"])  # the recipe's own would win
    return given


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
    on_line, stray = _of_line(arguments)
    if stray:
        raise InputError(
            f"{stray[0]!r} belongs to no key; flags look like --key value. See: {program} --help"
        )
    name, content = _read_yaml(recipe, on_line.keys(), runs)
    values = {**_of_file(content, recipe, keys), **on_line}
    _check_texts(values)
    for key in sorted(_keys_of(values, keys) - {*keys, "help"}):
        raise InputError(f"unknown key --{key}; {nearest(key, keys)}")
    result = _parsed(values, name, parser, keys)
    further = []
    for text in result.schedule.stages:
        own = _of_stage(text, keys)
        try:
            further.append(_parsed({**values, **own}, name, parser, keys).training)
        except InputError as error:
            raise InputError(f"--stages {text!r}: {error}") from error
    result = dataclasses.replace(result, further=tuple(further))
    check_lists(result)
    return result


def _keys_of(values: Given, keys: Collection[str]) -> frozenset[str]:
    """The keys that are given a value, also by a flag with `no_` before the key."""
    return frozenset(key.removeprefix("no_") if key not in keys else key for key in values)


def _parsed(values: Given, name: str, parser: _RecipeParser, keys: Collection[str]) -> Recipe:
    """The checked recipe of known keys, without further stages of the training."""
    given, values = _keys_of(values, keys), dict(values)
    if "output_dir" not in given:
        values["output_dir"] = ["unused"]
    if "ddp_timeout" not in given:
        # While the main process works alone, the others wait in a collective. A process that is
        # gone ends them much sooner (hf_distill/run/processes.py).
        values["ddp_timeout"] = [str(_DDP_SECONDS)]
    if "use_cpu" not in given and not torch.cuda.is_available():
        # Without it, the processes of `torchrun` do not find each other on a CPU.
        values["use_cpu"] = [str(not torch.backends.mps.is_available())]
    try:
        parts = parser.parse_args_into_dataclasses(_flags(values, parser), look_for_args_file=False)
    except InputError:
        raise
    except _FAULTS as error:
        says = re.sub(r"\b\w+Strategy\.(\w+)", lambda m: m[1].lower(), " ".join(str(error).split()))
        raise InputError(
            says if says.startswith("--") else f"the training arguments do not fit: {says}"
        ) from error
    run, data, teacher, lists, selection, student, schedule, training = parts
    result = Recipe(name, run, data, teacher, lists, selection, student, schedule, training, given)
    if "output_dir" not in given:
        result.training.output_dir = str(result.run_dir / "checkpoints")
    check_recipe(result)
    return result
