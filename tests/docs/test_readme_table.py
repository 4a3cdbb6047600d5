"""The README's table of models says what the plans say."""

import re

from documented import ROOT

from starcoder_jax.gin_files import packaged_recipes
from starcoder_jax.recipes import load_recipe


def rows(path, columns):
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if len(row) == columns]


def test_every_row_is_a_plan():
    plans = {row[0]: row for row in rows("docs/performance.md", 8) if row[1] == "v5p-256"}
    table = [row for row in rows("README.md", 7) if row[1].startswith("`")]
    assert len(table) == 8
    for _, recipe, _, step, memory, seconds, changes in table:
        name = recipe.strip("`")
        assert name in packaged_recipes()
        plan = plans[f"`{name.removesuffix('.gin')}`"]
        assert plan[2].startswith(re.sub(" tokens$", ",", step))
        assert (memory, seconds) == (plan[3].partition(" ")[0], plan[6])
        # What the row says to run is what was planned.
        changes = re.findall("`(.*?)`", changes.replace("`xla`", "`model.attention_backend=xla`"))
        found = load_recipe([name, "hardware/v5p-256.gin"], changes)
        rows_at_a_time = found.train.batch_size // found.train.micro_batches
        planned = f"{found.train.batch_size} x {found.train.sequence_length:,}, {rows_at_a_time} at"
        assert plan[2].startswith(planned)
        assert plan[2].endswith(f"{found.model.rematerialization}, {found.model.attention_backend}")
        assert found.train.batch_size % (found.mesh.fsdp * found.train.micro_batches) == 0
