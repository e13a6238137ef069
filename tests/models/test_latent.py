"""The cache that keeps A x: equal tokens, bytes, whatever a cache is put through, and what it is refused for."""

import copy
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, PreTrainedModel, Qwen3Config
from transformers.cache_utils import DynamicLayer

from svdexp.checkpoints import checkpoint
from svdexp.models.portable.svdexp_latent import LatentCache, LatentLayer, attentions
from svdexp.storage import FactorStorage, PivotStorage, RemapStorage, RTNStorage, Storage
from tests.conftest import LLAMA_LIKE, tiny_model
from tests.support.shrunk import shrunk, truncated

STORAGES = {"factors": FactorStorage(), "pivot": PivotStorage(), "remap": RemapStorage(), "rtn": RTNStorage(8, None)}


def small(name: str = "llama", storage: Storage = STORAGES["factors"]) -> PreTrainedModel:
    return shrunk(name, storage, torch.float32)[0]


def generated(model: PreTrainedModel, tokens: torch.Tensor, cache: Any, **how: Any) -> torch.Tensor:
    how = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None, "pad_token_id": 0} | how
    found: torch.Tensor = model.generate(tokens, past_key_values=cache, **how)
    return found


def plain(model: PreTrainedModel) -> DynamicCache:
    return DynamicCache(config=model.config)


def held(cache: DynamicCache) -> int:
    parts = [getattr(layer, part, None) for layer in cache.layers for part in ("keys", "values", "positions")]
    return sum(part.nbytes for part in parts if part is not None)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("name", ["llama", "llama_gqa", "qwen2", "opt"])
def test_equal_tokens_of_fewer_bytes(name: str, storage: str, windows: torch.Tensor) -> None:
    model = small(name, STORAGES[storage])
    theirs, ours = plain(model), LatentCache(model)
    assert torch.equal(generated(model, windows, ours), generated(model, windows, theirs))
    with torch.no_grad():
        step = [model(windows[:, :1], past_key_values=cache).logits for cache in (ours, theirs)]
    torch.testing.assert_close(*step, rtol=1e-3, atol=1e-4)
    assert ours.get_seq_length() == theirs.get_seq_length() == 40
    shapes = [layer.pair_shape for x in attentions(model).values() for layer in (x.k_proj, x.v_proj)]
    positions = 0 if name == "opt" else 6 * 40 * 4 * len(attentions(model))
    kept = 6 * 40 * sum(rank for rank, _ in shapes) * 4
    assert held(ours) == kept + positions
    assert held(theirs) == 6 * 40 * sum(width for _, width in shapes) * 4


def test_a_padded_batch_has_positions_of_its_own(windows: torch.Tensor) -> None:
    model = small("qwen2")
    mask = torch.ones_like(windows)
    mask[0, :5] = mask[2, :11] = 0
    found = [
        generated(model, windows, cache, attention_mask=mask, max_new_tokens=20)
        for cache in (LatentCache(model), plain(model))
    ]
    assert torch.equal(*found)


def test_continued(windows: torch.Tensor) -> None:
    """A second turn, of several tokens, and copies of a conversation that part from there."""
    model = small()
    cache = LatentCache(model)
    first = generated(model, windows[:1], cache, max_new_tokens=5)
    for more in (windows[1:2, :6], windows[2:3, :3]):
        turn = torch.cat([first, more], dim=-1)
        branch = copy.deepcopy(cache)
        found = generated(model, turn, branch, max_new_tokens=7)
        assert torch.equal(found, generated(model, turn, plain(model), max_new_tokens=7))
    assert cache.get_seq_length() == first.shape[1] - 1


