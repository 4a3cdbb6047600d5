"""Runs steps in memory, as the plainest of runners would, and a small corpus by the command."""

import pathlib

import corpus_fixture
import numpy as np
import pyarrow as pa
import pytest

from starcoder_jax.stack.runner.steps import Map


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> pathlib.Path:
    return corpus_fixture.finished(tmp_path_factory)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> pathlib.Path:
    return corpus_fixture.prepared(tmp_path_factory)


@pytest.fixture
def beam():
    return pytest.importorskip("apache_beam", reason="Apache Beam is not installed (extra beam)")


def pytest_collection_modifyitems(items):
    """`pytest -m beam` runs what the extra adds."""
    for item in items:
        if "beam" in item.fixturenames:
            item.add_marker("beam")


@pytest.fixture
def run_steps():
    """A function of steps and the shards they begin with; returns all outputs by step's name."""

    def run(steps, **start):
        tables = {name: list(shards) for name, shards in start.items()}
        outputs = {}
        for step in steps:
            if isinstance(step, Map):
                outputs[step.name] = _map(step, [tables[name] for name in step.inputs])
            else:
                items = [table for name in step.inputs for table in tables[name]]
                outputs[step.name] = _shuffle(step, items or step.items)
            tables[step.name] = [output.table for output in outputs[step.name]]
        return outputs

    return run


def _map(step, inputs):
    count = max(map(len, inputs))
    assert all(len(shards) in (1, count) for shards in inputs)
    return [
        step.function(*(shards[number if len(shards) > 1 else 0] for shards in inputs))
        for number in range(count)
    ]


def _shuffle(step, items):
    parts = [[step.schema.empty_table()] for _ in range(step.partitions)]
    for item in items:
        for partitions, table in step.emit(item):
            assert table.schema == step.schema and len(partitions) == len(table)
            for part in np.unique(partitions):
                parts[part].append(table.filter(pa.array(np.asarray(partitions) == part)))
    return [step.reduce(pa.concat_tables(tables)) for tables in parts]
