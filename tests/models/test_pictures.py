"""What a model is shown is what its own processor would give it, row by row."""

import copy

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, DynamicCache, PreTrainedModel, Qwen2_5_VLConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from svdexp.allocation import Uniform
from svdexp.calibration.dense import collect
from svdexp.calibration.loss import next_token_loss
from svdexp.data import batches
from svdexp.engine.compress import compress
from svdexp.engine.plan import plan
from svdexp.evaluation import perplexity
from svdexp.factorisation import InputMoment
from svdexp.method import Method
from svdexp.models.hooks import input_hooks
from svdexp.models.matrices import layers_of
from svdexp.models.path import Replay
from svdexp.models.pictures import (
    LAYOUTS,
    Picture,
    Pictures,
    in_short,
    is_picture,
    picture,
    representatives,
    showing,
    together,
    without,
)
from svdexp.models.structure import Targets, find_blocks, find_matrices, other_stacks, outside
from svdexp.runtime.errors import UserError
from svdexp.storage import FactorStorage
from svdexp.update import RefitOutput
from tests.conftest import LLAMA_LIKE, VOCABULARY

IMAGE, LENGTH = 90, 30
TURNS = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}


@pytest.fixture(scope="module")
def qwen() -> PreTrainedModel:
    """Images of any size in it, and positions that depend on them."""
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32}
    vision |= {"patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1]}
    text = LLAMA_LIKE | {"num_key_value_heads": 2, "head_dim": 8, "rope_parameters": TURNS}
    tokens = {"image_token_id": IMAGE, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForImageTextToText.from_config(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens)
    )
    return model.eval().requires_grad_(False)


def processed(size: tuple[int, int], seed: int) -> dict[str, torch.Tensor]:
    """What Qwen's processor gives of an image alone."""
    pixels = torch.randint(256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed))
    image = Image.fromarray(pixels.to(torch.uint8).numpy())
    found = Qwen2VLImageProcessorPil(patch_size=4, min_pixels=64, max_pixels=1000)(images=[image], return_tensors="pt")
    count = int(found["image_grid_thw"].prod()) // 4
    ids = torch.tensor([[5, 92] + [IMAGE] * count + [93]])
    return dict(found) | {"input_ids": ids, "attention_mask": ids * 0 + 1, "mm_token_type_ids": (ids == IMAGE).int()}


@pytest.fixture(scope="module")
def inputs() -> list[dict[str, torch.Tensor]]:
    return [processed((24, 20), 1), processed((24, 36), 2)]


