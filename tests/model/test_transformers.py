"""The same parameters in transformers' models and in ours give the same logits and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from starcoder_jax.model.config import DecoderConfig
from starcoder_jax.model.decoder import Decoder
from starcoder_jax.training.loss import LossConfig, cross_entropy

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# Little is computed here and much compiled: half of that time is LLVM's optimization.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
VOCAB, LAYERS, LENGTH, MLP = 96, 2, 24, 96


def decoder_config(**changes):
    fields = {"vocab_size": VOCAB, "num_layers": LAYERS, "mlp_dim": MLP, "max_length": 32}
    return DecoderConfig(**fields, dtype="float32", **changes)


def starcoder2(**changes):
    options = {"sliding_window": 7, "rope_theta": 5000.0, "tie_word_embeddings": True} | changes
    theirs = transformers.Starcoder2Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=MLP, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, use_bias=True,
        hidden_act="gelu_pytorch_tanh", sliding_window=options["sliding_window"],
        rope_parameters={"rope_type": "default", "rope_theta": options["rope_theta"]},
        tie_word_embeddings=options["tie_word_embeddings"], attn_implementation="eager",
    )  # fmt: skip
    ours = decoder_config(
        embed_dim=32, num_heads=4, num_kv_heads=2, rope_theta=options["rope_theta"],
        sliding_window=options["sliding_window"], tied_head=options["tie_word_embeddings"],
    )  # fmt: skip
    return transformers.Starcoder2ForCausalLM(theirs), ours, starcoder2_layer


def starcoder2_layer(layer):
    attention = layer.self_attn
    return {
        "attention_norm": layer.input_layernorm,
        "mlp_norm": layer.post_attention_layernorm,
        "query": (attention.q_proj.weight, attention.q_proj.bias),
        "key": (attention.k_proj.weight, attention.k_proj.bias),
        "value": (attention.v_proj.weight, attention.v_proj.bias),
        "attention_output": (attention.o_proj.weight, attention.o_proj.bias),
        "mlp_input": (layer.mlp.c_fc.weight, layer.mlp.c_fc.bias),
        "mlp_output": (layer.mlp.c_proj.weight, layer.mlp.c_proj.bias),
    }


def gpt_bigcode(activation, ours_activation):
    theirs = transformers.GPTBigCodeConfig(
        vocab_size=VOCAB, n_positions=32, n_embd=32, n_layer=LAYERS, n_head=4, n_inner=MLP,
        activation_function=activation, multi_query=True, attn_implementation="eager",
    )  # fmt: skip
    ours = decoder_config(
        embed_dim=32, num_heads=4, num_kv_heads=1, positions="learned", activation=ours_activation
    )
    return transformers.GPTBigCodeForCausalLM(theirs), ours, gpt_bigcode_layer


def gpt_bigcode_layer(layer):
    rows = (32, 8, 8)  # of all query heads, the key head and the value head
    weights = layer.attn.c_attn.weight.split(rows)
    biases = layer.attn.c_attn.bias.split(rows)
    parts = zip(("query", "key", "value"), zip(weights, biases, strict=True), strict=True)
    return {
        "attention_norm": layer.ln_1,
        "mlp_norm": layer.ln_2,
        **dict(parts),
        "attention_output": (layer.attn.c_proj.weight, layer.attn.c_proj.bias),
        "mlp_input": (layer.mlp.c_fc.weight, layer.mlp.c_fc.bias),
        "mlp_output": (layer.mlp.c_proj.weight, layer.mlp.c_proj.bias),
    }


def bloom():
    theirs = transformers.BloomConfig(
        vocab_size=VOCAB, hidden_size=24, n_layer=LAYERS, n_head=6, attn_implementation="eager"
    )
    ours = decoder_config(
        embed_dim=24, num_heads=6, num_kv_heads=6, positions="alibi", embedding_norm=True
    )
    return transformers.BloomForCausalLM(theirs), ours, bloom_layer


def bloom_layer(layer):
    fused = layer.self_attention.query_key_value
    weights = fused.weight.reshape(6, 3, 4, 24)  # head, query/key/value, head size, input
    biases = fused.bias.reshape(6, 3, 4)
    return {
        "attention_norm": layer.input_layernorm,
        "mlp_norm": layer.post_attention_layernorm,
        "query": (weights[:, 0].reshape(24, 24), biases[:, 0]),
        "key": (weights[:, 1].reshape(24, 24), biases[:, 1]),
        "value": (weights[:, 2].reshape(24, 24), biases[:, 2]),
        "attention_output": (layer.self_attention.dense.weight, layer.self_attention.dense.bias),
        "mlp_input": (layer.mlp.dense_h_to_4h.weight, layer.mlp.dense_h_to_4h.bias),
        "mlp_output": (layer.mlp.dense_4h_to_h.weight, layer.mlp.dense_4h_to_h.bias),
    }


def array(parameter):
    return jnp.array(parameter.detach().numpy())


def norm(module):
    return {"scale": array(module.weight), "bias": array(module.bias)}


def copy_parameters(theirs, ours, layer_parts):
    """A decoder with the parameters of a transformers model."""
    model = jit(lambda: Decoder(ours, rngs=nnx.Rngs(0)))()
    shapes = jax.tree.map(lambda leaf: leaf.shape, nnx.to_pure_dict(nnx.state(model))["layers"])
    body = theirs.base_model
    layers = []
    for layer in body.layers if hasattr(body, "layers") else body.h:
        values = {}
        for name, part in layer_parts(layer).items():
            if name.endswith("norm"):
                values[name] = norm(part)
            else:  # torch keeps a matrix as [outputs, inputs]
                kernel, bias = array(part[0]).T, array(part[1])
                values[name] = {
                    "kernel": kernel.reshape(shapes[name]["kernel"][1:]),
                    "bias": bias.reshape(shapes[name]["bias"][1:]),
                }
        layers.append(values)
    params = {
        "embedding": array(theirs.get_input_embeddings().weight),
        "final_norm": norm(body.norm if hasattr(body, "norm") else body.ln_f),
        "layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers),
    }
    if ours.positions == "learned":
        params["position_embedding"] = array(body.wpe.weight)
    if ours.embedding_norm:
        params["embedding_norm"] = norm(body.word_embeddings_layernorm)
    if not ours.tied_head:
        params["untied_head"] = array(theirs.lm_head.weight)
    expected = jax.tree.map(lambda leaf: leaf.shape, nnx.to_pure_dict(nnx.state(model)))
    assert jax.tree.map(lambda leaf: leaf.shape, params) == expected
    nnx.update(model, params)
    return model


CASES = {
    "StarCoder2": starcoder2,
    "StarCoder2, untied head, no window": lambda: starcoder2(
        tie_word_embeddings=False, sliding_window=None, rope_theta=999999.4420358813
    ),
    "StarCoder, tanh": lambda: gpt_bigcode("gelu_pytorch_tanh", "gelu_tanh"),
    "StarCoder, erf": lambda: gpt_bigcode("gelu", "gelu_erf"),
    "BLOOM": bloom,
}


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_transformers(case):
    torch.manual_seed(0)
    theirs, config, layer_parts = CASES[case]()
    theirs.eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # Biases and norms too, and large enough to matter.
            parameter.add_(0.3 * torch.randn_like(parameter))
    model = copy_parameters(theirs, config, layer_parts)
    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, LENGTH))
    their_tokens = torch.tensor(tokens)
    logits = theirs(their_tokens).logits
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, VOCAB), their_tokens[:, 1:].reshape(-1), reduction="sum"
    )
    loss.backward()

    def our_loss(model):
        hidden = model.hidden_states(tokens[:, :-1])
        weights = jnp.ones((2, LENGTH - 1))
        return cross_entropy(hidden, model.head, tokens[:, 1:], weights, LossConfig())

    def assert_close(actual, expected):
        expected = expected.detach().numpy()
        assert np.abs(actual - expected).max() < 1e-4 * np.abs(expected).max()

    assert_close(jit(model.__call__)(tokens), logits)
    value, gradients = jit(jax.value_and_grad(our_loss))(model)
    assert_close(value, loss)
    assert_close(gradients.embedding[...], theirs.get_input_embeddings().weight.grad)
