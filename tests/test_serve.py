"""The command, in a process of its own where it serves."""

import contextlib
import re
import signal
import socket
import sys

import micro
import openai
import pytest

from starcoder_jax import serve


@pytest.fixture
def refused(capfd):
    """Runs the command, which must exit with status 2; the lines it wrote, without its usage."""
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]

    def call(*arguments):
        with pytest.raises(SystemExit) as raised:
            serve.main(arguments)
        error = capfd.readouterr().err
        assert raised.value.code == 2, error
        return [line for line in error.splitlines() if not line.startswith(("usage:", " "))]

    yield call
    for number, handler in handlers:
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: --checkpoint"),
        (["--checkpoint=ABSENT", "--port=0"], "no checkpoint in"),
        (["--checkpoint=ABSENT", "--port=-1"], "--host=127.0.0.1 --port=-1"),
        (["--checkpoint=ABSENT", "--port=70000"], "--port=70000"),
        (["--checkpoint=ABSENT", "--port=x"], "--port"),
        (["--checkpoint=ABSENT", "--host=256.0.0.1", "--port=0"], "--host=256.0.0.1 --port=0"),
        (["--checkpoint=ABSENT", "--slots=0"], "--slots=0 must be at least 1"),
        (["--checkpoint=ABSENT", "--max_length=2"], "--max_length=2 must be at least 3"),
        (["--checkpoint=ABSENT", "--max_waiting=-1"], "--max_waiting=-1 must be at least 0"),
    ],
)
def test_bad_input_is_refused(refused, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (line,) = refused(*arguments)
    assert message in line


def test_a_port_in_use_is_refused(refused):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        (line,) = refused("--checkpoint=absent", f"--port={port}")
    assert f"--port={port}" in line and "in use" in line


def test_an_open_port_without_a_key_is_told(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = refused("--checkpoint=absent", "--host=0.0.0.0", "--port=0")
    assert "set STARCODER_JAX_API_KEY" in lines[0] and len(lines) == 2
    monkeypatch.setenv("STARCODER_JAX_API_KEY", "secret")
    assert len(refused("--checkpoint=absent", "--host=0.0.0.0", "--port=0")) == 1
    for key in ("", "sécret", "two\nlines"):
        monkeypatch.setenv("STARCODER_JAX_API_KEY", key)
        (line,) = refused("--checkpoint=absent", "--port=0")
        assert "STARCODER_JAX_API_KEY must be printable ASCII" in line


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_what_is_not_installed_is_named(refused, monkeypatch, package):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "starcoder_jax.inference.server", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    (line,) = refused("--checkpoint=absent", "--port=0")
    assert line.startswith("serve: starlette") or line.startswith("serve: uvicorn")
    assert "pip install 'starcoder_jax[serve]'" in line


@contextlib.contextmanager
def started(trained, *arguments):
    """The command, which is killed if it has not ended by itself."""
    flags = [f"--checkpoint={trained}", "--port=0", "--slots=2", "--max_length=64"]
    process = micro.start("serve", *flags, *arguments)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def lines_until(process, part):
    """What it writes to stderr, up to a line with this part."""
    lines = []
    while part not in (lines[-1] if lines else ""):
        line = process.stderr.readline()
        assert line, lines
        lines.append(line)
    return lines


def test_it_serves_until_it_is_told_to_stop(trained):
    with started(trained, "--name=micro/model") as process:
        lines = lines_until(process, "serving")
        url = re.fullmatch(r"serving micro/model at (http://127\.0\.0\.1:\d+/v1)\n", lines[-1])[1]
        assert any("serve: compiled in" in line for line in lines)
        with openai.OpenAI(base_url=url, api_key="x", max_retries=0, timeout=30) as client:
            assert client.models.retrieve("micro/model").max_model_len == 64
            ask = {"model": "micro/model", "prompt": "def read_line(", "temperature": 0}
            whole = client.completions.create(max_tokens=40, **ask).choices[0]
            filled = client.completions.create(suffix="):\n", **ask)
            assert filled.usage.prompt_tokens > len("def read_line(") / 8 + 3
            with client.completions.create(max_tokens=40, stream=True, **ask) as stream:
                chunks = iter(stream)
                texts = [next(chunks).choices[0].text]
                process.send_signal(signal.SIGTERM)
                texts += [chunk.choices[0].text for chunk in chunks]
        assert whole.text == "".join(texts) != ""
        stdout, stderr = process.communicate(timeout=30)
        assert process.returncode == 0 and stdout == stderr == ""


def test_it_can_be_interrupted_before_it_serves(trained):
    with started(trained) as process:
        lines_until(process, "serve: compiling")
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 0 and stdout == ""
        assert "Traceback" not in stderr and "serving" not in stderr
