import dataclasses
import json
import re

import hypothesis
import pytest
from hypothesis import strategies

from starcoder_jax.hf.config import (
    MODEL_TYPES,
    config_json,
    model_type,
    parse_config,
    read_config,
)
from starcoder_jax.model.config import DecoderConfig
from starcoder_jax.recipes import load_recipe

PROPERTY = hypothesis.settings(derandomize=True, deadline=None, database=None)

STARCODER = """{
  "activation_function": "ACTIVATION", "architectures": ["GPTBigCodeForCausalLM"],
  "attention_softmax_in_fp32": true, "attn_pdrop": 0.1, "bos_token_id": 0, "embd_pdrop": 0.1,
  "eos_token_id": 0, "inference_runner": 0, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
  "max_batch_size": null, "max_sequence_length": null, "model_type": "gpt_bigcode",
  "multi_query": true, "n_embd": WIDTH, "n_head": HEADS, "n_inner": INNER, "n_layer": LAYERS,
  "n_positions": 8192, "pad_key_length": true, "pre_allocate_kv_cache": false, "resid_pdrop": 0.1,
  "scale_attention_softmax_in_fp32": true, "scale_attn_weights": true, "summary_activation": null,
  "summary_first_dropout": 0.1, "summary_proj_to_labels": true, "summary_type": "cls_index",
  "summary_use_proj": true, "torch_dtype": "float32", "transformers_version": "4.28.1",
  "use_cache": true, "validate_runner_input": true, "vocab_size": 49152
}"""
STARCODER2 = """{
  "architectures": ["Starcoder2ForCausalLM"], "attention_dropout": 0.1, "residual_dropout": 0.1,
  "embedding_dropout": 0.1, "bos_token_id": 0, "eos_token_id": 0, "hidden_act":
  "gelu_pytorch_tanh", "hidden_size": WIDTH, "initializer_range": 0.018042, "intermediate_size":
  INNER, "max_position_embeddings": 16384, "mlp_type": "default", "model_type": "starcoder2",
  "norm_epsilon": 1e-05, "norm_type": "layer_norm", "num_attention_heads": HEADS,
  "num_hidden_layers": LAYERS, "num_key_value_heads": KV, "rope_theta": THETA, "sliding_window":
  4096, TIED "torch_dtype": "DTYPE", "transformers_version": "4.39.0.dev0", "use_bias": true,
  "use_cache": true, "vocab_size": 49152
}"""
BLOOM = """{
  "apply_residual_connection_post_layernorm": false, "attention_dropout": 0.0,
  "architectures": ["BloomForCausalLM"], "attention_softmax_in_fp32": true, "bias_dropout_fusion":
  true, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "unk_token_id": 0,
  "hidden_dropout": 0.0, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
  "masked_softmax_fusion": true, "model_type": "bloom", "n_embed": 14336, "n_layer": 70,
  "num_attention_heads": 112, "pretraining_tp": 4, "slow_but_exact": false,
  "torch_dtype": "bfloat16", "transformers_version": "4.21.0", "use_cache": true,
  "vocab_size": 250880
}"""


def fill(text, **values):
    for name, value in values.items():
        text = text.replace(name, str(value))
    return text


def starcoder(layers, width, heads, activation, **changes):
    sizes = {"LAYERS": layers, "WIDTH": width, "HEADS": heads, "INNER": 4 * width}
    return json.loads(fill(STARCODER, ACTIVATION=activation, **sizes)) | changes


def starcoder2(layers, width, heads, kv_heads, theta, dtype, tied='"tie_word_embeddings": true,'):
    sizes = {"LAYERS": layers, "WIDTH": width, "HEADS": heads, "INNER": 4 * width, "KV": kv_heads}
    return json.loads(fill(STARCODER2, THETA=theta, DTYPE=dtype, TIED=tied, **sizes))


