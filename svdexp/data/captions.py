"""Images with captions as token windows, each with one image at its start."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from svdexp.data.collections import Collection, in_colours
from svdexp.data.windows import tokenize
from svdexp.models.pictures import Picture, Pictures, is_picture, picture
from svdexp.runtime.errors import UserError, require

# A prompt that shows an image: "<image:FILE> text".
SHOWN = re.compile(r"^<image:(?P<file>[^>]+)>\s*")


def pairs_of(found: Collection, knob: str, count: int | None = None) -> "list[Captioned]":
    """The images of a data set with their captions, the first `count` of them; all for None.

    Raises:
        UserError: as `Collection.captioned`.
    """
    return [Captioned(image, caption) for image, caption in found.captioned(knob, count)]


class Captioned(NamedTuple):
    """An image, as PIL has it, and what is said of it."""

    image: Any
    caption: str


class Viewer:
    """A model's processor of images, and all pictures that it made.

    Attributes:
        pictures: by their numbers.
    """

    def __init__(self, processor: Any, tokenizer: Any, token: int):
        """`token` is the one where the model puts images."""
        self._processor, self._tokenizer, self._token = processor, tokenizer, token
        self.pictures: Pictures = {}
        self._asked: dict[tuple[Path, str], Picture] = {}

    def see(self, image: Any, question: str = "") -> Picture:
        """The picture of a PIL image, in the chat template's turn of a user, if there is one, who asks `question`."""
        try:
            inputs = self._inputs(image, question)
        except Exception as error:  # a processor's own, of many types
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"the model's processor takes no such image with {question!r}: {reason}") from error
        found = picture({name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}, self._token)
        self.pictures[found.number] = found
        return found

    def asked(self, file: Path, question: str, knob: str) -> Picture:
        """The picture of an image file about which there is a `question`, prepared once; blames `knob`.

        Raises:
            UserError: it cannot be read, or the processor does not take it.
        """
        if (file, question) not in self._asked:
            self._asked[file, question] = self.see(open_image(file, knob), question)
        return self._asked[file, question]

    def _inputs(self, image: Any, question: str) -> Any:
        processor = self._processor
        if getattr(processor, "chat_template", None):
            content = [{"type": "image", "image": image}] + ([{"type": "text", "text": question}] if question else [])
            turn: Any = [{"role": "user", "content": content}]
            how = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
            return processor.apply_chat_template(turn, **how)
        mark = getattr(processor, "boi_token", None) or processor.image_token
        return processor(text=[f"{mark}{question}"], images=[[image]], return_tensors="pt")

    def read(self, text: str) -> torch.Tensor:
        """Its tokens, (T,)."""
        return tokenize(text, self._tokenizer)


def windows_of(pairs: Sequence[Captioned], viewer: Viewer, count: int, length: int, knob: str) -> torch.Tensor:
    """(count, length) ids that calibrate: an image and its caption, filled up with the captions after it, as text.

    Raises:
        UserError: there are fewer pairs, or an image alone takes a whole window.
    """
    require(len(pairs) >= count, f"{knob}.samples={count}, but there are {len(pairs)} images with captions")
    captions = [viewer.read(f"{pair.caption}\n") for pair in pairs]
    windows = []
    for index, pair in enumerate(pairs[:count]):
        prefix = viewer.see(pair.image).prefix
        require(len(prefix) < length, f"{knob}.seq_len={length}, but an image takes {len(prefix)} tokens")
        window, after = [prefix], index
        while sum(map(len, window)) < length:
            window.append(captions[after % len(pairs)])
            after += 1
        windows.append(torch.cat(window)[:length])
    return torch.stack(windows)


def scored_captions(pairs: Sequence[Captioned], viewer: Viewer) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (N, L), each an image and its caption, filled up with what no one looks at, and which are captions' (N, L).

    Raises:
        UserError: a caption is empty.
    """
    windows, lengths = [], []
    for index, pair in enumerate(pairs):
        prefix, caption = viewer.see(pair.image).prefix, viewer.read(pair.caption)
        require(len(caption) > 0, f"eval.texts, images: the caption of image {index} is empty")
        windows.append(torch.cat([prefix, caption]))
        lengths.append((len(prefix), len(prefix) + len(caption)))
    ids = torch.nn.utils.rnn.pad_sequence(windows, batch_first=True)
    places = torch.arange(ids.shape[1])
    scored = torch.stack([(places >= first) & (places < last) for first, last in lengths])
    return ids, scored & ~is_picture(ids)


def shown_by(prompt: str) -> tuple[Path | None, str]:
    """The image file that a prompt shows, if any, and the text of the prompt.

    Raises:
        UserError: it shows another one, or one elsewhere.
    """
    found = SHOWN.match(prompt)
    text = prompt[found.end() :] if found else prompt
    require("<image:" not in text, f"eval.prompts, {prompt!r}: a prompt shows one image, at its beginning")
    return (Path(found["file"]).expanduser(), text) if found else (None, text)


def open_image(path: Path, knob: str) -> Any:
    """The image in a file, as PIL has it.

    Raises:
        UserError: it cannot be read; blames `knob`.
    """
    from PIL import Image, ImageOps

    try:
        return in_colours(ImageOps.exif_transpose(Image.open(path)))
    except (OSError, ValueError) as error:
        raise UserError(f"{knob}: {path} cannot be read as an image: {error}") from error
