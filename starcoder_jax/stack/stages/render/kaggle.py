"""Kaggle's notebooks with what is known of their data, as StarCoder2 read them.

    <jupyter_start><jupyter_text>title
    description
    Kaggle dataset identifier: id<jupyter_code>import pandas as pd ...<jupyter_output>df.info()
    <jupyter_text>Examples:
    ...<jupyter_script>code

A `kaggle_event` has `notebook` (the JSON of it, as an object or a string) or `code`, and may have
`title`, `description`, `dataset` (its identifier), `file` (that the notebook reads, from the data
set), `info` (what pandas says of it) and `examples` (rows of it, strings, of which four are shown).
"""

from collections.abc import Mapping

from starcoder_jax.stack.stages.render import notebooks, values
from starcoder_jax.stack.stages.render.config import RenderConfig
from starcoder_jax.stack.stages.render.result import Part, RejectedError, Rendered

_NUM_EXAMPLES = 4


def render_kaggle(content: bytes, config: RenderConfig) -> Rendered:
    """A notebook of Kaggle from its `kaggle_event`.

    Raises:
        RejectedError: it is dropped.
    """
    if config.style != "starcoder2":
        raise RejectedError("no Kaggle notebooks in this style")
    event = values.parsed(content)
    parts: list[Part] = []
    if about := _about(event):
        parts.append(("<jupyter_text>", about))
    info = values.text(event, "info")
    if info:
        path = values.text(event, "file")
        code = f"import pandas as pd\n\ndf = pd.read_csv({path})\ndf.info()"
        parts += [("<jupyter_code>", code), ("<jupyter_output>", info)]
    examples = values.at(event, "examples")
    if isinstance(examples, list) and examples:
        shown = [example for example in examples if isinstance(example, str)][:_NUM_EXAMPLES]
        parts.append(("<jupyter_text>", "\n".join(["Examples:", *shown])))
    if parts:
        parts.insert(0, ("<jupyter_start>", ""))
    parts.append(("<jupyter_script>", _code(event)))
    return Rendered("kaggle", parts)


def _about(event: Mapping) -> str:
    lines = [values.text(event, name) for name in ("title", "description")]
    if dataset := values.text(event, "dataset"):
        lines.append(f"Kaggle dataset identifier: {dataset}")
    return "\n".join(line for line in lines if line)


def _code(event: Mapping) -> str:
    notebook = event.get("notebook")
    if isinstance(notebook, str):
        notebook = values.parsed(notebook.encode("utf-8", "replace"))
    if isinstance(notebook, Mapping):
        return notebooks.script(*notebooks.cells_of(notebook))
    code = values.text(event, "code")
    if not code.strip():
        raise RejectedError("no code")
    return code
