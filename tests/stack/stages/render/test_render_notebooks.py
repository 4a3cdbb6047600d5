import json

import pytest

from starcoder_jax.stack import record
from starcoder_jax.stack.stages.render import RenderConfig, notebooks, steps

STREAM = {"output_type": "stream", "name": "stdout", "text": ["one\n", "two"]}
TABLE = {"output_type": "execute_result", "data": {"text/plain": "a table", "text/html": "<b>"}}
PICTURE = {"output_type": "display_data", "data": {"image/png": "AAAA"}}


def code(source, *outputs):
    return {"cell_type": "code", "source": source, "outputs": list(outputs), "metadata": {}}


def markdown(source):
    return {"cell_type": "markdown", "source": source, "metadata": {}}


def notebook(*cells, language="python", **more):
    value = {
        "cells": list(cells),
        "metadata": {"language_info": {"name": language}},
        "nbformat": 4,
        "nbformat_minor": 5,
        **more,
    }
    return _row(value)


def _row(value):
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return {
        "kind": "file",
        "language": "Jupyter Notebook",
        "path": "a.ipynb",
        "swhid": "swh:1:cnt:1",
        "content": content,
    }


CELLS = (
    code("import numpy"),
    markdown(["# A <b>title</b>\n", "\n", "text"]),
    markdown("more"),
    code(["x = 1\n", "print(x)"], STREAM),
    code("x", PICTURE, TABLE),
    markdown("## Next"),
    {"cell_type": "raw", "source": "left out"},
    code(""),
    code("y = 2"),
    markdown("the end"),
)
SCRIPT = (
    "import numpy\n\n# # A <b>title</b>\n#\n# text\n\n# more\n\nx = 1\nprint(x)\n\nx\n\n"
    "# ## Next\n\ny = 2\n\n# the end\n"
)


def test_starcoder2(render):
    texts, drops = render([notebook(*CELLS)])
    assert texts == {
        ("notebook_script", "a.ipynb"): f"<jupyter_script>{SCRIPT}",
        ("notebook_structured", "a.ipynb"): "<jupyter_start>"
        "<jupyter_text># A <b>title</b>\n\ntext\nmore"
        "<jupyter_code>x = 1\nprint(x)\nx<jupyter_output>a table"
        "<jupyter_text>## Next<jupyter_code>y = 2<jupyter_output><empty_output>",
    }
    assert drops == {}


def test_starcoder(render):
    texts, _ = render([notebook(*CELLS)], style="starcoder")
    assert texts == {
        ("notebook_script", "a.ipynb"): SCRIPT,
        ("notebook_structured", "a.ipynb"): "<jupyter_start>"
        "<jupyter_text> A titletext more"
        "<jupyter_code>x = 1\nprint(x)\nx<jupyter_output>a table"
        "<jupyter_text> Next<jupyter_code>y = 2<jupyter_output><empty_output>",
    }


def test_outputs(render):
    long = {"output_type": "stream", "text": "z" * 1001}
    cells = [markdown("a"), code("b", PICTURE, STREAM), markdown("c"), code("d", long)]
    texts, _ = render([notebook(*cells)])
    assert texts["notebook_structured", "a.ipynb"] == (
        "<jupyter_start><jupyter_text>a<jupyter_code>b<jupyter_output>one\ntwo"
        "<jupyter_text>c<jupyter_code>d<jupyter_output>" + "z" * 1000 + "[...]"
    )


@pytest.mark.parametrize("version", [2, 3])
def test_old_versions(render, version):
    cells = [
        {"cell_type": "heading", "level": 2, "source": ["Old"]},
        {"cell_type": "code", "input": ["print(1)"], "language": "python"},
        {"cell_type": "heading", "level": 10**12, "source": "Deep"},
        {"cell_type": "code", "input": "2", "outputs": [{"output_type": "pyout", "text": ["2"]}]},
    ]
    value = {"nbformat": version, "metadata": {}, "worksheets": [{"cells": cells}]}
    texts, _ = render([_row(value)])
    assert texts == {
        ("notebook_script", "a.ipynb"): "<jupyter_script># ## Old\n\nprint(1)\n\n# ###### Deep\n\n"
        "2\n",
        ("notebook_structured", "a.ipynb"): "<jupyter_start><jupyter_text>## Old"
        "<jupyter_code>print(1)<jupyter_output><empty_output><jupyter_text>###### Deep"
        "<jupyter_code>2<jupyter_output>2",
    }


def test_commands_become_comments(render):
    cells = [
        code("%matplotlib inline\n!pip install x\n    !ls\nx = 5\nx != 3\ny = '''\n50%\n'''"),
        code("%%bash\nls\n\ncd /"),
        code("%%time\nrun()"),
    ]
    texts, drops = render([notebook(*cells)])
    assert drops == {}
    assert texts == {
        ("notebook_script", "a.ipynb"): "<jupyter_script># %matplotlib inline\n# !pip install x\n"
        "#     !ls\nx = 5\nx != 3\ny = '''\n50%\n'''\n\n# %%bash\n# ls\n# \n# cd /\n\n"
        "# %%time\nrun()\n"
    }


@pytest.mark.parametrize(
    ("language", "comment"), [("R", "#"), ("Scala", "//"), ("Haskell", "--"), ("clojure", ";")]
)
def test_comments_are_those_of_the_language(render, language, comment):
    texts, _ = render([notebook(markdown("text"), code("%x"), language=language)])
    assert texts["notebook_script", "a.ipynb"] == f"<jupyter_script>{comment} text\n\n%x\n"


def test_language_of_the_kernel_or_of_a_cell():
    kernel = {"cells": [code("x")], "metadata": {"kernelspec": {"language": "Julia"}}}
    assert notebooks.cells_of(kernel)[1] == "julia"
    cell = {"worksheets": [{"cells": [{"cell_type": "code", "input": "x", "language": "ruby"}]}]}
    assert notebooks.cells_of(cell)[1] == "ruby"
    assert notebooks.cells_of({"cells": []})[1] == "python"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a JSON object"),
        (b"[1]", "not a JSON object"),
        (b'{"a": 1}', "not a notebook"),
        (b'{"cells": 3}', "not a notebook"),
        (b'{"cells": [3, null, {"cell_type": 3}, {"cell_type": "code", "source": 3}]}', None),
        (b'{"cells": [{"cell_type": "markdown", "source": "text"}]}', None),
    ],
)
def test_what_is_no_notebook_is_dropped(render, content, reason):
    texts, drops = render([_row(content)])
    assert texts == {}
    assert drops["a.ipynb"] == (reason or "no text with code")


def test_rows_keep_what_names_them():
    row = {
        **notebook(*CELLS),
        "repository": "owner/name",
        "revision": "swh:1:rev:2",
        "stars": 5,
        "detected_licenses": ["MIT"],
        "license_type": "permissive",
    }
    (step,) = steps(RenderConfig(), "source")
    output = step.function(record.records([row]))
    assert len(output.table) == 2 and len(output.drops) == 0
    for made in output.table.to_pylist():
        for name in set(row) - {"kind", "content"}:
            assert made[name] == row[name], name
    assert output.counts == {
        "texts of kind notebook_script": 1,
        "texts of kind notebook_structured": 1,
        "rows rendered": 1,
    }
