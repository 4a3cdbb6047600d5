"""The reference of the public Python names, which autodoc fills in from their docstrings."""

import ast
import inspect
import textwrap

from sphinx.application import Sphinx

import starcoder_jax

# Public as well: what the public names take, and what the pages here show the use of.
BESIDE = ("inference.sampling.Sampling", "evals.sandbox.Sandbox", "evals.sandbox.Program")


def page() -> str:
    """Markdown: a directive for each public name."""
    parts = []
    for name in starcoder_jax.__all__:
        value = getattr(starcoder_jax, name)
        parts += [f"## sj.{name}", _directive(f"starcoder_jax.{name}", value)]
        if name == "DecoderConfig":
            parts.append("Its fields are those of the section [model](settings.md#model).")
    for name in BESIDE:
        parts += [f"## {name}", f"```{{eval-rst}}\n.. autoclass:: starcoder_jax.{name}\n```"]
    return "\n\n".join(parts)


def escape(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]):
    r"""Keeps the backslashes of docstrings, such as of "\n", which reStructuredText takes away."""
    lines[:] = [line.replace("\\", "\\\\") for line in lines]


def _directive(name: str, value: object) -> str:
    if not inspect.isclass(value):
        lines = [f".. autofunction:: {name}"]
    elif type(value) is type:
        lines = [f".. autoclass:: {name}"]
    else:
        # A metaclass, such as Flax's, stands between autodoc and the signature.
        lines = [f".. autoclass:: {name}({_arguments(value)})", "   :members:"]
        lines.append("   :special-members: __call__")
    return "\n".join(["```{eval-rst}", *lines, "```"])


def _arguments(cls: type) -> str:
    function = ast.parse(textwrap.dedent(inspect.getsource(cls.__init__))).body[0]
    function.args.args.pop(0)
    return ast.unparse(function.args)
