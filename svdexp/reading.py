"""JSON from files that anyone may have written: whatever is wrong with one is a sentence."""

import json
from pathlib import Path
from typing import Any

from svdexp.errors import UserError


def parse_json(text: str, what: str) -> Any:
    """The value of a JSON text; `what` begins the sentence about a text that is none.

    Raises:
        UserError: it is not JSON, or nested more deeply than Python follows.
    """
    try:
        return json.loads(text)
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
