"""Where a beginning-of-sequence token stands: as asked for, or as the model's tokenizer does of its own accord."""

import logging
from dataclasses import dataclass
from typing import Any

import torch

from svdexp.runtime.errors import UserError
from svdexp.schema import Bos

log = logging.getLogger(__name__)

FOLLOWING = {Bos.tokenizer: Bos.every, Bos.tokenizer_start: Bos.start}


@dataclass(frozen=True)
class Beginning:
    """What texts begin with: `mode` is none, every (window) or start (of the text), `token` the id, None with none."""

    mode: Bos
    token: int | None

    @property
    def of_windows(self) -> int | None:
        """The token that every window begins with, if there is one."""
        return self.token if self.mode is Bos.every else None

    def begun(self, stream: torch.Tensor) -> torch.Tensor:
        """The tokens of a text (T,), with the one that stands at its start: (T + 1,) or as they are."""
        return torch.cat([torch.tensor([self.token]), stream]) if self.mode is Bos.start else stream


def put_before(tokenizer: Any) -> list[int]:
    """What the tokenizer, called on a text, puts before it: BOS, one or several tokens of other names, or nothing."""
    text = "The 1"
    body = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    whole = tokenizer(text, verbose=False)["input_ids"]
    places = range(len(whole) - len(body) + 1)
    return list(whole[: next((place for place in places if whole[place : place + len(body)] == body), 0)])


def resolve_bos(mode: Bos, tokenizer: Any, knob: str = "eval.bos") -> Beginning:
    """What `mode`, the value of `knob`, comes to with this tokenizer.

    Where it follows a tokenizer that puts several tokens before a text, the last of them is taken.

    Raises:
        UserError: the tokenizer has no beginning-of-sequence token.
    """
    if mode in FOLLOWING:
        first = put_before(tokenizer)
        return Beginning(FOLLOWING[mode], first[-1]) if first else Beginning(Bos.none, None)
    if mode is Bos.none:
        return Beginning(mode, None)
    if tokenizer.bos_token_id is None:
        raise UserError(f"{knob}={mode.value}, but the model's tokenizer has no beginning-of-sequence token")
    return Beginning(mode, int(tokenizer.bos_token_id))


def warn_without_bos(mode: Bos, tokenizer: Any, knob: str) -> None:
    """Log a warning where BOS is switched off for a model whose tokenizer adds it, or several tokens become one."""
    first = put_before(tokenizer)
    if not first:
        return
    words = tokenizer.convert_ids_to_tokens(first)
    if mode is Bos.none:
        log.warning(
            "%s=none, but the model's tokenizer begins texts with %s: without it some models are far worse than they "
            "are; %s=tokenizer follows the tokenizer",
            *(knob, "".join(words), knob),
        )
    elif mode in FOLLOWING and len(first) > 1:
        log.warning(
            "the model's tokenizer begins texts with %s, of which %s gives %s alone", "".join(words), knob, words[-1]
        )
