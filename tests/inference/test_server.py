"""The protocol, as the real client sees it, on an engine whose text tells prompt and seed."""

import json
import time

import openai
import pytest
from fake_engine import text_of
from served import GREEDY, JSON, serving, small_tokenizer

from starcoder_jax.inference import server as server_module
from starcoder_jax.inference.infilling import infill_prompt
from starcoder_jax.inference.sampling import Sampling
from starcoder_jax.inference.server import allowed_hosts, bind


@pytest.fixture(scope="session")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="module")
def served(tokenizer):
    with serving(tokenizer) as served:
        yield served


def expected(served, prompt, sample=0, **sampling):
    return text_of(served.engine.tokenizer, prompt, Sampling(**{**GREEDY, **sampling}), sample)


def test_a_completion(served):
    answer = served.complete(prompt="def read(")
    assert answer.object == "text_completion" and answer.model == "fake"
    assert answer.id.startswith("cmpl-") and abs(answer.created - time.time()) < 60
    (choice,) = answer.choices
    assert choice.text == expected(served, "def read(") != ""
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    prompt_tokens = len(served.engine.tokenizer.encode("def read("))
    assert answer.usage.prompt_tokens == prompt_tokens
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == prompt_tokens + 12
    whole = served.complete(prompt="def read(", max_tokens=100)
    assert whole.choices[0].finish_reason == "stop"
    assert whole.choices[0].text == expected(served, "def read(", max_tokens=100)


def test_prompts_in_all_forms(served):
    tokenizer = served.engine.tokenizer
    tokens = tokenizer.encode("two").tolist()
    for prompt, each in (
        ("one", ["one"]),
        (["one", "two", "one"], ["one", "two", "one"]),
        (tokens, ["two"]),
        ([tokens, [60, 61]], ["two", [60, 61]]),
        ("<fim_prefix>a", [[tokenizer.special_id("<fim_prefix>"), *tokenizer.encode("a")]]),
        (None, [[tokenizer.end_of_text_id]]),
    ):
        answer = served.complete(prompt=prompt)
        assert [choice.index for choice in answer.choices] == list(range(len(each)))
        assert [c.text for c in answer.choices] == [expected(served, one) for one in each]


