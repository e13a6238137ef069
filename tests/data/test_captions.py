"""Windows of images with captions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer

from svdexp.data import Collection
from svdexp.data.captions import Captioned, Viewer, open_image, pairs_of, scored_captions, shown_by, windows_of
from svdexp.data.overlap import pictures_that_share
from svdexp.runtime.errors import UserError
from tests.support.vision import CAPTIONS, TOKENS, tiny_llava, two_images

TEMPLATE = (
    "{% for m in messages %}<s>{% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' else c['text'] }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} is {% endif %}"
)


@pytest.fixture(scope="module")
def model_with_eyes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    tiny_llava(folder)
    return folder


@pytest.fixture
def viewer(model_with_eyes: Path) -> Viewer:
    return viewer_in(model_with_eyes)


def viewer_in(folder: Path) -> Viewer:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    return Viewer(AutoProcessor.from_pretrained(folder), tokenizer, tokenizer.convert_tokens_to_ids("<image>"))


@pytest.fixture
def pairs(tmp_path: Path) -> list[Captioned]:
    return pairs_of(Collection(str(two_images(tmp_path / "images")), None, "train", "text"), "calibration")


def test_pairs_are_those_of_the_folder(pairs: list[Captioned]) -> None:
    assert {pair.caption for pair in pairs} == set(CAPTIONS.values())
    red = next(pair.image for pair in pairs if pair.caption == CAPTIONS["disc.png"])
    assert red.getpixel((11, 10)) == (255, 0, 0)


def test_a_window_that_calibrates(viewer: Viewer, pairs: list[Captioned]) -> None:
    """Image, caption, then captions as text, round and round."""
    windows = windows_of(pairs, viewer, 2, 40, "calibration")
    assert windows.shape == (2, 40)
    for index, window in enumerate(windows):
        numbers = window[window < 0].unique()
        (number,) = numbers.tolist()
        assert number in viewer.pictures
        assert int((window < 0).sum()) == TOKENS
        text = viewer.read("\n".join(pairs[(index + step) % 2].caption for step in range(6)))
        prefix = viewer.pictures[number].prefix
        assert window[: len(prefix)].tolist() == prefix.tolist()
        assert window[len(prefix) :].tolist() == text[: 40 - len(prefix)].tolist()
    assert windows[0].min() != windows[1].min()


def test_what_counts_of_captions(viewer: Viewer, pairs: list[Captioned]) -> None:
    ids, scored = scored_captions(pairs, viewer)
    for row, counts, pair in zip(ids, scored, pairs, strict=True):
        assert row[counts].tolist() == viewer.read(pair.caption).tolist()


def test_a_question_in_the_models_template(tmp_path: Path, pairs: list[Captioned]) -> None:
    tiny_llava(tmp_path / "model", template=TEMPLATE)
    asked = viewer_in(tmp_path / "model")
    prefix = asked.see(pairs[0].image, "the rank").prefix
    assert prefix[prefix >= 0].tolist() == [1, *asked.read("the rank is").tolist()]


def test_mistakes(viewer: Viewer, pairs: list[Captioned], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"calibration\.samples=3, but there are 2 images"):
        windows_of(pairs, viewer, 3, 40, "calibration")
    with pytest.raises(UserError, match=rf"calibration\.seq_len=20, but an image takes {TOKENS} tokens"):
        windows_of(pairs, viewer, 1, 20, "calibration")
    with pytest.raises(UserError, match="caption of image 0 is empty"):
        scored_captions([Captioned(pairs[0].image, "")], viewer)
    (tmp_path / "no.png").write_text("no image")
    with pytest.raises(UserError, match=r"eval\.prompts: .*no\.png cannot be read as an image"):
        open_image(tmp_path / "no.png", "eval.prompts")
    (tmp_path / "texts.jsonl").write_text('{"text": "no image"}')
    with pytest.raises(UserError, match="0 columns of images, not one"):
        pairs_of(Collection(str(tmp_path / "texts.jsonl"), None, "train", "text"), "eval")


@pytest.mark.parametrize("form", ["png", "tiff"])
def test_greys_of_sixteen_bits_keep_their_shades(tmp_path: Path, form: str) -> None:
    shades = np.array([[0, 300, 20000, 65535]], dtype=np.uint16)
    folder = two_images(tmp_path / "images")
    Image.fromarray(shades).save(folder / f"grey.{form}")
    lines = json.dumps({"file_name": f"grey.{form}", "text": "greys"})
    (folder / "metadata.jsonl").write_text(lines)
    (pair,) = pairs_of(Collection(str(folder), None, "train", "text"), "eval")
    for image in (pair.image, open_image(folder / f"grey.{form}", "eval.prompts")):
        assert np.asarray(image).tolist() == [[[0] * 3, [1] * 3, [78] * 3, [255] * 3]]


def test_a_prompts_image_is_prepared_once(
    viewer: Viewer, pairs: list[Captioned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs[0].image.save(tmp_path / "shown.png")
    first = viewer.asked(tmp_path / "shown.png", "the rank", "eval.prompts")
    assert first is viewer.pictures[first.number]
    monkeypatch.setattr(viewer, "see", None)
    assert viewer.asked(tmp_path / "shown.png", "the rank", "eval.prompts") is first
    with pytest.raises(TypeError):
        viewer.asked(tmp_path / "shown.png", "another question", "eval.prompts")


def test_images_that_cannot_be_read(tmp_path: Path) -> None:
    folder = two_images(tmp_path / "images")
    (folder / "disc.png").write_bytes((folder / "disc.png").read_bytes()[:40])
    found = Collection(str(folder), None, "train", "text")
    with pytest.raises(UserError, match=r"eval\.dataset=.*: image 0 cannot be read: "):
        pairs_of(found, "eval")


def test_no_more_images_are_read_than_asked_for(tmp_path: Path) -> None:
    folder = two_images(tmp_path / "images")
    (folder / "bars.png").write_bytes(b"no image")
    assert [pair.caption for pair in pairs_of(Collection(str(folder), None, "train", "text"), "eval", 1)] == [
        CAPTIONS["disc.png"]
    ]


def test_a_question_that_the_processor_does_not_take(viewer: Viewer, pairs: list[Captioned]) -> None:
    with pytest.raises(UserError, match="the model's processor takes no such image with 'the <image> rank'"):
        viewer.see(pairs[0].image, "the <image> rank")


def test_images_that_calibrate_and_evaluate(viewer: Viewer, pairs: list[Captioned]) -> None:
    both, _ = scored_captions(pairs, viewer)
    learnt = windows_of(pairs[:1], viewer, 1, 40, "calibration")
    assert pictures_that_share(both, learnt) == 1


def test_one_data_set_by_two_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = two_images(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    one, two = Collection(str(folder), None, "train", "text"), Collection("./images", None, "train", "text")
    assert one.is_also(two)
    assert not one.is_also(Collection("./images", None, "test", "text"))
    assert not one.is_also(Collection("somebody/else", None, "train", "text"))


def test_prompts_that_show_an_image() -> None:
    assert shown_by("<image:a b.png> What is it?") == (Path("a b.png"), "What is it?")
    assert shown_by("What is it?") == (None, "What is it?")
    for prompt in ("What is <image:a.png>?", "<image:a.png> and <image:b.png>"):
        with pytest.raises(UserError, match="a prompt shows one image, at its beginning"):
            shown_by(prompt)
