"""The few answers of W&B's server that its client needs to send a run; it keeps what it was sent."""

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

KEY = "0123456789" * 4
NOBODY = "http://127.0.0.1:9"  # where nothing listens


class Server:
    """Attributes:
    url: where it listens.
    asked: the names of GraphQL's operations, in order.
    runs: by id, the last that was said of a run (`UpsertBucket`).
    history, summaries, exits: by id, the rows of the history, the summary, and the exit code once the run has ended.
    """

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[str] = []
        self.runs: dict[str, dict[str, Any]] = {}
        self.history: dict[str, list[dict[str, Any]]] = {}
        self.summaries: dict[str, dict[str, Any]] = {}
        self.exits: dict[str, int] = {}

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """To one of GraphQL's operations."""
        name = query.replace("(", " ").split()[1]
        self.asked.append(name)
        if name == "Viewer":
            who = {"id": "u", "entity": "me", "username": "me", "email": None, "flags": "{}"}
            return {"viewer": who | {"teams": {"edges": []}}}
        if name == "RunResumeStatus":
            return {"model": self.known(variables["project"], variables["name"])}
        if name == "UpsertBucket":
            new = {key: value for key, value in variables.items() if value is not None}
            inserted = variables["name"] not in self.runs
            run = self.runs[variables["name"]] = self.runs.get(variables["name"], {}) | new
            return {"upsertBucket": {"bucket": self.bucket(run), "inserted": inserted}}
        if name == "ArtifactType":
            return {"project": None}
        if name == "CreateArtifact":  # as if another run had sent all of it already
            artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": {"latestArtifact": {"id": "a"}}}
            return {"createArtifact": {"artifact": artifact}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/upload"} for file in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {}

    def known(self, project: str, name: str) -> dict[str, Any] | None:
        """What a run that is begun again is told of the one before."""
        if name not in self.runs:
            return None
        rows = self.history.get(name, [])
        tail = json.dumps([json.dumps(row) for row in rows[-1:]])
        lines = {"historyLineCount": len(rows), "eventsLineCount": 0, "logLineCount": 0}
        told = {"summaryMetrics": json.dumps(self.summaries.get(name, {})), "config": "{}", "historyTail": tail}
        told |= {"eventsTail": "[]", "tags": [], "notes": None, "wandbConfig": '{"t": 1}', "displayName": name}
        place = {"id": "p", "name": project, "entity": {"id": "e", "name": "me"}}
        return place | {"bucket": {"id": "b", "name": name, **lines, **told}}

    def bucket(self, run: dict[str, Any]) -> dict[str, Any]:
        """A run as the server tells it."""
        entity = {"id": "e", "name": run.get("entity") or "me"}
        project = {"id": "p", "name": run["project"], "entity": entity}
        bucket = {"id": "b", "name": run["name"], "displayName": run.get("displayName"), "description": None}
        lines = len(self.history.get(run["name"], [])) or None
        return bucket | {"config": None, "sweepName": None, "historyLineCount": lines, "project": project}

    def stream(self, name: str, content: dict[str, Any]) -> None:
        """Take rows at their offsets."""
        files = content.get("files") or {}
        if rows := files.get("wandb-history.jsonl"):
            kept = self.history.setdefault(name, [])
            kept[rows["offset"] :] = map(json.loads, rows["content"])
        if summary := files.get("wandb-summary.json"):
            self.summaries[name] = json.loads(summary["content"][-1])
        if content.get("complete"):
            self.exits[name] = content["exitcode"]


@contextmanager
def serving() -> Iterator[Server]:
    """A server on a port of its own, as long as the context lasts."""
    found = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Nothing."""

        def handle(self) -> None:
            with suppress(ConnectionError):
                super().handle()

        def content(self) -> bytes:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    raw += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            return gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw

        def say(self, answer: Any) -> None:
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            content = json.loads(self.content())
            if self.path.endswith("graphql"):
                self.say({"data": found.answer(content["query"], content.get("variables") or {})})
            else:
                found.stream(self.path.split("/")[-2], content)
                self.say({})

        def do_PUT(self) -> None:
            self.content()
            self.say({})

        do_GET = do_PUT  # noqa: N815 - the library's name

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield found
        finally:
            server.shutdown()