def test_the_defaults_are_those_of_the_protocol(served):
    seen = []
    submit = served.engine.submit
    served.engine.submit = lambda prompt, sampling, samples: (
        seen.append(sampling) or submit(prompt, sampling, samples=samples)
    )
    try:
        for _ in range(2):
            served.client.completions.create(model="fake", prompt="x")
        served.complete(
            prompt="x",
            max_tokens=5,
            temperature=0.5,
            top_p=0.9,
            seed=7,
            stop="a",
            extra_body={"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.5},
        )
        served.complete(prompt="x", extra_body={"top_k": -1}, stop=["a", "b"])
    finally:
        del served.engine.submit
    assert seen[0].max_tokens == 16 and seen[0].temperature == 1 and seen[0].top_k is None
    assert seen[0].seed != seen[1].seed
    assert seen[2] == Sampling(5, 0.5, 3, 0.9, 0.1, 1.5, ("a",), 7)
    assert seen[3].top_k is None and seen[3].stop == ("a", "b")


def test_samples_and_seeds(served):
    prompts = ["one", "two"]
    answer = served.complete(prompt=prompts, n=3, temperature=0.7, seed=5, best_of=3)
    assert [choice.index for choice in answer.choices] == list(range(6))
    texts = [choice.text for choice in answer.choices]
    assert len(set(texts)) == 6
    sampling = {"temperature": 0.7, "seed": 5}
    assert texts == [expected(served, p, i, **sampling) for p in prompts for i in range(3)]
    prompt_tokens = sum(len(served.engine.tokenizer.encode(p)) for p in prompts)
    assert answer.usage.prompt_tokens == prompt_tokens
    assert answer.usage.completion_tokens == 6 * 12


def test_a_stop_string_ends_the_text(served):
    whole = expected(served, "one", max_tokens=60)
    stop = whole[5:9]
    answer = served.complete(prompt="one", stop=["never", stop], max_tokens=60)
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    assert 0 < answer.usage.completion_tokens < 60


def test_echo(served):
    whole = expected(served, "one")
    tokens = served.engine.tokenizer.encode("one").tolist()
    for prompt in ("one", tokens):
        assert served.complete(prompt=prompt, echo=True).choices[0].text == "one" + whole
    answer = served.complete(prompt=["one", "é"], n=2, echo=True, stream=True)
    texts = ["", "", "", ""]
    for chunk in answer:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["one" + whole] * 2 + ["é" + expected(served, "é")] * 2


def test_infilling(served):
    tokenizer = served.engine.tokenizer
    for prompt, prefix in (("def ", "def "), (None, ""), ("<fim_middle>", "<fim_middle>")):
        answer = served.complete(prompt=prompt, suffix="\n<fim_suffix>")
        ids = infill_prompt(tokenizer, prefix, "\n<fim_suffix>")
        assert list(ids).count(tokenizer.special_id("<fim_suffix>")) == 1
        assert answer.choices[0].text == expected(served, ids.tolist())
        assert answer.usage.prompt_tokens == len(ids)
    empty = served.complete(prompt="def ", suffix="")
    ids = infill_prompt(tokenizer, "def ", "")
    assert empty.choices[0].text == expected(served, ids.tolist())


def test_a_text_too_long_to_fill_in_is_cut_around_the_gap(served):
    answer = served.complete(prompt="a1 " * 400 + "near", suffix="close" + " b2" * 400)
    room = served.engine.max_length - 12
    assert room - 4 <= answer.usage.prompt_tokens <= room


def test_a_stream(served):
    whole = expected(served, "one", max_tokens=40)
    chunks = list(served.complete(prompt="one", max_tokens=40, stream=True))
    assert len(chunks) > 5 and all(chunk.choices[0].text for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"text_completion"}
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole
    assert "é漢😀" in whole and not any("\ufffd" in c.choices[0].text for c in chunks)
    assert [c.choices[0].finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_with_counts(served):
    options = {"include_usage": True, "include_obfuscation": False}
    chunks = list(served.complete(prompt="one", n=2, stream=True, stream_options=options))
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks[:-1])
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 24
    assert chunks[-1].usage.prompt_tokens == len(served.engine.tokenizer.encode("one"))


def test_a_stream_as_it_is_sent(served):
    data = {"prompt": "one", "stream": True, **GREEDY}
    status, headers, body = served.request("/v1/completions", json.dumps(data))
    assert status == 200 and headers["Content-Type"] == "text/event-stream"
    *events, end = body.decode().split("\n\n")
    assert end == "" and events[-1] == "data: [DONE]"
    for line in events[:-1]:
        assert line.startswith("data: {") and "\n" not in line
        assert json.loads(line[6:])["choices"][0]["logprobs"] is None


def test_models(served):
    (model,) = served.client.models.list().data
    assert model.id == "fake" and model.object == "model" and model.max_model_len == 256
    assert served.client.models.retrieve("fake") == model
    with pytest.raises(openai.NotFoundError, match="'fake' alone"):
        served.client.models.retrieve("other")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"promt": "x"}, "no field \"promt\" (did you mean 'prompt'?)"),
        ({"functions": []}, 'no field "functions"'),
        ({"\ud800": 1}, 'no field "\\ud800"'),
        ({"logprobs": 1}, "logprobs is not offered: leave it out"),
        ({"logprobs": 0}, "logprobs is not offered"),
        ({"logit_bias": {"5": -100}}, "logit_bias is not offered"),
        ({"presence_penalty": 0.1}, "presence_penalty is not offered"),
        ({"frequency_penalty": [0]}, "frequency_penalty is not offered"),
        ({"best_of": 2}, "best_of is not offered unless it equals n"),
        ({"n": 0}, "n must be a whole number from 1 to 128, not 0"),
        ({"n": 129}, "n must be a whole number"),
        ({"n": 2.0}, "n must be a whole number"),
        ({"n": True}, "n must be a whole number"),
        ({"max_tokens": 0}, "max_tokens must be a whole number from 1"),
        ({"max_tokens": "x" * 99}, "max_tokens must be a whole number"),
        ({"max_tokens": 10**30}, "max_tokens must be a whole number"),
        ({"max_tokens": 256}, "1 tokens of prompt and max_tokens=256 exceed the max_length=256"),
        ({"prompt": "\n" * 500}, "500 tokens of prompt and max_tokens=16 exceed"),
        ({"prompt": [60] * 241}, "241 tokens of prompt and max_tokens=16 exceed"),
        ({"suffix": "x", "max_tokens": 300}, "max_tokens=300 exceed the max_length=256"),
        ({"temperature": -0.1}, "temperature must be a number from 0 to 2, not -0.1"),
        ({"temperature": 2.1}, "temperature must be"),
        ({"temperature": "1"}, "temperature must be"),
        ({"temperature": True}, "temperature must be"),
        ({"temperature": 10**400}, "temperature must be"),
        ({"top_p": 1.1}, "top_p must be"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k must be"),
        ({"top_k": 10**30}, "top_k must be"),
        ({"min_p": 2}, "min_p must be"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": -1}, "repetition_penalty must be"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**70}, "seed must be"),
        ({"seed": 1.5}, "seed must be"),
        ({"stop": ""}, "stop must be a string or a list"),
        ({"stop": ["a", ""]}, "stop must be"),
        ({"stop": ["a"] * 17}, "stop must be"),
        ({"stop": [1]}, "stop must be"),
        ({"stop": {"a": 1}}, "stop must be"),
        ({"stream": 1}, "stream must be true or false, not 1"),
        ({"echo": "yes"}, "echo must be true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options go with stream=true"),
        ({"stream": True, "stream_options": 1}, "stream_options must be an object"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x is not offered"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation is not offered",
        ),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "include_usage must be"),
        ({"suffix": 5}, "suffix must be a string, not 5"),
        ({"suffix": "x", "prompt": [60]}, "prompt must be a string or a list of strings"),
        ({"user": 5}, "user must be a string"),
        ({"prompt": ""}, "the prompt is empty: leave it out"),
        ({"prompt": ["a", ""]}, "the prompt is empty"),
        ({"prompt": []}, "prompt must be a string"),
        ({"prompt": [[]]}, "prompt must be"),
        ({"prompt": ["a", 60]}, "prompt must be"),
        ({"prompt": ["a", [60]]}, "prompt must be"),
        ({"prompt": [True]}, "prompt must be"),
        ({"prompt": [1.5]}, "prompt must be"),
        ({"prompt": 5}, "prompt must be"),
        ({"prompt": {"a": 1}}, "prompt must be"),
        ({"prompt": [300]}, "token id 300 is outside of the vocabulary of 300"),
        ({"prompt": [-1]}, "token id -1 is outside"),
        ({"prompt": [10**30]}, "is outside of the vocabulary"),
        ({"prompt": ["a"] * 69}, "69 completions are more than the 68 that this server takes"),
        ({"n": 128}, "128 completions are more than the 68"),
    ],
)
def test_what_is_not_understood_is_refused(served, fields, message):
    error = served.refused({"prompt": "x", **fields})
    assert message in error["message"]
    assert len(error["message"]) < 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b"null",
        b"\xff\xfe",
        b'{"prompt": "\xff"}',
        b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "temperature": 1e999}',
        b'{"prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}",
        b'{"prompt": ' + b"[" * 100_000,
        b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"max_tokens": ' + b"[" * 900 + b"]" * 900 + b"}",
    ],
)
def test_a_body_that_is_no_request_is_refused(served, body):
    served.refused(body)


