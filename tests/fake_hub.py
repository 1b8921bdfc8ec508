"""A Hub on this machine: the part of its HTTP interface that publishing and loading a model or a data set use.

`FakeHub.redirect` points the client of this process at it, `FakeHub.environment` that of another process. It speaks
only the LFS way of sending large files, not Xet.
"""

import base64
import hashlib
import json
import os
import re
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import yaml
from huggingface_hub import constants

LFS_SUFFIXES = (".safetensors", ".png", ".parquet")
REPO = r"(?P<repo>(?:datasets/|spaces/)?[^/]+/[^/]+?)"
REVISION = r"(?P<revision>[^/]+)"


class FakeHub:
    """Serves while used as a context manager.

    Attributes:
        endpoint: Address to give to the client.
        token: The one token that it accepts, of the account `user`.
        repos: What it holds: by `owner/name`, `datasets/owner/name` or `spaces/owner/name`, whether it is private, and
            its commits, oldest first. Of a commit, `files` is what was sent in it and `tree` all that the repository
            holds after it. `branches` holds the commits of other branches, and of pull requests as `refs/pr/N`.
        requests: What it was asked, as `METHOD path`.
        refuse_token: Whether it refuses every token (401).
        read_only: Whether it accepts the token for reading only (403).
        refuse_uploads: Whether it refuses the bytes of large files (403).
        fail_next: How many of the next requests whose path holds `fail_on` it answers with 503.
        break_next: How many of the next uploads of `break_file`, a large file's bytes, it breaks off in the middle.
        uploaded: Hashes of the large files that arrived, in their order.
    """

    def __init__(self, user="ann"):
        self.user = user
        self.token = "hf_" + secrets.token_hex(16)
        self.repos = {}
        self.requests = []
        self.refuse_token = False
        self.read_only = False
        self.refuse_uploads = False
        self.fail_next = 0
        self.fail_on = ""
        self.break_next = 0
        self.break_file = b""
        self.uploaded = []
        self.blobs = {}
        self.tickets = {}
        self.lock = threading.Lock()

    def __enter__(self):
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def redirect(self, monkeypatch, home):
        """Makes this process's client use this Hub, logged in to it, until the test ends."""
        monkeypatch.setattr(constants, "ENDPOINT", self.endpoint)
        template = self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", f"{home}/token")
        monkeypatch.delenv("HF_OIDC_RESOURCE", raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_TOKEN", self.token)
        # A connection made earlier could still go through a proxy.
        huggingface_hub.close_session()

    def environment(self, home):
        """Gives the environment of a process that uses this Hub, logged in to it, with its caches in `home`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
        used = {"HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home), "HF_TOKEN": self.token}
        return {**kept, **used, "NO_PROXY": "127.0.0.1"}

    def commit_at(self, repo, revision):
        commits = self.commits(repo, revision)
        if commits is not None:
            return commits[-1] if commits else None
        known = [self.repos[repo]["commits"], *self.repos[repo].get("branches", {}).values()]
        return next((commit for commits in known for commit in commits if commit["oid"] == revision), None)

    def commits(self, repo, branch):
        if branch in ("main", "HEAD"):
            return self.repos[repo]["commits"]
        return self.repos[repo].get("branches", {}).get(branch)


class _Answer(Exception):
    """What ends the handling of a request early."""

    def __init__(self, status, message, code=None):
        self.status, self.message, self.code = status, message, code


def _is_lfs(path):
    return path.endswith(LFS_SUFFIXES)


def _git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _oid(path, content):
    return hashlib.sha256(content).hexdigest() if _is_lfs(path) else _git_oid(content)


def _entry(path, content):
    entry = {"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)}
    if _is_lfs(path):
        entry["lfs"] = {"oid": _oid(path, content), "size": len(content), "pointerSize": 130}
    return entry


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_):
        pass

    def handle_request(self):
        path = urlsplit(self.path).path
        # Read before anything is answered: what is left unread would be taken for the next request.
        assert "Transfer-Encoding" not in self.headers, "the client is not expected to send a body of unknown length"
        length = int(self.headers.get("Content-Length", 0))
        if self.breaks_off(path):
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        self.body = self.rfile.read(length)
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {path}")
            try:
                if self.hub.fail_next > 0 and self.hub.fail_on in path:
                    self.hub.fail_next -= 1
                    self.send(b"<html>Service Unavailable</html>", 503, {"Content-Type": "text/html"})
                else:
                    self.route(path)
            except _Answer as answer:
                headers = {"X-Error-Message": answer.message}
                if answer.code:
                    headers["X-Error-Code"] = answer.code
                self.send_json({"error": answer.message}, answer.status, headers)
        status, headers, content = self.answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def breaks_off(self, path):
        with self.hub.lock:
            oid = self.hub.tickets.get(path.removeprefix("/lfs-upload/"))
            breaks = self.hub.break_next > 0 and oid == hashlib.sha256(self.hub.break_file).hexdigest()
            self.hub.break_next -= breaks
            return breaks

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def route(self, path):
        method = "GET" if self.command == "HEAD" else self.command
        for route_method, pattern, action in _ROUTES:
            if route_method == method and (match := re.fullmatch(pattern, path)):
                parts = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                return action(self, **parts)
        raise _Answer(404, "Not Found")

    def send(self, content, status=200, headers=None):
        self.answer = status, {"Content-Length": len(content), **(headers or {})}, content

    def send_json(self, data, status=200, headers=None):
        self.send(json.dumps(data).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def is_logged_in(self):
        given = self.headers.get("Authorization")
        if given is None:
            return False
        if self.hub.refuse_token or given != f"Bearer {self.hub.token}":
            raise _Answer(401, "Invalid credentials in Authorization header")
        return True

    def need_login(self, write=True):
        if not self.is_logged_in():
            raise _Answer(401, "Invalid username or password.")
        if write and self.hub.read_only:
            raise _Answer(403, "You don't have the rights to write with this token")

    def find(self, repo, revision=None):
        """Gives the commit, or None where the repository has none yet."""
        logged_in = self.is_logged_in()
        if repo not in self.hub.repos:
            raise _Answer(404, "Repository not found", "RepoNotFound")
        if self.hub.repos[repo]["private"] and not logged_in:
            raise _Answer(401, "Repository not found", "RepoNotFound")
        commit = self.hub.commit_at(repo, revision or "main")
        if commit is None and self.hub.commits(repo, revision or "main") is None:
            raise _Answer(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def whoami(self):
        self.need_login(write=False)
        self.send_json({"type": "user", "name": self.hub.user, "orgs": [], "auth": {"type": "access_token"}})

    def create(self):
        self.need_login()
        asked = json.loads(self.body)
        owner = asked.get("organization") or self.hub.user
        if owner != self.hub.user:
            raise _Answer(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        kind = asked.get("type", "model")
        if kind == "space" and asked.get("sdk") != "gradio":
            raise _Answer(400, "A Space needs an SDK")
        repo = f"{'' if kind == 'model' else f'{kind}s/'}{owner}/{asked['name']}"
        exists = repo in self.hub.repos
        if not exists:
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.hub.repos[repo] = {"private": private, "commits": []}
        answer = {"url": f"{self.hub.endpoint}/{repo}"}
        self.send_json(answer, 409 if exists else 200)

    def validate_yaml(self):
        header = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        try:
            data = yaml.safe_load(header[1]) if header else None
        except yaml.YAMLError:
            return self.send_json({"errors": [{"message": "YAML metadata is not valid"}], "warnings": []}, 400)
        warnings = [] if data else [{"message": "empty or missing yaml metadata in repo card"}]
        self.send_json({"errors": [], "warnings": warnings})

    def preupload(self, repo, revision):
        self.need_login()
        commit = self.find(repo, revision)
        tree = commit["tree"] if commit else {}
        files = []
        for path in (file["path"] for file in json.loads(self.body)["files"]):
            oid = _oid(path, tree[path]) if path in tree else None
            mode = "lfs" if _is_lfs(path) else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.send_json({"files": files})

    def lfs_batch(self, repo):
        self.need_login()
        self.find(repo)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.blobs:
                # The address itself is the permission to upload, as one signed for a storage service is.
                ticket = secrets.token_hex(16)
                self.hub.tickets[ticket] = wanted["oid"]
                answer["actions"] = {"upload": {"href": f"{self.hub.endpoint}/lfs-upload/{ticket}"}}
            objects.append(answer)
        self.send_json({"transfer": "basic", "objects": objects})

    def lfs_upload(self, ticket):
        oid = self.hub.tickets.get(ticket)
        if self.hub.refuse_uploads or oid is None or hashlib.sha256(self.body).hexdigest() != oid:
            raise _Answer(403, "Signature does not match")
        self.hub.blobs[oid] = self.body
        self.hub.uploaded.append(oid)
        self.send(b"")

    def create_branch(self, repo, revision):
        self.need_login()
        self.need_own(repo)
        start = self.find(repo)
        branches = self.hub.repos[repo].setdefault("branches", {})
        if revision in branches:
            raise _Answer(409, f"Reference already exists: refs/heads/{revision}")
        if revision.startswith("refs/"):
            raise _Answer(400, f"Invalid reference for a branch: {revision}")
        branches[revision] = [start] if start else []
        self.send_json({})

    def need_own(self, repo):
        if repo.removeprefix("datasets/").removeprefix("spaces/").partition("/")[0] != self.hub.user:
            raise _Answer(403, "You don't have the rights to write to this repository")

    def commit(self, repo, revision):
        self.need_login()
        parent = self.find(repo, revision)
        opens_pr = parse_qs(urlsplit(self.path).query).get("create_pr") == ["1"]
        if opens_pr:
            assert revision == "main", "a pull request goes to the main branch"
        else:
            self.need_own(repo)
        tree, files, message = dict(parent["tree"]) if parent else {}, {}, ""
        for operation in map(json.loads, self.body.splitlines()):
            value = operation["value"]
            match operation["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.hub.blobs:
                        raise _Answer(400, f"LFS object of {value['path']} was not uploaded")
                    files[value["path"]] = self.hub.blobs[value["oid"]]
                case "deletedFile":
                    tree.pop(value["path"], None)
        tree.update(files)
        branches = self.hub.repos[repo].setdefault("branches", {})
        number = 1 + sum(name.startswith("refs/pr/") for name in branches)
        if opens_pr:
            branches[f"refs/pr/{number}"] = [parent] if parent else []
        commits = self.hub.commits(repo, f"refs/pr/{number}" if opens_pr else revision)
        described = [
            revision,
            opens_pr,
            len(commits),
            message,
            sorted((path, _oid(path, content)) for path, content in tree.items()),
        ]
        oid = hashlib.sha1(json.dumps(described).encode()).hexdigest()
        commits.append({"oid": oid, "message": message, "files": files, "tree": tree})
        url = f"{self.hub.endpoint}/{repo}/commit/{oid}"
        answer = {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""}
        if opens_pr:
            answer["pullRequestUrl"] = f"{self.hub.endpoint}/{repo}/discussions/{number}"
        self.send_json(answer)

    def info(self, repo, revision=None):
        commit = self.find(repo, revision)
        siblings = [{"rfilename": path} for path in (commit["tree"] if commit else {})]
        name = repo.removeprefix("datasets/").removeprefix("spaces/")
        about = {"id": name, "modelId": name, "private": self.hub.repos[repo]["private"], "tags": [], "downloads": 0}
        self.send_json({**about, "sha": commit["oid"] if commit else None, "siblings": siblings})

    def tree(self, repo, revision, folder=None):
        commit = self.find(repo, revision)
        tree = commit["tree"] if commit else {}
        prefix = f"{folder}/" if folder else ""
        entries = [_entry(path, content) for path, content in tree.items()]
        folders = {str(parent) for path in tree for parent in list(PurePosixPath(path).parents)[:-1]}
        entries += [{"type": "directory", "path": path, "oid": _git_oid(path.encode())} for path in sorted(folders)]
        if folder and folder not in folders:
            raise _Answer(404, f"{folder} does not exist", "EntryNotFound")
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
        inside = [entry for entry in entries if entry["path"].startswith(prefix)]
        self.send_json([entry for entry in inside if recursive or "/" not in entry["path"].removeprefix(prefix)])

    def resolve(self, repo, revision, path):
        commit = self.find(repo, revision)
        if commit is None or path not in commit["tree"]:
            raise _Answer(404, "Entry not found", "EntryNotFound")
        content = commit["tree"][path]
        headers = {"X-Repo-Commit": commit["oid"], "ETag": f'"{_oid(path, content)}"', "Accept-Ranges": "bytes"}
        if _is_lfs(path):
            headers |= {"X-Linked-Etag": f'"{_oid(path, content)}"', "X-Linked-Size": len(content)}
        headers["Content-Type"] = "application/octet-stream"
        if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(int(asked[2]), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return self.send(content[first : last + 1], 206, headers)
        self.send(content, headers=headers)


_ROUTES = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("POST", f"/api/(?:models/)?{REPO}/preupload/{REVISION}", _Handler.preupload),
    ("POST", f"/api/(?:models/)?{REPO}/commit/{REVISION}", _Handler.commit),
    ("POST", f"/api/(?:models/)?{REPO}/branch/{REVISION}", _Handler.create_branch),
    ("GET", f"/api/(?:models/)?{REPO}/tree/{REVISION}(/(?P<folder>.+))?", _Handler.tree),
    ("GET", f"/api/(?:models/)?{REPO}(/revision/{REVISION})?", _Handler.info),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", "/lfs-upload/(?P<ticket>[0-9a-f]+)", _Handler.lfs_upload),
    ("GET", f"/{REPO}/resolve/{REVISION}/(?P<path>.+)", _Handler.resolve),
]
