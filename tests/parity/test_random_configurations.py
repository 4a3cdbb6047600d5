"""Architectures drawn at random compute, and learn, what transformers' do."""

import dataclasses
import functools
import tempfile

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from hypothesis import strategies as st

from starcoder_jax.hf.layout import hf_tensors
from starcoder_jax.model import attention
from starcoder_jax.training.loss import LossConfig, cross_entropy
from starcoder_jax.training.step import graph_definition

torch = pytest.importorskip("torch")

EXAMPLES = 20  # of each architecture; 1.5 to 2 seconds each, nearly all of it compilation
BACKENDS = ("reference", "xla")  # of attention: those that run anywhere, at any length
TOLERANCE = 1e-4  # of the largest absolute value in the tensor that is compared


def shared_fields(rng):
    """What all architectures have, by one set of names."""
    heads = rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 12])
    # A norm over very few values leaves next to nothing of them.
    head_dim = rng.choice([size for size in (2, 4, 6, 8, 16) if size * heads >= 12])
    return {
        "heads": heads,
        "embed": heads * head_dim,
        "layers": rng.randint(1, 3),
        "mlp": rng.randint(16, 96),
        "vocab": rng.randint(reference.tokenizer().vocab_size, 400),
        "epsilon": rng.choice([1e-5, 1e-3, 0.1]),
        "activation": rng.choice(["gelu_pytorch_tanh", "gelu", "gelu_new", "gelu_fast"]),
        "tied": rng.random() < 0.5,
    }


def starcoder2(rng):
    fields = shared_fields(rng)
    divisors = [n for n in range(1, fields["heads"] + 1) if fields["heads"] % n == 0]
    theta = rng.choice([100.0, 1e4, 1e5, 999999.4420358813])
    return reference.starcoder2(
        vocab_size=fields["vocab"],
        hidden_size=fields["embed"],
        intermediate_size=fields["mlp"],
        num_hidden_layers=fields["layers"],
        num_attention_heads=fields["heads"],
        num_key_value_heads=rng.choice(divisors),
        sliding_window=rng.choice([None, rng.randint(2, 8), rng.randint(9, 15), 99]),
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        hidden_act=fields["activation"],
        norm_epsilon=fields["epsilon"],
        tie_word_embeddings=fields["tied"],
    )


def gpt_bigcode(rng):
    fields = shared_fields(rng)
    return reference.gpt_bigcode(
        vocab_size=fields["vocab"],
        n_positions=rng.randint(24, 64),
        n_embd=fields["embed"],
        n_layer=fields["layers"],
        n_head=fields["heads"],
        n_inner=rng.choice([None, fields["mlp"]]),
        multi_query=rng.random() < 0.5,
        activation_function=fields["activation"],
        layer_norm_epsilon=fields["epsilon"],
        tie_word_embeddings=fields["tied"],
    )


def bloom(rng):
    fields = shared_fields(rng)
    return reference.bloom(
        vocab_size=fields["vocab"],
        hidden_size=fields["embed"],
        n_layer=fields["layers"],
        n_head=fields["heads"],
        layer_norm_epsilon=fields["epsilon"],
        tie_word_embeddings=fields["tied"],
    )


DRAW = {"gpt_bigcode": gpt_bigcode, "starcoder2": starcoder2, "bloom": bloom}


@functools.partial(reference.jit, static_argnums=0)
def compute(graph, params, tokens):
    """Logits, residual stream, loss a token and its gradients."""
    length = tokens.shape[1]
    weights = jnp.broadcast_to(jnp.arange(length) < length - 1, tokens.shape).astype(jnp.float32)

    def loss(params):
        model = nnx.merge(graph, params)
        hidden = model.hidden_states(tokens)
        targets = jnp.roll(tokens, -1, axis=1)  # what is rolled round to the end has no weight
        total = cross_entropy(hidden, model.head, targets, weights, LossConfig())
        return total / jnp.sum(weights)

    model = nnx.merge(graph, params)
    layers = model.layer_outputs(tokens)
    return {
        "logits": model(tokens),
        "layers": [*layers[:-1], model.final_norm(layers[-1])],  # as transformers has the last
        "loss_and_gradients": jax.value_and_grad(loss)(params),
    }


def compare(theirs, config, params, tokens):
    """Raises an AssertionError that names the first thing that differs."""
    ours = jax.tree.map(np.asarray, compute(graph_definition(config), params, tokens))
    theirs.zero_grad()
    their_tokens = torch.tensor(tokens).long()
    output = theirs(their_tokens, labels=their_tokens, output_hidden_states=True)
    output.loss.backward()
    assert_close("logits", ours["logits"], output.logits)
    for index, pair in enumerate(zip(ours["layers"], output.hidden_states, strict=True)):
        assert_close(f"hidden states {index}", *pair)
    loss, gradients = ours["loss_and_gradients"]
    assert_close("loss", loss, output.loss)
    # Compared tensor by tensor as transformers has them. Some of our parameters alone have no
    # gradient but rounding errors: softmax takes away what a bias adds to all keys.
    tensors = {
        tensor.name: tensor.join(
            {part.path: gradient_of(gradients, part.path, tensor.layer) for part in tensor.parts}
        )
        for tensor in hf_tensors(config, theirs.config.model_type)
    }
    parameters = dict(theirs.named_parameters())
    assert tensors.keys() == parameters.keys()
    for name, parameter in parameters.items():
        assert_close(f"gradient of {name}", tensors[name], parameter.grad)


