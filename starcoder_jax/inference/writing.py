"""Writes completions to standard output while they are made.

Ctrl-C ends them where they are, as "cancelled": what has come so far is written as well.
"""

import contextlib
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from starcoder_jax.inference.engine import Completion, Engine


def write_text(engine: Engine, completions: Sequence[Completion], prompt: str) -> None:
    """Writes prompt and completion, piece by piece; under a heading each if there are several.

    Args:
        engine: to which the completions were submitted.
        completions: written one after the other, while the others go on.
        prompt: what each of them is to follow.
    """
    sys.stdout.reconfigure(errors="replace")  # of a terminal that cannot show every character
    with _stepping(engine, completions) as step:
        for number, completion in enumerate(completions, start=1):
            if len(completions) > 1:
                print(f"=== {number} of {len(completions)} ===")
            print(prompt, end="", flush=True)
            written = 0
            while written < len(completion.text) or completion.finish_reason is None:
                print(completion.text[written:], end="", flush=True)
                written = len(completion.text)
                if completion.finish_reason is None:
                    step()
            print(flush=True)


def write_json(engine: Engine, completions: Sequence[Completion], prompt: str) -> None:
    """Writes an object a line for each completion, when it has ended.

    Args:
        engine, completions: as for `write_text`.
        prompt: that they had.
    """
    with _stepping(engine, completions) as step:
        for index, completion in enumerate(completions):
            while completion.finish_reason is None:
                step()
            record = {
                "index": index,
                "prompt": prompt,
                "text": completion.text,
                "finish_reason": completion.finish_reason,
                "prompt_tokens": completion.prompt_tokens,
                "completion_tokens": len(completion.token_ids),
            }
            print(json.dumps(record), flush=True)


@contextlib.contextmanager
def _stepping(engine: Engine, completions: Sequence[Completion]) -> Iterator[Callable[[], None]]:
    """Yields what makes a step, or ends all completions if there was a Ctrl-C since the last."""
    interrupted = threading.Event()

    def interrupt(*_) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)  # a second one need not wait for the step to end

    def step() -> None:
        if not interrupted.is_set():
            engine.step()
            return
        for completion in completions:
            engine.cancel(completion)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield step
    finally:
        signal.signal(signal.SIGINT, before)