def test_beams_crops_and_rows(windows: torch.Tensor) -> None:
    model = small("llama_gqa")
    how: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 10}
    assert torch.equal(*(generated(model, windows, c, **how) for c in (LatentCache(model), plain(model))))
    steps = []
    positions = (torch.arange(24) + torch.arange(6)[:, None]).clamp(min=0)  # of each row others
    for cache in (LatentCache(model), plain(model)):
        with torch.no_grad():
            model(windows, position_ids=positions, past_key_values=cache)
            cache.crop(-5)
            cache.batch_select_indices(torch.tensor([4, 1]))
            cache.batch_repeat_interleave(2)
            cache.reorder_cache(torch.tensor([3, 0, 1, 2]))  # type: ignore[arg-type]
            steps.append(model(windows[:4, :2], past_key_values=cache).logits)
            cache.crop(-2)  # as many tokens as before, but other rows' positions
            cache.reorder_cache(torch.tensor([2, 3, 0, 1]))  # type: ignore[arg-type]
            steps.append(model(windows[:4, :2], past_key_values=cache).logits)
            cache.reset()
            steps.append(model(windows[:3, :2], past_key_values=cache).logits)
            steps.append(model(windows[:3, 2:3], past_key_values=cache).logits)
    for ours, theirs in zip(steps[:4], steps[4:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_normed_keys(windows: torch.Tensor) -> None:
    """What stands between projection and rotation is the attention's own."""
    torch.manual_seed(0)
    config = Qwen3Config(**LLAMA_LIKE, num_key_value_heads=2, head_dim=8, layer_types=["full_attention"] * 3)
    model: Any = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for attention in attentions(model).values():
        attention.k_norm.weight.mul_(torch.linspace(0.5, 3, 8))
        W = attention.k_proj.weight
        attention.k_proj = FactorStorage().layer(truncated(W, 7), None, W)
    ours = LatentCache(model)  # of keys alone
    assert torch.equal(generated(model, windows, ours), generated(model, windows, plain(model)))
    assert [layer.keys.shape[-1] for layer in ours.layers] == [7] * 3
    assert ours.layers[0].values.shape == (6, 2, 39, 8)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gpt2", "needs attentions with a k_proj and a v_proj; GPT2LMHeadModel has none"),
        ("gpt_neox", "GPTNeoXForCausalLM has none"),
        ("mistral", "saves nothing here"),  # its window is the last few tokens
    ],
)
def test_what_it_does_not_serve(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        LatentCache(small(name))


def test_where_nothing_is_saved() -> None:
    """Grouped keys whose width is no more than the rank; a dense model."""
    model = small("llama_gqa")
    for attention in attentions(model).values():
        for name in ("k_proj", "v_proj"):
            layer: Any = attention.get_submodule(name)
            W = layer.weight
            setattr(attention, name, FactorStorage().layer(truncated(W, 16), None, W))
    for one in (model, tiny_model("llama")):
        with pytest.raises(ValueError, match="saves nothing here: in no attention of LlamaForCausalLM"):
            LatentCache(one)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    ],
    ids=["dynamic", "longrope"],
)
def test_rotations_that_change_with_the_length(rope: dict[str, Any]) -> None:
    rope |= {"rope_theta": 10000.0, "original_max_position_embeddings": 32}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA_LIKE, rope_parameters=rope))
    with pytest.raises(ValueError, match=f"rotated by the length, {rope['rope_type']} RoPE"):
        LatentCache(model)


def test_a_rank_as_large_as_the_width_is_kept_as_it_is() -> None:
    model = small()
    attention: Any = attentions(model)[1]
    for name in ("k_proj", "v_proj"):
        W = attention.get_submodule(name).weight
        setattr(attention, name, FactorStorage().layer(truncated(W, 32), None, W))
    kinds = [type(layer) for layer in LatentCache(model).layers]
    assert kinds == [LatentLayer, DynamicLayer, LatentLayer]


def test_nobody_listens_when_it_is_gone(windows: torch.Tensor) -> None:
    model = small()
    cache = LatentCache(model)
    model(windows, past_key_values=cache)
    del cache
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_two_caches_at_once(windows: torch.Tensor) -> None:
    model = small()
    caches, logits = [LatentCache(model), plain(model), LatentCache(model)], []
    with torch.no_grad():
        for cache in caches:
            model(windows[:2], past_key_values=cache)
        logits = [model(windows[:2, :1], past_key_values=cache).logits for cache in caches]
    for found in logits:
        torch.testing.assert_close(found, logits[1], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        model(windows[:2, :1], past_key_values=caches[1])
    assert not any(layer.site.seen for layer in caches[0].layers)  # of another's pass nothing is held


def test_where_svdexp_is_not(windows: torch.Tensor, tokenizer: Any, tmp_path: Any) -> None:
    model, ranks = shrunk("llama", FactorStorage())
    checkpoint.save(model, tokenizer, tmp_path, ranks)
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True, dtype=torch.float32)
    cache = theirs.latent_cache()
    assert type(cache).__module__.startswith("transformers_modules.")
    assert torch.equal(generated(theirs, windows, cache), generated(theirs, windows, plain(theirs)))
