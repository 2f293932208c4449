"""Refuses bodies that are larger than a server takes, however they are sent."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from focus_rag.serving.replies import error_body


class BodyLimit:
    """ASGI middleware: status 413 instead of reading on.

    Args:
        app: The application behind it.
        most: Bytes that a body may have.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app = app
        self._most = most
        said = f"The body is larger than this server takes ({most} bytes)."
        self._refuse = JSONResponse(error_body(said, "invalid_request_error"), 413, {"connection": "close"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length) > self._most:
            await self._refuse(scope, receive, send)
            return
        seen, refused = 0, False

        async def counted() -> Message:
            nonlocal seen, refused
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._most and not refused:
                refused = True
                await self._refuse(scope, receive, send)
            # The application sees a client that has left: it neither reads on nor answers.
            return {"type": "http.disconnect"} if refused else message

        async def unless_refused(message: Message) -> None:
            if not refused:
                await send(message)

        await self.app(scope, counted, unless_refused)
