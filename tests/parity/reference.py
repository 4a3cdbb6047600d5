"""Small models of transformers, and the same models opened here."""

import functools
import math
import pathlib

import jax
import pytest

import starcoder_jax as sj
from starcoder_jax.data.tokenizer import Tokenizer
from starcoder_jax.data.tokenizer_training import train_tokenizer
from starcoder_jax.model.decoder import Decoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
transformers.logging.disable_progress_bar()

# Little is computed here and much compiled: half of that time is LLVM's optimization.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
TEXT = "def add(first, second):\n    return first + second\n"


@functools.cache
def tokenizer() -> Tokenizer:
    """A byte-level BPE of 300 ids, for models that have no use for one but to be opened."""
    return train_tokenizer([TEXT] * 9, kind="bpe", vocab_size=300)


def starcoder2(**changes) -> "transformers.Starcoder2Config":
    """A small StarCoder2 with a window of 16 tokens."""
    values = dict(
        hidden_size=32, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, sliding_window=16,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )  # fmt: skip
    return transformers.Starcoder2Config(**_VOCABULARY | values | changes)


def gpt_bigcode(**changes) -> "transformers.GPTBigCodeConfig":
    """A small StarCoder, without dropout."""
    values = dict(
        n_positions=128, n_embd=32, n_layer=2, n_head=4, n_inner=80,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return transformers.GPTBigCodeConfig(**_VOCABULARY | values | changes)


def bloom(**changes) -> "transformers.BloomConfig":
    """A small BLOOM with a number of heads that is no power of two."""
    values = dict(hidden_size=36, n_layer=2, n_head=6)
    return transformers.BloomConfig(**_VOCABULARY | values | changes)


_VOCABULARY = {"vocab_size": 320, "bos_token_id": 0, "eos_token_id": 0}
CONFIGS = {"gpt_bigcode": gpt_bigcode, "starcoder2": starcoder2, "bloom": bloom}


def random_model(
    config: "transformers.PreTrainedConfig", *, seed: int = 0
) -> "transformers.PreTrainedModel":
    """A float32 model to all of whose fresh parameters, biases and norms too, noise is added.

    Without it biases would be 0 and norms 1, and it would not show if they were mixed up.
    """
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    noise = 1.7 / math.sqrt(config.hidden_size)  # more would leave attention a single key
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return model


def save(model: "transformers.PreTrainedModel", directory: pathlib.Path, **options) -> None:
    """Writes what users find on a hub: the model's files and a vocabulary."""
    model.save_pretrained(directory, **options)
    tokenizer().save(directory)


def reopened(model: "transformers.PreTrainedModel", directory: pathlib.Path) -> Decoder:
    """The same model here, through files."""
    save(model, directory)
    return sj.load_model(directory)[0]
