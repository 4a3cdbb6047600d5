"""Hugging Face's config.json, of the three architectures that make up the family, and ours.

Names, defaults and meanings are those of transformers' configuration_gpt_bigcode.py,
configuration_starcoder2.py and configuration_bloom.py; files written by its versions 4 and 5 are
read. A key that changes what a model computes is mapped or, if its value is one that `Decoder` does
not compute, refused. Others (token ids, initialization, caching, pretraining_tp) are passed over.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from starcoder_jax.model.config import DTYPES, DecoderConfig

MODEL_TYPES = ("gpt_bigcode", "starcoder2", "bloom")

# Key -> our field, and the default of transformers' class, whose type a value must have.
_KEYS: dict[str, dict[str, tuple[str, Any]]] = {
    "gpt_bigcode": {
        "vocab_size": ("vocab_size", 50257),
        "n_layer": ("num_layers", 12),
        "n_embd": ("embed_dim", 768),
        "n_head": ("num_heads", 12),
        "n_positions": ("max_length", 1024),
        "layer_norm_epsilon": ("norm_epsilon", 1e-5),
        "embd_pdrop": ("embedding_dropout", 0.1),
        "attn_pdrop": ("attention_dropout", 0.1),
        "resid_pdrop": ("residual_dropout", 0.1),
        "tie_word_embeddings": ("tied_head", True),
    },
    "starcoder2": {
        "vocab_size": ("vocab_size", 49152),
        "num_hidden_layers": ("num_layers", 30),
        "hidden_size": ("embed_dim", 3072),
        "num_attention_heads": ("num_heads", 24),
        "num_key_value_heads": ("num_kv_heads", 2),
        "intermediate_size": ("mlp_dim", 12288),
        "max_position_embeddings": ("max_length", 4096),
        "sliding_window": ("sliding_window", None),
        "norm_epsilon": ("norm_epsilon", 1e-5),
        "embedding_dropout": ("embedding_dropout", 0.0),
        "attention_dropout": ("attention_dropout", 0.0),
        "residual_dropout": ("residual_dropout", 0.0),
        "tie_word_embeddings": ("tied_head", True),
    },
    "bloom": {
        "vocab_size": ("vocab_size", 250880),
        "n_layer": ("num_layers", 2),
        "hidden_size": ("embed_dim", 64),
        "n_head": ("num_heads", 8),
        # Unknown to transformers, which keeps it: ALiBi has no longest sequence. As for BLOOM.
        "seq_length": ("max_length", 2048),
        "layer_norm_epsilon": ("norm_epsilon", 1e-5),
        "attention_dropout": ("attention_dropout", 0.0),
        "hidden_dropout": ("residual_dropout", 0.0),
        "tie_word_embeddings": ("tied_head", True),
    },
}
_INNER, _MULTI_QUERY, _ROPE_THETA = None, True, 10_000.0  # more of their defaults

# Other names of the same keys.
_ALIASES = {
    "gpt_bigcode": {
        "num_hidden_layers": "n_layer",
        "hidden_size": "n_embd",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
    },
    "starcoder2": {},
    "bloom": {
        "num_hidden_layers": "n_layer",
        "n_embed": "hidden_size",
        "num_attention_heads": "n_head",
    },
}
# The one value of a key that is supported, which is also what its absence means.
_FIXED: dict[str, dict[str, Any]] = {
    "gpt_bigcode": {"scale_attn_weights": True},
    "starcoder2": {"use_bias": True, "norm_type": "layer_norm", "mlp_type": "default"},
    "bloom": {"apply_residual_connection_post_layernorm": False},
}
_FIXED_IN_ALL = {"add_cross_attention": False, "is_encoder_decoder": False}
# Whose presence, unless empty, makes another model: parts of it changed or stored otherwise.
_ABSENT = ("quantization_config", "per_layer_config", "pruned_heads")

_ACTIVATION_KEYS = {"gpt_bigcode": "activation_function", "starcoder2": "hidden_act"}
_ACTIVATIONS = {
    "gelu": "gelu_erf",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
_WRITTEN_ACTIVATIONS = {"gelu_erf": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
_ARCHITECTURES = {
    "gpt_bigcode": "GPTBigCodeForCausalLM",
    "starcoder2": "Starcoder2ForCausalLM",
    "bloom": "BloomForCausalLM",
}
_TYPE_OF_POSITIONS = {"learned": "gpt_bigcode", "rope": "starcoder2", "alibi": "bloom"}


@dataclasses.dataclass(frozen=True)
class HfConfig:
    """What a config.json says.

    Attributes:
        model_type: one of `MODEL_TYPES`.
        decoder: the architecture; its dtype is the stored one.
        dtype: of the stored parameters, as the file says; "float32" where it says nothing.
    """

    model_type: str
    decoder: DecoderConfig
    dtype: str


def read_config(directory: str | os.PathLike) -> HfConfig:
    """Reads `config.json` in a directory.

    Raises:
        ValueError: there is none, it cannot be read, or describes a model that is not supported.
    """
    path = pathlib.Path(directory) / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no JSON file: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: holds {_shown(values)}; it must hold an object")
    try:
        return parse_config(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parse_config(values: Mapping[str, Any]) -> HfConfig:
    """The architecture that the object in a config.json describes.

    Raises:
        ValueError: a value has the wrong type, or describes a model that is not supported.
    """
    kind = _supported_type(values)
    values = _without_aliases(values, _ALIASES[kind])
    _refuse_unsupported(values, _FIXED[kind] | _FIXED_IN_ALL)
    fields = {field: _value(values, key, default) for key, (field, default) in _KEYS[kind].items()}
    if kind in _ACTIVATION_KEYS:
        fields["activation"] = _activation(values, _ACTIVATION_KEYS[kind])
    if kind == "gpt_bigcode":
        inner = _value(values, "n_inner", _INNER)
        fields["mlp_dim"] = 4 * fields["embed_dim"] if inner is None else inner
        multi_query = _value(values, "multi_query", _MULTI_QUERY)
        fields["num_kv_heads"] = 1 if multi_query else fields["num_heads"]
        fields["positions"] = "learned"
    elif kind == "starcoder2":
        fields |= {"positions": "rope", "rope_theta": _rope_theta(values)}
    else:
        fields |= {"positions": "alibi", "embedding_norm": True, "activation": "gelu_tanh"}
        fields |= {"mlp_dim": 4 * fields["embed_dim"], "num_kv_heads": fields["num_heads"]}
    dtype = _dtype(values)
    decoder = DecoderConfig(**fields, dtype=dtype)
    if values.get("head_dim") not in (None, decoder.head_dim):
        raise ValueError(
            f"head_dim is {_shown(values['head_dim'])}; supported is only the embedding's size "
            f"divided by the number of heads, {decoder.head_dim}"
        )
    return HfConfig(kind, decoder, dtype)


def model_type(config: DecoderConfig) -> str:
    """The Hugging Face architecture, one of `MODEL_TYPES`, that expresses a decoder.

    Raises:
        ValueError: none does; the message names a field and what the nearest one can hold.
    """
    kind = _TYPE_OF_POSITIONS[config.positions]
    heads = config.num_heads
    holds = {"embedding_norm": (kind == "bloom",)}
    if kind != "starcoder2":
        holds["sliding_window"] = (None,)
        holds["num_kv_heads"] = (heads,) if kind == "bloom" else (1, heads)
    if kind == "bloom":
        holds |= {"mlp_dim": (4 * config.embed_dim,), "activation": ("gelu_tanh",)}
    for field, choices in holds.items():
        if getattr(config, field) not in choices:
            raise ValueError(
                f"model.{field}={getattr(config, field)!r} with model.positions="
                f"{config.positions!r} has no Hugging Face format: {kind} holds only "
                f"{' or '.join(map(repr, choices))}"
            )
    return kind


def config_json(config: DecoderConfig, *, dtype: str, end_of_text_id: int | None) -> dict[str, Any]:
    """A complete config.json, from which transformers 4 and 5 build the model.

    Not in it are how the model is computed (`rematerialization`, `attention_backend` and the
    config's own `dtype`) and, as BLOOM has none, BLOOM's `embedding_dropout`.

    Args:
        config: the architecture.
        dtype: of the parameters beside it, "float32", "bfloat16" or "float16".
        end_of_text_id: written as the id that begins and ends a text; None: there is none.

    Raises:
        ValueError: no architecture of Hugging Face's expresses the config.
    """
    kind = model_type(config)
    values = {"architectures": [_ARCHITECTURES[kind]], "model_type": kind}
    values |= {key: getattr(config, field) for key, (field, _) in _KEYS[kind].items()}
    values |= _FIXED[kind]
    if kind in _ACTIVATION_KEYS:
        values[_ACTIVATION_KEYS[kind]] = _WRITTEN_ACTIVATIONS[config.activation]
    if kind == "gpt_bigcode":
        values |= {"n_inner": config.mlp_dim, "multi_query": config.num_kv_heads == 1}
        values |= {"attention_softmax_in_fp32": True, "scale_attention_softmax_in_fp32": True}
    elif kind == "starcoder2":
        # At the top: version 5 looks there too, version 4 nowhere else.
        values["rope_theta"] = config.rope_theta
    return values | {
        "bos_token_id": end_of_text_id,
        "eos_token_id": end_of_text_id,
        "initializer_range": config.init_std,
        "torch_dtype": dtype,  # the name that both versions read
        "use_cache": True,
    }


def _supported_type(values: Mapping[str, Any]) -> str:
    kind = values.get("model_type")
    if kind in MODEL_TYPES:
        return kind
    if kind == "gpt2" and (
        values.get("attention_head_type") is not None
        or "GPT2LMHeadCustomModel" in json.dumps(values.get("architectures"))
    ):
        raise ValueError(
            "this is the original SantaCoder, which needs code of its own; "
            "bigcode/gpt_bigcode-santacoder is the same model in a supported format"
        )
    raise ValueError(f"model_type is {_shown(kind)}; supported are {', '.join(MODEL_TYPES)}")


def _without_aliases(values: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    values = dict(values)
    for alias, name in aliases.items():
        value = values.pop(alias, None)
        if value is None:
            continue
        if values.setdefault(name, value) != value:
            raise ValueError(
                f"{name} is {_shown(values[name])} and {alias}, another name for it, is "
                f"{_shown(value)}; leave one of them out"
            )
    return values


def _refuse_unsupported(values: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    for key, supported in fixed.items():
        # As JSON: 1 is not true.
        if key in values and _shown(values[key]) != _shown(supported):
            raise ValueError(f"{key} is {_shown(values[key])}; supported is {_shown(supported)}")
    for key in _ABSENT:
        if values.get(key):
            raise ValueError(f"{key} is {_shown(values[key])}; supported are models without it")


def _value(values: Mapping[str, Any], key: str, default: Any) -> Any:
    """The value of a key, checked against the type of its default."""
    value = values.get(key, default)
    if isinstance(default, float):
        # Comparisons, as `float` fails on the largest of JSON's integers.
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
            return float(value)
        expected = "a number"
    elif default is None:
        if value is None or type(value) is int:
            return value
        expected = "an integer or null"
    else:
        if type(value) is type(default):
            return value
        expected = {bool: "true or false", int: "an integer"}[type(default)]
    raise ValueError(f"{key} is {_shown(value)}; it must be {expected}")


def _activation(values: Mapping[str, Any], key: str) -> str:
    name = values.get(key, "gelu_pytorch_tanh")
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise ValueError(f"{key} is {_shown(name)}; supported are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _rope_theta(values: Mapping[str, Any]) -> float:
    """The base of rotary positions: at the top up to version 4, in an object of its own since."""
    # transformers gives them this precedence.
    key = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    rope = values.get(key) or {}
    if not isinstance(rope, Mapping):
        raise ValueError(f"{key} is {_shown(rope)}; it must be an object or null")
    supported = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1.0}
    for name, value in rope.items():
        if name != "rope_theta" and (name not in supported or value != supported[name]):
            raise ValueError(
                f"{name} in {key} is {_shown(value)}; supported are rotary positions without "
                'scaling, of rope_type "default"'
            )
    if values.get("partial_rotary_factor") not in (None, 1.0):
        factor = _shown(values["partial_rotary_factor"])
        raise ValueError(f"partial_rotary_factor is {factor}; supported is 1.0")
    theta = _value({**values, **rope}, "rope_theta", _ROPE_THETA)
    if theta <= 0:
        raise ValueError(f"rope_theta is {theta}; it must be positive")
    return theta


def _dtype(values: Mapping[str, Any]) -> str:
    for key in ("dtype", "torch_dtype"):
        dtype = values.get(key)
        if dtype is not None:
            if dtype not in DTYPES:
                raise ValueError(f"{key} is {_shown(dtype)}; supported are {', '.join(DTYPES)}")
            return dtype
    return "float32"


def _shown(value: Any) -> str:
    """A value as in the file, on one line and cut to a sensible length."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
