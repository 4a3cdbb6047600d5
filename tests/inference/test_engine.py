"""The engine decodes many sequences as if each were alone."""

import gc
import weakref

import jax
import numpy as np
import pytest
from flax import nnx

import starcoder_jax as sj
from starcoder_jax.inference import engine as engine_module
from starcoder_jax.inference.engine import Engine
from starcoder_jax.inference.sampling import Sampling
from starcoder_jax.inference.uncached import complete
from starcoder_jax.model.decoder import Decoder
from starcoder_jax.parallel.mesh import MeshConfig, make_mesh

NEW = 12
TEXTS = [
    "def ",
    "def read_line(line, limit=3):\n    for item in line:\n        if item > limit:\n",
    "\n",
    '"""Module number 4."""\n\n\ndef count_word(word, ',
    "for item in file:",
]


@pytest.fixture(scope="module")
def prompts(loaded):
    return [loaded[1].encode(text) for text in TEXTS]


@pytest.fixture(scope="module")
def alone(loaded, prompts):
    """What each prompt becomes by running the whole sequence again and again."""
    model, tokenizer = loaded
    stop_ids = frozenset(tokenizer.special_tokens.values())
    vocab = tokenizer.vocab_size
    return [
        complete(model, prompt, NEW, stop_ids=stop_ids, num_ids=vocab).tolist()
        for prompt in prompts
    ]


def run_all(engine: Engine, prompts, sampling: Sampling, **options):
    completions = [c for prompt in prompts for c in engine.submit(prompt, sampling, **options)]
    engine.run()
    assert not engine.busy
    return completions


@pytest.mark.parametrize("slots", [1, 2, 8])
def test_greedy_tokens_are_those_of_each_prompt_alone(loaded, prompts, alone, slots):
    engine = Engine(*loaded, slots=slots, max_length=96)
    completions = run_all(engine, prompts, Sampling(max_tokens=NEW))
    assert [completion.token_ids for completion in completions] == alone
    for completion, prompt, expected in zip(completions, prompts, alone, strict=True):
        assert completion.text == loaded[1].decode(expected)
        assert completion.prompt_tokens == len(prompt)
        assert completion.finish_reason == ("length" if len(expected) == NEW else "stop")


def test_requests_come_and_go_between_steps(loaded, prompts, alone):
    engine = Engine(*loaded, slots=2, max_length=96)
    sampling = Sampling(max_tokens=NEW)
    completions, texts = [], {}
    for prompt in prompts:
        completions += engine.submit(prompt, sampling)
        for _ in range(4):
            for changed in engine.step():
                assert changed.text.startswith(texts.get(changed, ""))
                texts[changed] = changed.text
    engine.run()
    assert [completion.token_ids for completion in completions] == alone


def test_steps_report_each_token_once(loaded, prompts):
    engine = Engine(*loaded, slots=2, max_length=96)
    completion = engine.submit(prompts[0], Sampling(max_tokens=5))[0]
    counts = []
    while engine.busy:
        counts += [len(completion.token_ids) for changed in engine.step() if changed is completion]
    assert counts[-1] == len(completion.token_ids) and counts == sorted(counts)
    assert engine.step() == []


def test_samples_do_not_depend_on_what_is_beside_them(loaded, prompts):
    sampling = Sampling(max_tokens=NEW, temperature=1.2, top_p=0.95, seed=11)
    lone = Engine(*loaded, slots=1, max_length=96)
    expected = [c.token_ids for c in run_all(lone, prompts[:2], sampling, samples=3)]
    assert len({tuple(ids) for ids in expected[:3]}) == 3  # samples differ
    crowd = Engine(*loaded, slots=8, max_length=64)
    others = [
        crowd.submit(prompts[2], Sampling(max_tokens=20, temperature=0.5, seed=4))[0],
        crowd.submit(prompts[3], Sampling(max_tokens=20, repetition_penalty=1.4))[0],
    ]
    for _ in range(3):
        crowd.step()
    found = [c.token_ids for c in run_all(crowd, prompts[:2], sampling, samples=3)]
    assert found == expected
    assert all(len(other.token_ids) for other in others)


@pytest.fixture
def shapes(monkeypatch) -> list[tuple[int, int]]:
    """Rows and length of each run of prompts."""
    shapes = []
    prefill = engine_module._prefill

    def counted(params, tokens, *args, **kwargs):
        shapes.append(tokens.shape)
        return prefill(params, tokens, *args, **kwargs)

    monkeypatch.setattr(engine_module, "_prefill", counted)
    return shapes


def test_samples_share_the_run_of_their_prompt(loaded, prompts, shapes):
    engine = Engine(*loaded, slots=8, max_length=96)
    run_all(engine, prompts[:1], Sampling(max_tokens=3, temperature=1), samples=6)
    assert shapes == [(1, 32)]


def test_prompts_run_together_up_to_a_limit(loaded, prompts, alone, shapes, monkeypatch):
    monkeypatch.setattr(engine_module, "_PREFILL_TOKENS", 64)
    engine = Engine(*loaded, slots=8, max_length=96)
    completions = run_all(engine, prompts, Sampling(max_tokens=NEW))
    assert [completion.token_ids for completion in completions] == alone
    assert sum(rows for rows, _ in shapes) >= len(prompts)
    assert all(rows * length <= 64 or rows == 1 for rows, length in shapes)


