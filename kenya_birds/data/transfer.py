"""File transfers over unreliable connections: they resume by byte range, obey Retry-After, and verify checksums.

This is a small loop around `requests`, because no library for Zenodo records does all of this. pooch and zenodo_get
verify checksums and retry, but restart a file when its connection breaks, so gigabytes never complete on a slow
connection. urllib3's Retry supports Retry-After, but not bodies that end early.
"""

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from kenya_birds import __version__
from kenya_birds.data.unpacking import Expected, progress_bar, put_in_place
from kenya_birds.errors import UserError
from kenya_birds.files import partial_of

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 15, 60
# Consecutive failures without a new byte. Each wait is twice the previous one, about two minutes in total.
MAX_FAILURES = 8
FIRST_WAIT_S = 1.0
MAX_WAIT_S = 600
# A broken connection loses at most this much.
CHUNK_BYTES = 1 << 16


class Client:
    """HTTP client that retries requests.

    Args:
        api_url: Address of the API. Only https is used, also after redirects, unless this address is http.
    """

    def __init__(self, api_url: str):
        if urlsplit(api_url).scheme not in ("http", "https"):
            raise UserError(f"{shown(api_url)} is not the address of an API: expected https://...")
        self.session = requests.Session()
        # Zenodo recommends a User-Agent, and may block clients without one.
        self.session.headers["User-Agent"] = f"kenya-birds/{__version__} python-requests/{requests.__version__}"
        if urlsplit(api_url).scheme == "https":
            del self.session.adapters["http://"]

    def get_json(self, url: str, what: str) -> Any:
        """Downloads and parses JSON.

        Args:
            url: The address.
            what: Description of the content, for messages.

        Raises:
            UserError: It does not exist, or the download failed several times.
        """
        retries = _Retries()
        while True:
            try:
                with self.ask(url, what, {}) as response:
                    return response.json()
            except requests.JSONDecodeError:
                retries.wait(TemporaryError(f"{shown(url)} did not answer with JSON"))
            except requests.RequestException as error:
                retries.wait(TemporaryError(f"{shown(url)}: {_why(error)}"))
            except TemporaryError as error:
                retries.wait(error)

    def ask(self, url: str, what: str, headers: dict[str, str]) -> requests.Response:
        """Sends one request.

        Args:
            url: The address.
            what: Description of the content, for messages.
            headers: HTTP headers.

        Returns:
            A response with status 200, 206 or 416; its body is not read yet.

        Raises:
            UserError: The content does not exist, is not public, or has a refused address.
            TemporaryError: A retry may succeed.
        """
        try:
            timeout_s = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
            response = self.session.get(url, headers=headers, stream=True, timeout=timeout_s)
        except (requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema, requests.exceptions.InvalidURL):
            raise UserError(
                f"{what}: {shown(url)} is, or redirects to, an address that is not https: refused"
            ) from None
        except requests.TooManyRedirects:
            raise UserError(f"{what}: {shown(url)} is redirected in circles: try again later") from None
        except requests.RequestException as error:
            raise TemporaryError(f"{shown(url)}: {_why(error)}") from None
        status = response.status_code
        if status in (200, 206, 416):
            return response
        response.close()
        answer = f"{shown(response.url)} answered {status} {response.reason or ''}".rstrip()
        if status == 403:
            answer += " (temporarily blocked, or not public)"
        if status in (403, 408, 425, 429) or status >= 500:
            raise TemporaryError(answer, _retry_after_s(response))
        if status in (404, 410):
            raise UserError(f"{what} does not exist: {answer}; check the number")
        raise UserError(f"{what} cannot be downloaded: {answer}; open it in a browser to check that it is public")