UNTIED = '"tie_word_embeddings": false,'
# As published, dropout of StarCoder2 included: its recipes say why they have none.
PUBLISHED = {
    "santacoder_1b": starcoder(
        24, 2048, 16, "gelu_pytorch_tanh", vocab_size=49280, n_positions=2048, n_inner=None,
        bos_token_id=49152, eos_token_id=49152,
    ),
    "starcoderbase_1b": starcoder(24, 2048, 16, "gelu_pytorch_tanh"),
    "starcoderbase_3b": starcoder(36, 2816, 22, "gelu_pytorch_tanh"),
    "starcoderbase_7b": starcoder(42, 4096, 32, "gelu"),
    "starcoderbase_15b": starcoder(40, 6144, 48, "gelu"),
    "starcoder2_3b": starcoder2(30, 3072, 24, 2, "999999.4420358813", "float32", ""),
    "starcoder2_7b": starcoder2(32, 4608, 36, 4, "1000000", "bfloat16", ""),
    "starcoder2_15b": starcoder2(40, 6144, 48, 4, "100000", "float32", UNTIED),
    "bloom_176b": json.loads(BLOOM),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_is_the_packaged_architecture(name, tmp_path):
    values = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(values))
    found = read_config(tmp_path)
    assert (found.model_type, found.dtype) == (values["model_type"], values["torch_dtype"])
    assert found.decoder.dtype == found.dtype
    recipe = load_recipe(["tiny.gin", f"model/{name}.gin"]).model
    other = ["dtype", "rematerialization"]
    if name.startswith("starcoder2"):
        other += ["embedding_dropout", "attention_dropout", "residual_dropout"]
        assert {getattr(found.decoder, field) for field in other[2:]} == {0.1}
    else:
        other.append("rope_theta")
    changes = {field: getattr(found.decoder, field) for field in other}
    assert dataclasses.replace(recipe, **changes) == found.decoder


def error(function, *arguments, **options) -> str:
    with pytest.raises(ValueError) as raised:
        function(*arguments, **options)
    message = str(raised.value)
    assert "\n" not in message
    return message


