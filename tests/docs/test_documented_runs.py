"""What pages say is run by tests is run, as a reader would: block by block, in a new folder."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import micro
import pytest
from documented import ROOT, Block, documented

RUN = "run by tests/docs"
NEEDS = "needs the extra "  # which a machine may not have; the block is checked, not run
COPY = re.compile(r"as in (\S+): (\w+)")  # of a block that .ci/run runs
CI = "run by .ci/run: "

MARKED = [block for block in documented("bash", "python") if block.mark == RUN]


@pytest.fixture
def readers_folder(tmp_path, micro_folder, trained) -> pathlib.Path:
    """Holds what the pages take for granted: an environment, code, a recipe, a run of it."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    for index, file in enumerate(sorted((micro_folder / "code").iterdir())):
        folder = tmp_path / ("starcoder_jax", "python")[index % 2]
        folder.mkdir(exist_ok=True)
        shutil.copy(file, folder)
    # Found before the packaged recipe of the same name, and trained in seconds.
    shutil.copy(micro_folder / "micro.gin", tmp_path / "tiny.gin")
    micro.without_checkpoints_after(trained, 35, tmp_path / "runs" / "tiny")
    shutil.copytree(micro_folder / "data", tmp_path / "runs" / "tiny" / "data")
    return tmp_path


def run(block: Block, folder: pathlib.Path) -> None:
    # The code installed on this machine would take long to read, and as many steps to train.
    text = block.text.replace('"environment:"', '"folder:python"')
    text = re.sub(r"(?<=total_steps=)\d+", "4", re.sub(r"(?<=warmup_steps=)\d+", "1", text))
    program = {"python": [sys.executable, "-c"], "bash": ["bash", "-euc"]}[block.language]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(
        [*program, text], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", sorted({block.page for block in MARKED}))
def test_a_page_runs(page, readers_folder):
    for block in MARKED:
        if block.page == page:
            run(block, readers_folder)


def test_blocks_of_concepts_and_instructions_are_all_run_or_need_something():
    folders = ("docs/concepts/", "docs/howto/", "docs/first-five-minutes.md", "docs/index.md")
    shown = [block for block in documented("bash", "python") if block.page.startswith(folders)]
    assert len(shown) > 10
    for block in shown:
        assert block.mark == RUN or block.mark.startswith(NEEDS) or COPY.fullmatch(block.mark), (
            block
        )


def test_copies_are_equal():
    blocks = documented("bash", "python")
    originals = {(block.page, block.mark): block.text for block in blocks}
    copies = [(block, found) for block in blocks if (found := COPY.fullmatch(block.mark))]
    assert len(copies) > 2
    for block, found in copies:
        assert block.text == originals[found[1], CI + found[2]], block


def test_blocks_that_are_run_elsewhere_are():
    """Each that says so is named in .ci/run."""
    text = (ROOT / ".ci" / "run").read_text()
    named = [block for block in documented("bash", "python") if block.mark.startswith(CI)]
    assert len(named) > 5
    for block in named:
        assert f"block {block.page} {block.mark.removeprefix(CI)})" in text, block
