"""The README's table of models says what the plans say."""

import re

from documented import ROOT

from starcoder_jax.gin_files import packaged_recipes


def rows(path, columns):
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if len(row) == columns]


def test_every_row_is_a_plan():
    plans = {row[0]: row for row in rows("docs/performance.md", 8) if row[1] == "v5p-256"}
    table = [row for row in rows("README.md", 6) if row[1].startswith("`")]
    assert len(table) == 8
    for _, recipe, _, step, memory, seconds in table:
        name = recipe.strip("`")
        assert name in packaged_recipes()
        plan = plans[f"`{name.removesuffix('.gin')}`"]
        assert plan[2].startswith(re.sub(" tokens$", ",", step))
        assert (memory, seconds) == (plan[3].partition(" ")[0], plan[6])
