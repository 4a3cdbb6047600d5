"""An HTTP server that speaks OpenAI's completions protocol.

| path | answers |
|---|---|
| POST /v1/completions | completions, whole or as server-sent events; infilling with `suffix` |
| GET /v1/models, /v1/models/NAME | the one model that is served |
| GET /health | what the server is doing: a page for browsers, JSON for programs |

A client that goes away, or closes its stream, takes its completions out of the engine.
"""

import asyncio
import contextlib
import hmac
import html
import ipaddress
import socket
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from starcoder_jax.data.tokenizer import Tokenizer
from starcoder_jax.inference.protocol import (
    Answer,
    ApiError,
    CompletionRequest,
    choice,
    event,
    read_request,
    to_json,
    token_counts,
)
from starcoder_jax.inference.serving import EngineThread, Job, Piece

MAX_REQUEST_BYTES = 8 * 2**20
GRACE_SECONDS = 20  # in which requests may end when the server is told to stop


class Server(uvicorn.Server):
    """Serves a model until SIGTERM or SIGINT, or until `should_exit` is set.

    It then takes no more requests, and gives up what has not ended `GRACE_SECONDS` later.
    `run(sockets=[listener])` starts it.

    Args:
        engine: started.
        max_length: tokens of prompt and completion together, at most.
        tokenizer: the model's.
        name: of the model, for clients.
        hosts: by which requests may call this server, from `allowed_hosts`.
        api_key: that requests for the model must bring; None: anyone may make them.
    """

    def __init__(
        self,
        engine: EngineThread,
        *,
        max_length: int,
        tokenizer: Tokenizer,
        name: str,
        hosts: Sequence[str],
        api_key: str | None = None,
    ):
        self._engine = engine
        self._max_length = max_length
        self._tokenizer = tokenizer
        self._name = name
        self._api_key = api_key
        self._created = int(time.time())
        app = Starlette(
            routes=[
                Route("/v1/completions", self._complete, methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/v1/models/{name:path}", self._model),
                Route("/health", self._health),
            ],
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)],
            exception_handlers={
                ApiError: _error_response,
                HTTPException: _http_error_response,
                ClientDisconnect: _nobody,
                Exception: _failure_response,
            },
        )
        config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            # For clients that do not read what they are sent, not even that it is over.
            timeout_graceful_shutdown=GRACE_SECONDS + 3,
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Opens the port and says so."""
        await super().startup(sockets)
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            host = f"[{host}]" if ":" in host else host
            print(f"serving {self._name} at http://{host}:{port}/v1", file=sys.stderr, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Waits for requests to end."""
        timer = asyncio.get_running_loop().call_later(GRACE_SECONDS, self._engine.give_up)
        await super().shutdown(sockets)
        timer.cancel()

    async def _complete(self, request: Request) -> "_Completion":
        self._check_key(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # Browsers send JSON for other people's web pages only if the server says they may.
            raise ApiError(415, "the body must be sent with Content-Type: application/json")
        query = await run_in_threadpool(
            read_request,
            await _body(request),
            model=self._name,
            tokenizer=self._tokenizer,
            max_length=self._max_length,
        )
        job = self._engine.submit(query.prompts, query.sampling, query.samples)
        return _Completion(query, job, Answer(self._name))

    async def _models(self, request: Request) -> Response:
        self._check_key(request)
        return _json({"object": "list", "data": [self._description()]})

    async def _model(self, request: Request) -> Response:
        self._check_key(request)
        if request.path_params["name"] != self._name:
            raise ApiError(404, f"this server has {self._name!r} alone", code="model_not_found")
        return _json(self._description())

    async def _health(self, request: Request) -> Response:
        load = self._engine.load()
        values = {
            "status": "ok" if load.failure is None else "failed",
            "model": self._name,
            "max_length": self._max_length,
            **load._asdict(),
        }
        for name in ("tokens_per_second", "uptime_seconds"):
            values[name] = round(values[name], 1)
        status = 200 if load.failure is None else 503
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(_page(values), status)
        return _json(values, status)

    def _description(self) -> dict[str, str | int]:
        return {
            "id": self._name,
            "object": "model",
            "created": self._created,
            "owned_by": "starcoder_jax",
            "max_model_len": self._max_length,
        }

    def _check_key(self, request: Request) -> None:
        if self._api_key is None:
            return
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {self._api_key}".encode()):
            raise ApiError(
                401,
                "this server wants its key: send it as Authorization: Bearer KEY",
                code="invalid_api_key",
            )


class _Completion:
    """The response to POST /v1/completions: it lasts as long as its job, and no longer."""

    def __init__(self, query: CompletionRequest, job: Job, answer: Answer):
        self._query = query
        self._job = job
        self._answer = answer
        self._unsaid = {
            prompt * query.samples + sample: echo
            for prompt, echo in enumerate(query.echoes)
            for sample in range(query.samples)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watcher = asyncio.create_task(self._watch(receive))
        try:
            await self._job.accepted()
            if self._query.stream:
                await self._stream(send)
            else:
                await _json_bytes(await self._whole())(scope, receive, send)
        except ClientDisconnect:
            pass  # nobody is left to be answered
        finally:
            watcher.cancel()
            self._job.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._job.put(ClientDisconnect())

    async def _pieces(self) -> AsyncIterator[Piece]:
        """Those of the job, echoes before them."""
        async for piece in self._job.pieces():
            yield piece._replace(text=self._unsaid.pop(piece.index, "") + piece.text)

    async def _whole(self) -> bytes:
        texts: dict[int, list[str]] = defaultdict(list)
        reasons: dict[int, str | None] = {}
        tokens = 0
        async for piece in self._pieces():
            texts[piece.index].append(piece.text)
            reasons[piece.index] = piece.finish_reason
            tokens += piece.tokens
        choices = [choice(i, "".join(texts[i]), reasons[i]) for i in sorted(texts)]
        return self._answer.body(choices, token_counts(self._query.prompts, tokens))

    async def _stream(self, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with contextlib.aclosing(self._events()) as events:
            async for data in events:
                await send({"type": "http.response.body", "body": event(data), "more_body": True})
        await send({"type": "http.response.body"})

    async def _events(self) -> AsyncIterator[bytes]:
        tokens = 0
        try:
            async for piece in self._pieces():
                tokens += piece.tokens
                yield self._answer.body([choice(piece.index, piece.text, piece.finish_reason)])
        except ApiError as error:
            yield to_json(error.body)
            return
        if self._query.include_usage:
            yield self._answer.body([], token_counts(self._query.prompts, tokens))
        yield b"[DONE]"


def bind(host: str, port: int) -> socket.socket:
    """Takes an address, without listening there yet; port 0: any that is free.

    Raises:
        ValueError: it cannot be had.
    """
    where = f"--host={host} --port={port}"
    if not 0 <= port < 2**16:
        raise ValueError(f"cannot serve at {where}: ports go from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ValueError(f"cannot serve at {where}: {error}") from error
    return listener


def is_local(listener: socket.socket) -> bool:
    """Whether a socket can be reached from this machine alone."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def allowed_hosts(listener: socket.socket) -> list[str]:
    """Names by which requests may call a server; "*": any.

    One that only this machine can reach is called by this machine's names: a web page that has its
    own name point here would make the browser send another.
    """
    if not is_local(listener):
        return ["*"]
    address = listener.getsockname()[0]
    return ["localhost", "127.0.0.1", "[::1]", f"[{address}]" if ":" in address else address]


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_REQUEST_BYTES:
            raise ApiError(413, f"the body is larger than {MAX_REQUEST_BYTES:,} bytes")
    return bytes(body)


def _json(value: object, status: int = 200) -> Response:
    return _json_bytes(to_json(value), status)


def _json_bytes(content: bytes, status: int = 200) -> Response:
    return Response(content, status, media_type="application/json")


async def _error_response(_: Request, error: ApiError) -> Response:
    return Response(to_json(error.body), error.status, error.headers, "application/json")


async def _http_error_response(request: Request, error: HTTPException) -> Response:
    message = f"{request.method} {request.url.path}: {error.detail}"
    return await _error_response(
        request, ApiError(error.status_code, message, headers=error.headers)
    )


async def _failure_response(request: Request, _: Exception) -> Response:
    return await _error_response(request, ApiError(500, "the server has failed; see its log"))


async def _nobody(_request: Request, _: ClientDisconnect) -> Response:
    return Response(status_code=499)  # never sent: the client left while it sent its request


def _page(values: dict[str, object]) -> str:
    title = html.escape(f"{values['model']}: {values['status']}")
    rows = "".join(
        f"<tr><th>{name.replace('_', ' ')}<td>{html.escape(_shown(value))}"
        for name, value in values.items()
        if value is not None
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta http-equiv="refresh" content="5"><title>{title}</title>'
        "<style>body{font:16px sans-serif;margin:2em}th{text-align:left;padding-right:2em}</style>"
        f"<h1>{title}</h1><table>{rows}</table></html>"
    )


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)
