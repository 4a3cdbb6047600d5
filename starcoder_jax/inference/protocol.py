"""OpenAI's completions protocol: what a request asks for, and how it is answered.

Fields are those of POST /v1/completions in OpenAI's API reference, and three more that vLLM names:
`top_k`, `min_p` and `repetition_penalty`. What is not understood or not offered is refused by name.
"""

import dataclasses
import difflib
import json
import secrets
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from starcoder_jax.data.tokenizer import END_OF_TEXT, Tokenizer
from starcoder_jax.inference.infilling import infill_prompt
from starcoder_jax.inference.sampling import Sampling

MAX_SAMPLES = 128  # of a prompt, as in OpenAI's API
MAX_STOPS = 16  # OpenAI takes 4; benchmarks of code use up to 10

# Fields of the protocol that are not offered, with the values that ask for nothing.
_NOT_OFFERED: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "logprobs": (None,),
    "presence_penalty": (None, 0),
}
_FIELDS = frozenset(
    (
        *_NOT_OFFERED,
        *("best_of", "echo", "max_tokens", "min_p", "model", "n", "prompt", "repetition_penalty"),
        *("seed", "stop", "stream", "stream_options", "suffix", "temperature", "top_k", "top_p"),
        "user",
    )
)


class ApiError(Exception):
    """A request that is answered by an error.

    Attributes:
        status: of HTTP.
        body: in OpenAI's shape.
        headers: to send with it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        kind = "server_error" if status >= 500 else "invalid_request_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclasses.dataclass(frozen=True)
class CompletionRequest:
    """What POST /v1/completions asks for.

    Attributes:
        prompts: int32 [n] each, n >= 1.
        echoes: text that goes before the completions of each prompt.
        sampling: of every prompt.
        samples: completions of each prompt.
        stream: text is sent as it becomes certain.
        include_usage: a stream ends with the counts of tokens.
    """

    prompts: tuple[np.ndarray, ...]
    echoes: tuple[str, ...]
    sampling: Sampling
    samples: int
    stream: bool
    include_usage: bool


def read_request(
    body: bytes, *, model: str, tokenizer: Tokenizer, max_length: int
) -> CompletionRequest:
    """Reads the body of POST /v1/completions.

    Names of special tokens in a prompt become those tokens, unless there is a `suffix`: then both
    are ordinary text, and what is farthest from the gap is left out where they are too long.

    Args:
        body: as it was sent.
        model: the name of the model that is served.
        tokenizer: the model's.
        max_length: tokens of prompt and completion together, at most.

    Raises:
        ApiError: it is not to be served; with status 400, or 404 for another model.
    """
    fields = _read_fields(body)
    asked = _typed(fields, "model", str, model)
    if asked != model:
        raise ApiError(
            404,
            f"there is no model {_shown(asked)} here: this server has {model!r}",
            param="model",
            code="model_not_found",
        )
    _typed(fields, "user", str, "")  # whoever asks, the answer is the same
    samples = _whole(fields, "n", 1, MAX_SAMPLES)
    if fields.get("best_of") not in (None, samples):
        raise _not_offered("best_of", "unless it equals n")
    stream = _typed(fields, "stream", bool, False)
    sampling = _sampling(fields)
    suffix = _typed(fields, "suffix", str, None)
    prompts = _prompts(fields.get("prompt"), suffix)
    try:
        if suffix is None:
            encoded = [_encode(prompt, tokenizer) for prompt in prompts]
        else:
            room = _room(max_length, sampling)
            encoded = [infill_prompt(tokenizer, p, suffix, max_tokens=room) for p in prompts]
    except ValueError as error:
        raise ApiError(400, str(error), param="prompt" if suffix is None else "suffix") from None
    for prompt in encoded:
        _check_length(len(prompt), sampling, max_length)
    echo = _typed(fields, "echo", bool, False)
    texts = [p if isinstance(p, str) else tokenizer.decode(p) for p in prompts if echo]
    return CompletionRequest(
        prompts=tuple(encoded),
        echoes=tuple(texts) if echo else ("",) * len(encoded),
        sampling=sampling,
        samples=samples,
        stream=stream,
        include_usage=_include_usage(fields, stream),
    )


class Answer:
    """Writes the objects that answer one request, all with the same id."""

    def __init__(self, model: str):
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def body(
        self, choices: Sequence[dict[str, Any]], counts: dict[str, int] | None = None
    ) -> bytes:
        """A whole answer, or a part of a stream, where counts of tokens come last or never."""
        return to_json(self._head | {"choices": choices, "usage": counts})


def choice(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    """One of the completions in an answer, or what has been added to it."""
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}


def token_counts(prompts: Iterable[np.ndarray], completion_tokens: int) -> dict[str, int]:
    """The usage of an answer; a prompt counts once, however many completions it has."""
    prompt_tokens = sum(map(len, prompts))
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def event(data: bytes) -> bytes:
    """A server-sent event."""
    return b"data: " + data + b"\n\n"


def to_json(value: Any) -> bytes:
    """Compact JSON in ASCII, which also spells the lone surrogates that a request may hold."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _read_fields(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ApiError(400, "the body must be a JSON object")
    for name in fields:
        if name not in _FIELDS:
            nearest = difflib.get_close_matches(name, sorted(_FIELDS), n=1)
            hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
            raise ApiError(400, f"there is no field {_shown(name)}{hint}", param=name)
    for name, nothing in _NOT_OFFERED.items():
        if fields.get(name) not in nothing:
            raise _not_offered(name)
    return fields


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _not_offered(name: str, unless: str = "") -> ApiError:
    return ApiError(
        400, f"{name} is not offered{unless and ' ' + unless}: leave it out", param=name
    )


