"""JSON and YAML from files that anyone may have written: whatever is wrong with one is a sentence."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from svdexp.runtime.errors import UserError


def parse_json(text: str, what: str) -> Any:
    """The value of a JSON text; `what` begins the sentence about a text that is none.

    Raises:
        UserError: it is not JSON, nested more deeply than Python follows, or has words that no file can hold.
    """
    try:
        found = json.loads(text)
        if "\\ud" in text.lower():  # half of a character, which JSON can spell and nothing can write
            json.dumps(found, ensure_ascii=False).encode()
        return found
    except ValueError as error:
        raise UserError(f"{what} is not JSON: {error}") from error
    except RecursionError as error:
        raise UserError(f"{what} is nested too deeply") from error


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        UserError: there is no such file, or no JSON in it.
    """
    try:
        text = path.read_text()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return parse_json(text, f"{path} cannot be read: it")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: there is no such file, or no JSON object in it.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path} is not an object")
    return found


def repeated_keys(text: str) -> list[str]:
    """Keys that stand twice in one object of a JSON text, of which Python takes the last."""
    found: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return dict(pairs)

    json.loads(text, object_pairs_hook=look)
    return found


class PlainLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Values and nothing else: no objects, and no aliases, by which a small file means more than memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuses an alias before what it stands for is looked up."""
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("it has an alias (*NAME)")
        return super().compose_node(parent, index)


def read_plain_yaml(path: Path) -> dict[str, Any]:
    """The table in a YAML file, as it is written: interpolations stay words.

    Raises:
        UserError: there is no such file, or no table of plain values in it.
    """
    try:
        found = yaml.load(path.read_text(), Loader=PlainLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UserError(f"{path} cannot be read: it is nested too deeply") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a table")
    return found