def rows_of(pictures: list[Picture]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.stack(
        [
            torch.cat([one.prefix, torch.randint(80, (LENGTH - len(one.prefix),), generator=generator)])
            for one in pictures
        ]
    )


@torch.no_grad()
def test_a_batch_sees_what_each_row_would_be_given(
    qwen: PreTrainedModel, inputs: list[dict[str, torch.Tensor]]
) -> None:
    made = [picture(one, IMAGE) for one in inputs]
    pictures: Pictures = {one.number: one for one in made}
    rows = rows_of(made)
    with showing(qwen, pictures):
        together = qwen(rows, use_cache=False).logits
        states = qwen.base_model(rows, use_cache=False).last_hidden_state
    torch.testing.assert_close(qwen.get_output_embeddings()(states), together)
    for row, given, found in zip(rows, inputs, together, strict=True):
        kinds = torch.zeros(1, LENGTH, dtype=torch.int)
        kinds[0, : given["input_ids"].shape[1]] = given["mm_token_type_ids"][0]
        tokens = without(pictures, row[None])
        assert int(tokens.min()) >= 0
        assert int((tokens == IMAGE).sum()) == int((given["input_ids"] == IMAGE).sum())
        others = {name: given[name] for name in ("pixel_values", "image_grid_thw")}
        expected = qwen(input_ids=tokens, mm_token_type_ids=kinds, use_cache=False, **others).logits
        torch.testing.assert_close(found, expected[0], rtol=0, atol=1e-6)
        blind = qwen(input_ids=tokens, use_cache=False).logits
        assert (expected - blind).abs().max() > 0.05


@torch.no_grad()
def test_rows_of_text_alone_stay_what_they_are(qwen: PreTrainedModel, inputs: list[dict[str, torch.Tensor]]) -> None:
    one = picture(inputs[0], IMAGE)
    text = torch.randint(80, (1, LENGTH), generator=torch.Generator().manual_seed(2))
    with showing(qwen, {one.number: one}):
        mixed = qwen(torch.cat([rows_of([one]), text]), use_cache=False).logits
    torch.testing.assert_close(mixed[1:], qwen(text, use_cache=False).logits, rtol=0, atol=1e-6)


def test_nothing_is_shown_afterwards(qwen: PreTrainedModel, inputs: list[dict[str, torch.Tensor]]) -> None:
    one = picture(inputs[0], IMAGE)
    with pytest.raises(ZeroDivisionError), showing(qwen, {one.number: one}):
        raise ZeroDivisionError
    with pytest.raises(IndexError):  # a negative id is none
        qwen(rows_of([one]), use_cache=False)


def test_numbers_tell_images_apart(inputs: list[dict[str, torch.Tensor]]) -> None:
    one, two, again = (picture(one, IMAGE).number for one in (inputs[0], inputs[1], processed((24, 20), 1)))
    assert one == again != two
    assert picture(processed((24, 20), 2), IMAGE).number not in (one, two)
    assert max(one, two) < 0


def test_images_of_different_sizes_in_one_batch() -> None:
    def made(size: int) -> Picture:
        tensors = {"pixel_values": torch.zeros(1, 3, size, size)}
        return Picture(torch.tensor([-size, -size]), -size, IMAGE, {}, tensors)

    model = torch.nn.Linear(1, 1)
    model.base_model, model.dtype = torch.nn.Identity(), torch.float32
    with showing(model, {-8: made(8), -9: made(9)}), pytest.raises(UserError, match="different sizes"):
        model(torch.tensor([[-8, -8], [-9, -9]]))


def test_no_loss_is_of_an_image() -> None:
    logits = torch.randn(2, 6, VOCABULARY, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[1, -7, -7, 4, 5, 6], [1, 2, 3, 4, 5, 6]])
    loss = torch.nn.functional.cross_entropy
    expected = loss(logits[0, 2:-1], tokens[0, 3:], reduction="sum") + loss(
        logits[1, :-1], tokens[1, 1:], reduction="sum"
    )
    torch.testing.assert_close(next_token_loss(logits, tokens), expected)
    assert is_picture(tokens).tolist() == (tokens == -7).tolist()


def test_the_blocks_are_the_language_models(qwen: PreTrainedModel) -> None:
    """Though the tower has more parameters."""
    tower = {"depth": 8, "hidden_size": 64, "intermediate_size": 256, "num_heads": 4, "out_hidden_size": 32}
    config = Qwen2_5_VLConfig(text_config=qwen.config.text_config.to_dict(), vision_config=tower | {"patch_size": 4})
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    assert find_blocks(model)[0] == "model.language_model.layers"
    sizes = [sum(x.numel() for x in part.parameters()) for part in (model.model.visual, model.model.language_model)]
    assert sizes[0] > sizes[1]


