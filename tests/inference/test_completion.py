import pytest

import starcoder_jax as sj

NEW = 8  # as many as the fixture `greedy` has


def test_generate_and_infill_return_text(loaded, prompt, greedy):
    model, tokenizer = loaded
    texts = [tokenizer.decode(prompt), "def "]
    completions = sj.generate(model, tokenizer, texts, max_tokens=NEW)
    assert completions[0] == tokenizer.decode(greedy)
    assert completions[1] == sj.generate(model, tokenizer, ["def "], max_tokens=NEW)[0]
    prefix, suffix = "def read_line(line, limit=", "):\n    for item in line:\n"
    filled = sj.infill(model, tokenizer, prefix, suffix, max_tokens=NEW)
    marked = f"<fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>"
    assert filled == sj.generate(model, tokenizer, [marked], max_tokens=NEW)[0]
    other = sj.infill(model, tokenizer, prefix, suffix, order="spm", max_tokens=NEW)
    marked = f"<fim_prefix><fim_suffix>{suffix}<fim_middle>{prefix}"
    assert other == sj.generate(model, tokenizer, [marked], max_tokens=NEW)[0]
    assert "<" not in filled + other


def test_samples_come_prompt_by_prompt(loaded):
    options = {"temperature": 1.0, "max_tokens": NEW, "seed": 2}
    texts = sj.generate(*loaded, ["def ", "for "], samples=3, **options)
    assert len(set(texts[:3])) == len(set(texts[3:])) == 3
    assert texts[3:] == sj.generate(*loaded, ["for "], samples=3, **options)


def test_an_unstacked_model_says_the_same(loaded, prompt, greedy):
    model, tokenizer = loaded
    text = tokenizer.decode(prompt)
    assert sj.generate(sj.unstacked(model), tokenizer, [text], max_tokens=NEW) == [
        tokenizer.decode(greedy)
    ]


def test_no_prompts_no_texts(loaded):
    assert sj.generate(*loaded, []) == []


def test_bad_input(loaded):
    with pytest.raises(ValueError, match="the prompt is empty"):
        sj.generate(*loaded, [""])
    with pytest.raises(ValueError, match="top_p=0 is out of range"):
        sj.generate(*loaded, ["a"], top_p=0)
