"""Receives files over a line that may break: goes on in the middle, waits when asked to, checks what came.

A small loop round `requests`, because none of the libraries that fetch Zenodo records does all of this: pooch and
zenodo_get check sums and try again, but start a file over when its connection breaks, and with gigabytes a slow line
never gets to the end so. urllib3's Retry knows about Retry-After, but not about bodies that end early.
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
from kenya_birds.data.unpacking import Expected, part_of, progress_bar, put_in_place
from kenya_birds.errors import UserError

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 15, 60
# Failures in a row, without a new byte between them; the waits double from the first, about two minutes in all.
MAX_FAILURES = 8
FIRST_WAIT_S = 1.0
MAX_WAIT_S = 600
# A broken connection loses no more than this, so that a bad line gets ahead at all.
CHUNK_BYTES = 1 << 16


class Client:
    """Sends requests, again and again where that may help.

    Args:
        api_url: Where the requests begin. Unless this is http itself, only https is spoken, after redirects too.
    """

    def __init__(self, api_url: str):
        if urlsplit(api_url).scheme not in ("http", "https"):
            raise UserError(f"{shown(api_url)} is no address of an API: expected https://...")
        self.session = requests.Session()
        # Zenodo recommends that clients name themselves: in times of abuse it turns away those that do not.
        self.session.headers["User-Agent"] = f"kenya-birds/{__version__} python-requests/{requests.__version__}"
        if urlsplit(api_url).scheme == "https":
            del self.session.adapters["http://"]

    def get_json(self, url: str, what: str) -> Any:
        """What the JSON at an address says.

        Args:
            url: The address.
            what: Name of what is asked for, for messages.

        Raises:
            UserError: There is none, or it cannot be had after several attempts.
        """
        patience = _Patience()
        while True:
            try:
                with self.ask(url, what, {}) as response:
                    return response.json()
            except requests.JSONDecodeError:
                patience.wait(PassingError(f"{shown(url)} did not answer with JSON"))
            except requests.RequestException as error:
                patience.wait(PassingError(f"{shown(url)}: {_why(error)}"))
            except PassingError as error:
                patience.wait(error)

    def ask(self, url: str, what: str, headers: dict[str, str]) -> requests.Response:
        """Sends one request.

        Returns:
            An answer with status 200, 206 or 416, its body still to be read.

        Raises:
            UserError: What is asked for does not exist, is not public, or is at an address that is not gone to.
            PassingError: Another attempt may help.
        """
        try:
            timeout_s = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
            response = self.session.get(url, headers=headers, stream=True, timeout=timeout_s)
        except (requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema, requests.exceptions.InvalidURL):
            raise UserError(f"{what}: {shown(url)} is, or leads to, an address that is not https: refused") from None
        except requests.TooManyRedirects:
            raise UserError(f"{what}: {shown(url)} is redirected in circles: try again later") from None
        except requests.RequestException as error:
            raise PassingError(f"{shown(url)}: {_why(error)}") from None
        status = response.status_code
        if status in (200, 206, 416):
            return response
        response.close()
        said = f"{shown(response.url)} answered {status} {response.reason or ''}".rstrip()
        if status == 403:
            said += " (blocked for a while, or not public)"
        if status in (403, 408, 425, 429) or status >= 500:
            raise PassingError(said, _retry_after_s(response))
        if status in (404, 410):
            raise UserError(f"{what} does not exist: {said}; check the number")
        raise UserError(f"{what} cannot be fetched: {said}; is it public? Look at it in a browser")


class PassingError(Exception):
    """What may go better when it is tried again.

    Attributes:
        retry_after_s: How long the server asked to wait.
    """

    def __init__(self, reason: str, retry_after_s: float = 0):
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Transfer:
    """The transfer of one file, which this or an earlier process may have begun.

    Args:
        client: Sends the requests.
        url: Address of the file.
        path: Its final name, which it gets when it is whole and its checksum is right; until then it is `NAME.part`.
        expected: Its length and checksum.
        what: Name of the file for messages.
        validator: ETag or Last-Modified of what the `.part` file was received from, if known.
        remember: Called with the validator, or None, whenever a new `.part` file is begun.
    """

    def __init__(
        self,
        client: Client,
        url: str,
        path: Path,
        expected: Expected,
        what: str,
        validator: str | None,
        remember: Callable[[str | None], None],
    ):
        self.client = client
        self.url = url
        self.path = path
        self.part = part_of(path)
        self.expected = expected
        self.what = what
        self.validator = validator
        self.remember = remember

    def run(self) -> None:
        """Receives the file; if that turns out to be another one, throws it away and does so once more.

        Raises:
            UserError: It cannot be had after several attempts, or is not the expected one for the second time.
        """
        for last in (False, True):
            try:
                self._receive()
                if not self.expected.matches(self.part):
                    raise _WrongContentError(f"what was received does not have {self.expected.checksum}")
                put_in_place(self.path)
                return
            except _WrongContentError as error:
                self.part.unlink(missing_ok=True)
                if last:
                    raise UserError(
                        f"{self.what} from {shown(self.url)}: {error}, twice: try again later; if it stays so, "
                        "something between here and the server changes what it sends"
                    ) from None
                logger.warning("%s: %s; fetching it once more from the start", self.what, error)

    def _received_bytes(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _receive(self) -> None:
        """Receives until the `.part` file has its length."""
        if self._received_bytes() > self.expected.size_bytes:
            self.part.unlink()
        patience, furthest_bytes = _Patience(), self._received_bytes()
        while not self.part.exists() or self._received_bytes() < self.expected.size_bytes:
            try:
                self._receive_some()
            except PassingError as error:
                # A server that starts over each time and breaks at the same place makes no progress.
                if self._received_bytes() > furthest_bytes:
                    patience, furthest_bytes = _Patience(), self._received_bytes()
                patience.wait(error)

    def _receive_some(self, *, use_validator: bool = True) -> None:
        """Receives what one response gives."""
        size_bytes, received_bytes = self.expected.size_bytes, self._received_bytes()
        # Compressed on the way, byte positions would not be those of the file.
        headers = {"Accept-Encoding": "identity"}
        if received_bytes:
            headers["Range"] = f"bytes={received_bytes}-"
            if use_validator and self.validator:
                headers["If-Range"] = self.validator
        with self.client.ask(self.url, self.what, headers) as response:
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise PassingError(f"{shown(response.url)} sends {self.what} compressed, though asked not to")
            if response.status_code == 200:
                if received_bytes and "If-Range" in headers and _validator(response) == self.validator:
                    # Unchanged, and yet the whole of it: not every server matches If-Range. The checksum remains.
                    response.close()
                    return self._receive_some(use_validator=False)
                if received_bytes:
                    logger.warning("%s: the server does not go on in the middle, it starts over", self.what)
                received_bytes = 0
                self._begin(response)
            elif not _continues(response, received_bytes, size_bytes):
                self.part.unlink(missing_ok=True)
                raise PassingError(f"{shown(response.url)} did not send the bytes from {received_bytes} on")
            self._write(response, received_bytes)
        if self._received_bytes() < size_bytes:
            raise PassingError(f"{shown(self.url)} ended at {self._received_bytes()} of {size_bytes} bytes")

    def _begin(self, response: requests.Response) -> None:
        """Makes way for a whole file, unless it is seen beforehand that it is another one."""
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) != self.expected.size_bytes:
            raise _WrongContentError(f"the server offers {length} bytes, the record says {self.expected.size_bytes}")
        # First this: what was received from another version must never stand beside the new version's validator.
        self.part.unlink(missing_ok=True)
        self.validator = _validator(response)
        self.remember(self.validator)

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
                raise PassingError(f"{shown(self.url)}: {_why(error)}") from None


def shown(url: str) -> str:
    """An address without what may be secret in it: user, password, query."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "an address that is none"
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