def gradient_of(gradients, path, layer):
    for key in path:
        gradients = gradients[key]
    return gradients if layer is None else gradients[layer]


def assert_close(name, actual, expected):
    expected = expected.detach().numpy()
    assert actual.shape == expected.shape, name
    scale = np.abs(expected).max()
    assert scale > 0, name
    error = np.abs(actual - expected).max() / scale
    assert error < TOLERANCE, f"{name} differs by {error:.1e}"


def opened(theirs):
    """Config and parameters of the same model here."""
    with tempfile.TemporaryDirectory() as directory:
        model = reference.reopened(theirs, directory)
    assert model.config.dtype == "float32"
    return model.config, nnx.to_pure_dict(nnx.state(model))


def random_tokens(config, length):
    return np.random.default_rng(length).integers(0, config.vocab_size, (2, length), np.int32)


@pytest.mark.parametrize("architecture", DRAW)
def test_random_configurations(architecture, monkeypatch):
    monkeypatch.setattr(attention, "_MIN_BLOCK", 8)  # cuts 16 and 24 tokens into blocks
    seen = []

    @hypothesis.settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],  # to shrink would take minutes
    )
    # Hypothesis's own draws come in families of look-alikes: forty would cover little.
    @hypothesis.given(st.randoms(use_true_random=True))
    def check(rng):
        theirs = reference.random_model(DRAW[architecture](rng), seed=len(seen))
        config, params = opened(theirs)
        config = dataclasses.replace(config, attention_backend=BACKENDS[len(seen) % len(BACKENDS)])
        seen.append(config)
        hypothesis.note(f"{len(seen)}: {config}")
        compare(theirs, config, params, random_tokens(config, rng.choice([9, 16, 17, 24])))

    check()
    jax.clear_caches()  # the programs of forty architectures fill a gigabyte
    print(f"{architecture}: {len(seen)} configurations, {len(set(seen))} of them distinct")
    assert len(set(seen)) > 0.9 * EXAMPLES
    assert {config.attention_backend for config in seen} == set(BACKENDS)


def swapped(params, first, second):
    """The parameters with those of two parts of a layer in each other's place."""
    layers = params["layers"]
    changes = {
        one: jax.tree.map(lambda old, new: new.reshape(old.shape), layers[one], layers[other])
        for one, other in ((first, second), (second, first))
    }
    return params | {"layers": layers | changes}


def changed(params, part, change):
    """The parameters with one part of a layer changed."""
    return params | {"layers": params["layers"] | {part: change(params["layers"][part])}}


MISTAKES = {
    "query and key": ("bloom", lambda c, p: (c, swapped(p, "query", "key"))),
    "key and value": ("starcoder2", lambda c, p: (c, swapped(p, "key", "value"))),
    "norms": ("gpt_bigcode", lambda c, p: (c, swapped(p, "attention_norm", "mlp_norm"))),
    "order of heads": (
        "bloom",
        lambda c, p: (c, changed(p, "value", lambda x: jax.tree.map(lambda y: y[..., ::-1, :], x))),
    ),
    "bias": (
        "gpt_bigcode",
        lambda c, p: (c, changed(p, "mlp_output", lambda x: x | {"bias": 0 * x["bias"]})),
    ),
    "window": ("starcoder2", lambda c, p: (dataclasses.replace(c, sliding_window=17), p)),
    "theta": ("starcoder2", lambda c, p: (dataclasses.replace(c, rope_theta=5050.0), p)),
    "activation": ("gpt_bigcode", lambda c, p: (dataclasses.replace(c, activation="gelu_erf"), p)),
    "epsilon": ("bloom", lambda c, p: (dataclasses.replace(c, norm_epsilon=1e-3), p)),
}


@functools.cache
def model_of(architecture):
    theirs = reference.random_model(reference.CONFIGS[architecture]())
    return theirs, *opened(theirs)


@pytest.mark.parametrize("architecture", reference.CONFIGS)
def test_what_mistakes_are_made_in_is_right_without_them(architecture):
    theirs, config, params = model_of(architecture)
    compare(theirs, config, params, random_tokens(config, 24))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed(mistake):
    architecture, make = MISTAKES[mistake]
    theirs, config, params = model_of(architecture)
    config, params = make(config, params)
    with pytest.raises(AssertionError, match="logits differs"):
        compare(theirs, config, params, random_tokens(config, 24))
