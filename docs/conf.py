"""The documentation as a site: `sphinx-build -W --keep-going -c docs . build/site`.

Its sources are the repository's Markdown files where they lie, so that a link serves readers of the
files and of the site alike. A broken link or anchor is a warning, and -W makes it an error. Nothing
is fetched, neither by the build nor by the pages.
"""

import itertools
import pathlib
import re
import sys

from sphinx.application import Sphinx

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import site_commands  # noqa: E402
import site_python  # noqa: E402
import site_recipes  # noqa: E402
import site_settings  # noqa: E402

import starcoder_jax  # noqa: E402

project = "starcoder_jax"
version = release = starcoder_jax.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "launch/README.md", "benchmarks/README.md"]
exclude_patterns = ["build", "runs", "**/.*", ".*"]
myst_heading_anchors = 4  # as GitHub makes them

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_custom_sections = ["Returns"]  # sentences, which begin with no type
smartquotes = False
default_role = "code"  # what stands in single backticks in docstrings

html_theme = "furo"
html_title = "starcoder_jax"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_static_path = ["site_static"]
html_css_files = ["site.css"]
html_extra_path = ["site_root"]  # index.html at the top, which leads to docs/

# The order of the pages: captions and, below them, documents, by their own titles or another one.
# Documents that are not named here come last: those of docs/ among the guides.
NAVIGATION = {
    "Start": ["docs/first-five-minutes", "Overview <README>"],
    "Concepts": [
        "docs/concepts/attention-mask",
        "docs/concepts/sharding",
        "docs/concepts/data-order",
        "docs/concepts/fill-in-the-middle",
    ],
    "How to": [
        "docs/howto/fine-tune",
        "docs/howto/continue-pretraining",
        "docs/howto/add-a-data-source",
        "docs/howto/add-a-recipe",
        "docs/howto/new-hardware",
        "docs/howto/out-of-memory",
        "docs/howto/resume-elsewhere",
        "launch/README",
    ],
    "Guides": [
        "docs/training",
        "docs/checkpoints",
        "docs/generation",
        "docs/serving",
        "docs/evaluation",
        "docs/ablations",
        "docs/sandbox",
        "docs/planning",
        "docs/performance",
    ],
    "Reference": [
        "docs/contract",
        "docs/reference/commands",
        "docs/reference/settings",
        "docs/reference/recipes",
        "docs/reference/python",
    ],
    "The project": ["BUILD", "benchmarks/README"],
}


def navigation(documents: set[str]) -> str:
    """The tables of contents, which readers of the file docs/index.md have no use for."""
    entries = {caption: list(names) for caption, names in NAVIGATION.items()}
    named = {re.search(r"[\w/-]+(?=>?$)", name)[0] for name in itertools.chain(*entries.values())}
    for document in sorted(documents - named - {root_doc}):
        entries["Guides" if document.startswith("docs/") else "The project"].append(document)
    trees = []
    for caption, names in entries.items():
        paths = [re.sub(r"([\w/-]+>?)$", r"/\1", name) for name in names]
        trees.append("\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *paths]))
    return "\n```\n\n".join([*trees, ""])


# What the site adds at the end of a page.
GENERATED = {
    "docs/reference/commands": site_commands.page,
    "docs/reference/settings": site_settings.page,
    "docs/reference/recipes": site_recipes.page,
    "docs/reference/python": site_python.page,
}


def add(app: Sphinx, docname: str, source: list[str]) -> None:
    """Adds what is generated to the text of a page."""
    if docname == root_doc:
        source[0] += f"\n{navigation(app.env.found_docs)}"
    elif docname in GENERATED:
        source[0] += f"\n{GENERATED[docname]()}\n"


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", add)
    app.connect("autodoc-process-docstring", site_python.escape, priority=0)
    # What is generated may have changed where the file did not.
    app.connect("env-get-outdated", lambda *_: [root_doc, *GENERATED])
