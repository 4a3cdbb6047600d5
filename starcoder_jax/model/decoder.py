"""The StarCoder decoder: embedding, a scanned stack of layers, output head."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from starcoder_jax.model import positions as position_encoding
from starcoder_jax.model.attention import ATTENTION, AttentionDropout, attention_saveable
from starcoder_jax.model.cache import Cache, Prompts, cached_attention, written
from starcoder_jax.model.config import DecoderConfig
from starcoder_jax.model.mask import AttentionMask
from starcoder_jax.model.spec import Spec, gathered, unsharded

_CHECKPOINT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, attention_saveable
    ),
}


class LayerNorm(nnx.Module):
    """LayerNorm with scale and bias, computed in float32. `stack` prefixes the parameter shapes."""

    def __init__(self, dim: int, epsilon: float, spec: Spec, stack: tuple[int, ...] = ()):
        axes = ("layers",) * len(stack)
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((*stack, dim), out_sharding=spec(*axes, None)))
        self.bias = nnx.Param(jnp.zeros((*stack, dim), out_sharding=spec(*axes, None)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., dim] to the same shape and dtype."""
        y = x.astype(jnp.float32)
        mean = jnp.mean(y, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(y - mean), axis=-1, keepdims=True)
        y = (y - mean) * jax.lax.rsqrt(variance + self.epsilon)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class Linear(nnx.Module):
    """A stacked einsum with bias: kernel [layers, *inputs, *outputs], bias [layers, *outputs].

    Called inside the scan over layers, where the leading axis is gone.
    """

    def __init__(
        self,
        equation: str,  # of one layer, without the bias: "btd,dkh->btkh"
        inputs: dict[str, int],  # logical axis -> size
        outputs: dict[str, int],
        *,
        num_layers: int,
        std: float,
        rngs: nnx.Rngs,
        spec: Spec,
    ):
        self.equation, self.spec, self.axes = equation, spec, (*inputs, *outputs)
        shape = (num_layers, *inputs.values(), *outputs.values())
        bias_shape = (num_layers, *outputs.values())
        # A bias is as small as a norm: an output axis that FSDP splits is kept whole there.
        bias_axes = [None if axis == "embed" else axis for axis in outputs]
        self.kernel = nnx.Param(
            std
            * jax.random.normal(
                rngs.params(), shape, out_sharding=spec("layers", *inputs, *outputs)
            )
        )
        self.bias = nnx.Param(jnp.zeros(bias_shape, out_sharding=spec("layers", *bias_axes)))

    def __call__(self, x: jax.Array, out_sharding: jax.P | None) -> jax.Array:
        """Applies the layer in the dtype of x."""
        kernel = gathered(self.kernel[...].astype(x.dtype), self.axes, self.spec)
        y = jnp.einsum(self.equation, x, kernel, out_sharding=out_sharding)
        return y + self.bias[...].astype(x.dtype)


