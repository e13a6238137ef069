"""A hub on this machine: it speaks what huggingface_hub asks a hub when a folder is uploaded and fetched again."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_a_tester"
COMMIT = "0" * 40
LARGE = (".safetensors", ".gguf")  # what a hub's .gitattributes has as large files


@dataclass
class Repository:
    """What was created and committed."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0


@dataclass
class Hub:
    """The server's address, and what it holds."""

    address: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    full: bool = False


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub within this context."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined,no-any-return]

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the console."""

    def do_GET(self) -> None:
        self.answered()

    def do_HEAD(self) -> None:
        self.answered()

    def do_POST(self) -> None:
        self.answered()

    def do_PUT(self) -> None:
        self.answered()

    def answered(self) -> None:
        """By the first route that fits; only what was asked for with the token, but for the large files' own place."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        if not path.startswith("/large/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.say({"error": "Invalid credentials"}, 401)
        for pattern, route in ROUTES:
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                return route(self, body, *found.groups())
        return self.say({"error": f"no such place: {self.command} {path}"}, 404)

    def say(self, answer: Any, code: int = 200) -> None:
        self.give(json.dumps(answer).encode(), {"Content-Type": "application/json"}, code)

    def give(self, body: bytes, headers: dict[str, str], code: int = 200) -> None:
        self.send_response(code)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def whoami(self, body: bytes) -> None:
        self.say({"type": "user", "name": "me", "auth": {"type": "access_token"}})

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            return self.say({"error": "You already created this model repo", "url": f"{self.hub.address}/{name}"}, 409)
        self.hub.repositories[name] = Repository(asked.get("visibility") == "private" or bool(asked.get("private")))
        return self.say({"url": f"{self.hub.address}/{name}", "name": name})

    def checked(self, body: bytes) -> None:
        self.say({"errors": [], "warnings": []})

    def before_upload(self, body: bytes, name: str) -> None:
        files = [
            {"path": part["path"], "uploadMode": "lfs" if part["path"].endswith(LARGE) else "regular"}
            | {"shouldIgnore": False}
            for part in json.loads(body)["files"]
        ]
        self.say({"files": files})

    def batch(self, body: bytes, name: str) -> None:
        objects = [
            part | {"actions": {"upload": {"href": f"{self.hub.address}/large/{part['oid']}"}}}
            for part in json.loads(body)["objects"]
        ]
        self.say({"transfer": "basic", "objects": objects})

    def large(self, body: bytes, oid: str) -> None:
        if self.hub.full:
            return self.say({"error": "Private repository storage limit reached"}, 403)
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        return self.say({})

    def commit(self, body: bytes, name: str) -> None:
        repository = self.hub.repositories[name]
        for line in body.decode().splitlines():
            change = json.loads(line)
            value = change["value"]
            if change["key"] == "file":
                assert value["encoding"] == "base64"
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif change["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.objects[value["oid"]]
        repository.commits += 1
        self.say({"success": True, "commitOid": COMMIT, "commitUrl": f"{self.hub.address}/{name}/commit/{COMMIT}"})

    def about(self, body: bytes, name: str) -> None:
        if name not in self.hub.repositories:
            return self.say({"error": "Repository not found"}, 404)
        repository = self.hub.repositories[name]
        about = {"_id": "1", "id": name, "modelId": name, "sha": COMMIT, "private": repository.private}
        return self.say(about | {"siblings": [{"rfilename": path} for path in sorted(repository.files)], "tags": []})

    def tree(self, body: bytes, name: str) -> None:
        files = self.hub.repositories[name].files
        self.say([{"type": "file", "oid": "0", "size": len(files[path]), "path": path} for path in sorted(files)])

    def file(self, body: bytes, name: str, path: str) -> None:
        files = self.hub.repositories[name].files if name in self.hub.repositories else {}
        if path not in files:
            return self.give(b"", {"X-Error-Code": "EntryNotFound"}, 404)
        tag = hashlib.sha256(files[path]).hexdigest()
        return self.give(files[path], {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"GET /api/whoami-v2", Handler.whoami),
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.checked),
    (rf"POST /api/models/{NAME}/preupload/main", Handler.before_upload),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /large/(\w+)", Handler.large),
    (rf"POST /api/models/{NAME}/commit/main", Handler.commit),
    (rf"GET /api/models/{NAME}(?:/revision/\w+)?", Handler.about),
    (rf"GET /api/models/{NAME}/tree/\w+", Handler.tree),
    (rf"(?:GET|HEAD) /{NAME}/resolve/\w+/(.+)", Handler.file),
]
