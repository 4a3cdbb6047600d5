"""The reference of gin sections and their fields, out of the dataclasses that they bind."""

import ast
import dataclasses
import inspect
import re
import textwrap
import tokenize
from typing import Any

from site_markdown import code, plain, table

from starcoder_jax.ablation.config import AblationRecipe
from starcoder_jax.recipes import Recipe
from starcoder_jax.stack.config import StackRecipe

# What recipes there are, and the commands that read them.
KINDS = {
    "Training": (Recipe, "`train`, `prepare` and `plan`"),
    "Curation": (StackRecipe, "`stack`"),
    "Ablations": (AblationRecipe, "`ablate`"),
}


def page() -> str:
    """Markdown: the sections of each kind of recipe, and a table of the fields of each."""
    parts = []
    for title, (kind, commands) in KINDS.items():
        parts.append(f"## {title}\n\nSections of the recipes for {commands}.")
        parts += [_section(section.name, section.type) for section in dataclasses.fields(kind)]
    return "\n\n".join(parts)


def field_texts(cls: type) -> dict[str, str]:
    """What is said of each field: in the docstring's Attributes, or in a comment on its line."""
    texts = _comments(cls)
    _, _, attributes = inspect.getdoc(cls).partition("\nAttributes:\n")
    attributes = textwrap.dedent(re.split(r"^\S", attributes, maxsplit=1, flags=re.M)[0])
    for entry in re.split(r"^(?=\w)", attributes, flags=re.M)[1:]:
        names, _, text = entry.partition(":")
        texts |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return texts


def _comments(cls: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(cls))
    lines = iter(source.splitlines(keepends=True))
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(lambda: next(lines, ""))
        if token.type == tokenize.COMMENT
    }
    fields = [node for node in ast.parse(source).body[0].body if isinstance(node, ast.AnnAssign)]
    return {node.target.id: comments.get(node.end_lineno, "") for node in fields}


def _section(name: str, cls: type) -> str:
    texts = field_texts(cls)
    rows = [
        (code(f"{name}.{field.name}"), code(_type(field.type)), _default(field), plain(text))
        for field in dataclasses.fields(cls)
        for text in [texts[field.name]]
    ]
    intro = re.split(r"^(?:Attributes|Raises):$", inspect.getdoc(cls), flags=re.M)[0].strip()
    paragraphs = "\n\n".join(map(plain, intro.split("\n\n")))
    return f"### {name}\n\n{paragraphs}\n\n{table(('field', 'type', 'default', ''), rows)}"


def _type(hint: Any) -> str:
    """The annotation without the names of modules."""
    return re.sub(r"[\w.]+\.(?=\w)", "", inspect.formatannotation(hint))


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return code(repr(field.default))
    if field.default_factory is not dataclasses.MISSING:
        return code(repr(field.default_factory()))
    return "required"
