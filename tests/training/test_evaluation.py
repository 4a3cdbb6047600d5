import dataclasses
import math
import shutil
import subprocess

import jax
import numpy as np
import pytest
from flax import nnx

import starcoder_jax as sj
from starcoder_jax.data.fim import FimConfig
from starcoder_jax.parallel.mesh import MeshConfig, make_mesh
from starcoder_jax.parallel.sharding import batch_ways, sharding_rules
from starcoder_jax.training.config import EvaluationConfig
from starcoder_jax.training.evaluation import Evaluator, xz_bits

FILES = EvaluationConfig(max_files=6, sample_tokens=4)
FIM = FimConfig()


@pytest.fixture(scope="module")
def model(trained):
    return sj.load_model(trained)[0]


@pytest.fixture(scope="module")
def params(model):
    return nnx.to_pure_dict(nnx.state(model))


def evaluate(store, model, params, length, batch_size=8, evaluation=FILES, fim=FIM, **mesh):
    evaluator = Evaluator(
        store, ("code",), model.config, evaluation, fim, length, batch_size, **mesh
    )
    return evaluator(params)


def streams(store):
    """Token streams of the files, each between two <|endoftext|>, and their documents."""
    split, end = store.split("code", "validation"), store.tokenizer.end_of_text_id
    for index in range(FILES.max_files):
        stream = np.concatenate([[end], split.document_tokens(index), [end]])
        yield stream, split.document_info(index)


@nnx.jit
def plain_log_probabilities(model, tokens):
    return jax.nn.log_softmax(model(tokens))


def plain_losses(model, tokens):
    """Nats of each token after the first, from whole float32 logits."""
    inputs = tokens[:-1]
    # What is appended comes after all that counts; it saves compiling for every length.
    length = next(size for size in (64, 128, 1024) if size >= len(inputs))
    padded = np.zeros((1, length), np.int32)
    padded[0, : len(inputs)] = inputs
    log_probabilities = np.asarray(plain_log_probabilities(model, padded))[0]
    return -log_probabilities[np.arange(len(inputs)), tokens[1:]].astype(np.float64)


def check(evaluation, store, nats):
    """`nats`: what each file takes."""
    infos = [info for _, info in streams(store)]
    assert [file.path for file in evaluation.files] == [info["path"] for info in infos]
    assert [file.num_bytes for file in evaluation.files] == [info["bytes"] for info in infos]
    bits = np.array(nats) / math.log(2)
    np.testing.assert_allclose([file.model_bits for file in evaluation.files], bits, rtol=1e-5)
    num_bytes = sum(info["bytes"] for info in infos)
    targets = sum(info["tokens"] + 1 for info in infos)
    metrics = evaluation.metrics
    assert metrics["eval/bits_per_byte"] == pytest.approx(sum(bits) / num_bytes, rel=1e-5)
    assert metrics["eval/loss"] == pytest.approx(sum(nats) / targets, rel=1e-5)
    xz = sum(file.xz_bits for file in evaluation.files)
    assert metrics["eval/xz_bits_per_byte"] == pytest.approx(xz / num_bytes)


def test_a_file_shorter_than_a_window_is_one_plain_computation(store, model, params):
    longest = max(len(stream) for stream, _ in streams(store))
    evaluation = evaluate(store, model, params, length=longest + 10)
    check(evaluation, store, [plain_losses(model, stream).sum() for stream, _ in streams(store)])


@pytest.mark.parametrize("length", [64, 51])
def test_a_longer_file_counts_every_token_once_with_half_a_window_before_it(
    store, model, params, length
):
    stride = length // 2
    nats = []
    for stream, _ in streams(store):
        assert len(stream) > 2 * length
        losses = {}
        for target in range(1, len(stream)):
            windows = max(0, math.ceil((target - length) / stride))
            start = stride * windows  # of the first window that reaches the target
            assert start < target <= start + length
            assert start == 0 or target - start >= length / 2
            if (start, "losses") not in losses:
                window = stream[start : start + length + 1]
                losses[start, "losses"] = plain_losses(model, window)
            losses[target] = losses[start, "losses"][target - start - 1]
        nats.append(sum(losses[target] for target in range(1, len(stream))))
    check(evaluate(store, model, params, length), store, nats)