SMALL = {
    "gpt_bigcode": {"model_type": "gpt_bigcode", "n_embd": 64, "n_head": 4},
    "starcoder2": {
        "model_type": "starcoder2", "hidden_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "bloom": {"model_type": "bloom", "hidden_size": 64, "n_head": 4},
}  # fmt: skip


@pytest.mark.parametrize(
    ("values", "field", "expected"),
    [
        ({"model_type": "gpt_bigcode", "n_embd": 64, "n_head": 4}, "mlp_dim", 256),
        ({"model_type": "gpt_bigcode", "n_inner": None}, "mlp_dim", 3072),
        ({"model_type": "gpt_bigcode", "n_inner": 100}, "mlp_dim", 100),
        ({"model_type": "gpt_bigcode", "multi_query": False}, "num_kv_heads", 12),
        ({"model_type": "gpt_bigcode"}, "num_kv_heads", 1),
        ({"model_type": "gpt_bigcode", "hidden_size": 96}, "embed_dim", 96),
        ({"model_type": "gpt_bigcode", "max_position_embeddings": 96}, "max_length", 96),
        ({"model_type": "gpt_bigcode", "activation_function": "gelu"}, "activation", "gelu_erf"),
        *(
            ({"model_type": "starcoder2", "hidden_act": name}, "activation", "gelu_tanh")
            for name in ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
        ),
        ({"model_type": "starcoder2"}, "rope_theta", 10_000.0),
        ({"model_type": "starcoder2", "rope_theta": 7}, "rope_theta", 7.0),
        ({"model_type": "starcoder2", "rope_theta": 7.5, "rope_scaling": None}, "rope_theta", 7.5),
        (
            {"model_type": "starcoder2", "rope_parameters": {"rope_theta": 8.5}, "rope_theta": 3},
            "rope_theta",
            8.5,
        ),
        (
            {"model_type": "starcoder2", "rope_scaling": {"type": "default"}, "rope_theta": 3},
            "rope_theta",
            3.0,
        ),
        ({"model_type": "starcoder2", "sliding_window": 9}, "sliding_window", 9),
        ({"model_type": "starcoder2", "sliding_window": None}, "sliding_window", None),
        ({"model_type": "starcoder2", "head_dim": 128}, "head_dim", 128),
        ({"model_type": "starcoder2", "tie_word_embeddings": False}, "tied_head", False),
        ({"model_type": "starcoder2", "torch_dtype": "float16"}, "dtype", "float16"),
        ({"model_type": "starcoder2", "dtype": "bfloat16"}, "dtype", "bfloat16"),
        ({"model_type": "starcoder2", "torch_dtype": None}, "dtype", "float32"),
        ({"model_type": "bloom", "n_embed": 96}, "embed_dim", 96),
        ({"model_type": "bloom", "n_embed": None}, "embed_dim", 64),
        ({"model_type": "bloom", "num_attention_heads": 2}, "num_kv_heads", 2),
        ({"model_type": "bloom", "hidden_dropout": 0.25}, "residual_dropout", 0.25),
        ({"model_type": "bloom"}, "max_length", 2048),
    ],
)
def test_keys_and_defaults(values, field, expected):
    value = getattr(parse_config(values).decoder, field)
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("bloom", {"model_type": "llama"}, ["llama", "gpt_bigcode, starcoder2, bloom"]),
        ("bloom", {"model_type": None}, ["model_type is null"]),
        ("bloom", {"model_type": ["bloom"]}, ["model_type"]),
        ("bloom", {"model_type": "gpt2", "architectures": 3}, ['model_type is "gpt2"']),
        (
            "gpt_bigcode",
            {"model_type": "gpt2", "attention_head_type": "multiquery"},
            ["original SantaCoder", "bigcode/gpt_bigcode-santacoder"],
        ),
        (
            "gpt_bigcode",
            {"model_type": "gpt2", "architectures": ["GPT2LMHeadCustomModel"]},
            ["original SantaCoder", "bigcode/gpt_bigcode-santacoder"],
        ),
        ("starcoder2", {"norm_type": "rms_norm"}, ["norm_type", "rms_norm", "layer_norm"]),
        ("starcoder2", {"mlp_type": "gated"}, ["mlp_type", "gated", "default"]),
        ("starcoder2", {"use_bias": False}, ["use_bias is false; supported is true"]),
        ("starcoder2", {"use_bias": 1}, ["use_bias is 1; supported is true"]),
        ("starcoder2", {"head_dim": 32}, ["head_dim is 32", "16"]),
        ("starcoder2", {"hidden_act": "silu"}, ["hidden_act", "silu", "gelu_pytorch_tanh"]),
        ("starcoder2", {"hidden_act": None}, ["hidden_act is null"]),
        ("starcoder2", {"hidden_act": ["gelu"]}, ["hidden_act"]),
        ("starcoder2", {"rope_scaling": {"type": "linear", "factor": 2}}, ["linear", "default"]),
        ("starcoder2", {"rope_parameters": {"rope_type": "yarn"}}, ["rope_parameters", "yarn"]),
        ("starcoder2", {"rope_parameters": {"full_attention": {}}}, ["full_attention"]),
        ("starcoder2", {"rope_parameters": {"partial_rotary_factor": 0.5}}, ["partial_rotary"]),
        ("starcoder2", {"rope_parameters": {"rope_theta": "big"}}, ["rope_theta", "big"]),
        ("starcoder2", {"rope_parameters": "default"}, ["rope_parameters", "object"]),
        ("starcoder2", {"partial_rotary_factor": 0.5}, ["partial_rotary_factor is 0.5"]),
        ("starcoder2", {"rope_theta": 0}, ["rope_theta is 0.0", "positive"]),
        ("starcoder2", {"rope_theta": 10**400}, ["rope_theta is 1000"]),
        ("starcoder2", {"rope_theta": float("nan")}, ["rope_theta is NaN"]),
        ("starcoder2", {"sliding_window": 0}, ["sliding_window is 0"]),
        ("starcoder2", {"sliding_window": "4096"}, ["sliding_window", "an integer or null"]),
        ("starcoder2", {"num_key_value_heads": None}, ["num_key_value_heads is null"]),
        ("starcoder2", {"num_key_value_heads": 3}, ["num_kv_heads=3"]),
        ("starcoder2", {"norm_epsilon": "1e-5"}, ["norm_epsilon", "a number"]),
        ("starcoder2", {"attention_dropout": True}, ["attention_dropout is true"]),
        ("starcoder2", {"torch_dtype": "float64"}, ["torch_dtype", "float64", "bfloat16"]),
        ("starcoder2", {"dtype": ["float32"]}, ["dtype"]),
        ("starcoder2", {"quantization_config": {"bits": 4}}, ["quantization_config", "bits"]),
        ("starcoder2", {"per_layer_config": {"1": {"sliding_window": 5}}}, ["per_layer_config"]),
        ("gpt_bigcode", {"scale_attn_weights": False}, ["scale_attn_weights is false"]),
        ("gpt_bigcode", {"add_cross_attention": True}, ["add_cross_attention is true"]),
        ("gpt_bigcode", {"is_encoder_decoder": True}, ["is_encoder_decoder is true"]),
        ("gpt_bigcode", {"pruned_heads": {"0": [1]}}, ["pruned_heads"]),
        ("gpt_bigcode", {"activation_function": "relu"}, ["activation_function", "relu"]),
        ("gpt_bigcode", {"multi_query": None}, ["multi_query is null", "true or false"]),
        ("gpt_bigcode", {"n_inner": 1.5}, ["n_inner is 1.5"]),
        ("gpt_bigcode", {"n_layer": True}, ["n_layer is true", "an integer"]),
        ("gpt_bigcode", {"n_head": 5}, ["embed_dim=64", "num_heads=5"]),
        ("gpt_bigcode", {"hidden_size": 128}, ["n_embd is 64", "hidden_size", "128"]),
        ("gpt_bigcode", {"vocab_size": "x" * 500}, ["vocab_size", "..."]),
        ("gpt_bigcode", {"tie_word_embeddings": "yes"}, ["tie_word_embeddings"]),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, ["post_layernorm is true"]),
        ("bloom", {"n_embed": 128}, ["hidden_size is 64", "n_embed", "128"]),
        ("bloom", {"vocab_size": 0}, ["vocab_size is 0"]),
    ],
)
def test_what_cannot_be_computed_is_named(kind, changes, expected):
    parse_config(SMALL[kind])
    message = error(parse_config, SMALL[kind] | changes)
    assert all(part in message for part in expected), message
    assert len(message) < 250


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file"),
        (b"", "is no JSON file"),
        (b'{"model_type": "bloom"', "is no JSON file"),
        (b'{"model_type": "\xff"}', "is no JSON file"),
        (b"[" * 100_000, "is no JSON file"),
        (b"[1, 2]", "holds [1, 2]; it must hold an object"),
        (b"{}", "model_type is null"),
        (b'{"model_type": "bloom", "n_head": 7}', "num_heads=7"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, expected):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    message = error(read_config, tmp_path)
    assert message.startswith(f"{path}: ") and expected in message


