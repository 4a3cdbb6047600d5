"""What the entry points share: gin flags, and errors in one line."""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence

# Exit statuses.
BAD_INPUT = 2
DIVERGED = 3  # of training: loss or gradient is no longer finite
TERMINATED = 143  # a signal came, and what there was to save is saved


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --gin_file and describes --gin.NAME=VALUE."""
    parser.add_argument(
        "--gin_file",
        action="append",
        required=True,
        metavar="FILE",
        help="a recipe: a path, or the name of a packaged one; several are read in order",
    )
    parser.epilog = "--gin.SECTION.FIELD=VALUE overrides any field of the recipe."


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, list[str]]:
    """The flags, and the overrides given as --gin.NAME=VALUE, without their prefix."""
    args, rest = parser.parse_known_args(argv)
    for argument in rest:
        if not argument.startswith("--gin."):
            parser.error(f"unknown argument {argument!r}; --help lists those there are")
    return args, [argument.removeprefix("--gin.") for argument in rest]


@contextlib.contextmanager
def of_extra(name: str) -> Iterator[None]:
    """For imports of what an extra installs.

    Raises:
        ValueError: it is not installed; what to do.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error.name} is not installed: pip install 'starcoder_jax[{name}]'"
        ) from error


@contextlib.contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """Turns bad input into one line on stderr and exit status 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(BAD_INPUT) from error