def test_calibration_sees_them(qwen: PreTrainedModel, inputs: list[dict[str, torch.Tensor]]) -> None:
    """The moment of a layer's inputs, with gradients on and off, is that of the model's own passes over the images."""
    made = [picture(one, IMAGE) for one in inputs]
    pictures: Pictures = {one.number: one for one in made}
    rows, layers = rows_of(made), find_matrices(qwen, Targets(include=["*layers.1.mlp.down_proj"]))
    seen: list[torch.Tensor] = []
    with input_hooks(layers_of(qwen, layers), lambda name, x: seen.append(x[0].double())), torch.no_grad():
        for row, given in zip(rows, inputs, strict=True):
            kinds = torch.zeros(1, LENGTH, dtype=torch.int)
            kinds[0, : given["input_ids"].shape[1]] = given["mm_token_type_ids"][0]
            others = {name: given[name] for name in ("pixel_values", "image_grid_thw")}
            qwen(input_ids=without(pictures, row[None]), mm_token_type_ids=kinds, use_cache=False, **others)
    expected = torch.cat(seen).T @ torch.cat(seen) / (2 * LENGTH)
    for needs in (["gram"], ["gram", "grad_gram"]):
        with showing(qwen, pictures):
            (found,) = collect(qwen, layers, rows, needs).values()
        torch.testing.assert_close(found["gram"].double(), expected, rtol=1e-4, atol=1e-8)


def test_the_tower_is_compressed_where_it_is_meant(
    qwen: PreTrainedModel, inputs: list[dict[str, torch.Tensor]]
) -> None:
    """Under the moments of its own inputs, each of its matrices has the least loss of its rank."""
    made = [picture(one, IMAGE) for one in inputs]
    pictures: Pictures = {one.number: one for one in made}
    rows, targets = rows_of(made), Targets(include=["*visual.blocks.*"])
    model = copy.deepcopy(qwen)
    layers = find_matrices(model, targets)
    assert {layer.group for layer in layers} == {"model.visual.blocks.0", "model.visual.blocks.1"}
    assert not other_stacks(model, targets)
    assert other_stacks(model, Targets())
    with showing(model, pictures):
        moments = collect(model, layers, rows, ["gram"])
        done = compress(model, rows, Method("svd_llm", InputMoment(), Uniform(), FactorStorage()), 0.6, targets=targets)
        assert model(rows, use_cache=False).logits.isfinite().all()
    assert done.ranks.keys() == {layer.name for layer in layers}
    for layer in layers:
        W, A = layer.weight(qwen).double(), layer.weight(model).double()
        energies, V = torch.linalg.eigh(moments[layer.name]["gram"].double())
        root = V * energies.clamp_min(0).sqrt()
        tail = torch.linalg.svdvals(W @ root)[done.ranks[layer.name] :].square().sum()
        torch.testing.assert_close(((W - A) @ root).square().sum(), tail, rtol=1e-3, atol=1e-12)


def test_what_goes_block_by_block_does_not_reach_the_tower(qwen: PreTrainedModel) -> None:
    method = Method("svd_llm_update", InputMoment(), Uniform(), FactorStorage(), update=RefitOutput())
    with pytest.raises(UserError, match=r"RefitOutput goes block by block, and model\.visual\.blocks\.0"):
        plan(qwen, method, 0.6, Targets(include=["*", "*visual*"]))


@torch.no_grad()
def test_positions_of_one_image_do_not_outlive_it(qwen: PreTrainedModel, inputs: list[dict[str, torch.Tensor]]) -> None:
    """With M-RoPE the model keeps by how much an image shifted them, and adds it to what comes without positions."""
    made = [picture(one, IMAGE) for one in inputs]
    pictures: Pictures = {one.number: one for one in made}
    text = torch.randint(80, (1, LENGTH), generator=torch.Generator().manual_seed(2))
    expected = qwen(text, past_key_values=DynamicCache(config=qwen.config), use_cache=True).logits
    with showing(qwen, pictures):
        qwen(rows_of(made), use_cache=False)
        found = qwen(text, past_key_values=DynamicCache(config=qwen.config), use_cache=True).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        qwen(rows_of(made), use_cache=False)
    after = qwen(text, past_key_values=DynamicCache(config=qwen.config), use_cache=True).logits
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_positions_are_forgotten_where_something_fails(
    qwen: PreTrainedModel, inputs: list[dict[str, torch.Tensor]]
) -> None:
    made = [picture(one, IMAGE) for one in inputs]

    def fail() -> None:
        qwen(rows_of(made), use_cache=False)
        assert qwen.model.rope_deltas is not None
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), showing(qwen, {one.number: one for one in made}):
        fail()
    assert qwen.model.rope_deltas is None