DECODER = DecoderConfig(
    vocab_size=96, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, mlp_dim=80,
    max_length=64,
)  # fmt: skip
OF_BLOOM = {"positions": "alibi", "embedding_norm": True, "num_kv_heads": 4, "mlp_dim": 128}


def test_the_architecture_follows_from_the_positions():
    assert model_type(DECODER) == "starcoder2"
    learned = dataclasses.replace(DECODER, positions="learned", num_kv_heads=1)
    assert model_type(learned) == "gpt_bigcode"
    assert model_type(dataclasses.replace(learned, num_kv_heads=4)) == "gpt_bigcode"
    assert model_type(dataclasses.replace(DECODER, **OF_BLOOM)) == "bloom"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"embedding_norm": True}, "model.embedding_norm=True .*starcoder2 holds only False"),
        ({"positions": "learned"}, "model.num_kv_heads=2 .*gpt_bigcode holds only 1 or 4"),
        (
            {"positions": "learned", "num_kv_heads": 1, "sliding_window": 8},
            "model.sliding_window=8 .*gpt_bigcode holds only None",
        ),
        (
            {"positions": "learned", "num_kv_heads": 1, "embedding_norm": True},
            "model.embedding_norm=True .*gpt_bigcode holds only False",
        ),
        (OF_BLOOM | {"embedding_norm": False}, "model.embedding_norm=False .*bloom holds only T"),
        (OF_BLOOM | {"num_kv_heads": 1}, "model.num_kv_heads=1 .*bloom holds only 4"),
        (OF_BLOOM | {"mlp_dim": 80}, "model.mlp_dim=80 .*bloom holds only 128"),
        (OF_BLOOM | {"activation": "gelu_erf"}, "model.activation='gelu_erf' .*'gelu_tanh'"),
        (OF_BLOOM | {"sliding_window": 8}, "model.sliding_window=8 .*bloom holds only None"),
    ],
)
def test_what_no_architecture_expresses_is_named(changes, expected):
    config = dataclasses.replace(DECODER, **changes)
    for function, options in (
        (model_type, {}),
        (config_json, {"dtype": "float32", "end_of_text_id": 0}),
    ):
        message = error(function, config, **options)
        assert re.search(expected, message), message


