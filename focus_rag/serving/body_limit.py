"""Refuses bodies that are larger than a server takes, come too slowly, or are too many at once."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from focus_rag.serving.replies import error_body


class BodyLimit:
    """ASGI middleware: status 413, 408 or 503 instead of reading on.

    Args:
        app: The application behind it.
        most: Bytes that a body may have.
        at_once: Bodies that are read at the same time.
        seconds: Time in which a body has to be there.
    """

    def __init__(self, app: ASGIApp, most: int, at_once: int, seconds: float) -> None:
        self.app = app
        self._most = most
        self._at_once = at_once
        self._seconds = seconds
        self._reading = 0
        said = f"The body is larger than this server takes ({most} bytes)."
        self._too_large = JSONResponse(error_body(said, "invalid_request_error"), 413, {"connection": "close"})
        said = "The body took longer than a request may take."
        self._too_slow = JSONResponse(error_body(said, "invalid_request_error"), 408, {"connection": "close"})
        said = f"{at_once} requests are read already: try again later."
        self._too_many = JSONResponse(
            error_body(said, "server_error", "overloaded"), 503, {"connection": "close", "retry-after": "1"}
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        if length == "0" and "transfer-encoding" not in headers:  # nothing is to be read
            await self.app(scope, receive, send)
        elif length.isascii() and length.isdigit() and int(length) > self._most:
            await self._too_large(scope, receive, send)
        elif self._reading >= self._at_once:
            await self._too_many(scope, receive, send)
        else:
            body = _Body(receive, self._most, asyncio.get_running_loop().time() + self._seconds)
            await self._read(body, scope, send)

    async def _read(self, body: _Body, scope: Scope, send: Send) -> None:
        refused, is_counted = False, True
        self._reading += 1

        async def receive() -> Message:
            nonlocal refused, is_counted
            try:
                message = await body.next()
            except TimeoutError:
                refused = True
                await self._too_slow(scope, body.receive, send)
            if body.is_too_large and not refused:
                refused = True
                await self._too_large(scope, body.receive, send)
            if is_counted and (refused or body.is_whole):
                is_counted = False
                self._reading -= 1
            # The application sees a client that has left: it neither reads on nor answers.
            return {"type": "http.disconnect"} if refused else message

        async def unless_refused(message: Message) -> None:
            if not refused:
                await send(message)

        try:
            await self.app(scope, receive, unless_refused)
        finally:
            if is_counted:
                self._reading -= 1


class _Body:
    """A body as it comes in.

    Args:
        receive: What it comes from.
        most: Bytes that it may have.
        until: When it has to be there, by the loop's clock.
    """

    def __init__(self, receive: Receive, most: int, until: float) -> None:
        self.receive = receive
        self.is_whole = False
        self._left = most
        self._until = until

    @property
    def is_too_large(self) -> bool:
        return self._left < 0

    async def next(self) -> Message:
        """Its next part, or what comes after it, for which there is no hurry.

        Raises:
            TimeoutError: It is not there in time.
        """
        if self.is_whole:
            return await self.receive()
        async with asyncio.timeout_at(self._until):
            message = await self.receive()
        self._left -= len(message.get("body", b""))
        self.is_whole = not message.get("more_body", False)
        return message
