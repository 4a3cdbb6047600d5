import io
import math

import numpy as np
import pytest
from flax import nnx

import starcoder_jax as sj
from starcoder_jax.data.fim import FimConfig
from starcoder_jax.data.store import TokenStore
from starcoder_jax.evals.corpus import read_corpus
from starcoder_jax.evals.perplexity import TextLoss, metrics, text_losses
from starcoder_jax.progress import Progress
from starcoder_jax.training.config import EvaluationConfig
from starcoder_jax.training.evaluation import Evaluator


@pytest.fixture(scope="module")
def opened(trained):
    return sj.load_model(trained)


def test_it_is_what_training_says_of_the_same_files(micro_folder, opened):
    model, tokenizer = opened
    store = TokenStore(micro_folder / "data")
    config = EvaluationConfig(max_files=5, sample_tokens=4)
    evaluator = Evaluator(store, ("code",), model.config, config, FimConfig(rate=0), 64, 8)
    expected = evaluator(nnx.to_pure_dict(nnx.state(model)))
    documents = read_corpus(micro_folder / "data", limit=5).documents
    losses = text_losses(model, tokenizer, documents, 64, Progress(io.StringIO()))
    found = metrics(losses)
    assert found["bits_per_byte"] == pytest.approx(expected.metrics["eval/bits_per_byte"], rel=1e-6)
    assert found["loss"] == pytest.approx(expected.metrics["eval/loss"], rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert [loss.path for loss in losses] == [file.path for file in expected.files]
    bits = [loss.nats / math.log(2) for loss in losses]
    np.testing.assert_allclose(bits, [file.model_bits for file in expected.files], rtol=1e-6)


def test_figures_are_over_all_texts_together():
    losses = [TextLoss("a", 10, 4, 8.0), TextLoss("b", 30, 6, 2.0)]
    found = metrics(losses)
    assert found == pytest.approx(
        {"bits_per_byte": 0.25 / math.log(2), "loss": 1.0, "perplexity": math.e}
    )
    assert metrics([TextLoss("a", 1, 1, 1e4)])["perplexity"] == math.inf


def test_windows_that_cannot_be_are_refused(micro_folder, opened):
    documents = read_corpus(micro_folder / "data", limit=1).documents
    with pytest.raises(ValueError, match="--window=0"):
        text_losses(*opened, documents, 0, Progress(io.StringIO()))