@strategies.composite
def decoders(draw, kind):
    """Any decoder that an architecture expresses, with what computes it at its default."""
    integers = strategies.integers
    rates = strategies.floats(0, 0.99)
    heads = draw(integers(1, 8))
    embed_dim = 2 * heads * draw(integers(1, 8))
    divisors = [count for count in range(1, heads + 1) if heads % count == 0]
    kv_heads = {"gpt_bigcode": [1, heads], "starcoder2": divisors, "bloom": [heads]}[kind]
    fields = {
        "vocab_size": draw(integers(1, 10**6)),
        "num_layers": draw(integers(1, 200)),
        "embed_dim": embed_dim,
        "num_heads": heads,
        "num_kv_heads": draw(strategies.sampled_from(kv_heads)),
        "mlp_dim": 4 * embed_dim if kind == "bloom" else draw(integers(1, 10**5)),
        "max_length": draw(integers(1, 10**6)),
        "tied_head": draw(strategies.booleans()),
        "norm_epsilon": draw(strategies.floats(1e-12, 1e-2)),
        "attention_dropout": draw(rates),
        "residual_dropout": draw(rates),
        "dtype": draw(strategies.sampled_from(["float32", "bfloat16", "float16"])),
    }
    if kind == "bloom":
        return DecoderConfig(**fields, positions="alibi", embedding_norm=True)
    fields |= {
        "activation": draw(strategies.sampled_from(["gelu_tanh", "gelu_erf"])),
        "embedding_dropout": draw(rates),
    }
    if kind == "gpt_bigcode":
        return DecoderConfig(**fields, positions="learned")
    return DecoderConfig(
        **fields,
        positions="rope",
        rope_theta=draw(strategies.floats(1, 1e9)),
        sliding_window=draw(strategies.none() | integers(1, 10**6)),
    )


@pytest.mark.parametrize("kind", MODEL_TYPES)
@PROPERTY
@hypothesis.given(data=strategies.data())
def test_what_is_written_reads_back_equal(kind, data):
    config = data.draw(decoders(kind))
    values = config_json(config, dtype=config.dtype, end_of_text_id=0)
    found = parse_config(json.loads(json.dumps(values)))
    assert (found.model_type, found.decoder, found.dtype) == (kind, config, config.dtype)


def test_what_is_lost_is_what_the_docstring_says():
    config = dataclasses.replace(
        DECODER,
        **OF_BLOOM,
        embedding_dropout=0.1,
        rematerialization="full",
        attention_backend="reference",
        dtype="float16",
    )
    values = config_json(config, dtype="bfloat16", end_of_text_id=None)
    assert (values["bos_token_id"], values["eos_token_id"]) == (None, None)
    assert parse_config(values).decoder == dataclasses.replace(
        config,
        embedding_dropout=0.0,
        rematerialization="none",
        attention_backend="xla",
        dtype="bfloat16",
    )


