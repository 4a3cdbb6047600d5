"""How many FLOPs a model asks for: the numerator of model FLOPs utilisation (MFU).

The rule: 2 FLOPs for a multiplication and its addition, in the products with weight matrices, the
output head among them, and in attention's two products, of which exactly the visible query-key
pairs count (causal, within the window). Training costs three forward passes. Embedding lookups,
norms, activations, softmax, the optimizer and rematerialisation do not count.
"""

from starcoder_jax.model.config import DecoderConfig


def visible_pairs(length: int, window: int | None) -> int:
    """Query-key pairs that causal attention within a window sees in one sequence."""
    window = min(window or length, length)
    return window * (window + 1) // 2 + (length - window) * window


def attention_flops(config: DecoderConfig, length: int) -> int:
    """Of attention's two products in one forward pass of one sequence, all layers."""
    pairs = visible_pairs(length, config.sliding_window)
    return config.num_layers * 4 * pairs * config.embed_dim


def forward_flops(config: DecoderConfig, length: int) -> int:
    """Of one forward pass of one sequence of `length` tokens."""
    key_value_dim = config.num_kv_heads * config.head_dim
    weights = config.num_layers * (
        2 * config.embed_dim**2  # query and output projections
        + 2 * config.embed_dim * key_value_dim
        + 2 * config.embed_dim * config.mlp_dim
    )
    weights += config.vocab_size * config.embed_dim
    return 2 * weights * length + attention_flops(config, length)


def training_flops(config: DecoderConfig, batch_size: int, length: int) -> int:
    """Of one training step: forward and backward pass of a batch."""
    return 3 * batch_size * forward_flops(config, length)
