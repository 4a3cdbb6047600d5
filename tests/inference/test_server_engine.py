"""The server with a model: many clients get what each would have got alone."""

import asyncio

import openai
import pytest
from served import serving

import starcoder_jax as sj
from starcoder_jax.inference.engine import Engine
from starcoder_jax.inference.infilling import infill_prompt
from starcoder_jax.inference.sampling import Sampling
from starcoder_jax.inference.serving import warm_up
from starcoder_jax.model.decoder import unstacked

LEFT = (2, 7)  # clients that close their stream


@pytest.fixture(scope="module")
def engine(trained):
    model, tokenizer = sj.load_model(trained)
    engine = Engine(unstacked(model, release=True), tokenizer, slots=4, max_length=96)
    engine.tokenizer = tokenizer
    warm_up(engine)
    assert not engine.busy
    return engine


def requests():
    """Greedy and drawn ones, of many lengths."""
    for i in range(12):
        prompt = f"def {['read', 'write', 'count'][i % 3]}_{['line', 'word'][i % 2]}(" + "x" * 3 * i
        fields = {"prompt": prompt, "max_tokens": 12 + i, "temperature": i % 2, "seed": i}
        if i % 5 == 3:
            fields["suffix"] = "\n    return item\n"
        if i % 4 == 1:
            fields["stop"] = ["\n", "zz"]
        yield fields


def alone(engine, prompt, suffix=None, stop=(), **sampling):
    """The text of a request, with nothing beside it."""
    if suffix is None:
        ids = engine.tokenizer.encode_prompt(prompt)
    else:
        ids = infill_prompt(engine.tokenizer, prompt, suffix)
    (completion,) = engine.submit(ids, Sampling(stop=tuple(stop), **sampling))
    engine.run()
    return completion.text


async def all_at_once(url):
    async def stream(client, i, fields):
        parts = []
        chunks = await client.completions.create(model="fake", stream=True, **fields)
        async for chunk in chunks:
            parts.append(chunk.choices[0].text)
            if i in LEFT and len(parts) == 3:
                await chunks.close()
                break
        return "".join(parts)

    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=30
    ) as client:
        return await asyncio.gather(*(stream(client, i, r) for i, r in enumerate(requests())))


def test_streams_beside_each_other_are_as_alone(engine):
    wholes = [alone(engine, **fields) for fields in requests()]
    assert len(set(wholes)) >= 10
    with serving(engine.tokenizer, engine) as served:
        texts = asyncio.run(all_at_once(served.url))
        served.wait_until_idle()
        assert served.health()[1]["requests"] == 12
    for i, (text, whole) in enumerate(zip(texts, wholes, strict=True)):
        if i in LEFT:
            assert whole.startswith(text) and text != whole
        else:
            assert text == whole


def test_extremes_neither_fail_nor_harm_others(engine):
    with serving(engine.tokenizer, engine) as served:
        before = served.complete(prompt="def read_line(").choices[0].text
        for fields in (
            {"temperature": 1e-30},
            {"temperature": 2, "seed": 2**31 - 1},
            {"extra_body": {"repetition_penalty": 10}},
            {"extra_body": {"repetition_penalty": 1e-30}},
            {"temperature": 1, "extra_body": {"top_k": 2**31 - 1, "min_p": 1}, "top_p": 1e-30},
            {"n": 7, "temperature": 1},
            {"prompt": [0, 1, 2, 3, engine.tokenizer.vocab_size - 1]},
            {"prompt": "x" * 40, "max_tokens": 1},
            {"prompt": [60] * 84},
        ):
            answer = served.complete(**{"prompt": "def ", **fields})
            assert len(answer.choices) == fields.get("n", 1)
            assert all(c.finish_reason in ("stop", "length") for c in answer.choices)
        with pytest.raises(openai.BadRequestError, match=r"85 tokens of .* max_length=96"):
            served.complete(prompt=[60] * 85)
        assert served.complete(prompt="def read_line(").choices[0].text == before != ""
        assert served.health()[1]["status"] == "ok"
