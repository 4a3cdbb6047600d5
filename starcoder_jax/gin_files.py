"""Gin files in, one checked and frozen description out, and back to text.

A gin file binds fields of dataclasses, `section.field = value`, and nothing else. gin gives it
includes, macros and overrides; names, types and missing values are checked here, so that a mistake
is answered in one line. Which sections there are is said by a dataclass whose fields they are, such
as `starcoder_jax.recipes.Recipe`.
"""

import ast
import collections.abc
import contextlib
import dataclasses
import difflib
import functools
import importlib.resources
import logging
import pathlib
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import gin

T = TypeVar("T")
# Further values for a section that leaves open what it must say, given the sections before it.
Fill = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]

_collectors: dict[str, Callable[..., dict[str, Any]]] = {}


def packaged_recipes() -> list[str]:
    """Names of the recipes that come with the package, overlays in their folders included."""
    return sorted(
        str(path.relative_to(_recipe_folder())) for path in _recipe_folder().rglob("*.gin")
    )


def load(
    kind: type[T],
    files: Sequence[str],
    overrides: Sequence[str] = (),
    fill: Fill = lambda section, before: {},
) -> T:
    """Reads gin files in order, then overrides.

    Args:
        kind: a dataclass whose fields are the sections, dataclasses of plain values.
        files: paths, or names among `packaged_recipes()`; ".gin" may be left out.
        overrides: "section.field=value". A value that is no Python literal is taken as a string.
        fill: asked where a file leaves open what a section must say.

    Raises:
        ValueError: a file, a name or a value is wrong, or one is missing; one line that says so.
    """
    gin.clear_config()
    _add_search_path()
    sections = {field.name: field.type for field in dataclasses.fields(kind)}
    for name in sections:
        if name not in _collectors:
            _collectors[name] = gin.external_configurable(
                _collect, name=name, module="starcoder_jax"
            )
    bindings = [_quote_override(override) for override in overrides]
    paths = [str(_find_recipe(name)) for name in files]
    try:
        _parse(paths)
        for binding in bindings:
            _check_macro(binding.partition(" = ")[0])
            gin.parse_config(binding)
        _check_sections(sections)
        return kind(**_build(sections, fill))
    except (SyntaxError, OSError, AttributeError, KeyError, ImportError) as error:
        raise ValueError(_first_line(error)) from error
    except ValueError as error:
        raise ValueError(_explain(error, sections)) from error
    finally:
        gin.clear_config()


def recipe_text(recipe: Any, header: str = "", without: Sequence[str] = ()) -> str:
    """The complete recipe as a gin file, every field on a line of its own; reads back equal.

    Args:
        recipe: of a kind that `load` makes.
        header: comment to begin with.
        without: sections to leave out.
    """
    lines = [f"# {line}" for line in header.splitlines()]
    for section, fields in dataclasses.asdict(recipe).items():
        if section in without:
            continue
        lines += ["", *(f"{section}.{name} = {value!r}" for name, value in fields.items())]
    return "\n".join(lines).lstrip("\n") + "\n"


def _collect(**bindings):
    # gin resolves the bindings of a section; the checks then see plain keyword arguments.
    return bindings


def _recipe_folder() -> pathlib.Path:
    """gin/ as installed (starcoder_jax/gin), or as it lies in a checkout beside the package."""
    package = pathlib.Path(str(importlib.resources.files("starcoder_jax")))
    installed = package / "gin"
    return installed if installed.is_dir() else package.parent / "gin"


@functools.cache
def _add_search_path() -> None:
    gin.add_config_file_search_path(str(_recipe_folder()))