def test_repetition_penalty_counts_prompt_and_completion(loaded, prompts):
    model, tokenizer = loaded
    engine = Engine(model, tokenizer, slots=2, max_length=96)
    penalized = Sampling(max_tokens=NEW, repetition_penalty=1.7)
    plain = engine.submit(prompts[1], Sampling(max_tokens=NEW))[0]
    found = engine.submit(prompts[1], penalized)[0]
    engine.run()
    sequence = prompts[1].tolist()
    for token in found.token_ids:
        logits = np.array(model(np.array([sequence], np.int32))[0, -1, : tokenizer.vocab_size])
        seen = np.unique(sequence)
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / 1.7, logits[seen] * 1.7)
        assert token == logits.argmax()
        sequence.append(token)
    assert found.token_ids != plain.token_ids


def test_a_stop_string_ends_the_text_before_it(loaded, prompts, alone):
    model, tokenizer = loaded
    text = tokenizer.decode(alone[1])
    assert len(text) > 8
    stop = text[4:8]
    engine = Engine(model, tokenizer, slots=1, max_length=96)
    completion = run_all(engine, prompts[1:2], Sampling(max_tokens=NEW, stop=(stop, "\0")))[0]
    assert completion.text == text[: text.index(stop)]
    assert completion.finish_reason == "stop"
    assert len(completion.token_ids) < NEW


def test_cancelling_frees_the_slot_at_once(loaded, prompts, alone):
    engine = Engine(*loaded, slots=1, max_length=96)
    long = Sampling(max_tokens=40, temperature=1)
    running, waiting = engine.submit(prompts[0], long) + engine.submit(prompts[1], long)
    last = engine.submit(prompts[1], Sampling(max_tokens=NEW))[0]
    for _ in range(3):
        engine.step()
    engine.cancel(waiting)
    engine.cancel(running)
    tokens = list(running.token_ids)
    assert running.finish_reason == waiting.finish_reason == "cancelled"
    engine.run()
    assert running.token_ids == tokens and waiting.token_ids == []
    assert last.token_ids == alone[1]
    engine.cancel(last)
    assert last.finish_reason == "length" or len(alone[1]) < NEW


def test_completions_are_not_kept(loaded, prompts):
    engine = Engine(*loaded, slots=2, max_length=96)
    ended = weakref.ref(run_all(engine, prompts[:1], Sampling(max_tokens=2))[0])
    gc.collect()
    assert ended() is None


def test_on_a_mesh(trained, loaded, prompts, alone):
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    model, tokenizer = sj.load_model(trained, mesh=mesh)
    with jax.set_mesh(mesh):
        for used in (model, sj.unstacked(model)):
            engine = Engine(used, tokenizer, slots=2, max_length=96)
            assert engine.slots == 4
            completions = run_all(engine, prompts, Sampling(max_tokens=NEW))
            assert [completion.token_ids for completion in completions] == alone
        sampled = Sampling(max_tokens=5, temperature=1, top_k=9, repetition_penalty=1.1, seed=3)
        found = run_all(engine, prompts[:2], sampled, samples=2)
    expected = run_all(Engine(*loaded, max_length=96), prompts[:2], sampled, samples=2)
    assert [c.token_ids for c in found] == [c.token_ids for c in expected]


def test_sequences_that_are_split_are_refused(trained):
    mesh = make_mesh(MeshConfig(fsdp=4, sequence=2))
    model, tokenizer = sj.load_model(trained, mesh=mesh)
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=r"mesh\.sequence=2 splits sequences"):
        Engine(model, tokenizer)


def test_bad_requests(loaded, prompts):
    engine = Engine(*loaded, slots=2, max_length=48)
    with pytest.raises(ValueError, match="the prompt is empty"):
        engine.submit(prompts[0][:0], Sampling())
    with pytest.raises(ValueError, match=r"max_tokens=48 are more than the 48 tokens"):
        engine.submit(prompts[0], Sampling(max_tokens=48))
    assert not engine.busy
    config = sj.DecoderConfig(
        vocab_size=16, num_layers=1, embed_dim=8, num_heads=2, num_kv_heads=1, mlp_dim=16,
        max_length=20, positions="learned",
    )  # fmt: skip
    model = Decoder(config, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"max_length=21, but the model has 20 learned"):
        Engine(model, loaded[1], max_length=21)


def test_multi_query_takes_a_heads_share_of_the_memory(loaded):
    def cache_bytes(**fields):
        config = sj.DecoderConfig(
            vocab_size=320, num_layers=2, embed_dim=32, num_heads=8, mlp_dim=16, max_length=64,
            dtype="float32", **fields,
        )  # fmt: skip
        return Engine(Decoder(config, rngs=nnx.Rngs(0)), loaded[1], slots=2).cache_bytes

    many, few, one = (cache_bytes(num_kv_heads=heads) for heads in (8, 2, 1))
    assert (many, few, one) == (8 * one, 2 * one, 2 * 2 * 2 * 64 * 4 * 4)
    assert cache_bytes(num_kv_heads=1, sliding_window=16) == one // 4
