import dataclasses
import functools

import pyarrow as pa
import pytest

from starcoder_jax.stack.runner import keys
from starcoder_jax.stack.runner.keys import code_digest, key


@dataclasses.dataclass(frozen=True)
class Config:
    threshold: float = 0.7
    names: tuple[str, ...] = ("a", "b")
    caps: dict = dataclasses.field(default_factory=lambda: {"x": 1, "y": 2})


def one(config, table):
    return config, table


def other(config, table):
    return config, table


def test_functions_and_all_their_arguments_count():
    given = [
        one,
        other,
        functools.partial(one, Config()),
        functools.partial(other, Config()),
        functools.partial(one, Config(threshold=0.8)),
        functools.partial(one, Config(names=("ab",))),
        functools.partial(one, Config(caps={"x": 2, "y": 1})),
        functools.partial(one, config=Config()),
        functools.partial(one, 1),
        functools.partial(one, 1.0),
        functools.partial(one, "1"),
        functools.partial(one, True),
        functools.partial(one, None),
        functools.partial(one, pa.schema([("a", pa.int64())])),
        functools.partial(one, pa.schema([("a", pa.int32())])),
    ]
    assert len({key(function) for function in given}) == len(given)
    assert key("a", "b") != key("ab")


def test_what_means_the_same_has_the_same_key():
    first, second = Config(caps={"x": 1, "y": 2}), Config(caps={"y": 2, "x": 1})
    assert key(functools.partial(one, first)) == key(functools.partial(one, second))
    assert key(functools.partial(one, {"a", "b"})) == key(functools.partial(one, {"b", "a"}))


def test_what_cannot_be_told_apart_is_refused():
    with pytest.raises(ValueError, match=r"<lambda> is not at the top of a module$"):
        key(lambda table: table)
    with pytest.raises(ValueError, match="has an argument of type object"):
        key(functools.partial(one, object()))


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        ("stage/__init__.py", True),
        ("stage/rules.py", True),
        ("stage/late.py", True),
        ("shared.py", True),
        ("report.py", False),
        ("stage/other.py", False),
    ],
)
def test_code_counts_that_is_imported(tmp_path, monkeypatch, changed, counts):
    monkeypatch.setattr(keys, "_ROOT", tmp_path)
    package = tmp_path / "starcoder_jax" / "own"
    (package / "stage").mkdir(parents=True)
    sources = {
        "stage/__init__.py": "import numpy\nfrom starcoder_jax.own.stage import rules\n",
        "stage/rules.py": "import starcoder_jax.own.shared\nfrom starcoder_jax.own.stage import A",
        "stage/late.py": "LIMIT = 1",
        "shared.py": "def read():\n    from starcoder_jax.own.stage.late import LIMIT\n",
        "report.py": "from starcoder_jax.own.stage import rules",
        "stage/other.py": "A = 1",
    }
    for name, source in sources.items():
        (package / name).write_text(source)
    before = code_digest("starcoder_jax.own.stage")
    assert code_digest("starcoder_jax.own.stage") == before
    (package / changed).write_text(sources[changed] + "\nB = 1\n")
    assert (code_digest("starcoder_jax.own.stage") != before) == counts


def test_the_code_of_the_steps_is_found():
    assert code_digest("starcoder_jax.stack.record") != code_digest("starcoder_jax.stack.nothing")
    assert code_digest(__name__) != code_digest("starcoder_jax.stack.nothing")