class Layers(nnx.Module):
    """All layers of a decoder, their parameters stacked along axis 0; called on one of them."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, spec: Spec):
        self.config, self.spec = config, spec
        embed = {"embed": config.embed_dim}
        head = {"kv_heads": config.num_kv_heads, "head_dim": config.head_dim}
        query = {
            "kv_heads": config.num_kv_heads,
            "query_groups": config.query_groups,
            "head_dim": config.head_dim,
        }
        mlp = {"mlp": config.mlp_dim}
        inner = dict(num_layers=config.num_layers, std=config.init_std, rngs=rngs, spec=spec)
        residual = inner | {"std": config.residual_init_std}
        norm = dict(
            dim=config.embed_dim,
            epsilon=config.norm_epsilon,
            spec=spec,
            stack=(config.num_layers,),
        )
        self.attention_norm = LayerNorm(**norm)
        self.query = Linear("btd,dkgh->btkgh", embed, query, **inner)
        self.key = Linear("btd,dkh->btkh", embed, head, **inner)
        self.value = Linear("btd,dkh->btkh", embed, head, **inner)
        self.attention_output = Linear("btkgh,kghd->btd", query, embed, **residual)
        self.mlp_norm = LayerNorm(**norm)
        self.mlp_input = Linear("btd,df->btf", embed, mlp, **inner)
        self.mlp_output = Linear("btf,fd->btd", mlp, embed, **residual)

    def __call__(
        self,
        x: jax.Array,
        attend: Callable[..., tuple[jax.Array, Any]],
        rotation: tuple[jax.Array, jax.Array] | None,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """One layer: [batch, length, embed] to the same, and what `attend` keeps.

        Args:
            x: the residual stream.
            attend: takes what a backend of `ATTENTION` takes, but for the mask; returns its output
                and anything else.
            rotation: of `rotary_angles`; None: positions come in otherwise.
            dropout_key: turns dropout on.
        """
        keys = [None] * 3 if dropout_key is None else list(jax.random.split(dropout_key, 3))
        residual_rate = self.config.residual_dropout
        attended, kept = self._attention(self.attention_norm(x), attend, rotation, keys[0])
        x = x + _dropout(attended, residual_rate, keys[1])
        hidden = self.mlp_input(self.mlp_norm(x), self.spec("batch", "length", "mlp"))
        hidden = jax.nn.gelu(hidden, approximate=self.config.activation == "gelu_tanh")
        hidden = self.mlp_output(hidden, self.spec("batch", "length", None))
        return x + _dropout(hidden, residual_rate, keys[2]), kept

    def _attention(self, x, attend, rotation, dropout_key):
        config, spec = self.config, self.spec
        query_spec = spec("batch", "length", "kv_heads", "query_groups", None)
        key_spec = spec("batch", "length", "kv_heads", None)
        query = self.query(x, query_spec)  # [b, t, k, g, h]
        key = self.key(x, key_spec)  # [b, s, k, h]
        value = self.value(x, key_spec)  # [b, s, k, h]
        slopes = None
        if rotation is not None:
            query = position_encoding.rotate(query, *rotation)
            key = position_encoding.rotate(key, *rotation)
        elif config.positions == "alibi":
            flat = jnp.array(position_encoding.alibi_slopes(config.num_heads), jnp.float32)
            slopes = flat.reshape(config.num_kv_heads, config.query_groups)
        dropout = None
        if dropout_key is not None and config.attention_dropout:
            dropout = AttentionDropout(dropout_key, config.attention_dropout)
        # Every query reads all keys before it, so keys are whole along the length.
        key, value = (_reshard(x, spec("batch", None, "kv_heads", None)) for x in (key, value))
        attended, kept = attend(query, key, value, slopes=slopes, dropout=dropout)
        return self.attention_output(attended, spec("batch", "length", None)), kept


class Decoder(nnx.Module):
    """A StarCoder-family language model.

    Args:
        config: the architecture.
        rngs: `params` draws the initial parameters, float32.
        spec: where arrays live on the mesh; by default on one device.
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, spec: Spec = unsharded):
        self.config, self.spec = config, spec

        def table(rows: int, axis: str | None) -> nnx.Param:
            shape = (rows, config.embed_dim)
            values = jax.random.normal(rngs.params(), shape, out_sharding=spec(axis, "embed"))
            return nnx.Param(config.init_std * values)

        self.embedding = table(config.vocab_size, "vocab")
        self.position_embedding = (
            table(config.max_length, None) if config.positions == "learned" else None
        )
        norm = (config.embed_dim, config.norm_epsilon, spec)
        self.embedding_norm = LayerNorm(*norm) if config.embedding_norm else None
        self.layers = Layers(config, rngs=rngs, spec=spec)
        self.final_norm = LayerNorm(*norm)
        self.untied_head = None if config.tied_head else table(config.vocab_size, "vocab")

    @property
    def head(self) -> jax.Array:
        """The output matrix, [vocab, embed], in the dtype of the parameters."""
        return (self.embedding if self.untied_head is None else self.untied_head)[...]

    def __call__(self, tokens: jax.Array, **kwargs) -> jax.Array:
        """Logits of the next token: int32 [batch, length] to float32 [batch, length, vocab].

        Takes the keyword arguments of `hidden_states`.
        """
        hidden = self.hidden_states(tokens, **kwargs)
        return jnp.einsum(
            "btd,vd->btv",
            hidden,
            self.head.astype(hidden.dtype),
            preferred_element_type=jnp.float32,
            out_sharding=self.spec("batch", "length", "vocab"),
        )

    def hidden_states(
        self,
        tokens: jax.Array,
        *,
        segment_ids: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """What the output head reads: the last layer's output after the final norm.

        Args:
            tokens: int32 [batch, length], length <= config.max_length with learned positions.
            segment_ids: int32 [batch, length]; tokens see their own segment only. Positions run on
                through all segments.
            dropout_key: turns the config's dropout on; None: evaluation.

        Returns:
            [batch, length, embed] in config.dtype.

        Raises:
            ValueError: more tokens than learned positions.
        """
        x, _ = self._run(tokens, segment_ids, dropout_key, lambda x, *_: None)
        return self.final_norm(x)

    def layer_outputs(
        self, tokens: jax.Array, *, segment_ids: jax.Array | None = None
    ) -> jax.Array:
        """The residual stream: what enters the first layer, then what each layer puts out.

        Args:
            tokens, segment_ids: as for `hidden_states`.

        Returns:
            [layers + 1, batch, length, embed] in config.dtype, before the final norm.
        """
        last, inputs = self._run(tokens, segment_ids, None, lambda x, *_: x)
        return jnp.concatenate([inputs, last[None]])

    def prefill(self, tokens: jax.Array, lengths: jax.Array) -> tuple[jax.Array, Prompts]:
        """Runs prompts, to decode from there.

        Args:
            tokens: int32 [batch, length], padded at the right.
            lengths: int32 [batch], at least 1.

        Returns:
            What the head reads at the last token of each row, [batch, embed], and their keys and
            values.
        """
        x, layers = self._run(tokens, None, None, lambda x, key, value: (key, value))
        rows = jnp.arange(tokens.shape[0])
        last = x.at[rows, lengths - 1].get(out_sharding=self.spec("batch", None))
        return self.final_norm(last), Prompts(layers, lengths)

    def decode(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Runs one token a row.

        Args:
            tokens: int32 [batch], at the positions `cache.lengths`.
            cache: what the rows have seen.

        Returns:
            What the head reads, [batch, embed], and the cache with these tokens in it.
        """
        x, rotation = self._embed(tokens[:, None], cache.lengths[:, None])
        positions = cache.positions()
        window = self.config.sliding_window

        def layer(x, xs):
            parameters, kept = xs

            def attend(query, key, value, *, slopes, dropout):
                new = written(kept, key, value, cache.lengths)
                return cached_attention(query, new, positions, cache.lengths, window, slopes), new

            return parameters(x, attend, rotation)

        x, layers = self._through(layer, x, cache.layers)
        return self.final_norm(x)[:, 0], Cache(layers, cache.lengths + 1)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Of what the head reads, [batch, embed] to float32 [batch, vocab]."""
        return jnp.einsum(
            "bd,vd->bv",
            hidden,
            self.head.astype(hidden.dtype),
            preferred_element_type=jnp.float32,
            out_sharding=self.spec("batch", "vocab"),
        )

    def _run(self, tokens, segment_ids, dropout_key, keep):
        """The last layer's output, and `keep` of every layer's input, keys and values."""
        config, spec = self.config, self.spec
        batch, length = tokens.shape
        positions = jnp.broadcast_to(
            jnp.arange(length), (batch, length), out_sharding=spec("batch", "length")
        )
        if self.position_embedding is not None and length > config.max_length:
            raise ValueError(
                f"{length} tokens, but the model has {config.max_length} learned positions"
            )
        x, rotation = self._embed(tokens, positions)
        layer_keys = None
        if dropout_key is not None:
            embedding_key, layers_key = jax.random.split(dropout_key)
            x = _dropout(x, config.embedding_dropout, embedding_key)
            layer_keys = jax.random.split(layers_key, config.num_layers)
        mask = AttentionMask(window=config.sliding_window, segment_ids=segment_ids)
        backend = ATTENTION[config.attention_backend]

        def attend(query, key, value, **options):
            return backend(query, key, value, mask, **options), (key, value)

        def layer(x, xs):
            parameters, key = xs
            y, keys_and_values = parameters(x, attend, rotation, key)
            return y, keep(x, *keys_and_values)

        if config.rematerialization != "none":
            policy = _CHECKPOINT_POLICIES[config.rematerialization]
            layer = jax.checkpoint(layer, policy=policy, prevent_cse=False)
        return self._through(layer, x, layer_keys)

    def _embed(self, tokens, positions):
        """What enters the first layer, and the rotation of its queries and keys."""
        config = self.config
        activation = self.spec("batch", "length", None)
        x = self.embedding[...].astype(config.dtype).at[tokens].get(out_sharding=activation)
        if self.position_embedding is not None:
            table = self.position_embedding[...].astype(config.dtype)
            x = x + table.at[positions].get(out_sharding=activation)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        if config.positions != "rope":
            return x, None
        return x, position_encoding.rotary_angles(positions, config.head_dim, config.rope_theta)

    def _through(self, layer, x, xs):
        """`layer` of one set of parameters and its share of xs after the other."""
        if isinstance(self.layers, Layers):
            return jax.lax.scan(layer, x, (self.layers, xs))
        kept = []
        for index, parameters in enumerate(self.layers):
            x, new = layer(x, (parameters, None if xs is None else xs[index]))
            kept.append(new)
        return x, tuple(kept)


def unstacked(model: Decoder, *, release: bool = False) -> Decoder:
    """The same model with every layer's parameters in arrays of their own.

    Decoding reads all parameters for each token: out of stacked arrays it would first copy each
    layer's. It compiles more slowly, and `layer_outputs` and gradients want the stack.

    Args:
        model: whose layers are stacked.
        release: frees the stacked arrays one by one, so that memory never holds the layers twice;
            `model` can then no longer be used.
    """
    graph, layers = nnx.split(model.layers)
    leaves, tree = jax.tree.flatten(layers)
    parts = []
    for leaf in leaves:
        parts.append(_apart(leaf))
        if release:
            leaf.delete()
    apart = nnx.merge(*nnx.split(model))
    apart.layers = nnx.List(
        nnx.merge(graph, jax.tree.unflatten(tree, layer)) for layer in zip(*parts, strict=True)
    )
    return apart


@jax.jit
def _apart(stacked: jax.Array) -> list[jax.Array]:
    return list(stacked)


def _dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a share `rate` of x and scales the rest up."""
    if key is None or not rate:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape, out_sharding=jax.typeof(x).sharding)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def _reshard(x: jax.Array, spec: jax.P | None) -> jax.Array:
    return x if spec is None else jax.reshard(x, spec)
