"""A Zenodo on this machine: a record's listing and its files, with byte ranges, and with all that can go wrong."""

import hashlib
import json
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LAST_MODIFIED = "Mon, 08 Apr 2024 10:00:00 GMT"


class FakeZenodo:
    """Serves one record while used as a context manager.

    Attributes:
        record: Its number.
        files: Its files' bytes by name.
        api_url: Address to give to `download_record`.
        requests: What it was asked, as (path, Range or None, If-Range or None), in order.
        body_bytes: How many bytes of files it has sent, by name.
        change_listing: Changes the listing before it is sent, as parsed JSON.
        etag: Form of the ETag, with the file's md5 in it; None sends none.
        last_modified: The Last-Modified that it sends; None sends none.
        ignore_ranges: Whether every answer is the whole file (200).
        ignore_if_range: Whether an If-Range makes every answer the whole file, even where it matches.
        redirect: Whether a file's address leads to another one.
        pieces: (bytes, seconds): how much of a body it sends at once, and how long it rests before the next.

        The next are used up from their front, one for each request of a file whose name holds `fault_on`; None and
        the end of the list mean no fault.

        failures: (status, headers) to answer with; the listing's requests use these up too where `fault_on` is empty.
        drops: After how many bytes of the body the connection breaks.
        replaced: Bytes that are sent instead of the file's, from its start.
        content_lengths: Length that is announced instead of the true one.
        content_ranges: Content-Range that a partial answer has instead of the true one.
        endless: Whether bytes that nobody announced follow the file.
    """

    def __init__(self, files, record=10943500):
        self.files = files
        self.record = record
        self.requests = []
        self.body_bytes = {}
        self.change_listing = lambda listing: listing
        self.etag = '"md5:{}"'
        self.last_modified = LAST_MODIFIED
        self.ignore_ranges = False
        self.ignore_if_range = False
        self.redirect = False
        self.pieces = (1 << 20, 0)
        self.fault_on = ""
        self.failures = []
        self.drops = []
        self.replaced = []
        self.content_lengths = []
        self.content_ranges = []
        self.endless = []
        self.lock = threading.Lock()

    def __enter__(self):
        handler = type("Handler", (_Handler,), {"zenodo": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.host = f"http://127.0.0.1:{self.server.server_port}"
        self.api_url = f"{self.host}/api/records"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def listing(self):
        url = f"{self.api_url}/{self.record}/files"
        files = [
            {
                "key": name,
                "size": len(content),
                "checksum": "md5:" + hashlib.md5(content).hexdigest(),
                "links": {"self": f"{url}/{name}/content"},
            }
            for name, content in self.files.items()
        ]
        return self.change_listing({"id": self.record, "files": files})

    def ranges(self, name):
        """The Range of each request of a file, in order."""
        return [range_ for path, range_, _ in self.requests if f"/{name}/" in path]

    def take(self, faults, name):
        if self.fault_on not in name:
            return None
        with self.lock:
            return faults.pop(0) if faults else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    zenodo: FakeZenodo

    def log_message(self, *_):
        pass

    def do_GET(self):
        zenodo, path = self.zenodo, unquote(urlsplit(self.path).path)
        with zenodo.lock:
            zenodo.requests.append((path, self.headers.get("Range"), self.headers.get("If-Range")))
        file = re.fullmatch(r"(/moved)?/api/records/(\d+)/files/(.+)/content", path)
        record = re.fullmatch(r"/api/records/(\d+)", path)
        number, name = (file[2], file[3]) if file else (record[1] if record else "", "")
        if failure := zenodo.take(zenodo.failures, name):
            self.answer(*failure)
        elif number != str(zenodo.record) or (file and name not in zenodo.files):
            self.answer(404, {})
        elif record:
            self.answer(200, {"Content-Type": "application/json"}, json.dumps(zenodo.listing()).encode())
        elif zenodo.redirect and not file[1]:
            self.answer(302, {"Location": f"/moved{self.path}?signature=secret"})
        else:
            self.send_file(name)

    def answer(self, status, headers, body=b""):
        self.send_response(status)
        for key, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(key, str(value))
        self.close_connection = "Connection" in headers
        self.end_headers()
        self.wfile.write(body)

    def send_file(self, name):
        zenodo = self.zenodo
        content = zenodo.files[name]
        headers = {"Content-Type": "application/octet-stream"}
        if zenodo.etag:
            headers["ETag"] = zenodo.etag.format(hashlib.md5(content).hexdigest())
        if zenodo.last_modified:
            headers["Last-Modified"] = zenodo.last_modified
        start = self.start(headers)
        replaced = zenodo.take(zenodo.replaced, name)
        if replaced is not None:
            content = replaced + content[len(replaced) :]
        if start is not None and start >= len(content):
            return self.answer(416, {"Content-Range": f"bytes */{len(content)}"})
        body = content[start or 0 :]
        headers["Content-Length"] = zenodo.take(zenodo.content_lengths, name) or len(body)
        if headers["Content-Length"] != len(body):
            headers["Connection"] = "close"
            self.close_connection = True
        if start is not None:
            true_range = f"bytes {start}-{len(content) - 1}/{len(content)}"
            headers["Content-Range"] = zenodo.take(zenodo.content_ranges, name) or true_range
        if zenodo.take(zenodo.endless, name):
            del headers["Content-Length"]
            headers["Connection"] = "close"
            self.close_connection = True
            body += bytes(1000)
        self.send_response(200 if start is None else 206)
        for key, value in headers.items():
            self.send_header(key, str(value))
        self.end_headers()
        self.send_body(name, body, zenodo.take(zenodo.drops, name))

    def start(self, headers):
        """First byte that is asked for; None for the whole."""
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if not match or self.zenodo.ignore_ranges or (condition and self.zenodo.ignore_if_range):
            return None
        if condition and condition not in (headers.get("ETag"), headers.get("Last-Modified")):
            return None
        return int(match[1])

    def send_body(self, name, body, drop):
        zenodo = self.zenodo
        piece_bytes, rest_s = zenodo.pieces
        end = len(body) if drop is None else min(drop, len(body))
        try:
            for offset in range(0, end, piece_bytes):
                piece = body[offset : min(offset + piece_bytes, end)]
                self.wfile.write(piece)
                with zenodo.lock:
                    zenodo.body_bytes[name] = zenodo.body_bytes.get(name, 0) + len(piece)
                if offset + piece_bytes < end:
                    time.sleep(rest_s)
        except OSError:  # the client has gone
            self.close_connection = True
            return
        if end < len(body):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
