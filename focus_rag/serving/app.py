"""The web application: routes, errors, and what happens to a request whose client leaves or whose time is up."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Mapping
from typing import Any, TypeVar

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from focus_rag import __version__
from focus_rag.answers import Request as GeneratorRequest
from focus_rag.errors import InvalidInputError, MissingDependencyError, PromptTooLongError, first_problem
from focus_rag.generator import FocusGenerator
from focus_rag.serving.bodies import AnswerBody, ChatBody, CompletionBody, GenerationBody
from focus_rag.serving.body_limit import BodyLimit
from focus_rag.serving.doorkeeper import Doorkeeper
from focus_rag.serving.replies import Reply, ReplyKind, error_body
from focus_rag.serving.settings import ServerSettings, ServiceSettings
from focus_rag.serving.waiting_line import LineFullError, WaitingLine

logger = logging.getLogger("focus_rag")

Result = TypeVar("Result")


def create_app(generator: FocusGenerator, settings: ServiceSettings | None = None) -> FastAPI:
    """The application that serves a generator, for uvicorn or any other ASGI server.

    Routes: `POST /v1/chat/completions` and `/v1/completions` as in the OpenAI API, `POST /v1/answers` for a question
    and its passages, `GET /v1/models` and `/health`. Every body takes `passages` and how hard to focus, see
    `GenerationBody`.

    Requests that come while the model is busy go together into its next batch, each with its own alpha; a stream has
    the model to itself. Whoever leaves stops being answered within a token.

    Args:
        generator: A loaded generator; one application at a time belongs to it.
        settings: Who may use it, and limits.
    """
    settings = settings or ServerSettings()
    service = _Service(generator, settings)
    # No pages of documentation: they would load scripts from elsewhere.
    app = FastAPI(title="focus_rag", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, most=settings.most_bytes, at_once=settings.most_requests, seconds=settings.seconds)
    app.add_middleware(Doorkeeper, settings=settings)
    if settings.api_key is None:
        # A page from elsewhere whose name was made to point to this machine is sent away; it has no key either.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=settings.hosts, www_redirect=False)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, http: Request) -> Response:
        return await service.reply(body, body.request(generator.settings, settings), "chat", http)

    @app.post("/v1/completions")
    async def completions(body: CompletionBody, http: Request) -> Response:
        return await service.reply(body, body.request(generator.settings, settings), "text", http)

    @app.post("/v1/answers")
    async def answers(body: AnswerBody, http: Request) -> Response:
        return await service.reply(body, body.request(generator.settings, settings), "chat", http)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [service.model(service.name)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        return service.model(name)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "requests": service.line.length}

    app.add_exception_handler(Exception, _error_reply)
    for kind in (InvalidInputError, LineFullError, TimeoutError, RequestValidationError, AnyHTTPException):
        app.add_exception_handler(kind, _error_reply)
    return app


class _UnknownModelError(HTTPException):
    """Another model was asked for."""

    def __init__(self, said: str) -> None:
        super().__init__(404, said)


class _Events(StreamingResponse):
    """Server-sent events, the first of which is there already; their source is closed whatever happens while they are
    sent.

    Args:
        first: The first event.
        events: The others, which end by themselves.
        seconds: When they have not been taken by then, their reader has stopped reading.
    """

    media_type = "text/event-stream"

    def __init__(self, first: dict[str, Any], events: AsyncGenerator[dict[str, Any], None], seconds: float) -> None:
        self._lines, self._events, self._seconds = _lines(first, events), events, seconds
        super().__init__(self._lines, headers={"Cache-Control": "no-cache"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await super().__call__(scope, receive, send)
        except (ClientDisconnect, OSError):  # TimeoutError is one; what goes wrong in the events is an event itself
            logger.info("The reader of a stream has left, or stopped reading.")
        finally:
            await self._lines.aclose()
            await self._events.aclose()


class _Service:
    """Answers a request whole or in pieces, within the time it has and as long as somebody waits for it."""

    def __init__(self, generator: FocusGenerator, settings: ServiceSettings) -> None:
        self._generator = generator
        self._seconds = settings.seconds
        self.name = settings.name or generator.model_name
        self.line = WaitingLine(generator, settings.most_requests)

    def model(self, name: str) -> dict[str, Any]:
        """What there is to know of the model, if that is its name."""
        if name != self.name:
            raise _UnknownModelError(f"The model {name[:80]!r} is not here; this server has {self.name!r}.")
        return {"id": name, "object": "model", "created": 0, "owned_by": "focus_rag"}

    async def reply(self, body: GenerationBody, request: GeneratorRequest, kind: ReplyKind, http: Request) -> Response:
        if body.model is not None:
            self.model(body.model)
        reply = Reply(kind, self.name)
        if not body.stream:
            async with asyncio.timeout(self._seconds):
                return _json(reply.whole(await _while_somebody_waits(http, self.line.answer(request))))
        events = self._events(
            reply, request, usage=body.stream_options is not None and body.stream_options.include_usage
        )
        # What is wrong with the request is told by the status, before the stream begins.
        first = await _while_somebody_waits(http, anext(events))
        return _Events(first, events, 2 * self._seconds)  # as much for reading as for generating

    async def _events(
        self, reply: Reply, request: GeneratorRequest, *, usage: bool
    ) -> AsyncGenerator[dict[str, Any], None]:
        clock = asyncio.get_running_loop().time
        until = clock() + self._seconds
        with self.line.place():
            async with await self._generator.arun_stream(request) as stream:
                opening, pieces = reply.opening(), aiter(stream)
                # Each wait by itself: whoever reads the events may be another task each time.
                while (piece := await asyncio.wait_for(anext(pieces, None), until - clock())) is not None:
                    for event in opening:
                        yield event
                    yield reply.piece(piece)
                for event in (*opening, *reply.ending(stream.answer, usage=usage)):
                    yield event


async def _while_somebody_waits(http: Request, work: Awaitable[Result]) -> Result:
    """The result of some work, which is stopped when the client leaves."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(http))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HTTPException(499, "The client has left.")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _left(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _lines(first: dict[str, Any], events: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[str, None]:
    """Events as text; what goes wrong after the first is an event itself."""
    yield _line(first)
    try:
        async for event in events:
            yield _line(event)
    except Exception as error:
        _, body = _status_and_body(error)
        logger.warning("A stream ended early.", exc_info=error)
        yield _line(body)
        return
    yield "data: [DONE]\n\n"