@torch.no_grad()
def test_modules_with_positions_are_looked_for_once(
    qwen: PreTrainedModel, inputs: list[dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = picture(inputs[0], IMAGE)
    with showing(qwen, {one.number: one}):
        monkeypatch.setattr(type(qwen), "modules", None)
        qwen(rows_of([one]), use_cache=False)


def test_a_pattern_that_names_the_projector_is_answered(qwen: PreTrainedModel) -> None:
    """Where it names something in the blocks as well, or everything, it says nothing of what lies outside."""
    named = outside(qwen, Targets(include=["*", "*merger.mlp*"]))
    assert named == {
        "are in none of the blocks, outside which only targets.lm_head takes one": [
            "model.visual.merger.mlp.0",
            "model.visual.merger.mlp.2",
        ]
    }
    method = Method("svd_llm", InputMoment(), Uniform(), FactorStorage())
    assert named.items() <= plan(qwen, method, 0.6, Targets(include=["*", "*merger.mlp*"])).left_dense.items()
    assert not outside(qwen, Targets())
    assert not outside(qwen, Targets(include=["*", "*merger*"], exclude=["*merger*"]))
    assert outside(qwen, Targets(include=["*", "lm_head"]))
    assert not outside(qwen, Targets(include=["*", "lm_head"], lm_head=True))


def test_blocks_are_not_replayed_where_one_image_lies_otherwise(qwen: PreTrainedModel) -> None:
    """Between two alike."""
    made = [picture(processed(size, seed), IMAGE) for seed, size in enumerate([(24, 20), (24, 36), (24, 20)])]
    rows = rows_of(made)
    with showing(qwen, {one.number: one for one in made}):
        with pytest.raises(UserError, match="cannot be replayed alone"):
            Replay(qwen, rows)
        Replay(qwen, rows[[0, 2]])


def test_what_goes_together() -> None:
    alike, other, text = torch.tensor([-1, 5]), torch.tensor([-2, 5]), torch.tensor([4, 5])
    same = torch.tensor([-1 - LAYOUTS, 5])
    assert together(torch.stack([text, text]))
    assert together(torch.stack([alike, same]))
    assert not together(torch.stack([alike, other]))
    assert not together(torch.stack([alike, text]))
    assert [len(batch) for _, batch in batches(torch.stack([alike, same]))] == [2]
    assert [len(batch) for _, batch in batches(torch.stack([alike, other]))] == [1, 1]
    assert [row.tolist() for row in representatives(torch.stack([alike, other, same]))] == [same.tolist(), [-2, 5]]
    assert in_short(torch.stack([text, alike]), 1).tolist() == [[4]]
    assert in_short(torch.stack([alike, text]), 1).tolist() == [[-1, 5]]


def test_no_trial_counts_an_image(qwen: PreTrainedModel, inputs: list[dict[str, torch.Tensor]]) -> None:
    made = [picture(one, IMAGE) for one in inputs]
    rows = rows_of(made)
    with showing(qwen, {one.number: one for one in made}):
        found = perplexity(qwen, rows, what=None)
        with torch.no_grad():
            logits = [qwen(row[None], use_cache=False).logits[0, :-1] for row in rows]
    loss = torch.nn.functional.cross_entropy
    expected = [
        loss(one[row[1:] >= 0], row[1:][row[1:] >= 0], reduction="sum") for one, row in zip(logits, rows, strict=True)
    ]
    assert found.tokens == int((rows[:, 1:] >= 0).sum())
    assert found.value == pytest.approx(float((torch.stack(expected).sum() / found.tokens).exp()), rel=1e-5)
