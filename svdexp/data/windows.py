"""Token windows: (N, L) slices of one long token stream."""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import Unigram, WordLevel, WordPiece

from svdexp.models.pictures import together
from svdexp.runtime.errors import UserError

# Tokens that go through the model at once: enough to keep a device busy, little enough for any memory.
TOKENS_PER_BATCH = 2048


def tokenize(text: str, tokenizer: Any, *, parse_special: bool = False) -> torch.Tensor:
    """All tokens of `text`, nothing added, as (T,) int64.

    A special token that is written out in it is text like any other, unless `parse_special`.
    """
    if parse_special or type(tokenizer).__name__ == "MistralCommonBackend":  # which never parses, and takes no orders
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    elif (plain := without_special(tokenizer)) is not None:
        ids = plain.encode(text, add_special_tokens=False).ids
    else:
        ids = tokenizer(text, add_special_tokens=False, verbose=False, split_special_tokens=True)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


@lru_cache(maxsize=2)
def without_special(tokenizer: Any) -> Tokenizer | None:
    """Where special tokens are words of the model, a copy of it in which no text has their names; else None.

    Unigram and word models find a special token in a text as they find every word, told to split it or not.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.model, Unigram | WordLevel | WordPiece):
        return None
    state = json.loads(backend.to_str())
    model, special = state["model"], set(tokenizer.all_special_tokens)
    special |= {token["content"] for token in state["added_tokens"] if token["special"]}

    def unheard(name: str) -> str:
        return f"\ufdd0{name}" if name in special else name

    for token in state["added_tokens"]:
        token["content"] = unheard(token["content"])
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {unheard(name): index for name, index in vocabulary.items()}
        model["unk_token"] = unheard(model["unk_token"])
    else:
        model["vocab"] = [[unheard(name), score] for name, score in vocabulary]
    state["truncation"] = state["padding"] = state["post_processor"] = None
    return Tokenizer.from_str(json.dumps(state))


def cut_windows(
    stream: torch.Tensor,
    length: int,
    count: int | None,
    *,
    knob: str,
    bos: int | None = None,
    stride: int | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Cut `count` windows of `length` tokens from `stream` (T,); what does not fill a last window is left out.

    Args:
        stream: token ids.
        length: tokens per window, including `bos`.
        count: how many; None takes all.
        knob: the key that says how many, to blame in errors: `calibration.samples`, `eval.windows`,
            `method.training.distill.samples`.
        bos: token id to begin every window with.
        stride: how far a window begins after the one before it, in tokens of the stream; None: where that one ends.
        generator: draw windows at random offsets instead of taking the first ones.

    Raises:
        UserError: the text is too short.
    """
    body = length if bos is None else length - 1
    step = stride or body
    available = max(0, (len(stream) - body) // step + 1)
    wanted = available if count is None else count
    if available < max(wanted, 1):
        group = "eval" if knob.startswith("eval.") else knob.rpartition(".")[0]
        number = f"{knob}={wanted} ×" if available else "one window of"
        raise UserError(f"{group}: the text has {len(stream)} tokens, too few for {number} {group}.seq_len={length}")
    if generator is None:
        windows = stream.unfold(0, body, step)[:wanted]
    else:
        starts = torch.randint(len(stream) - body + 1, (wanted,), generator=generator)
        windows = stream[starts[:, None] + torch.arange(body)]
    return with_first(bos, windows)


def with_first(token: int | None, windows: torch.Tensor) -> torch.Tensor:
    """The windows (N, L), each with `token` before it (N, L + 1), unless it is None."""
    if token is not None:
        windows = torch.cat([torch.full((len(windows), 1), token), windows], dim=1)
    return windows.contiguous()


def scored_tokens(count: int, length: int, fresh: int) -> torch.Tensor:
    """Which tokens of `count` windows of `length` count, (count, length) bool: each token of the stream at most once.

    The first token of a window has nothing to be predicted from. Of the first window all others count, of later windows
    the last `fresh`, those that the window before did not hold.
    """
    scored = torch.zeros(count, length, dtype=torch.bool)
    scored[:, length - min(fresh, length - 1) :] = True
    scored[:1, 1:] = True
    return scored


def batch_windows(length: int) -> int:
    """How many windows of `length` tokens make a batch of at most TOKENS_PER_BATCH, or one."""
    return max(1, TOKENS_PER_BATCH // length)


def at_once(windows: torch.Tensor) -> int:
    """How many windows (N, L) make a batch: what TOKENS_PER_BATCH allows, or one where images lie unlike in them."""
    return batch_windows(windows.shape[1]) if together(windows) else 1


def batches(windows: torch.Tensor, size: int | None = None) -> Sequence[tuple[int, torch.Tensor]]:
    """(index of first window, windows (b, L)) pairs; `size` defaults to `at_once`."""
    size = size or at_once(windows)
    return [(start, windows[start : start + size]) for start in range(0, len(windows), size)]
