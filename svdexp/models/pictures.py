"""Images among tokens. A window that begins with one holds, where the model's image tokens go, the image's own number.

The number is negative, and made of what the model is given of the image: windows are tensors of ids as ever, which can
be shuffled, dealt out and hashed, and those of two images differ. Where pictures are shown to a model, it gets its own
image tokens, and the images beside. A window is never cut within an image.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
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
LAYOUTS = 1 << 16  # a number says in its last digits how the picture lies in its window


def picture(inputs: Mapping[str, torch.Tensor], token: int) -> Picture:
    """What a processor of transformers made of one image and no other text: `inputs`, for a batch of one."""
    ids = inputs["input_ids"][0]
    others = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    kinds = {name: value[0] for name, value in others.items() if name.endswith("token_type_ids")}
    tensors = {name: value for name, value in others.items() if name not in kinds}
    sizes = {name: x if not x.is_floating_point() else torch.tensor(x.shape) for name, x in tensors.items()}
    layout = _digest(sizes | kinds | {"places": (ids == token).nonzero()}, LAYOUTS)
    number = -1 - (_digest(tensors, 1 << 46) * LAYOUTS + layout)
    return Picture(torch.where(ids == token, number, ids), number, token, kinds, tensors)


def _digest(tensors: Mapping[str, torch.Tensor], below: int) -> int:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.numpy().tobytes())
    return int.from_bytes(digest.digest()) % below


def is_picture(windows: torch.Tensor) -> torch.Tensor:
    """Which ids stand for images; no text is there to be predicted."""
    return windows < 0


def without(pictures: Pictures, windows: torch.Tensor) -> torch.Tensor:
    """The windows with the model's image tokens in them, for a model to which no image is shown."""
    plain = windows.clone()
    for number in set(plain[is_picture(plain)].tolist()):
        plain[plain == number] = pictures[number].token
    return plain


def in_short(windows: torch.Tensor, tokens: int) -> torch.Tensor:
    """The first window, (1, ≤ L): its first `tokens`, or all of it where there is an image in it."""
    return windows[:1] if is_picture(windows[:1]).any() else windows[:1, :tokens]


def representatives(windows: torch.Tensor) -> list[torch.Tensor]:
    """The last of the windows (N, L), and one of each other way in which an image lies in them."""
    layouts = (-1 - windows.amin(1)).where(is_picture(windows).any(1), torch.tensor(-1)).remainder(LAYOUTS).tolist()
    return list(dict(zip(layouts, windows, strict=True)).values())


def together(windows: torch.Tensor) -> bool:
    """Whether the windows can go through a model in one batch: their images, if there are any, lie in them alike."""
    return not is_picture(windows).any() or len(representatives(windows)) == 1


def forget_positions(shifted: Iterable[nn.Module]) -> None:
    """Let modules whose positions depend on images (M-RoPE) not go on with those of the one before."""
    for module in shifted:
        module.rope_deltas = None  # type: ignore[assignment]


@contextmanager
def showing(model: Any, pictures: Pictures) -> Iterator[None]:
    """Within this context the model sees these pictures in what it is given as ids."""
    if not pictures:
        yield
        return
    shifted = [module for module in model.modules() if hasattr(module, "rope_deltas")]

    def show(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        ids = args[0] if args else kwargs.get("input_ids")
        cache = kwargs.get("past_key_values")
        if cache is None or not cache.get_seq_length():
            forget_positions(shifted)
        if not isinstance(ids, torch.Tensor) or not is_picture(ids).any():
            return args, kwargs
        ids, shown = shown_in(ids, pictures, model.dtype)
        return (ids, *args[1:]) if args else (), {**kwargs, **({} if args else {"input_ids": ids}), **shown}

    modules: dict[str, nn.Module] = {"model": model, "body": model.base_model}
    try:
        with argument_hooks(modules, show):
            yield
    finally:
        forget_positions(shifted)


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
                f"the processor makes {name} of different sizes of these images: eval.batch_size=1 takes one at a time"
            )
        joined = torch.cat(parts).to(ids.device)
        shown[name] = joined.to(dtype) if joined.is_floating_point() else joined
    return plain, kinds | shown