def _shown(value: Any) -> str:
    if isinstance(value, (list, dict)):  # maybe too deep to write
        return "an array" if isinstance(value, list) else "an object"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _typed(fields: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        kinds = {str: "a string", bool: "true or false", dict: "an object"}
        raise ApiError(400, f"{name} must be {kinds[kind]}, not {_shown(value)}", param=name)
    return value


def _whole(fields: Mapping[str, Any], name: str, default: int, most: int, least: int = 1) -> int:
    value = fields.get(name)
    if value is None:
        return default
    if type(value) is not int or not least <= value <= most:  # a bool is an int, too
        raise ApiError(
            400,
            f"{name} must be a whole number from {least} to {most}, not {_shown(value)}",
            param=name,
        )
    return value


def _number(fields: Mapping[str, Any], name: str, default: float, least: float, most: float):
    value = fields.get(name)
    if value is None:
        return default
    if type(value) not in (int, float) or not least <= value <= most:
        raise ApiError(
            400, f"{name} must be a number from {least} to {most}, not {_shown(value)}", param=name
        )
    return float(value)


def _sampling(fields: Mapping[str, Any]) -> Sampling:
    limit = 2**31 - 1
    top_k = _whole(fields, "top_k", 0, limit, least=-1)
    try:
        return Sampling(
            max_tokens=_whole(fields, "max_tokens", 16, limit),
            temperature=_number(fields, "temperature", 1.0, 0, 2),
            top_k=top_k if top_k > 0 else None,
            top_p=_number(fields, "top_p", 1.0, 0, 1),
            min_p=_number(fields, "min_p", 0.0, 0, 1),
            repetition_penalty=_number(fields, "repetition_penalty", 1.0, 0, 10),
            stop=_stops(fields.get("stop")),
            # As in OpenAI's API: without a seed, every request draws anew.
            seed=_whole(fields, "seed", secrets.randbits(31), limit, least=0),
        )
    except ValueError as error:
        raise ApiError(400, str(error)) from None


def _stops(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if (
        not isinstance(stops, list)
        or len(stops) > MAX_STOPS
        or not all(isinstance(stop, str) and stop for stop in stops)
    ):
        raise ApiError(
            400,
            f"stop must be a string or a list of at most {MAX_STOPS} of them, none empty, "
            f"not {_shown(value)}",
            param="stop",
        )
    return tuple(stops)


def _include_usage(fields: Mapping[str, Any], stream: bool) -> bool:
    options = _typed(fields, "stream_options", dict, {})
    if options and not stream:
        raise ApiError(400, "stream_options go with stream=true", param="stream_options")
    for name, value in options.items():
        if name != "include_usage" and not (name == "include_obfuscation" and value is False):
            raise _not_offered(f"stream_options.{name}")
    return _typed(options, "include_usage", bool, False)


def _prompts(value: Any, suffix: str | None) -> list[str] | list[list[int]]:
    if value is None:
        # OpenAI's default: the beginning of a document.
        value = END_OF_TEXT if suffix is None else ""
    prompts = [value] if isinstance(value, str) or _are_tokens(value) else value
    if isinstance(prompts, list) and prompts:
        if all(isinstance(prompt, str) for prompt in prompts):
            return prompts
        if suffix is None and all(map(_are_tokens, prompts)):
            return prompts
    kinds = "" if suffix is not None else ", a list of token ids, or a list of such lists"
    raise ApiError(400, f"prompt must be a string or a list of strings{kinds}", param="prompt")


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _encode(prompt: str | list[int], tokenizer: Tokenizer) -> np.ndarray:
    if isinstance(prompt, str):
        if not prompt:
            raise ValueError("the prompt is empty: leave it out to begin a new document")
        return tokenizer.encode_prompt(prompt)
    for token in prompt:
        if not 0 <= token < tokenizer.vocab_size:
            raise ValueError(
                f"token id {_shown(token)} is outside of the vocabulary of {tokenizer.vocab_size}"
            )
    return np.array(prompt, np.int32)


def _room(max_length: int, sampling: Sampling) -> int:
    _check_length(1, sampling, max_length)
    return max_length - sampling.max_tokens


def _check_length(prompt: int, sampling: Sampling, max_length: int) -> None:
    if prompt + sampling.max_tokens > max_length:
        raise ApiError(
            400,
            f"{prompt} tokens of prompt and max_tokens={sampling.max_tokens} exceed the "
            f"max_length={max_length} of this server: shorten the prompt or lower max_tokens",
            param="prompt" if prompt < max_length else "max_tokens",
            code="context_length_exceeded",
        )