@contextlib.contextmanager
def _without_log() -> Iterator[None]:
    """gin logs each folder in which an included file does not lie as an error."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _parse(paths: Sequence[str]) -> None:
    try:
        with _without_log():
            gin.parse_config_files_and_bindings(paths, [], finalize_config=False)
    except TypeError as error:
        # What gin makes of an include such as 'model/x.gin' where Python finds a folder "model".
        raise ImportError(
            f"{' '.join(paths)}: an include cannot be read; write './folder/file.gin' for a file "
            "in a folder"
        ) from error


def _find_recipe(name: str) -> pathlib.Path:
    for folder in (pathlib.Path(), _recipe_folder()):
        for candidate in (folder / name, folder / f"{name}.gin"):
            if candidate.is_file():
                return candidate
    nearest = _nearest(name, packaged_recipes())
    raise ValueError(
        f"no recipe {name!r}{nearest}; there are {', '.join(packaged_recipes())}, and any path"
    )


def _quote_override(override: str) -> str:
    name, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", name):
        raise ValueError(f"override {override!r} must have the form --gin.section.field=value")
    if not value.startswith("%"):  # a macro
        try:
            ast.literal_eval(value)
        except (ValueError, SyntaxError):
            value = repr(value)
    return f"{name} = {value}"


def _check_macro(name: str) -> None:
    """An override without a dot sets a macro, which a recipe must have: else it sets nothing."""
    if "." in name:
        return
    try:
        gin.query_parameter(f"{name}/macro.value")
    except ValueError as error:
        raise ValueError(f"no recipe given defines {name!r}: write section.field=value") from error


def _check_sections(sections: Mapping[str, type]) -> None:
    """gin also knows the sections of other kinds that were read; here those mean nothing."""
    for name in _collectors.keys() - sections.keys():
        if gin.get_bindings(name, resolve_references=False):
            raise ValueError(f"No configurable matching '{name}'")


def _build(sections: Mapping[str, type], fill: Fill) -> dict[str, Any]:
    built: dict[str, Any] = {}
    for name in sections:
        built[name] = _build_section(name, sections, lambda name=name: fill(name, built))
    return built


def _build_section(
    section: str, sections: Mapping[str, type], fill: Callable[[], Mapping[str, Any]]
) -> Any:
    cls = sections[section]
    required = {
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    try:
        bindings = _collectors[section]()
    except TypeError as error:
        macro = re.search(r"in scope '(\w+)'", str(error))
        if macro is None:
            raise
        raise ValueError(f"no recipe given defines %{macro[1]}, which {section} uses") from error
    hints = typing.get_type_hints(cls)
    for name in bindings:
        if name not in hints:
            choices = [
                f"{part}.{field.name}"
                for part, fields in sections.items()
                for field in dataclasses.fields(fields)
            ]
            full_name = f"{section}.{name}"
            raise ValueError(f"unknown parameter {full_name!r}{_nearest(full_name, choices)}")
    left = {name for name, value in bindings.items() if value is gin.REQUIRED}
    if required - bindings.keys() and not left:
        bindings = {**fill(), **bindings}
    if absent := sorted(required - bindings.keys() | left):
        raise ValueError(_missing(section, absent))
    values = {
        name: _convert(f"{section}.{name}", value, hints[name]) for name, value in bindings.items()
    }
    return cls(**values)


def _missing(section: str, names: Sequence[str]) -> str:
    options = " ".join(f"--gin.{section}.{name}=..." for name in names)
    names = ", ".join(f"{section}.{name}" for name in names)
    return f"the recipe leaves open what it must say: {names}; set it in a gin file or by {options}"


def _convert(name: str, value: Any, hint: Any) -> Any:
    """The value as its annotated type, or an error that names both."""
    if not _fits(value, hint):
        expected = hint.__name__ if isinstance(hint, type) else str(hint)
        expected = re.sub(r"[\w.]+\.(?=\w)", "", expected)
        raise ValueError(f"{name} is {value!r}, a {type(value).__name__}; it must be {expected}")
    if hint is float:
        return float(value)
    if typing.get_origin(hint) in (tuple, collections.abc.Sequence):
        return tuple(value)
    return value


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, argument) for argument in arguments)
    if origin in (tuple, collections.abc.Sequence):
        if not isinstance(value, (list, tuple)):
            return False
        if origin is tuple and arguments[-1] is not ...:  # tuple[X, Y], of so many
            return len(value) == len(arguments) and all(map(_fits, value, arguments))
        return all(_fits(x, arguments[0]) for x in value)
    if origin is collections.abc.Mapping:
        return isinstance(value, Mapping) and all(
            _fits(key, arguments[0]) and _fits(x, arguments[1]) for key, x in value.items()
        )
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _explain(error: ValueError, sections: Mapping[str, type]) -> str:
    """gin's own complaint about an unknown section in our words; any other as it is."""
    match = re.search(r"No configurable matching '([^']*)'", str(error))
    if match:
        section = match.group(1)
        return (
            f"unknown section {section!r}{_nearest(section, list(sections))}; there are "
            f"{', '.join(sections)}"
        )
    return _first_line(error)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)


def _nearest(name: str, choices: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
