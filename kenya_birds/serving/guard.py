"""Request filter of the web server: only the page's routes and requests, bodies of limited size, and no addresses."""

import json
import re
import shutil
import urllib.parse
from pathlib import Path
from typing import Any

from starlette.formparsers import MultiPartException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Gradio has many more: a proxy, a fetcher of URLs, converters of video, editors of the app.
_API = "/gradio_api"
# Files of this machine: a scheme of an address has two letters or more, a drive of Windows has one.
READ = re.compile(
    rf"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/(assets|static|svelte)/.*"
    rf"|{_API}/(info|app_id|startup-events|theme\.css|queue/data|upload_progress|login_check)"
    rf"|{_API}/heartbeat/[^/]*|{_API}/file=(?!\w{{2,}}:).*"
)
WRITE = re.compile(rf"{_API}/(upload|queue/join|run/predict|cancel|reset)/?")
UPLOAD = f"{_API}/upload"
MAX_JSON_BYTES = 2**20
FORM_BYTES = 2**16  # of an upload, in addition to the file
# The page communicates only with this server.
HEADERS = {
    "content-security-policy": (
        "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Guard:
    """ASGI middleware that refuses unexpected requests.

    Args:
        app: The application.
        max_upload_bytes: Size limit of a file.
        uploads: Folder of uploads.
    """

    def __init__(self, app: ASGIApp, max_upload_bytes: int, uploads: Path) -> None:
        self._app = app
        self._max_upload_bytes = max_upload_bytes
        self._uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request to the application, or refuses it with a message.

        Args:
            scope: See ASGI.
            receive: See ASGI.
            send: See ASGI.
        """
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        path, method = scope["path"], scope["method"]
        if not (READ if method in ("GET", "HEAD") else WRITE).fullmatch(path) or method not in ("GET", "HEAD", "POST"):
            await PlainTextResponse("This page does not exist.", 404)(scope, receive, answer)
        elif method != "POST":
            await self._app(scope, receive, answer)
        elif _is_of_another_site({name.decode(): value.decode("latin-1") for name, value in scope["headers"]}):
            reason = (
                "Requests of pages of other sites are refused: open the page itself. A proxy in front of it must set "
                "X-Forwarded-Host to the page's host name."
            )
            await PlainTextResponse(reason, 403)(scope, receive, answer)
        elif path.rstrip("/") == UPLOAD:
            await self._upload(scope, receive, answer)
        else:
            await self._json(scope, receive, answer)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        if shutil.disk_usage(self._uploads).free < 2 * self._max_upload_bytes:
            await PlainTextResponse("The server has too little disk space: try again later.", 507)(
                scope, receive, send
            )
            return
        most = self._max_upload_bytes + FORM_BYTES
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        # A length is required, because without it a body that is too long is found only after the upload.
        # With Transfer-Encoding, the HTTP parser ignores it.
        if b"transfer-encoding" in headers or not length.isdigit():
            reason = "The size of the upload is unknown: send Content-Length, and no Transfer-Encoding."
            await PlainTextResponse(reason, 411)(scope, receive, send)
            return
        if int(length) > most:
            reason = f"The file is too large: expected at most {self._max_upload_bytes / 1e6:.0f} MB."
            await PlainTextResponse(reason, 413)(scope, receive, send)
            return
        await self._app(scope, _limited(receive, most), send)

    async def _json(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        more = True
        while more and len(body) <= MAX_JSON_BYTES:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        refusal = _refusal(body)
        if refusal is not None:
            await PlainTextResponse(*refusal)(scope, receive, send)
            return
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)


def _is_of_another_site(headers: dict[str, str]) -> bool:
    """Returns True if the browser says that a page of another site sent a request; programs say nothing of it."""
    site = headers.get("sec-fetch-site")
    if "origin" not in headers or site in ("same-origin", "none", "cross-site"):
        return site == "cross-site"
    hosts = [headers.get("host", ""), *headers.get("x-forwarded-host", "").split(",")]
    try:
        origin = urllib.parse.urlsplit(headers["origin"])
        own = [urllib.parse.urlsplit(f"//{host.strip()}") for host in hosts]
        # Some proxies leave out the port.
        return not any(
            host.hostname == origin.hostname and (host.port == origin.port or None in (host.port, origin.port))
            for host in own
            if host.hostname
        )
    except ValueError:
        return True


def _limited(receive: Receive, most: int) -> Receive:
    """Counts the bytes of a body, so that the limit does not depend on the HTTP parser."""
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > most:
            # As the parser of forms does it: the application answers 413 and deletes what it has written.
            raise MultiPartException(f"The upload exceeds its maximum allowed size of {most} bytes.")
        return message

    return limited


def _refusal(body: bytes) -> tuple[str, int] | None:
    """Returns the reason to refuse a body, and the status code; None if it is accepted."""
    if len(body) > MAX_JSON_BYTES:
        return "The request is too large.", 413
    try:
        content = json.loads(body or b"null")
    except (ValueError, RecursionError):
        return "The request is not JSON.", 400
    if _names_address(content):
        return "Addresses are not accepted: upload the file itself.", 400
    return None


def _names_address(content: Any) -> bool:
    """Returns True if a file's path, at any depth, is a network address, which the server would download."""
    stack = [content]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            path = item.get("path")
            if isinstance(path, str) and "://" in path:
                return True
            stack += item.values()
        elif isinstance(item, list):
            stack += item
    return False