def test_the_client_is_told_what_was_wrong(served):
    with pytest.raises(openai.BadRequestError, match="temperature must be") as raised:
        served.complete(prompt="x", temperature=3)
    assert raised.value.param == "temperature"
    with pytest.raises(openai.NotFoundError, match=r"no model \"other\" here: .* 'fake'"):
        served.complete(prompt="x", model="other")
    with pytest.raises(openai.BadRequestError) as raised:
        served.complete(prompt="x", max_tokens=256)
    assert raised.value.code == "context_length_exceeded"


def test_lone_surrogates_are_text(served):
    status, _, body = served.request(
        "/v1/completions", '{"prompt": "\\ud800", "echo": true, "temperature": 0}'
    )
    assert status == 200
    text = json.loads(body)["choices"][0]["text"]
    assert text == "\ud800" + expected(served, "\ufffd", max_tokens=16)


def test_other_content_types_paths_and_methods_are_refused(served):
    for headers in ({"Content-Type": "text/plain"}, {"Content-Type": "application/json-seq"}):
        assert "Content-Type" in served.refused("{}", status=415, headers=headers)["message"]
    with_charset = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert "promt" in served.refused({"promt": 1}, headers=with_charset)["message"]
    for path, method, status in (
        ("/v1/chat/completions", "POST", 404),
        ("/", "GET", 404),
        ("/v1/completions", "GET", 405),
    ):
        found, headers, body = served.request(path, method=method)
        assert found == status and headers["Content-Type"] == "application/json"
        assert path in json.loads(body)["error"]["message"]


