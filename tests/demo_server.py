"""The demo, served in this process, and a visitor that speaks plain HTTP with it."""

import io
import json
import secrets
from contextlib import contextmanager

import httpx
from running import free_port


@contextmanager
def served(analyser, **options):
    # gradio takes seconds to import, which processes without tests of the demo save.
    from kenya_birds.serving.demo import running_demo

    with running_demo(analyser, port=free_port(), **options) as address:
        yield address.rstrip("/")


class Visitor:
    """What a page asks the server, without the page: paths and keys can be forged."""

    def __init__(self, address, session=None):
        self.address = address
        self.session = session or secrets.token_hex(8)
        self.http = httpx.Client(base_url=address, timeout=60, verify=False)  # certificates take long to read
        config = self.http.get("/config").json()
        self.functions = {one["api_name"]: one["id"] for one in config["dependencies"]}
        self.components = config["components"]

    def upload(self, path, name=None):
        with open(path, "rb") as file:
            return self.http.post("/gradio_api/upload", files={"files": (name or path.name, file)})

    def ask(self, function, *data):
        """What an event gives: its outputs, or None where it fails."""
        body = {"data": data, "fn_index": self.functions[function], "session_hash": self.session}
        event = self.http.post("/gradio_api/queue/join", json=body)
        if event.status_code != 200:
            return event
        with self.http.stream("GET", f"/gradio_api/queue/data?session_hash={self.session}") as stream:
            for line in stream.iter_lines():
                message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if message.get("msg") == "process_completed":
                    return message["output"].get("data") if message["success"] else None
        raise AssertionError("the server ended the stream without an answer")

    def fetch(self, file):
        """A file of an output, as a file object."""
        return io.BytesIO(self.http.get(f"/gradio_api/file={file['path']}").content)

    def open(self, path):
        """Opens a recording by its path on the server; what the page says then."""
        answer = self.ask("open", {"path": str(path), "meta": {"_type": "gradio.FileData"}})
        return answer if answer is None or isinstance(answer, httpx.Response) else answer[0]
