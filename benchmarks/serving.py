"""The server under load, as the openai client sees it.

    python benchmarks/serving.py --checkpoint=runs/tiny

Starts the server, asks for completions one at a time, and then for all of them at once, as streams,
of which every tenth is closed midway. Half of them are greedy and half are drawn by a seed, so each
must be, to the character, what it was alone. Exits with status 1 if one is not, or if the server
still works on one afterwards.

The side to compare with is the same server, asked one at a time. Prompts are taken from this
repository's Python files. Programs are compiled in a round before the one that is measured. A time
to the first token is the client's, from its request to the first text; tokens are the server's
count, over the seconds of all streams.
"""

import argparse
import asyncio
import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import openai

ROOT = pathlib.Path(__file__).parent.parent


class Stream(NamedTuple):
    """What a client got."""

    text: str
    chunks: int
    seconds_to_first: float


class Round(NamedTuple):
    """Streams, and what the server counted meanwhile."""

    streams: list[Stream]
    seconds: float
    tokens: int


def main() -> None:
    args = parse_arguments()
    with server(args) as url:
        same, alone, together, load = asyncio.run(measure(args, url))
    report(args, alone, together)
    idle = load["status"] == "ok" and load["running"] == load["waiting"] == 0
    left = len(closed(args.streams))
    print(
        f"{same} of {2 * args.streams} streams, {2 * left} of them closed midway, are what the "
        f"same request gets alone; afterwards {load['running']} run and {load['waiting']} wait"
    )
    sys.exit(0 if idle and same == 2 * args.streams else 1)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--slots", type=int, default=32, help="of the server")
    parser.add_argument("--max_length", type=int, help="of the server; by default the model's")
    parser.add_argument("--prompt_characters", type=int, default=400)
    parser.add_argument("--max_tokens", type=int, default=64)
    return parser.parse_args()


@contextlib.contextmanager
def server(args: argparse.Namespace) -> Iterator[str]:
    """Runs one, and yields its address."""
    command = [sys.executable, "-m", "starcoder_jax.serve", "--port=0", "--name=model"]
    options = [f"--checkpoint={args.checkpoint}", f"--slots={args.slots}"]
    if args.max_length is not None:
        options.append(f"--max_length={args.max_length}")
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            print(line, end="", file=sys.stderr)
            if line.startswith("serving model at "):
                yield line.split()[-1]
                break
        else:
            sys.exit(f"the server did not start: status {process.wait()}")
    finally:
        process.terminate()
        process.communicate()


async def measure(args: argparse.Namespace, url: str) -> tuple[int, Round, Round, dict[str, Any]]:
    """How many streams were right, the rounds, and the server's health in the end."""
    requests = make_requests(args)
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        await stream(client, requests[0], None)
        alone = await one_round(client, url, requests, at_once=1, chunks={})
        chunks = {i: max(1, alone.streams[i].chunks // 2) for i in closed(args.streams)}
        same = 0
        for _ in range(2):
            together = await one_round(client, url, requests, at_once=args.streams, chunks=chunks)
            pairs = zip(alone.streams, together.streams, strict=True)
            same += sum(is_right(*pair, chunks.get(i)) for i, pair in enumerate(pairs))
    return same, alone, together, await idle(url)


def make_requests(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Greedy ones and drawn ones in turn, each with a prompt of its own."""
    files = sorted((ROOT / "starcoder_jax").rglob("*.py"))
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    step = (len(text) - args.prompt_characters) // args.streams
    return [
        {
            "prompt": text[index * step :][: args.prompt_characters],
            "max_tokens": args.max_tokens,
            "temperature": 0.8 * (index % 2),
            "seed": index,
        }
        for index in range(args.streams)
    ]


def closed(streams: int) -> range:
    """Which of the streams are closed midway."""
    return range(3, streams, 10)


def is_right(whole: Stream, part: Stream, chunks: int | None) -> bool:
    """Whether a stream is the one there is alone, or so many chunks of it."""
    if chunks is None:
        return part.text == whole.text
    return part.chunks == chunks and whole.text.startswith(part.text)


async def one_round(
    client: openai.AsyncOpenAI,
    url: str,
    requests: Sequence[dict[str, Any]],
    *,
    at_once: int,
    chunks: Mapping[int, int],
) -> Round:
    """Asks for all of them, so many at once; some are closed after so many chunks."""
    places = asyncio.Semaphore(at_once)

    async def one(index: int, request: dict[str, Any]) -> Stream:
        async with places:
            return await stream(client, request, chunks.get(index))

    before, started = health(url)["tokens"], time.perf_counter()
    streams = await asyncio.gather(*(one(i, request) for i, request in enumerate(requests)))
    seconds = time.perf_counter() - started
    return Round(streams, seconds, (await idle(url))["tokens"] - before)


async def stream(client: openai.AsyncOpenAI, request: dict[str, Any], chunks: int | None) -> Stream:
    """Reads a stream to its end, or closes it after so many chunks."""
    started, first, texts = time.perf_counter(), 0.0, []
    events = await client.completions.create(model="model", stream=True, **request)
    async for event in events:
        texts.append(event.choices[0].text)
        first = first or time.perf_counter() - started
        if len(texts) == chunks:
            await events.close()
            break
    return Stream("".join(texts), len(texts), first)


async def idle(url: str) -> dict[str, Any]:
    """The server's health when nothing runs any more, or after ten seconds."""
    deadline = time.monotonic() + 10
    while (load := health(url))["running"] + load["waiting"] and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    return load


def health(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/health") as answer:
        return json.load(answer)


def report(args: argparse.Namespace, alone: Round, together: Round) -> None:
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("jax", "starlette", "uvicorn", "openai")
    )
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; {versions}")
    print(
        f"{args.checkpoint}: {args.streams} requests, prompts of {args.prompt_characters} "
        f"characters, {args.max_tokens} new tokens at most, {args.slots} slots"
    )
    print(f"{'':<16}{'first token: median ms':>24}{'p95 ms':>9}{'tokens/s':>10}{'ratio':>7}")
    base = alone.tokens / alone.seconds
    for name, result in {"one at a time": alone, f"{args.streams} at once": together}.items():
        first = sorted(1000 * stream.seconds_to_first for stream in result.streams)
        p95 = first[int(0.95 * (len(first) - 1))]
        rate = result.tokens / result.seconds
        print(
            f"{name:<16}{statistics.median(first):>24,.0f}{p95:>9,.0f}{rate:>10,.0f}"
            f"{rate / base:>7.2f}"
        )


if __name__ == "__main__":
    main()
