"""Runs `collect` on sources in temporary folders."""

import pytest

from starcoder_jax.stack.stages.collect import CollectConfig, steps


@pytest.fixture
def collect(run_steps):
    """A function of URIs and settings; returns the rows and the drops of all shards."""

    def run(*sources, **settings):
        config = CollectConfig(sources=sources, **{"shards": 2, **settings})
        outputs = run_steps(steps(config))["collect"]
        assert len(outputs) == config.shards
        rows = [row for output in outputs for row in output.table.to_pylist()]
        drops = [row for output in outputs for row in output.drops.to_pylist()]
        return rows, drops

    return run


@pytest.fixture
def contents():
    """A function that makes a mapping of rows, from (repository, path) to content."""

    def of(rows):
        found = {(row["repository"], row["path"]): row["content"] for row in rows}
        assert len(found) == len(rows)
        return found

    return of


@pytest.fixture
def reasons():
    """A function that makes a mapping of drops, from path to reason."""

    def of(drops):
        found = {row["path"]: row["reason"] for row in drops}
        assert len(found) == len(drops)
        return found

    return of


@pytest.fixture
def write():
    """A function that writes files, by their paths below a folder."""

    def write(folder, contents):
        for path, content in contents.items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)

    return write