def test_a_body_that_is_too_large_is_refused(served, monkeypatch):
    monkeypatch.setattr(server_module, "MAX_REQUEST_BYTES", 1000)
    assert "1,000 bytes" in served.refused({"prompt": "x" * 1000}, status=413)["message"]
    assert served.complete(prompt="x" * 100).choices[0].text


def test_requests_for_another_host_are_refused(served):
    for host, status in (
        ("evil.example", 400),
        ("localhost.evil.example:8000", 400),
        ("127.0.0.1.evil.example", 400),
        ("localhost:1234", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("LOCALHOST", 200),
    ):
        for path in ("/health", "/v1/models"):
            assert served.request(path, headers={"Host": host})[0] == status, host


def test_health(served):
    before = served.health()[1]
    served.complete(prompt="one", n=2)
    status, load = served.health()
    assert status == 200
    assert load["status"] == "ok" and load["failure"] is None
    assert load["model"] == "fake" and load["max_length"] == 256
    assert (load["slots"], load["max_waiting"]) == (4, 64)
    assert load["running"] == load["waiting"] == 0
    assert load["requests"] == before["requests"] + 1
    assert load["tokens"] == before["tokens"] + 24
    assert load["tokens_per_second"] > 2
    assert load["uptime_seconds"] >= before["uptime_seconds"]


def test_health_is_a_page_for_people(tokenizer):
    with serving(tokenizer, name="<b>&") as served:
        status, headers, body = served.request("/health", headers={"Accept": "text/html,*/*"})
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    page = body.decode()
    assert "&lt;b&gt;&amp;: ok" in page and "<b>" not in page
    assert "<th>tokens per second<td>0" in page


def test_a_key(tokenizer):
    with serving(tokenizer, api_key="secret") as served:
        assert served.request("/health", headers={})[0] == 200
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "secret"}):
            error = served.refused({"prompt": "x"}, status=401, headers=JSON | headers)
            assert error["code"] == "invalid_api_key" and "secret" not in error["message"]
            assert served.request("/v1/models", headers=headers)[0] == 401
            assert served.request("/v1/models/fake", headers=headers)[0] == 401
        with pytest.raises(openai.AuthenticationError, match="wants its key"):
            served.complete(prompt="x")
        client = served.client.with_options(api_key="secret")
        assert client.completions.create(model="fake", prompt="x", **GREEDY).choices[0].text


@pytest.mark.parametrize(
    ("address", "hosts"),
    [
        ("127.0.0.1", ["localhost", "127.0.0.1", "[::1]"]),
        ("127.0.0.2", ["localhost", "127.0.0.1", "[::1]", "127.0.0.2"]),
        ("0.0.0.0", ["*"]),
    ],
)
def test_a_server_for_others_takes_any_host_name(tokenizer, address, hosts):
    with bind(address, 0) as listener:
        assert set(allowed_hosts(listener)) == set(hosts)
    with serving(tokenizer, hosts=hosts) as served:
        status = served.request("/health", headers={"Host": "models.example"})[0]
        assert status == (200 if hosts == ["*"] else 400)