def _line(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event)}\n\n"


def _json(body: dict[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """In ASCII: half a surrogate pair, which a client may send, cannot be encoded otherwise."""
    return Response(json.dumps(body), status, headers, media_type="application/json")


async def _error_reply(_: Request, error: Exception) -> Response:
    status, body = _status_and_body(error)
    headers = dict((error.headers if isinstance(error, AnyHTTPException) else None) or {})
    if isinstance(error, LineFullError):
        headers["Retry-After"] = "1"
    return _json(body, status, headers)


def _status_and_body(error: Exception) -> tuple[int, dict[str, Any]]:
    match error:
        case RequestValidationError():
            found = [{**problem, "loc": problem["loc"][1:]} for problem in error.errors()]  # without "body"
            where, what = found[0]["loc"], found[0]["type"]
            if what == "json_invalid" or (not where and what in ("model_attributes_type", "missing")):
                said = "The body is no JSON object: send one, with `Content-Type: application/json`."
            else:
                said = first_problem(found)
            return 400, error_body(said, "invalid_request_error")
        case PromptTooLongError():
            return 400, error_body(str(error), "invalid_request_error", "context_length_exceeded")
        case InvalidInputError():
            return 400, error_body(str(error), "invalid_request_error")
        case MissingDependencyError():
            return 501, error_body(str(error), "server_error")
        case LineFullError():
            return 503, error_body(str(error), "server_error", "overloaded")
        case TimeoutError():
            return 504, error_body(
                "The time that a request may take is up: ask for less, or later.", "server_error", "timeout"
            )
        case AnyHTTPException(status_code=status):
            kind = "server_error" if status >= 500 else "invalid_request_error"
            return status, error_body(
                str(error.detail), kind, "model_not_found" if isinstance(error, _UnknownModelError) else None
            )
    return 500, error_body("Something went wrong here; the server's log says what.", "server_error")