@pytest.fixture(scope="module")
def classes():
    transformers = pytest.importorskip("transformers")
    return {
        "gpt_bigcode": transformers.GPTBigCodeConfig,
        "starcoder2": transformers.Starcoder2Config,
        "bloom": transformers.BloomConfig,
    }


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_absent_keys_mean_what_they_mean_to_transformers(classes, kind):
    everything = classes[kind]().to_dict()
    assert {"vocab_size", "tie_word_embeddings"} < set(everything)
    assert parse_config(everything) == parse_config({"model_type": kind})


@pytest.mark.parametrize("kind", MODEL_TYPES)
@hypothesis.settings(PROPERTY, max_examples=25)
@hypothesis.given(data=strategies.data())
def test_transformers_reads_what_is_meant(classes, kind, data):
    config = data.draw(decoders(kind))
    values = config_json(config, dtype=config.dtype, end_of_text_id=0)
    theirs = classes[kind].from_dict(json.loads(json.dumps(values)))
    assert theirs.architectures[0].endswith("ForCausalLM")
    assert str(theirs.dtype) == f"torch.{config.dtype}"
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.use_cache) == (0, 0, True)
    assert theirs.initializer_range == config.init_std
    assert theirs.vocab_size == config.vocab_size
    assert theirs.num_hidden_layers == config.num_layers
    assert theirs.hidden_size == config.embed_dim
    assert theirs.num_attention_heads == config.num_heads
    assert theirs.tie_word_embeddings == config.tied_head
    names = {
        "gpt_bigcode": ["n_inner", "layer_norm_epsilon", "attn_pdrop", "resid_pdrop"],
        "starcoder2": [
            "intermediate_size", "norm_epsilon", "attention_dropout", "residual_dropout"
        ],
        "bloom": [None, "layer_norm_epsilon", "attention_dropout", "hidden_dropout"],
    }[kind]  # fmt: skip
    ours = ["mlp_dim", "norm_epsilon", "attention_dropout", "residual_dropout"]
    for theirs_name, name in zip(names, ours, strict=True):
        if theirs_name is not None:
            assert getattr(theirs, theirs_name) == getattr(config, name)
    tanh = config.activation == "gelu_tanh"
    if kind == "gpt_bigcode":
        assert theirs.multi_query == (config.num_kv_heads == 1)
        assert theirs.scale_attn_weights and not theirs.add_cross_attention
        assert theirs.max_position_embeddings == config.max_length
        assert theirs.embd_pdrop == config.embedding_dropout
        assert theirs.activation_function == ("gelu_pytorch_tanh" if tanh else "gelu")
    elif kind == "starcoder2":
        assert theirs.num_key_value_heads == config.num_kv_heads
        rope = {"rope_type": "default", "rope_theta": config.rope_theta}
        assert theirs.rope_parameters == rope
        assert theirs.sliding_window == config.sliding_window
        assert theirs.max_position_embeddings == config.max_length
        assert theirs.embedding_dropout == config.embedding_dropout
        assert theirs.hidden_act == ("gelu_pytorch_tanh" if tanh else "gelu")
        assert theirs.use_bias
    else:
        assert not theirs.apply_residual_connection_post_layernorm


@pytest.mark.parametrize("kind", MODEL_TYPES)
@hypothesis.settings(PROPERTY, max_examples=25)
@hypothesis.given(data=strategies.data())
def test_what_transformers_saves_reads_back_equal(classes, kind, data, tmp_path_factory):
    """It writes values that differ from the class's defaults, and rotary positions its own way."""
    config = data.draw(decoders(kind))
    folder = tmp_path_factory.mktemp("saved")
    values = config_json(config, dtype=config.dtype, end_of_text_id=0)
    classes[kind].from_dict(values).save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())
    assert "rope_theta" not in saved and ("rope_parameters" in saved) == (kind == "starcoder2")
    found = read_config(folder)
    assert (found.model_type, found.decoder, found.dtype) == (kind, config, config.dtype)
