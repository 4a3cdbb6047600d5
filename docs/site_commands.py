"""The reference of commands and their flags, out of their parsers."""

import argparse
import importlib
import inspect
import pathlib
from unittest import mock

from site_markdown import code, plain, table

import starcoder_jax

PACKAGE = pathlib.Path(starcoder_jax.__file__).parent


class _Found(Exception):
    """Brings the parser out of a command that was about to use it."""


def commands() -> list[str]:
    """Names of all commands: modules and packages that `python -m starcoder_jax.NAME` runs."""
    modules = [path for path in PACKAGE.glob("*.py") if "\ndef main(" in path.read_text("utf-8")]
    packages = [path.parent for path in PACKAGE.glob("*/__main__.py")]
    return sorted(path.stem for path in [*modules, *packages])


def command_parser(name: str) -> argparse.ArgumentParser:
    """The parser of a command, as the command makes it."""
    main = ".__main__" if (PACKAGE / name / "__main__.py").is_file() else ""
    module = importlib.import_module(f"starcoder_jax.{name}{main}")

    def found(parser, *_, **__):
        raise _Found(parser)

    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", found):
        try:
            module.main([])
        except _Found as error:
            return error.args[0]
    raise ValueError(f"{name}: its main() parses no arguments")


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Parsers of what a command can be told to do, by name."""
    # argparse has no public way to look at what was added to a parser.
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def page() -> str:
    """Markdown: every command with what it says of itself, and its flags."""
    return "\n\n".join(_command(name) for name in commands())


def _command(name: str) -> str:
    parser = command_parser(name)
    parts = [f"## {name}", f"```text\n{inspect.cleandoc(parser.description)}\n```", _flags(parser)]
    for sub, subparser in subcommands(parser).items():
        parts += [f"### {name} {sub}", plain(subparser.description), _flags(subparser)]
    return "\n\n".join(part for part in parts if part)


def _flags(parser: argparse.ArgumentParser) -> str:
    ours = (argparse._HelpAction, argparse._SubParsersAction)
    rows = [(_spelling(a), _about(a)) for a in parser._actions if not isinstance(a, ours)]
    flags = table(("flag", ""), rows)
    return f"{flags}\n\n{plain(parser.epilog)}" if parser.epilog else flags


def _spelling(action: argparse.Action) -> str:
    if not action.option_strings:
        return code(action.metavar or action.dest.upper())
    if action.nargs == 0:
        return code(action.option_strings[0])
    value = action.metavar or "|".join(map(str, action.choices or ())) or action.dest.upper()
    return code(action.option_strings[0] + (f"[={value}]" if action.nargs == "?" else f"={value}"))


def _about(action: argparse.Action) -> str:
    """The help, and what it leaves to the usage line: whether it is required, and a default."""
    text = (action.help or "") % {"default": action.default}
    notes = [text]
    if action.required and action.option_strings:
        notes.append("required")
    if (
        action.default not in (None, False, argparse.SUPPRESS)
        and action.default != []
        and str(action.default) not in text
    ):
        notes.append(f"default: `{action.default}`")
    return plain("; ".join(notes))