def test_neither_batch_size_nor_mesh_changes_the_numbers(store, model, params):
    expected = evaluate(store, model, params, length=64)
    others = [evaluate(store, model, params, length=64, batch_size=size) for size in (1, 7)]
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    rules = sharding_rules(model.config, mesh)
    with jax.set_mesh(mesh):
        # 3 rounds up to the 4 ways in which the mesh splits a batch.
        on_mesh = {"batch_size": 3, "ways": batch_ways(mesh), "spec": rules}
        abstract = jax.eval_shape(lambda: sj.Decoder(model.config, rngs=nnx.Rngs(0), spec=rules))
        split = jax.tree.map(
            lambda x, y: jax.device_put(np.asarray(x), jax.NamedSharding(mesh, y.sharding.spec)),
            params,
            nnx.to_pure_dict(nnx.state(abstract)),
        )
        others.append(evaluate(store, model, split, length=64, **on_mesh))
    assert set(expected.metrics) == {
        "eval/loss",
        "eval/infill_loss",
        "eval/bits_per_byte",
        "eval/xz_bits_per_byte",
    }
    assert expected.sample is not None
    for other in others:
        assert other.metrics == pytest.approx(expected.metrics, rel=1e-5)
        for first, second in zip(other.files, expected.files, strict=True):
            assert first.model_bits == pytest.approx(second.model_bits, rel=1e-5)
        assert other.sample == expected.sample


def test_infilling_scores_the_middle_and_its_end(store, model, params):
    evaluator = Evaluator(store, ("code",), model.config, FILES, FimConfig(), 128, 8)
    tokenizer = store.tokenizer
    names = "<fim_prefix>", "<fim_suffix>", "<fim_middle>"
    ids = [tokenizer.special_id(name) for name in names]
    texts = [tokenizer.decode(stream[1:-1]) for stream, _ in streams(store)]
    total, count = 0.0, 0
    windows = list(evaluator._infill_windows())
    assert len(windows) >= 3
    for window in windows:
        tokens = window.tokens.tolist()
        assert len(tokens) <= 129
        first, second, third = (tokens.index(id_) for id_ in ids)
        assert first == 0 and tokens[-1] == tokenizer.end_of_text_id
        prefix = tokenizer.decode(tokens[1:second])
        suffix = tokenizer.decode(tokens[second + 1 : third])
        middle = tokenizer.decode(tokens[third + 1 : -1])
        assert middle.endswith("\n") or not suffix
        assert prefix + middle + suffix in texts[window.file]
        losses = plain_losses(model, window.tokens)[third:]
        assert len(losses) == len(tokens) - third - 1
        total, count = total + losses.sum(), count + len(losses)
    expected = pytest.approx(total / count, rel=1e-5)
    assert evaluator(params).metrics["eval/infill_loss"] == expected


def test_the_sample_is_a_place_in_a_file(store, model, params):
    sample = evaluate(store, model, params, length=128).sample
    texts = {info["path"]: store.tokenizer.decode(s[1:-1]) for s, info in streams(store)}
    assert sample.prefix + sample.middle + sample.suffix in texts[sample.path]
    assert len(store.tokenizer.encode(sample.completion)) <= FILES.sample_tokens


def test_without_infilling_none_is_evaluated(store, model, params):
    evaluation = evaluate(store, model, params, length=64, fim=FimConfig(rate=0))
    assert "eval/infill_loss" not in evaluation.metrics and evaluation.sample is None


def test_long_files_are_left_out_and_none_left_is_no_evaluation(store, model, params):
    lengths = [info["tokens"] for _, info in streams(store)]
    limit = sorted(lengths)[2]
    config = dataclasses.replace(FILES, max_file_tokens=limit, max_files=2)
    evaluation = evaluate(store, model, params, length=64, evaluation=config)
    kept = [info["path"] for _, info in streams(store) if info["tokens"] <= limit]
    assert [file.path for file in evaluation.files] == kept[:2]
    config = dataclasses.replace(FILES, max_file_tokens=1)
    assert evaluate(store, model, params, length=64, evaluation=config) is None


# The program is no Python package; without it, liblzma alone is what the figures rest on.
@pytest.mark.skipif(shutil.which("xz") is None, reason="no xz program here")
@pytest.mark.parametrize("content", [b"x", b"def f():\n    return 1\n" * 500, bytes(range(256))])
def test_xz_bits_are_those_of_the_program(content):
    command = ["xz", "-9e", "--threads=1", "--stdout"]
    done = subprocess.run(command, input=content, capture_output=True, check=True)
    assert xz_bits(content) == 8 * len(done.stdout)
