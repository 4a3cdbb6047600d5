"""Which tensor of a Hugging Face checkpoint holds which parameters of a `Decoder`, and how.

A linear layer is a weight [outputs, inputs] there and a kernel [*inputs, *outputs] here; all layers
are tensors of their own there and slices of one stacked array here. Names and layouts are those of
transformers' modeling_gpt_bigcode.py, modeling_starcoder2.py and modeling_bloom.py.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np

from starcoder_jax.model.config import DecoderConfig

# Keys of a parameter in the decoder's state, such as ("layers", "query", "kernel").
Path = tuple[str, ...]
Shape = tuple[int, ...]
# A parameter, of one layer where it is stacked, else None: in our layout.
Read = Callable[[Path, int | None], np.ndarray]

# What a base model's checkpoint, saved without the language-model head, leaves out of all names.
PREFIXES = {"gpt_bigcode": "transformer.", "starcoder2": "model.", "bloom": "transformer."}
HEAD = "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class Part:
    """One parameter in our layout; `shape` is that of one layer."""

    path: Path
    shape: Shape
    rows: int  # of the Hugging Face tensor, axis 0


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a Hugging Face checkpoint and the parameters in it.

    Attributes:
        name: in the checkpoint.
        shape: in the checkpoint.
        layer: index of the layer; None outside of the layers.
        parts: the parameters, in the order of their rows.
        heads: rows run over heads first, then over parts: [heads, parts, head_dim]; 1: part by
            part.
    """

    name: str
    shape: Shape
    layer: int | None
    parts: tuple[Part, ...]
    heads: int = 1

    def split(self, array: np.ndarray) -> dict[Path, np.ndarray]:
        """The parameters in a tensor of the checkpoint, each in its own shape."""
        if len(self.parts) == 1:
            return {self.parts[0].path: _from_rows(array, self.parts[0])}
        sizes = [part.rows // self.heads for part in self.parts]
        grouped = array.reshape(self.heads, sum(sizes), *array.shape[1:])
        pieces = np.split(grouped, np.cumsum(sizes)[:-1], axis=1)
        return {
            part.path: _from_rows(piece.reshape(part.rows, *array.shape[1:]), part)
            for part, piece in zip(self.parts, pieces, strict=True)
        }

    def join(self, arrays: Mapping[Path, np.ndarray]) -> np.ndarray:
        """The tensor of the checkpoint; undoes `split`."""
        rest = self.shape[1:]
        pieces = [_to_rows(arrays[part.path], part, rest) for part in self.parts]
        if len(pieces) > 1:
            pieces = [piece.reshape(self.heads, -1, *rest) for piece in pieces]
        return np.concatenate(pieces, axis=1).reshape(self.shape) if pieces[1:] else pieces[0]


def hf_tensors(config: DecoderConfig, model_type: str) -> list[Tensor]:
    """All tensors of a checkpoint, outer ones first, then layer by layer.

    Args:
        config: the architecture; `hf.config.model_type` has accepted it.
        model_type: one of `hf.config.MODEL_TYPES`.
    """
    outer, inner = _NAMES[model_type]
    prefix = PREFIXES[model_type]
    dim, rows = config.embed_dim, config.vocab_size
    tensors = [_table(prefix + outer["embedding"], ("embedding",), (rows, dim))]
    if config.positions == "learned":
        shape = (config.max_length, dim)
        name = prefix + outer["position_embedding"]
        tensors.append(_table(name, ("position_embedding",), shape))
    if config.embedding_norm:
        tensors += _norm(prefix + outer["embedding_norm"], ("embedding_norm",), dim, None)
    tensors += _norm(prefix + outer["final_norm"], ("final_norm",), dim, None)
    if not config.tied_head:
        tensors.append(_table(HEAD, ("untied_head",), (rows, dim)))
    heads = 1 if config.num_kv_heads == 1 else config.num_heads
    for layer in range(config.num_layers):
        for name, ours in inner.items():
            full_name = f"{prefix}{_LAYERS[model_type]}.{layer}.{name}"
            if ours[0].endswith("norm"):
                tensors += _norm(full_name, ("layers", ours[0]), dim, layer)
            else:
                tensors += _linear(full_name, ours, config, layer, heads)
    return tensors


_OUTER = {"embedding": "wte.weight", "position_embedding": "wpe.weight", "final_norm": "ln_f"}
_LAYERS = {"gpt_bigcode": "h", "starcoder2": "layers", "bloom": "h"}
_QUERY_KEY_VALUE = ("query", "key", "value")
# For each model type: our name -> its name outside of the layers, its name -> ours in a layer.
_NAMES: dict[str, tuple[dict[str, str], dict[str, tuple[str, ...]]]] = {
    "gpt_bigcode": (
        _OUTER,
        {
            "ln_1": ("attention_norm",),
            "attn.c_attn": _QUERY_KEY_VALUE,
            "attn.c_proj": ("attention_output",),
            "ln_2": ("mlp_norm",),
            "mlp.c_fc": ("mlp_input",),
            "mlp.c_proj": ("mlp_output",),
        },
    ),
    "starcoder2": (
        {"embedding": "embed_tokens.weight", "final_norm": "norm"},
        {
            "input_layernorm": ("attention_norm",),
            "self_attn.q_proj": ("query",),
            "self_attn.k_proj": ("key",),
            "self_attn.v_proj": ("value",),
            "self_attn.o_proj": ("attention_output",),
            "post_attention_layernorm": ("mlp_norm",),
            "mlp.c_fc": ("mlp_input",),
            "mlp.c_proj": ("mlp_output",),
        },
    ),
    "bloom": (
        {
            "embedding": "word_embeddings.weight",
            "embedding_norm": "word_embeddings_layernorm",
            "final_norm": "ln_f",
        },
        {
            "input_layernorm": ("attention_norm",),
            "self_attention.query_key_value": _QUERY_KEY_VALUE,
            "self_attention.dense": ("attention_output",),
            "post_attention_layernorm": ("mlp_norm",),
            "mlp.dense_h_to_4h": ("mlp_input",),
            "mlp.dense_4h_to_h": ("mlp_output",),
        },
    ),
}


def _table(name: str, path: Path, shape: Shape) -> Tensor:
    return Tensor(name, shape, None, (Part(path, shape, shape[0]),))


def _norm(name: str, path: Path, dim: int, layer: int | None) -> list[Tensor]:
    return [
        Tensor(f"{name}.{theirs}", (dim,), layer, (Part((*path, ours), (dim,), dim),))
        for theirs, ours in (("weight", "scale"), ("bias", "bias"))
    ]


def _linear(
    name: str, ours: tuple[str, ...], config: DecoderConfig, layer: int, heads: int
) -> list[Tensor]:
    embed, mlp = (config.embed_dim,), (config.mlp_dim,)
    key = (config.num_kv_heads, config.head_dim)
    query = (config.num_kv_heads, config.query_groups, config.head_dim)
    axes = {  # inputs, outputs
        "query": (embed, query),
        "key": (embed, key),
        "value": (embed, key),
        "attention_output": (query, embed),
        "mlp_input": (embed, mlp),
        "mlp_output": (mlp, embed),
    }
    kernels, biases = [], []
    for part in ours:
        inputs, outputs = axes[part]
        rows = math.prod(outputs)
        kernels.append(Part(("layers", part, "kernel"), (*inputs, *outputs), rows))
        biases.append(Part(("layers", part, "bias"), outputs, rows))
    rows = sum(part.rows for part in kernels)
    shape = (rows, math.prod(axes[ours[0]][0]))
    heads = heads if len(ours) > 1 else 1
    return [
        Tensor(f"{name}.weight", shape, layer, tuple(kernels), heads),
        Tensor(f"{name}.bias", (rows,), layer, tuple(biases), heads),
    ]


def _from_rows(array: np.ndarray, part: Part) -> np.ndarray:
    return (_transpose(array) if part.path[-1] == "kernel" else array).reshape(part.shape)


def _to_rows(array: np.ndarray, part: Part, rest: Shape) -> np.ndarray:
    if part.path[-1] == "kernel":
        return _transpose(array.reshape(*rest, part.rows))
    return array.reshape(part.rows, *rest)


def _transpose(matrix: np.ndarray) -> np.ndarray:
    """The transposed matrix in C order.

    In stripes, whose cache lines are all used before they are dropped: ten times as fast as
    `np.ascontiguousarray(matrix.T)` for 16-bit values.
    """
    stripe = 32
    result = np.empty(matrix.shape[::-1], matrix.dtype)
    for start in range(0, matrix.shape[0], stripe):
        result[:, start : start + stripe] = matrix[start : start + stripe].T
    return result
