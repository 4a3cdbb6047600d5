"""Greedy generation goes on as transformers' does."""

import numpy as np
import pytest
import reference

from starcoder_jax.inference.completion import complete

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

MODELS, NEW_TOKENS = 3, 64


@pytest.mark.parametrize("architecture", reference.CONFIGS)
def test_greedy_tokens_are_those_of_transformers(architecture, tmp_path):
    # Longer than starcoder2's window: no new token sees all of it.
    prompt = np.random.default_rng(0).integers(0, 320, 24).astype(np.int32)
    options = transformers.GenerationConfig(do_sample=False, max_new_tokens=NEW_TOKENS)
    # Through a tied head, a random model says the token it has just read.
    config = reference.CONFIGS[architecture](eos_token_id=None, tie_word_embeddings=False)
    chosen = set()
    for seed in range(MODELS):
        theirs = reference.random_model(config, seed=seed)
        ours = reference.reopened(theirs, tmp_path / str(seed))
        output = theirs.generate(torch.tensor(prompt)[None].long(), generation_config=options)
        expected = output[0, len(prompt) :].tolist()
        assert len(expected) == NEW_TOKENS
        assert complete(ours, prompt, NEW_TOKENS).tolist() == expected
        chosen.update(expected)
    assert len(chosen) > 12  # not the same few tokens, into which anything could fall
