"""A server in a thread of the test, with a client."""

import contextlib
import json
import threading
import time
import urllib.error
import urllib.request

import openai
from fake_engine import FakeEngine

from starcoder_jax.data.tokenizer_training import train_tokenizer
from starcoder_jax.inference.server import Server, allowed_hosts, bind
from starcoder_jax.inference.serving import EngineThread

GREEDY = {"temperature": 0, "max_tokens": 12}
JSON = {"Content-Type": "application/json"}


def small_tokenizer():
    """One that spells most characters byte by byte."""
    return train_tokenizer(["def read(text):\n    return text\n" * 9], kind="bpe", vocab_size=300)


class Served:
    """A server in a thread, with its engine and a client."""

    def __init__(self, tokenizer, engine, max_waiting=64, **options):
        self.engine = engine
        self.thread = EngineThread(engine, max_waiting=max_waiting)
        self.listener = bind("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        options = {"name": "fake", "hosts": allowed_hosts(self.listener), **options}
        self.server = Server(
            self.thread, max_length=engine.max_length, tokenizer=tokenizer, **options
        )
        listeners = {"sockets": [self.listener]}
        self.runner = threading.Thread(target=self.server.run, kwargs=listeners)
        self.client = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="unused", max_retries=0, timeout=30
        )

    def complete(self, **fields):
        """An answer of the client, which requires a model and a prompt."""
        return self.client.completions.create(**{"model": "fake", **GREEDY, **fields})

    def request(self, path, data=None, headers=JSON, method=None):
        """Status, headers and body of an answer, without a client's help."""
        data = data.encode() if isinstance(data, str) else data
        request = urllib.request.Request(self.url + path, data, dict(headers), method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    def refused(self, data, status=400, **options):
        """The error that a body is answered with."""
        data = data if isinstance(data, (str, bytes)) else json.dumps(data)
        found, headers, body = self.request("/v1/completions", data, **options)
        assert found == status, body
        assert headers["Content-Type"] == "application/json"
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
        assert error["message"] and "\n" not in error["message"]
        return error

    def health(self):
        status, _, body = self.request("/health")
        return status, json.loads(body)

    def wait_until_idle(self):
        deadline = time.monotonic() + 20
        while (load := self.health()[1])["running"] + load["waiting"] or self.engine.busy:
            assert time.monotonic() < deadline, load
            time.sleep(0.01)


@contextlib.contextmanager
def serving(tokenizer, engine=None, **options):
    served = Served(tokenizer, engine or FakeEngine(tokenizer), **options)
    with served.thread:
        served.runner.start()
        while not served.server.started:
            assert served.runner.is_alive()
            time.sleep(0.01)
        try:
            with served.client:
                yield served
        finally:
            served.server.should_exit = True
            served.runner.join(30)
            assert not served.runner.is_alive()
