"""Read a run back from W&B's offline file: a LevelDB-style log of protobuf records."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

FILE_HEADER, BLOCK, HEADER = 7, 32768, 7
FULL, LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    """Every record of the file; a record may be cut into chunks, and no chunk crosses a block's end."""
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    position, whole = FILE_HEADER, b""
    while position < len(content):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        whole += content[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def value_of(items: Any) -> dict[str, Any]:
    """Key/value items as a flat dictionary."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


class Tracked:
    """What the last offline run of a run's folder, or W&B's own folder in it, holds.

    `run` (its header), config, summary, history, artifacts' types, exit code.
    """

    def __init__(self, run_dir: Path) -> None:
        found = [*run_dir.glob("wandb/offline-run-*/run-*.wandb"), *run_dir.glob("run-*.wandb")]
        path = max(found)  # begun last; their names begin with the time
        self.folder = path.parent
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.artifacts: list[str] = []
        self.exit_code: int | None = None
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
                self.config |= value_of(record.run.config.update)
            elif kind == "summary":
                self.summary |= value_of(record.summary.update)
            elif kind == "history":
                self.history.append(value_of(record.history.item))
            elif kind == "artifact":
                self.artifacts.append(record.artifact.type)
            elif kind == "exit":
                self.exit_code = record.exit.exit_code

    def table(self, key: str) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows of a table that was logged."""
        (path,) = [row[f"{key}/path"] for row in self.history if f"{key}/path" in row]
        content = json.loads((self.folder / "files" / path).read_text())
        return content["columns"], content["data"]


def finished(run_dir: Path) -> Tracked:
    """What the last offline run holds when it has ended, which it may some moments after the process that began it."""
    while (found := Tracked(run_dir)).exit_code is None:
        time.sleep(0.1)
    return found
