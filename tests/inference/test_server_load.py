"""Many clients, clients that go away, an engine that fails, and the end of the server."""

import asyncio
import contextlib
import json
import signal
import socket
import threading
import time

import openai
import pytest
from fake_engine import WHOLE, FakeEngine, text_of
from served import GREEDY, JSON, serving, small_tokenizer

from starcoder_jax.inference import server as server_module
from starcoder_jax.inference.sampling import Sampling


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


class Gate:
    """Lets an engine make so many steps."""

    def __init__(self):
        self._steps = threading.Semaphore(0)

    def __call__(self):
        assert self._steps.acquire(timeout=30)

    def let(self, steps):
        self._steps.release(steps)


@contextlib.contextmanager
def gated(tokenizer, *, slots=2, **options):
    """A server whose engine makes the steps that it is let."""
    gate = Gate()
    with serving(tokenizer, FakeEngine(tokenizer, slots=slots, before_step=gate), **options) as s:
        s.gate = gate
        try:
            yield s
        finally:
            gate.let(10_000)


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def connect(served):
    return socket.create_connection(served.url.removeprefix("http://").split(":"))


def post(served, **fields):
    """A connection that has sent a request, and has read nothing."""
    body = json.dumps({"prompt": "x", **GREEDY, **fields}).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n"
    )
    kind = "".join(f"{name}: {value}\r\n" for name, value in JSON.items())
    connection = connect(served)
    connection.sendall(f"{head}{kind}\r\n".encode() + body)
    return connection


def test_many_streams_are_neither_mixed_up_nor_lost(tokenizer):
    requests = [
        {"prompt": f"def read_{i}(", "temperature": i % 2, "seed": i, "max_tokens": 20 + i % 60}
        for i in range(64)
    ]
    left = range(3, 64, 10)

    async def stream(client, i):
        parts = []
        chunks = await client.completions.create(model="fake", stream=True, **requests[i])
        async for chunk in chunks:
            parts.append(chunk.choices[0].text)
            if i in left and len(parts) == 5:
                await chunks.close()
                break
        return "".join(parts)

    async def everything(url):
        async with openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=30
        ) as client:
            return await asyncio.gather(*(stream(client, i) for i in range(64)))

    with serving(tokenizer, FakeEngine(tokenizer, slots=8)) as served:
        texts = asyncio.run(everything(served.url))
        served.wait_until_idle()
        load = served.health()[1]
    wholes = []
    for request in requests:
        prompt, sampling = request["prompt"], {k: v for k, v in request.items() if k != "prompt"}
        wholes.append(text_of(tokenizer, prompt, Sampling(**sampling)))
    assert len(set(wholes)) == 64
    for i, (text, whole) in enumerate(zip(texts, wholes, strict=True)):
        if i in left:
            assert text and whole.startswith(text) and text != whole
        else:
            assert text == whole
    assert served.engine.most == 8
    assert load["requests"] == 64 and load["running"] == load["waiting"] == 0


def test_closing_a_stream_frees_its_slots(tokenizer):
    with gated(tokenizer) as served:
        with served.complete(prompt="one", n=2, stream=True) as stream:
            served.gate.let(3)
            assert next(iter(stream)).choices[0].text
            assert served.health()[1]["running"] == 2
        until(lambda: served.health()[1]["running"] == 0)
        served.gate.let(1)
        until(lambda: len(served.engine.cancelled) == 2)
        assert not served.engine.busy
        served.gate.let(100)
        assert served.complete(prompt="two").choices[0].finish_reason == "length"


def test_a_completion_that_has_ended_is_load_no_more(tokenizer):
    first = text_of(tokenizer, "one", Sampling(**GREEDY))[:4]
    assert first not in text_of(tokenizer, "two", Sampling(max_tokens=WHOLE))
    with gated(tokenizer) as served:
        served.complete(prompt=["one", "two"], stop=first, stream=True, max_tokens=WHOLE)
        assert served.health()[1]["running"] == 2
        served.gate.let(20)
        until(lambda: served.health()[1]["running"] == 1)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_slot_or_its_place_in_line(tokenizer, stream):
    with gated(tokenizer, slots=1) as served:
        running = post(served, stream=stream)
        until(lambda: served.engine.busy)
        waiting = post(served, stream=stream)
        with running, waiting:
            until(lambda: served.health()[1]["waiting"] == 1)
            served.gate.let(1)
            until(lambda: served.health()[1]["requests"] == 2)
            waiting.close()
            until(lambda: served.health()[1]["waiting"] == 0)
            running.close()
            until(lambda: served.health()[1]["running"] == 0)
        served.gate.let(1)
        until(lambda: len(served.engine.cancelled) == 2)
        until(lambda: not served.engine.busy)


def test_a_client_that_leaves_while_it_asks_does_no_harm(tokenizer, capfd):
    with serving(tokenizer) as served:
        with connect(served) as connection:
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
            connection.sendall(f"{head}Content-Type: application/json\r\n\r\n{{".encode())
            time.sleep(0.1)
        assert served.complete(prompt="x").choices[0].text
        assert served.health()[1]["requests"] == 1
    assert "Traceback" not in capfd.readouterr().err


