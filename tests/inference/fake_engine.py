"""An engine without a model: what it completes can be told from the prompt and the seed alone."""

import hashlib
import time
from collections.abc import Callable

import numpy as np

from starcoder_jax.data.tokenizer import Tokenizer
from starcoder_jax.inference.sampling import Sampling
from starcoder_jax.inference.text import TextStream

WHOLE = 64  # tokens after which a completion stops by itself


def tokens_of(tokenizer: Tokenizer, prompt: np.ndarray, sampling: Sampling, sample: int) -> list:
    """What the engine completes a prompt with, at most `WHOLE` tokens.

    Text with characters of many bytes, which the tokens split.
    """
    key = np.asarray(prompt, np.int32).tobytes()
    if sampling.temperature:
        key += f"{sampling.seed} {sample}".encode()
    text = "".join(f"{byte:x} é漢😀 " for byte in hashlib.sha256(key).digest())
    return tokenizer.encode(text)[:WHOLE].tolist()


def text_of(
    tokenizer: Tokenizer, prompt: str | list[int], sampling: Sampling, sample: int = 0
) -> str:
    """The text of that, as far as `sampling` lets it."""
    ids = tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else np.array(prompt)
    text = tokenizer.decode(tokens_of(tokenizer, ids, sampling, sample)[: sampling.max_tokens])
    ends = [text.index(stop) for stop in sampling.stop if stop in text]
    return text[: min(ends, default=len(text))]


class FakeCompletion:
    """As `engine.Completion`."""

    def __init__(self, tokenizer: Tokenizer, prompt: np.ndarray, sampling: Sampling, sample: int):
        self.prompt_tokens = len(prompt)
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None
        self.sampling = sampling
        self.to_come = tokens_of(tokenizer, prompt, sampling, sample)
        self.stream = TextStream(tokenizer, sampling.stop)

    @property
    def text(self) -> str:
        return self.stream.text

    def step(self) -> None:
        """Adds a token."""
        token = self.to_come[len(self.token_ids)]
        self.token_ids.append(token)
        self.stream.feed(token)
        if self.stream.stopped or len(self.token_ids) == len(self.to_come):
            self.finish_reason = "stop"
        elif len(self.token_ids) == self.sampling.max_tokens:
            self.finish_reason = "length"
        if self.finish_reason is not None:
            self.stream.finish()


class FakeEngine:
    """As `engine.Engine`.

    Attributes:
        before_step: called by each step; may wait, or raise.
        cancelled: completions that were cancelled.
        most: completions that were ever decoded at once.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        slots: int = 4,
        max_length: int = 256,
        before_step: Callable[[], None] = lambda: time.sleep(0.001),
    ):
        self.tokenizer, self.slots, self.max_length = tokenizer, slots, max_length
        self.before_step = before_step
        self.running: list[FakeCompletion] = []
        self.line: list[FakeCompletion] = []
        self.cancelled: list[FakeCompletion] = []
        self.most = 0

    @property
    def busy(self) -> bool:
        return bool(self.running or self.line)

    def submit(
        self, prompt: np.ndarray, sampling: Sampling, *, samples: int = 1
    ) -> list[FakeCompletion]:
        assert prompt.dtype == np.int32 and prompt.ndim == 1 and len(prompt)
        if len(prompt) + sampling.max_tokens > self.max_length:
            raise ValueError("too long for the engine")
        completions = [
            FakeCompletion(self.tokenizer, prompt, sampling, sample) for sample in range(samples)
        ]
        self.line += completions
        return completions

    def cancel(self, completion: FakeCompletion) -> None:
        for place in (self.running, self.line):
            if completion in place:
                place.remove(completion)
                completion.finish_reason = "cancelled"
                self.cancelled.append(completion)

    def step(self) -> list[FakeCompletion]:
        self.before_step()
        while self.line and len(self.running) < self.slots:
            self.running.append(self.line.pop(0))
        self.most = max(self.most, len(self.running))
        stepped = self.running
        for completion in stepped:
            completion.step()
        self.running = [c for c in stepped if c.finish_reason is None]
        return stepped
