"""An image-text model from the command line: calibrated on images, measured on captions, asked, saved, exported."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

import svdexp
from tests.end_to_end import forked
from tests.end_to_end.conftest import Svdexp, read
from tests.end_to_end.test_bad_input import assert_one_sentence
from tests.support.vision import CAPTIONS, tiny_llava, two_images

pytestmark = pytest.mark.any_format

DISC = next(iter(CAPTIONS))


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """One image calibrates, the other one evaluates, and the first one is asked about."""
    tiny_llava(tmp_path / "model")
    images = two_images(tmp_path / "images")
    return [
        *(f"model.path={tmp_path / 'model'}", "tracker=none", "cache=cache", "precision=float32"),
        *("calibration=images", f"calibration.dataset={images}", 'calibration.split="train[:1]"'),
        *("calibration.samples=1", "calibration.seq_len=48"),
        *("eval.texts=[images]", f"eval.dataset={images}", 'eval.split="train[1:]"', "eval.windows=1"),
        *("eval.efficiency=null", f'eval.prompts=["<image:{images / DISC}>the rank"]'),
        *("method=svd_llm", "ratio=0.6", "hydra.run.dir=run"),
    ]


def given(processor: Any, folder: Path, name: str, text: str) -> Any:
    image = Image.open(folder / name).convert("RGB")
    return processor(text=[f"<image>{text}"], images=[[image]], return_tensors="pt")


@torch.no_grad()
def caption_perplexity(model: Any, processor: Any, folder: Path, name: str, caption: str) -> float:
    """By hand, from what the processor makes of image and caption in one."""
    inputs = given(processor, folder, name, caption)
    count = len(processor.tokenizer(caption, add_special_tokens=False)["input_ids"])
    logits, ids = model(**inputs).logits[0].float(), inputs["input_ids"][0]
    return float(nn.functional.cross_entropy(logits[-count - 1 : -1], ids[-count:]).exp())


@torch.no_grad()
def answer(model: Any, processor: Any, folder: Path, name: str, question: str) -> str:
    inputs = given(processor, folder, name, question)
    said = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    ends = (said == processor.tokenizer.eos_token_id).nonzero()
    return str(processor.tokenizer.decode(said[: int(ends[0])] if len(ends) else said))


def test_a_run_and_what_follows(svdexp_command: Svdexp, words: list[str], tmp_path: Path) -> None:
    run = svdexp_command(*words)
    assert run.returncode == 0, run.stderr
    results, images = read(tmp_path / "run"), tmp_path / "images"
    _, (measured, caption) = CAPTIONS.items()
    assert results["reload_max_logit_difference"] == 0

    processor = AutoProcessor.from_pretrained(tmp_path / "run" / "checkpoint")
    loaded: Any = AutoModelForImageTextToText
    dense = loaded.from_pretrained(tmp_path / "model", dtype=torch.float32)
    plain = loaded.from_pretrained(tmp_path / "run" / "checkpoint", trust_remote_code=True, dtype=torch.float32)
    ours, _ = svdexp.load(tmp_path / "run", dtype=torch.float32)
    expected = caption_perplexity(plain, processor, images, measured, caption)
    assert results["ppl/images"] == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(caption_perplexity(dense, processor, images, measured, caption), rel=1e-4)
    (said,) = results["generation"]
    for model, key in ((dense, "dense"), (plain, "compressed"), (ours, "compressed")):
        assert answer(model, processor, images, DISC, "the rank") == said[key]

    assert "AutoModelForImageTextToText" in (tmp_path / "run" / "checkpoint" / "config.json").read_text()
    for form in ("hf", "dense"):
        out = forked.run(tmp_path, ["path=run", f"to={form}", f"format={form}"], program="svdexp.export")
        assert out.returncode == 0, out.stderr
        readme = (tmp_path / form / "README.md").read_text()
        assert "AutoModelForCausalLM" not in readme
        assert "processor = AutoProcessor" in readme
        theirs = loaded.from_pretrained(tmp_path / form, trust_remote_code=form == "hf", dtype=torch.float32)
        again = AutoProcessor.from_pretrained(tmp_path / form)
        assert answer(theirs, again, images, DISC, "the rank") == said["compressed"]

    job = ["path=run", *(word for word in words if word.startswith("eval.")), "precision=float32", "cache=null"]
    alone = forked.run(tmp_path, [*job, "hydra.run.dir=alone"], program="svdexp.evaluate")
    assert alone.returncode == 0, alone.stderr
    assert read(tmp_path / "alone")["ppl/images"] == pytest.approx(results["ppl/images"], rel=1e-6)


@pytest.mark.parametrize("part", ["method=asvd", "method=kron", "method.traversal=blockwise"])
def test_other_methods_see_images_too(svdexp_command: Svdexp, words: list[str], part: str, tmp_path: Path) -> None:
    """Also those that try ranks, take gradients, or go block by block; the tower with them where that goes."""
    tower = [] if "blockwise" in part else ["targets.include=['*','*vision_tower*']"]
    run = svdexp_command(*words, part, *tower, "eval.prompts=[]")
    assert run.returncode == 0, run.stderr
    assert read(tmp_path / "run")["reload_max_logit_difference"] == 0


def test_another_image_is_another_run(svdexp_command: Svdexp, words: list[str], tmp_path: Path) -> None:
    """Under the same name, beside the data set."""
    Image.new("RGB", (9, 9), "green").save(tmp_path / "shown.png")
    shown = [*words, f'eval.prompts=["<image:{tmp_path / "shown.png"}>the rank"]']
    assert svdexp_command(*shown).returncode == 0
    assert "finished already" in svdexp_command(*shown).stdout
    Image.new("RGB", (9, 9), "black").save(tmp_path / "shown.png")
    assert "finished already" not in svdexp_command(*shown).stdout


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (["method=dobi"], "calibration=images: method/allocation learns from windows of text"),
        (["+method/training@method.training.distill=distill"], "calibration=images: method.training.distill learns"),
        (['eval.prompts=["<image:gone.png>what"]'], "eval.prompts: gone.png is not a file"),
        (['calibration.split="train[1:]"'], "what calibrates or trains cannot evaluate"),
        (["calibration.sampling=random"], "calibration.sampling=random: images are taken in order"),
        (["+eval.rows_by_text.images=1"], "eval.rows_by_text.images has no effect"),
    ],
)
def test_mistakes(svdexp_command: Svdexp, words: list[str], changed: list[str], sentence: str) -> None:
    assert_one_sentence(svdexp_command(*words, *changed), sentence)


def test_a_model_without_eyes(svdexp_command: Svdexp, words: list[str], model_folder: Path) -> None:
    blind = [word for word in words if not word.startswith("model.path")]
    assert_one_sentence(svdexp_command(*blind, f"model.path={model_folder}"), "has no processor of images")


def test_python_takes_no_images(words: list[str], tmp_path: Path) -> None:
    given = [word for word in words if word.startswith("calibration.")]
    with pytest.raises(svdexp.UserError, match="calibration='images' is for the command line"):
        svdexp.compress(str(tmp_path / "model"), method="svd_llm", ratio=0.6, calibration="images", overrides=given)
