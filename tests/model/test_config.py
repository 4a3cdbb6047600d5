import dataclasses

import pytest

from starcoder_jax.model.config import DecoderConfig

CONFIG = DecoderConfig(
    vocab_size=64,
    num_layers=3,
    embed_dim=48,
    num_heads=6,
    num_kv_heads=2,
    mlp_dim=96,
    max_length=32,
)


def test_what_follows_from_the_fields():
    assert (CONFIG.head_dim, CONFIG.query_groups) == (8, 3)
    assert CONFIG.init_std == pytest.approx(48**-0.5)
    assert CONFIG.residual_init_std == pytest.approx((48 * 2 * 3) ** -0.5)


# The value that a training script of the family passes as --init-method-std, by its embed_dim.
@pytest.mark.parametrize(
    ("embed_dim", "std"), [(2048, 0.02209), (2816, 0.01884), (3072, 0.018042), (6144, 0.01275)]
)
def test_init_std_is_the_published_one(embed_dim, std):
    config = dataclasses.replace(CONFIG, embed_dim=embed_dim, num_heads=2)
    assert config.init_std == pytest.approx(std, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "rotary"}, "positions is 'rotary'.*learned, rope, alibi"),
        ({"activation": "relu"}, "activation is 'relu'.*gelu_tanh, gelu_erf"),
        ({"rematerialization": "some"}, "rematerialization is 'some'.*none, full, dots"),
        ({"attention_backend": "flash"}, "attention_backend is 'flash'.*reference, xla"),
        ({"dtype": "float64"}, "dtype is 'float64'.*float32, bfloat16"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"max_length": -1}, "max_length is -1"),
        ({"num_heads": 5}, "embed_dim=48.*num_heads=5"),
        ({"num_kv_heads": 4}, "num_heads=6.*num_kv_heads=4"),
        ({"num_kv_heads": 0}, "num_kv_heads=0"),
        ({"num_heads": 16, "num_kv_heads": 1}, "even head size, not 3"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"embedding_dropout": 1.0}, r"embedding_dropout is 1.0.*\[0, 1\)"),
        ({"attention_dropout": -0.1}, "attention_dropout is -0.1"),
        ({"residual_dropout": 2.0}, "residual_dropout is 2.0"),
    ],
)
def test_a_bad_field_is_named_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        dataclasses.replace(CONFIG, **changes)
    assert "\n" not in str(error.value)


def test_an_odd_head_size_is_fine_without_rotation():
    config = dataclasses.replace(CONFIG, num_heads=16, num_kv_heads=1, positions="alibi")
    assert config.head_dim == 3