class _WrongContentError(Exception):
    """What comes, or has come, is not the expected file."""


class _Patience:
    """Waits after each failure in a row, longer each time, and gives up in the end."""

    def __init__(self) -> None:
        self.failures = 0

    def wait(self, error: PassingError) -> None:
        self.failures += 1
        if self.failures >= MAX_FAILURES:
            raise UserError(f"gave up after {self.failures} attempts: {error}; run it again later, it goes on there")
        wait_s = max(error.retry_after_s, FIRST_WAIT_S * 2 ** (self.failures - 1))
        if wait_s > MAX_WAIT_S:
            raise UserError(f"{error} and asks to wait {wait_s:.0f} s: run it again then, it goes on there")
        logger.warning("%s; trying again in %.0f s", error, wait_s)
        time.sleep(wait_s)


def _continues(response: requests.Response, received_bytes: int, size_bytes: int) -> bool:
    """Whether a response holds the bytes that come next."""
    content_range = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if response.status_code != 206 or content_range is None or not received_bytes:
        return False
    first, last, total = content_range.groups()
    return int(first) == received_bytes and int(last) < size_bytes and total in (str(size_bytes), "*")


def _validator(response: requests.Response) -> str | None:
    """What tells this version of a file from another; a weak ETag does not (RFC 9110, 13.1.5)."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _retry_after_s(response: requests.Response) -> float:
    try:
        return Retry().parse_retry_after(response.headers.get("Retry-After", "0"))
    except InvalidHeader:
        return 0


def _why(error: requests.RequestException) -> str:
    """Says what went wrong; the library's own words hold whole addresses."""
    if isinstance(error, requests.exceptions.SSLError):
        return "no secure connection (TLS)"
    if isinstance(error, requests.Timeout) or "timed out" in str(error).lower():
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke"
    return "no connection"