class TemporaryError(Exception):
    """Error after which a retry may succeed.

    Attributes:
        retry_after_s: Wait in seconds that the server requests.
    """

    def __init__(self, reason: str, retry_after_s: float = 0):
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Transfer:
    """Download of one file, possibly started by an earlier process.

    Args:
        client: Client for the requests.
        url: Address of the file.
        path: Final path of the complete and verified file. Until then the file is `NAME.part`.
        expected: Length and checksum.
        what: Name of the file for messages.
        validator: ETag or Last-Modified of the source of the `.part` file, if known.
        on_start: Called with the validator, or None, whenever a new `.part` file is started.
    """

    def __init__(
        self,
        client: Client,
        url: str,
        path: Path,
        expected: Expected,
        what: str,
        validator: str | None,
        on_start: Callable[[str | None], None],
    ):
        self.client = client
        self.url = url
        self.path = path
        self.part = partial_of(path)
        self.expected = expected
        self.what = what
        self.validator = validator
        self.on_start = on_start

    def run(self) -> None:
        """Downloads the file; after wrong content, it is deleted and downloaded once more.

        Raises:
            UserError: The download failed several times, or the content is wrong twice.
        """
        for last in (False, True):
            try:
                self._receive()
                if not self.expected.matches(self.part):
                    raise _WrongContentError(f"the downloaded file does not have {self.expected.checksum}")
                put_in_place(self.path)
                return
            except _WrongContentError as error:
                self.part.unlink(missing_ok=True)
                if last:
                    raise UserError(
                        f"{self.what} from {shown(self.url)}: {error}, twice: try again later; if this remains, a "
                        "proxy between this computer and the server changes the content"
                    ) from None
                logger.warning("%s: %s; downloading it again from the start", self.what, error)

    def _received_bytes(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _receive(self) -> None:
        """Downloads until the `.part` file has its expected length."""
        if self._received_bytes() > self.expected.size_bytes:
            self.part.unlink()
        retries, furthest_bytes = _Retries(), self._received_bytes()
        while not self.part.exists() or self._received_bytes() < self.expected.size_bytes:
            try:
                self._receive_some()
            except TemporaryError as error:
                # A server that restarts each time and stops at the same byte makes no progress.
                if self._received_bytes() > furthest_bytes:
                    retries, furthest_bytes = _Retries(), self._received_bytes()
                retries.wait(error)

    def _receive_some(self, *, use_validator: bool = True) -> None:
        """Downloads the content of one response."""
        size_bytes, received_bytes = self.expected.size_bytes, self._received_bytes()
        # With compression, byte positions would differ from those of the file.
        headers = {"Accept-Encoding": "identity"}
        if received_bytes:
            headers["Range"] = f"bytes={received_bytes}-"
            if use_validator and self.validator:
                headers["If-Range"] = self.validator
        with self.client.ask(self.url, self.what, headers) as response:
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise TemporaryError(
                    f"{shown(response.url)} sends {self.what} compressed, although uncompressed was requested"
                )
            if response.status_code == 200:
                if received_bytes and "If-Range" in headers and _validator(response) == self.validator:
                    # Some servers send the whole unchanged file despite If-Range. The checksum is verified later.
                    response.close()
                    return self._receive_some(use_validator=False)
                if received_bytes:
                    logger.warning("%s: the server cannot resume, the download restarts", self.what)
                received_bytes = 0
                self._begin(response)
            elif not _continues(response, received_bytes, size_bytes):
                self.part.unlink(missing_ok=True)
                raise TemporaryError(f"{shown(response.url)} did not send the bytes from {received_bytes} on")
            self._write(response, received_bytes)
        if self._received_bytes() < size_bytes:
            raise TemporaryError(f"{shown(self.url)} ended at {self._received_bytes()} of {size_bytes} bytes")

    def _begin(self, response: requests.Response) -> None:
        """Deletes the `.part` file before a complete download, unless the length is already wrong."""
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) != self.expected.size_bytes:
            raise _WrongContentError(f"the server offers {length} bytes, the record has {self.expected.size_bytes}")
        # Before the validator changes, because data of an old version must never have the validator of a new one.
        self.part.unlink(missing_ok=True)
        self.validator = _validator(response)
        self.on_start(self.validator)

    def _write(self, response: requests.Response, received_bytes: int) -> None:
        size_bytes = self.expected.size_bytes
        with self.part.open("ab") as output, progress_bar(size_bytes, self.path.name, received_bytes) as bar:
            try:
                for chunk in response.iter_content(CHUNK_BYTES):
                    received_bytes += len(chunk)
                    if received_bytes > size_bytes:
                        raise _WrongContentError(f"the server sends more than the {size_bytes} bytes of the record")
                    output.write(chunk)
                    bar.update(len(chunk))
            except requests.RequestException as error:
                raise TemporaryError(f"{shown(self.url)}: {_why(error)}") from None


def shown(url: str) -> str:
    """Returns an address without possible secrets: user, password, query."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "an invalid address"
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


class _WrongContentError(Exception):
    """Error for content that is not the expected file."""


class _Retries:
    """Counter of consecutive failures: waits longer after each one, and raises after the last."""

    def __init__(self) -> None:
        self.failures = 0

    def wait(self, error: TemporaryError) -> None:
        self.failures += 1
        if self.failures >= MAX_FAILURES:
            raise UserError(f"gave up after {self.failures} attempts: {error}; run the command again later to resume")
        wait_s = max(error.retry_after_s, FIRST_WAIT_S * 2 ** (self.failures - 1))
        if wait_s > MAX_WAIT_S:
            raise UserError(f"{error} and requests a wait of {wait_s:.0f} s: run the command again then to resume")
        logger.warning("%s; trying again in %.0f s", error, wait_s)
        time.sleep(wait_s)


def _continues(response: requests.Response, received_bytes: int, size_bytes: int) -> bool:
    """Returns True if a response contains the next bytes."""
    content_range = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if response.status_code != 206 or content_range is None or not received_bytes:
        return False
    first, last, total = content_range.groups()
    return int(first) == received_bytes and int(last) < size_bytes and total in (str(size_bytes), "*")


def _validator(response: requests.Response) -> str | None:
    """Returns the identifier of a file's version; a weak ETag is none (RFC 9110, 13.1.5)."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _retry_after_s(response: requests.Response) -> float:
    try:
        return Retry().parse_retry_after(response.headers.get("Retry-After", "0"))
    except InvalidHeader:
        return 0


def _why(error: requests.RequestException) -> str:
    """Describes an error; the library's own messages contain full addresses."""
    if isinstance(error, requests.exceptions.SSLError):
        return "no secure connection (TLS)"
    if isinstance(error, requests.Timeout) or "timed out" in str(error).lower():
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke"
    return "no connection"
