import pathlib

import pytest

from starcoder_jax.evals.requests import READING, Request
from starcoder_jax.evals.tasks import TASKS

BASE = {"task": "humaneval", "data": pathlib.Path("d.jsonl"), "output": pathlib.Path("o.json")}
CHECKPOINT = {"checkpoint": "runs/tiny"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "one of --checkpoint, --samples and --solutions"),
        (CHECKPOINT | {"solutions": "canonical"}, "one of --checkpoint"),
        (CHECKPOINT | {"output": pathlib.Path("o")}, "--output=o must be named .json"),
        (CHECKPOINT | {"limit": 0}, "--limit=0 must be at least 1"),
        (CHECKPOINT | {"max_tokens": 0}, "--max_tokens=0 must be at least 1"),
        (CHECKPOINT | {"time_limit": 0.0}, "--time_limit=0.0 must be above 0"),
        (CHECKPOINT | {"num_samples": 5}, "draws the same sample 5 times"),
        (CHECKPOINT | {"k": (1, 5)}, "--k=5 needs at least --num_samples=5"),
        ({"solutions": "canonical", "temperature": 0.5}, "--temperature has no effect here"),
        ({"solutions": "canonical", "seed": 0}, "--seed has no effect here"),
        ({"samples": pathlib.Path("s"), "generate_only": True}, "--generate_only has no effect"),
        (CHECKPOINT | {"generate_only": True, "time_limit": 1.0}, "--time_limit has no effect"),
        (CHECKPOINT | {"window": 5}, "--window has no effect"),
        (CHECKPOINT | {"order": "spm"}, "--order has no effect"),
        (CHECKPOINT | {"task": "fim", "without_sandbox": True}, "--without_sandbox has no effect"),
        (CHECKPOINT | {"task": "perplexity", "only": "x"}, "--only has no effect"),
        (CHECKPOINT | {"task": "fim-perplexity", "order": "spm"}, "--order has no effect"),
        ({"task": "perplexity", "solutions": "canonical"}, "perplexity needs a --checkpoint"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Request(**BASE | fields)


@pytest.mark.parametrize(
    "fields",
    [
        CHECKPOINT | {"num_samples": 5, "temperature": 0.2, "seed": 1, "k": (1, 5), "workers": 2},
        CHECKPOINT | {"generate_only": True, "only": "x", "top_p": 0.9, "dtype": "float32"},
        {"samples": pathlib.Path("s"), "time_limit": 3.0, "without_sandbox": True, "limit": 3},
        {"solutions": "canonical", "task": "fim", "seed": 3, "limit": 9},
        CHECKPOINT | {"task": "fim", "order": "spm"},
        CHECKPOINT | {"task": "perplexity", "window": 64, "limit": 2},
        CHECKPOINT | {"task": "fim-perplexity", "window": 64, "limit": 2, "seed": 1},
    ],
)
def test_what_makes_sense_is_taken(fields):
    request = Request(**BASE | fields)
    assert request.file(".html") == pathlib.Path("o.html")
    assert request.task in READING or request.task in TASKS
