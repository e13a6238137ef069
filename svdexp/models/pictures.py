"""Images among tokens. A window that begins with one holds, where the model's image tokens go, the image's own number.

The number is negative, and made of what the model is given of the image: windows are tensors of ids as ever, which can
be cut, shuffled, dealt out and hashed, and those of two images differ. Where pictures are shown to a model, it gets its
own image tokens, and the images beside.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from svdexp.models.hooks import argument_hooks
from svdexp.runtime.errors import UserError


@dataclass(frozen=True)
class Picture:
    """An image as a model takes it.

    Attributes:
        prefix: the tokens that it stands in, (p,); `number` where the model has its image token.
        number: below 0.
        token: the model's image token.
        kinds: what the model wants to be told of each token, (p,) by name: 0 of text.
        tensors: all else that the model is given, by name, its first dimension that of images.
    """

    prefix: torch.Tensor
    number: int
    token: int
    kinds: Mapping[str, torch.Tensor]
    tensors: Mapping[str, torch.Tensor]


Pictures = dict[int, Picture]  # by their numbers


def picture(inputs: Mapping[str, torch.Tensor], token: int) -> Picture:
    """What a processor of transformers made of one image and no other text: `inputs`, for a batch of one."""
    ids = inputs["input_ids"][0]
    others = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    kinds = {name: value[0] for name, value in others.items() if value.shape == (1, len(ids)) and len(ids) > 1}
    tensors = {name: value for name, value in others.items() if name not in kinds}
    number = _number(tensors)
    return Picture(torch.where(ids == token, number, ids), number, token, kinds, tensors)


def _number(tensors: Mapping[str, torch.Tensor]) -> int:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return -1 - int.from_bytes(digest.digest()[:7])


def is_picture(windows: torch.Tensor) -> torch.Tensor:
    """Which ids stand for images; no text is there to be predicted."""
    return windows < 0


def without(pictures: Pictures, windows: torch.Tensor) -> torch.Tensor:
    """The windows with the model's image tokens in them, for a model to which no image is shown."""
    plain = windows.clone()
    for number in set(plain[is_picture(plain)].tolist()):
        plain[plain == number] = pictures[number].token
    return plain


@contextmanager
def showing(model: Any, pictures: Pictures) -> Iterator[None]:
    """Within this context the model sees these pictures in what it is given as ids."""

    def show(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        ids = args[0] if args else kwargs.get("input_ids")
        if not isinstance(ids, torch.Tensor) or not is_picture(ids).any():
            return args, kwargs
        ids, shown = shown_in(ids, pictures, model.dtype)
        return (ids, *args[1:]) if args else (), {**kwargs, **({} if args else {"input_ids": ids}), **shown}

    modules: dict[str, nn.Module] = {"model": model, "body": model.base_model}
    if not pictures:
        modules = {}
    with argument_hooks(modules, show):
        yield


def shown_in(ids: torch.Tensor, pictures: Pictures, dtype: torch.dtype) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The model's own ids for these, (b, L), and what it is given of the pictures in them, one at most in each row.

    Raises:
        UserError: pictures of one batch came out in different sizes.
    """
    found = [pictures[int(row.min())] if int(row.min()) < 0 else None for row in ids]
    plain = without(pictures, ids)
    seen = [one for one in found if one]
    kinds = {name: torch.zeros_like(ids) for one in seen for name in one.kinds}
    for index, one in enumerate(found):
        if one:
            for name, kind in one.kinds.items():
                kinds[name][index, : len(kind)] = kind.to(ids.device)[: ids.shape[1]]
    shown: dict[str, torch.Tensor] = {}
    for name in seen[0].tensors:
        parts = [one.tensors[name] for one in seen]
        if any(part.shape[1:] != parts[0].shape[1:] for part in parts):
            raise UserError(
                f"the processor makes {name} of different sizes of these images: give them one size, or "
                "eval.batch_size=1"
            )
        joined = torch.cat(parts).to(ids.device)
        shown[name] = joined.to(dtype) if joined.is_floating_point() else joined
    return plain, kinds | shown
