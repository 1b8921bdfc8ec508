"""Page in the browser for `kenya-birds verify page`: a small HTTP server on top of `Answering`.

It has no dependency. Keys, sound and a layout on one screen need a script of the page's own, and the server then has
only a few routes, so gradio would add little.
"""

import ipaddress
import json
import logging
import os
import socket
import sys
import tempfile
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import soundfile

from kenya_birds.data.archive import read_archive
from kenya_birds.defaults import DEMO_HOST, VERIFY_PORT
from kenya_birds.errors import UserError
from kenya_birds.process import wait_for_end
from kenya_birds.serving.command_line import command_line
from kenya_birds.serving.reference_calls import ReferenceCalls
from kenya_birds.values import Port, checked
from kenya_birds.verification.answering import (
    Answering,
    ChangedAnswerError,
    InvalidAnswerError,
    Question,
    UnknownDetectionError,
)
from kenya_birds.verification.check_folder import Answer
from kenya_birds.verification.clips import AXES

logger = logging.getLogger(__name__)

FILES = {"/": "verify_page.html", "/verify_page.js": "verify_page.js", "/verify_page.css": "verify_page.css"}
TYPES = {
    **{
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".css": "text/css; charset=utf-8",
    },
    **{".flac": "audio/flac", ".wav": "audio/wav", ".png": "image/png"},
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
MAX_BODY_BYTES = 2**16
SILENT_S = 60.0  # connections without a request are closed


class _RefusedError(Exception):
    """A request that is not answered: status code and reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class VerifyServer(ThreadingHTTPServer):
    """The server.

    Args:
        address: Host and port.
        answering: The sample.
        references: Reference calls; None: none.
        by: Name of the person who answers, until they enter another one.
    """

    daemon_threads = True
    # On Windows, this would let two servers have the same port.
    allow_reuse_address = os.name == "posix"

    def __init__(
        self, address: tuple[str, int], answering: Answering, references: ReferenceCalls | None, by: str
    ) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self.host, self.answering, self.references, self.by = address[0], answering, references, by
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs an error; a browser that closes its connection is none."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            logger.exception("A request of %s failed", client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers the requests of the page, and refuses all others."""

    server: VerifyServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "kenya_birds", ""
    timeout = SILENT_S

    def do_GET(self) -> None:
        """Sends a file of the page, a detection, or a sound or picture of one."""
        self._respond(self._get)

    def do_POST(self) -> None:
        """Writes an answer, and sends the next detection."""
        self._respond(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Logs a request."""
        logger.debug(format, *args)

    def _respond(self, handle: Callable[[], tuple[str, bytes]]) -> None:
        status, message = 200, ""
        try:
            self._check_origin()
            kind, body = handle()
        except _RefusedError as refused:
            status, message = refused.status, str(refused)
        except InvalidAnswerError as error:
            status, message = 400, str(error)
        except UnknownDetectionError as error:
            status, message = 404, str(error)
        except ChangedAnswerError as error:
            status, message = 409, str(error)
        except (UserError, OSError) as error:
            logger.warning("%s", error)
            status, message = 500, str(error)
        if message:
            kind, body = _as_json({"message": message})
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        if message:
            self.send_header("Connection", "close")  # the body of the request may not have been read
        self.end_headers()
        self.wfile.write(body)

    def _check_origin(self) -> None:
        """Refuses requests that a page of another site sends, also under a name of its own for this address."""
        host = self.headers.get("Host", "")
        try:
            name = urllib.parse.urlsplit(f"//{host}").hostname or ""
        except ValueError:
            raise _RefusedError(400, "The name of the host is not valid.") from None
        if name not in ("localhost", self.server.host.lower()) and not _is_address(name):
            raise _RefusedError(403, "This page is opened by its address in numbers, or as localhost.")
        origin = self.headers.get("Origin")
        if (self.command == "POST" and origin != f"http://{host}") or origin not in (None, f"http://{host}"):
            raise _RefusedError(403, "Requests of other pages are refused.")
        if self.path.partition("?")[0] != "/" and self.headers.get("Sec-Fetch-Site", "same-origin") not in (
            "same-origin",
            "none",
        ):
            raise _RefusedError(403, "Requests of other pages are refused.")

    def _get(self) -> tuple[str, bytes]:
        path = self.path.partition("?")[0]  # mail and chat programs add to an address
        match path.split("/"):
            case _ if path in FILES:
                return _as_file(Path(__file__).parent / FILES[path])
            case ["", "start"]:
                return _as_json(self._start())
            case ["", "last"]:
                return _as_json({"question": asdict(self.server.answering.last())})
            case ["", "question", name]:
                return self._question(self.server.answering.question(name))
            case ["", "clip", name]:
                return _as_file(self.server.answering.clip(name))
            case ["", "picture", name]:
                return _as_file(self.server.answering.picture(name))
            case ["", "reference", species, ("sound" | "picture") as part]:
                references = self.server.references
                species = urllib.parse.unquote(species)
                known = references is not None and species in references.species
                found = references.find(species) if references is not None and known else None
                if found is None:
                    raise _RefusedError(404, "There is no reference call of this species.")
                return _as_file(getattr(found, part))
        raise _RefusedError(404, "This page does not exist.")

    def _start(self) -> dict[str, Any]:
        answering, references = self.server.answering, self.server.references
        first = answering.question()
        species = [{"code": code, **names._asdict()} for code, names in answering.species().items()]
        return {
            "by": self.server.by,
            "folder": str(answering.folder),
            "command": command_line(["kenya-birds", "verify", "read", str(answering.folder), "--output", "verified"]),
            "model": answering.sample.model,
            "references": sorted(() if references is None else references.species),
            "axes": {"left": AXES[0], "width": AXES[2]},
            "species": species,
            "question": None if first is None else asdict(first),
        }

    def _post(self) -> tuple[str, bytes]:
        if self.path != "/answer":
            raise _RefusedError(404, "This page does not exist.")
        length = self.headers.get("Content-Length", "")
        if self.headers.get_content_type() != "application/json" or not length.isascii() or not length.isdigit():
            raise _RefusedError(400, "The request is not JSON with a length.")
        if len(length) > len(str(MAX_BODY_BYTES)) or int(length) > MAX_BODY_BYTES:
            raise _RefusedError(413, "The request is too large.")
        try:
            content = json.loads(self.rfile.read(int(length)))
            name, new, seen = content["id"], Answer(**content["answer"]), Answer(**content["seen"])
            texts = (name, *asdict(new).values(), *asdict(seen).values())
            if not all(isinstance(text, str) for text in texts):
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError):
            raise _RefusedError(400, "The request is not an answer.") from None
        return self._question(self.server.answering.record(name, new, seen))

    def _question(self, question: Question | None) -> tuple[str, bytes]:
        return _as_json({"question": None if question is None else asdict(question)})


def _is_address(name: str) -> bool:
    """Returns True for an IP address, which no name server can turn into another one."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _as_json(content: Any) -> tuple[str, bytes]:
    return "application/json", json.dumps(content).encode()


def _as_file(path: Path) -> tuple[str, bytes]:
    return TYPES[path.suffix], path.read_bytes()


@checked
@contextmanager
def running_page(
    check: str | Path,
    *,
    archive: str | Path | None = None,
    by: str = "",
    host: str = DEMO_HOST,
    port: Port = VERIFY_PORT,
) -> Iterator[str]:
    """Serves the page for a sample while the `with` block lasts.

    Args:
        check: Folder of `kenya-birds verify sample`.
        archive: Archive with annotated calls, for reference calls.
        by: Name of the person who answers.
        host: Address to listen on; `0.0.0.0`: all.
        port: Port to listen on.

    Yields:
        Address of the page.

    Raises:
        UserError: If the sample, the archive or the port cannot be used.
    """
    answering = Answering(Path(check))
    with ExitStack() as stack:
        references = None
        if archive is not None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kenya_birds_verify_"))
            first = answering.last().id
            rate = soundfile.info(answering.clip(first)).samplerate
            references = ReferenceCalls(read_archive(archive), rate, Path(folder))
        try:
            server = VerifyServer((host, port), answering, references, by)
        except (OSError, OverflowError) as error:
            raise UserError(f"{host}:{port} cannot be listened on ({error}): give another --host or --port") from None
        thread = threading.Thread(target=server.serve_forever, name="verify page", daemon=True)
        thread.start()
        try:
            shown = f"[{host}]" if ":" in host else host
            yield f"http://{shown}:{server.server_address[1]}/"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def serve_page(check: str | Path, **options: Any) -> None:
    """Serves the page until the process is interrupted.

    Args:
        check: Folder of `kenya-birds verify sample`.
        **options: See `running_page`.

    Raises:
        UserError: If the sample, the archive or the port cannot be used.
    """
    with running_page(check, **options) as address:
        print(f"The page is at {address} (Ctrl+C stops it)", flush=True)
        wait_for_end()
