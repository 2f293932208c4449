"""Who is let in, told from a request's headers and address before anything of its body is read."""

from __future__ import annotations

import hmac
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from focus_rag.serving.replies import error_body
from focus_rag.serving.settings import ServiceSettings


class Doorkeeper:
    """ASGI middleware: who sends the key is let in; without a key everybody on this machine and nobody else. How the
    server is (`/health`) is told to all; under which host names is another middleware's matter.

    Whoever starts an application decides where it listens, so its settings do not say who can reach it.

    Args:
        app: The application behind it.
        settings: The key.
    """

    def __init__(self, app: ASGIApp, settings: ServiceSettings) -> None:
        self.app = app
        self._key = settings.api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self._refusal(scope) or self.app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        """What is said to who is not let in."""
        if scope["type"] != "http" or scope["path"].removeprefix(scope.get("root_path", "")) == "/health":
            return None
        if self._key is None:
            said = "Without an API key only this machine is answered: give the server a key."
            return _refused(403, said, {}) if _is_elsewhere(scope) else None
        if hmac.compare_digest(_sent_key(scope), self._key.get_secret_value().encode()):
            return None
        said = "The API key is missing or wrong: send it as `Authorization: Bearer KEY`."
        return _refused(401, said, {"WWW-Authenticate": "Bearer"})


def _sent_key(scope: Scope) -> bytes:
    kind, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
    return key.strip().encode("latin-1") if kind.lower() == "bearer" else b""


def _is_elsewhere(scope: Scope) -> bool:
    """Whether the client has an address that is not, or not known to be, this machine's. Files that servers listen on
    have none, nor have tests.
    """
    host = (scope.get("client") or ("",))[0]
    if host in ("", "testclient"):
        return False
    try:
        address = ip_address(host)
    except ValueError:
        return True
    mapped = getattr(address, "ipv4_mapped", None)
    return not (mapped or address).is_loopback


def _refused(status: int, said: str, headers: dict[str, str]) -> JSONResponse:
    # What is left of the body is not read.
    body = error_body(said, "authentication_error")
    return JSONResponse(body, status, {**headers, "connection": "close"})
