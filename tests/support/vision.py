"""A tiny image-text model in a folder, as a user has one, and two images with captions, drawn here."""

import json
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedModel,
)

from tests.conftest import LLAMA_LIKE, tiny_tokenizer

CAPTIONS = {"disc.png": "the rank of a matrix is its number of rows", "bars.png": "rows and columns of a matrix"}
SIZE, PATCH = 40, 8
TOKENS = (SIZE // PATCH) ** 2  # of an image


def tiny_llava(folder: Path, template: str | None = None) -> PreTrainedModel:
    """Saved into `folder` with its processor; an image is TOKENS tokens, and nothing else."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    vision = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**LLAMA_LIKE, num_key_value_heads=2),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForImageTextToText.from_config(config).eval().requires_grad_(False)
    images = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    strategy = {"patch_size": PATCH, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
    LlavaProcessor(images, tokenizer, chat_template=template, **strategy).save_pretrained(folder)
    model.save_pretrained(folder)
    return model


def two_images(folder: Path) -> Path:
    """A folder as `datasets` reads it: images, and metadata.jsonl with their captions."""
    folder.mkdir(parents=True)
    for name in CAPTIONS:
        image = Image.new("RGB", (24, 20), "white")
        draw = ImageDraw.Draw(image)
        if name == "disc.png":
            draw.ellipse((2, 2, 20, 18), fill="red")
        else:
            for left in range(0, 24, 6):
                draw.rectangle((left, 0, left + 2, 20), fill="blue")
        image.save(folder / name)
    lines = [json.dumps({"file_name": name, "text": caption}) for name, caption in CAPTIONS.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder
