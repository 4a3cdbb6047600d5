"""Serves a model over HTTP, by OpenAI's completions protocol.

    python -m starcoder_jax.serve --checkpoint=runs/tiny
    curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\
        -d '{"prompt": "def read_lines(path):", "max_tokens": 64}'

If STARCODER_JAX_API_KEY is set, requests must bring that key. SIGTERM or Ctrl-C stops the server:
what runs has 20 seconds to end, and the exit status is 0.
"""

import argparse
import os
import pathlib
import signal
import sys
import time
from collections.abc import Sequence

from starcoder_jax.command import of_extra, one_line_errors

API_KEY = "STARCODER_JAX_API_KEY"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m starcoder_jax.serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="working directory of a training run, a checkpoint, or a Hugging Face directory",
    )
    parser.add_argument("--name", help="of the model, for clients; by default the directory's")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve at; by default this machine alone"
    )
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    parser.add_argument("--slots", type=int, default=8, help="completions decoded at once")
    parser.add_argument(
        "--max_length",
        type=int,
        help="tokens of prompt and completion together; by default what the model was made for",
    )
    parser.add_argument(
        "--max_waiting",
        type=int,
        default=256,
        help="completions that may wait for a slot; the next ones are turned away",
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="of parameters and computation; by default as the model was trained",
    )
    args = parser.parse_args(argv)
    for name, least in {"slots": 1, "max_length": 3, "max_waiting": 0}.items():
        value = getattr(args, name)
        if value is not None and value < least:
            parser.error(f"--{name}={value} must be at least {least}")
    for number in (signal.SIGINT, signal.SIGTERM):
        # Nothing is served yet. An exception would be lost where it came up within JAX's callbacks.
        signal.signal(number, lambda *_: os._exit(0))
    with one_line_errors("serve"):
        api_key = os.environ.get(API_KEY)
        if api_key is not None and not (api_key and api_key.isascii() and api_key.isprintable()):
            raise ValueError(f"{API_KEY} must be printable ASCII, or not set at all")
        with of_extra("serve"):
            from starcoder_jax.inference.server import Server, allowed_hosts, bind, is_local
        listener = bind(args.host, args.port)
        if not is_local(listener) and api_key is None:
            say(f"whoever reaches this machine can use the model: set {API_KEY} to ask for a key")

        import starcoder_jax as sj
        from starcoder_jax.inference.engine import Engine
        from starcoder_jax.inference.serving import EngineThread, warm_up
        from starcoder_jax.model.decoder import unstacked

        model, tokenizer = sj.load_model(args.checkpoint, dtype=args.dtype)
        model = unstacked(model, release=True)
        engine = Engine(model, tokenizer, slots=args.slots, max_length=args.max_length)
    started = time.monotonic()
    say("compiling")
    warm_up(engine)
    say(f"compiled in {time.monotonic() - started:.0f} s")
    with EngineThread(engine, max_waiting=args.max_waiting) as thread:
        server = Server(
            thread,
            max_length=engine.max_length,
            tokenizer=tokenizer,
            name=args.name or pathlib.Path(args.checkpoint).resolve().name,
            hosts=allowed_hosts(listener),
            api_key=api_key,
        )
        server.run(sockets=[listener])


def say(line: str) -> None:
    """Tells whoever started the server."""
    print(f"serve: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