def test_too_much_at_once_is_turned_away(tokenizer):
    with gated(tokenizer, slots=1, max_waiting=2) as served:
        answers = []

        def ask():
            answers.append(served.complete(prompt="x").choices[0].text)

        askers = [threading.Thread(target=ask) for _ in range(3)]
        for asker in askers:
            asker.start()
        until(lambda: served.health()[1]["waiting"] == 2)
        for n, stream in ((1, False), (1, True), (3, False)):
            with pytest.raises(openai.RateLimitError, match="2 completions may wait") as raised:
                served.complete(prompt="x", n=n, stream=stream)
            assert raised.value.response.headers["Retry-After"] == "1"
        assert served.health()[1]["waiting"] == 2
        served.gate.let(1000)
        for asker in askers:
            asker.join(20)
        assert answers == [text_of(tokenizer, "x", Sampling(**GREEDY))] * 3
        assert served.complete(prompt=["x"] * 3).usage.completion_tokens == 36


def test_what_the_engine_refuses_is_bad_input(tokenizer):
    engine = FakeEngine(tokenizer)
    with serving(tokenizer, engine) as served:
        engine.max_length = 30
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="too long for the engine"):
                served.complete(prompt=["x", "\n" * 20], stream=stream)
        served.wait_until_idle()
        assert len(engine.cancelled) == 2
        assert served.complete(prompt="x").choices[0].text


def test_a_failure_of_the_engine_ends_what_waits_and_shows(tokenizer, capfd):
    with gated(tokenizer, slots=1) as served:

        def fail():
            served.gate()
            if served.engine.running and len(served.engine.running[0].token_ids) == 4:
                raise FloatingPointError("the <chip> is gone")

        served.engine.before_step = fail
        with served.complete(prompt="one", stream=True) as stream, post(served) as waiting:
            until(lambda: served.health()[1]["waiting"] == 1)
            served.gate.let(100)
            with pytest.raises(openai.APIError, match="FloatingPointError: the <chip> is gone"):
                list(stream)
            with waiting.makefile("rb") as file:
                answer = file.read()
        assert answer.startswith(b"HTTP/1.1 500 ")
        error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        assert error["type"] == "server_error" and "restart the server" in error["message"]
        for stream in (False, True):
            error = served.refused({"prompt": "x", "stream": stream}, status=503)
            assert "the <chip> is gone" in error["message"]
        status, load = served.health()
        assert status == 503 and load["status"] == "failed"
        assert load["failure"] == "FloatingPointError: the <chip> is gone"
        assert load["running"] == load["waiting"] == 0
        page = served.request("/health", headers={"Accept": "text/html"})[2].decode()
        assert "fake: failed" in page and "the &lt;chip&gt; is gone" in page
    assert "FloatingPointError: the <chip> is gone" in capfd.readouterr().err


def test_a_stream_that_fails_does_not_end_well(tokenizer):
    with gated(tokenizer) as served:
        served.engine.before_step = lambda: 1 / 0
        body = json.dumps({"prompt": "x", "stream": True})
        status, _, answer = served.request("/v1/completions", body)
    assert status == 200
    (last,) = answer.decode().strip().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"


def test_stopping_lets_requests_end(tokenizer):
    with gated(tokenizer) as served:
        with served.complete(prompt="one", stream=True, max_tokens=WHOLE) as stream:
            served.gate.let(3)
            chunks = iter(stream)
            text = next(chunks).choices[0].text
            served.server.should_exit = True
            until(lambda: not accepts(served))
            served.gate.let(1000)
            text += "".join(chunk.choices[0].text for chunk in chunks)
        assert text == text_of(tokenizer, "one", Sampling(**GREEDY | {"max_tokens": WHOLE}))


def accepts(served):
    try:
        connect(served).close()
    except ConnectionRefusedError:
        return False
    return True


def test_stopping_gives_up_what_takes_too_long(tokenizer, monkeypatch, capfd):
    monkeypatch.setattr(server_module, "GRACE_SECONDS", 0.3)
    with gated(tokenizer) as served:
        with post(served) as whole, post(served, stream=True) as stream:
            until(lambda: served.health()[1]["running"] == 2)
            served.gate.let(1)
            until(lambda: served.health()[1]["requests"] == 2)
            served.server.should_exit = True
            answers = []
            for connection in (whole, stream):
                with connection.makefile("rb") as file:
                    answers.append(file.read().decode())
        assert answers[0].startswith("HTTP/1.1 503 ")
        assert answers[1].startswith("HTTP/1.1 200 ") and "[DONE]" not in answers[1]
        assert all('"message":"the server is stopping"' in answer for answer in answers)
        served.gate.let(1)
        until(lambda: len(served.engine.cancelled) == 2)
    assert "Traceback" not in capfd.readouterr().err


def test_stopping_twice_waits_for_nothing(tokenizer):
    with gated(tokenizer) as served, served.complete(prompt="one", stream=True, n=4):
        served.server.handle_exit(signal.SIGINT, None)
        until(lambda: not accepts(served))
        served.server.handle_exit(signal.SIGINT, None)
        until(lambda: not served.runner.is_alive())


def test_stopping_does_not_wait_for_a_client_that_does_not_read(tokenizer, monkeypatch):
    monkeypatch.setattr(server_module, "GRACE_SECONDS", 0.2)
    engine = FakeEngine(tokenizer, slots=128, max_length=10**6)
    # More than the system and the server buffer.
    fields = {"prompt": "x" * 200_000, "echo": True, "n": 128, "stream": True}
    with serving(tokenizer, engine) as served, post(served, **fields):
        until(lambda: served.health()[1]["requests"] == 1)
        until(lambda: not engine.busy)
        served.server.should_exit = True
        served.runner.join(10)
        assert not served.runner.is_alive()
