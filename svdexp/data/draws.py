"""Token windows at random places, draw by draw as the evaluation of Dobi-SVD's reference takes them (arXiv 2502.02723).

Python's own generator is used, seeded with 0 as there, so that equal texts and tokenizers give equal windows.
"""

import random
from collections.abc import Callable, Sequence

import torch

from svdexp.runtime.errors import UserError

SEED = 0
Encode = Callable[[str], torch.Tensor]


def draw_from_text(text: str, encode: Encode, length: int, count: int) -> torch.Tensor:
    """(at most `count`, length) tokens: cut 10 · length characters anywhere, tokenise, take a window anywhere.

    A piece of fewer tokens is passed over and not replaced, as in the reference.

    Raises:
        UserError: the text has too few characters, or no piece has enough tokens.
    """
    if len(text) <= length:
        raise UserError(
            f"eval: the text has {len(text)} characters, too few for pieces of {length} tokens (eval.seq_len)"
        )
    generator = random.Random(SEED)
    windows = []
    for _ in range(count):
        start = generator.randint(0, len(text) - length - 1)
        tokens = encode(text[start : start + 10 * length])
        if len(tokens) < length:
            continue
        spare = len(tokens) - length - 1
        first = 0 if spare < 0 else generator.randint(0, spare)
        windows.append(tokens[first : first + length])
    if not windows:
        raise UserError(f"eval: none of {count} pieces of the text has {length} tokens (eval.seq_len)")
    return torch.stack(windows)


def draw_from_rows(rows: Sequence[str], encode: Encode, length: int, count: int) -> torch.Tensor:
    """(count, length) tokens: draw rows until one is long enough, take a window anywhere in it.

    Raises:
        UserError: no row has that many tokens.
    """
    generator = random.Random(SEED)
    windows: list[torch.Tensor] = []
    short: set[int] = set()
    while len(windows) < count:
        index = generator.randint(0, len(rows) - 1)
        tokens = encode(rows[index])
        if len(tokens) < length:
            short.add(index)
            if len(short) == len(rows):
                raise UserError(f"eval: no row of the text has {length} tokens (eval.seq_len)")
            continue
        spare = len(tokens) - length - 1
        first = 0 if spare <= 0 else generator.randint(0, spare)
        windows.append(tokens[first : first + length])
    return torch.stack(windows)
