"""Instruction data in the layout of Alpaca: as plain text, or as conversations in a model's chat template."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from svdexp.runtime.errors import UserError
from svdexp.runtime.reading import parse_json


class Row(NamedTuple):
    """One instruction with its answer; `input`, what the instruction is about, may be empty."""

    instruction: str
    input: str
    output: str


def plain_rows(rows: Sequence[Row]) -> list[str]:
    """Of each row instruction, input and output on lines of their own."""
    return [_lines(*row) for row in rows]


def chat_tokens(rows: Sequence[Row], tokenizer: Any, knob: str) -> torch.Tensor:
    """Every row as a conversation in the tokenizer's chat template, one after the other: their tokens, (T,) int64.

    The user says the instruction and, on the next line, the input; the assistant answers with the output. The special
    tokens of the template are special tokens, those that are written out in a row are text.

    Raises:
        UserError: the tokenizer has no chat template, or one that does not take such conversations; blames `knob`.
    """
    if not tokenizer.chat_template:
        raise UserError(f"{knob}.chat=true, but the model's tokenizer has no chat template")
    conversations = [
        [
            {"role": "user", "content": _lines(row.instruction, row.input)},
            {"role": "assistant", "content": row.output},
        ]
        for row in rows
    ]
    try:
        spoken = tokenizer.apply_chat_template(conversations, sanitize_control_tokens=True)["input_ids"]
    except Exception as error:  # a template is a program, which may raise whatever it likes
        reason = " ".join(str(error).split())
        raise UserError(f"{knob}.chat=true, but the chat template of the model's tokenizer fails: {reason}") from error
    return torch.tensor([token for conversation in spoken for token in conversation], dtype=torch.int64)


def parse_rows(text: str, source: str, *, per_line: bool) -> list[Row]:
    """Rows from JSON objects with the keys instruction, output and optionally input; other keys are ignored.

    Args:
        text: one object a line, blank lines aside, or else one array of objects.
        source: what to blame in errors.
        per_line: which of the two.

    Raises:
        UserError: not JSON, or a bad row; names the line or, in an array, the row.
    """
    if per_line:
        # Not splitlines(), which also splits at separators that JSON allows within a string.
        lines = [(f"line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        return [_row(parse_json(line, f"{source}: {where}"), source, where) for where, line in lines]
    items = parse_json(text, f"{source}: it")
    if not isinstance(items, list):
        raise UserError(f"{source}: it is not an array of objects")
    return [_row(item, source, f"row {number}") for number, item in enumerate(items, 1)]


def _lines(*parts: str) -> str:
    return "\n".join(filter(None, parts))


def _row(item: object, source: str, where: str) -> Row:
    if isinstance(item, dict):
        instruction, context, output = item.get("instruction"), item.get("input"), item.get("output")
        if isinstance(instruction, str) and isinstance(context, str | None) and isinstance(output, str):
            return Row(instruction, context or "", output)
    raise UserError(f"{source}: {where} is not an object whose instruction, output and, if any, input are strings")
