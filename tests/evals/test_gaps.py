import io
import math

import jax
import numpy as np
import pytest

import starcoder_jax as sj
from starcoder_jax.data.tokenizer import Tokenizer
from starcoder_jax.evals.corpus import held_out_lines, read_corpus
from starcoder_jax.evals.gaps import GapLoss, gap_losses, metrics
from starcoder_jax.evals.problems import make_problems
from starcoder_jax.evals.tasks import TASKS
from starcoder_jax.inference.infilling import infill_prompt
from starcoder_jax.progress import Progress


@pytest.fixture(scope="module")
def opened(trained):
    return sj.load_model(trained)


def problems(*rows):
    return make_problems(TASKS["fim"], rows, None)


def losses_of(opened, asked, length):
    return gap_losses(*opened, asked, length, Progress(io.StringIO()))


def cost(model, tokenizer: Tokenizer, context, answer: str) -> float:
    """By the chain rule, from all logits of one unpadded sequence."""
    ids = tokenizer.encode(answer)
    tokens = np.concatenate([context, ids]).astype(np.int32)
    log_probabilities = jax.nn.log_softmax(model(tokens[None])[0].astype(np.float32))
    places = np.arange(len(context) - 1, len(tokens) - 1)
    return -float(np.asarray(log_probabilities)[places, ids].sum())


def test_the_cost_is_the_models_in_each_context(opened):
    row = {"prefix": "def f(a):\n    ", "middle": "b = a", "suffix": "\n    return b\n"}
    (loss,) = losses_of(opened, problems(row), 64)
    # White space before the gap belongs to the answer.
    before, answer, after = "def f(a):", "\n    b = a", row["suffix"]
    contexts = {
        "psm": infill_prompt(opened[1], before, after, order="psm"),
        "spm": infill_prompt(opened[1], before, after, order="spm"),
        "left-to-right": opened[1].encode(before),
    }
    for name, context in contexts.items():
        assert loss.nats[name] == pytest.approx(cost(*opened, context, answer), rel=1e-5), name
    assert loss.num_bytes == len(answer)
    assert len(set(loss.nats.values())) == 3


def test_what_does_not_fit_is_dropped_far_from_the_gap(opened):
    row = {"prefix": "x = 1\n" * 50, "middle": "y = é", "suffix": "\nz = 3" * 50}
    (loss,) = losses_of(opened, problems(row), 32)
    model, tokenizer = opened
    answer = "\ny = é"
    room = 33 - len(tokenizer.encode(answer))
    before = row["prefix"].rstrip()
    shown = {
        "spm": infill_prompt(tokenizer, before, row["suffix"], order="spm", max_tokens=room),
        "left-to-right": tokenizer.encode(before)[-room:],
    }
    for name, context in shown.items():
        assert len(context) == room
        assert loss.nats[name] == pytest.approx(cost(model, tokenizer, context, answer), rel=1e-5)
    assert loss.num_bytes == len(answer) + 1  # é has two
    with pytest.raises(ValueError, match="1: the answer alone is longer than the window"):
        losses_of(opened, problems(row), 2)


def test_at_the_start_of_a_text_stands_its_mark(opened):
    model, tokenizer = opened
    (loss,) = losses_of(opened, problems({"prefix": "", "middle": "import os", "suffix": "\n"}), 64)
    start = np.array([tokenizer.end_of_text_id])
    expected = cost(model, tokenizer, start, "import os")
    assert loss.nats["left-to-right"] == pytest.approx(expected, rel=1e-5)


def test_held_out_lines_do_not_depend_on_each_other(opened, micro_folder):
    rows = held_out_lines(read_corpus(micro_folder / "data").documents, 9, seed=0)
    together = losses_of(opened, problems(*rows), 64)
    alone = [losses_of(opened, problems(row), 64)[0] for row in rows[:2]]
    for one, other in zip(alone, together, strict=False):
        assert one.task_id == other.task_id
        assert one.nats == pytest.approx(other.nats, rel=1e-5)


def test_figures_are_ratios_of_sums_and_errors_of_pairs():
    bit = math.log(2)
    losses = [
        GapLoss("a", 2, {"psm": 4 * bit, "spm": 2 * bit, "left-to-right": 6 * bit}),
        GapLoss("b", 6, {"psm": 4 * bit, "spm": 8 * bit, "left-to-right": 6 * bit}),
    ]
    found = metrics(losses)
    expected = {"psm": 1.0, "spm": 1.25, "left-to-right": 1.5}
    for name, value in expected.items():
        assert found[f"{name}/bits_per_byte"] == pytest.approx(value)
        if name != "left-to-right":
            assert found[f"{name}/saved"] == pytest.approx(1.5 - value)
    # Saved by psm: 2 bits of 2 bytes, 2 of 6; by the ratio 0.5 a byte these are +1 and -1 bit.
    error = np.std([1, -1], ddof=1) / math.sqrt(2) / 4
    assert found["psm/saved_stderr"] == pytest.approx(error)
