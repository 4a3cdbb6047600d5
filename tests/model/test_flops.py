import dataclasses

import jax
import pytest
from flax import nnx

from starcoder_jax.model.config import DecoderConfig
from starcoder_jax.model.decoder import Decoder
from starcoder_jax.model.flops import attention_flops, forward_flops, training_flops, visible_pairs
from starcoder_jax.recipes import load_recipe

CONFIG = DecoderConfig(
    vocab_size=1024, num_layers=1, embed_dim=256, num_heads=4, num_kv_heads=2, mlp_dim=512,
    max_length=256, dtype="float32", attention_backend="reference",
)  # fmt: skip


@pytest.mark.parametrize("window", [None, 1, 3, 8, 9, 100])
def test_visible_pairs(window):
    length = 9
    pairs = sum(1 for i in range(length) for j in range(i + 1) if j > i - (window or length))
    assert visible_pairs(length, window) == pairs


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_products_are_those_that_xla_counts(kv_heads):
    """The reference multiplies all pairs; what it does beside products is under 3 percent."""
    config = dataclasses.replace(CONFIG, num_kv_heads=kv_heads)
    length = 128
    model = jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)
    tokens = jax.ShapeDtypeStruct((1, length), "int32")
    compiled = jax.jit(lambda s, t: nnx.merge(graph, s)(t)).lower(state, tokens).compile()
    dense = attention_flops(config, length) * length**2 / visible_pairs(length, None)
    expected = forward_flops(config, length) - attention_flops(config, length) + dense
    assert expected < compiled.cost_analysis()["flops"] < 1.03 * expected


def test_starcoder2_15b_by_hand():
    config = load_recipe(["15b"]).model
    # 40 layers of 6144 x (2 x 6144 + 2 x 512 + 2 x 24576), and a head of 49152 x 6144.
    weights = 40 * 6144 * (2 * 6144 + 2 * 512 + 2 * 24576) + 49152 * 6144
    assert weights == 15_653_142_528
    pairs = 4096 * 4097 // 2
    per_sequence = 3 * (2 * weights * 4096 + 40 * 4 * 48 * 128 * pairs)
    assert training_flops(config, 1024, 4096) == 1024 * per_sequence
    # The usual estimate of 6 FLOPs a parameter and token leaves attention out.
    assert per_sequence / (6 * 15_957_889_024 * 4096) == pytest.approx(1.044, abs=1e-3)
    windowed = dataclasses.replace(config, sliding_window=1024)
    assert training_flops(windowed, 1, 4096) < per_sequence
