"""Greedy generation goes on as transformers' does."""

import numpy as np
import pytest
import reference

from starcoder_jax.inference.engine import Engine
from starcoder_jax.inference.sampling import Sampling
from starcoder_jax.inference.uncached import complete
from starcoder_jax.model.decoder import unstacked

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

MODELS, NEW_TOKENS = 3, 64
LENGTHS = (24, 1, 40, 33)  # of prompts; starcoder2's window is 16


class _NoText:
    """A vocabulary without special tokens, as large as the model's table."""

    vocab_size = 320
    special_tokens = {}  # noqa: RUF012 (read only)

    def decode_bytes(self, ids):
        return b"."


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("architecture", reference.CONFIGS)
def test_greedy_tokens_are_those_of_transformers(architecture, penalty, tmp_path):
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 320, length).astype(np.int32) for length in LENGTHS]
    options = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=NEW_TOKENS, repetition_penalty=penalty
    )
    # Through a tied head, a random model says the token it has just read.
    config = reference.CONFIGS[architecture](eos_token_id=None, tie_word_embeddings=False)
    chosen = set()
    for seed in range(MODELS):
        theirs = reference.random_model(config, seed=seed)
        ours = reference.reopened(theirs, tmp_path / str(seed))
        expected = [
            theirs.generate(torch.tensor(prompt)[None].long(), generation_config=options)
            .flatten()[len(prompt) :]
            .tolist()
            for prompt in prompts
        ]
        assert all(len(tokens) == NEW_TOKENS for tokens in expected)
        # All at once, and more than there are slots.
        engine = Engine(unstacked(ours), _NoText(), slots=3, max_length=104)
        sampling = Sampling(max_tokens=NEW_TOKENS, repetition_penalty=penalty)
        found = [engine.submit(prompt, sampling)[0] for prompt in prompts]
        engine.run()
        assert [completion.token_ids for completion in found] == expected
        if penalty == 1:
            assert complete(ours, prompts[0], NEW_TOKENS).tolist() == expected[0]
        chosen.update(expected[0])
    assert len(chosen) > 12  # not the same few tokens, into which anything could fall
