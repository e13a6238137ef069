"""One elastic checkpoint against direct runs at each ratio, and damaged ones refused in one sentence."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import svdexp
from svdexp.allocation import Allocation, EffectiveRank, GlobalLoss, TruncationLoss, Uniform
from svdexp.checkpoints import checkpoint
from svdexp.engine.compress import compress
from svdexp.models.portable.svdexp_factors import LowRankLinear
from svdexp.models.structure import Targets
from svdexp.runtime.errors import UserError
from svdexp.runtime.shelves import Cache
from svdexp.schema import SigmaFuse
from svdexp.storage import largest_rank
from tests.conftest import tiny_model
from tests.test_compress import WHITENED

ALLOCATIONS: list[Allocation] = [
    Uniform(),
    GlobalLoss(),
    EffectiveRank(move=0.2, rank_align=2),
    TruncationLoss(),
    GlobalLoss(measured=0.3, windows=2, length=16),
    TruncationLoss(measured=0.3, windows=2, length=16),
]
LOWER = (0.71, 0.6, 0.35, 0.2)
LAYER = "model.layers.0.mlp.up_proj"
FILE = f"elastic/{LAYER}.safetensors"


def in_format(name: str, dtype: torch.dtype) -> PreTrainedModel:
    """A tiny model in `dtype`, its buffers as they were."""
    model = tiny_model(name)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model


def store(folder: Path, windows: torch.Tensor, tokenizer: Any, ratio: float, **how: Any) -> PreTrainedModel:
    """Run with elastic=True and save; the compressed model."""
    model = how.pop("model", None) or tiny_model("llama_gqa")
    targets, cache = how.pop("targets", None), how.pop("cache", None)
    result = compress(model, windows, replace(WHITENED, **how), ratio, targets=targets, cache=cache, elastic=True)
    checkpoint.save(model, tokenizer, folder, result.ranks, result.elastic)
    return model


def assert_same(found: PreTrainedModel, expected: PreTrainedModel, windows: torch.Tensor) -> None:
    """Every tensor and every logit, bit by bit."""
    one, two = found.state_dict(), expected.state_dict()
    assert one.keys() == two.keys()
    for name, tensor in two.items():
        assert one[name].dtype == tensor.dtype
        assert torch.equal(one[name], tensor), name
    assert torch.equal(found(windows).logits, expected(windows).logits)


@pytest.fixture
def saved(windows: torch.Tensor, tokenizer: Any, tmp_path: Path) -> Path:
    store(tmp_path / "checkpoint", windows, tokenizer, 0.7)
    return tmp_path / "checkpoint"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Not needed, but the direct runs of every allocation take their decompositions from it."""
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("allocation", ALLOCATIONS, ids=lambda part: type(part).__name__)
@pytest.mark.parametrize("name", ["llama_gqa", "gpt2", "opt"])
def test_any_lower_ratio_is_a_direct_run(
    windows: torch.Tensor,
    tokenizer: Any,
    tmp_path: Path,
    cache: Cache,
    name: str,
    allocation: Allocation,
    dtype: torch.dtype,
) -> None:
    how = {"allocation": allocation, "cache": cache}
    direct = {}
    for ratio in (1.0, 0.75, *LOWER):
        direct[ratio] = in_format(name, dtype)
        compress(direct[ratio], windows, replace(WHITENED, allocation=allocation), ratio, cache=cache)
    for saved_at in (1.0, 0.75):
        model = store(tmp_path / "checkpoint", windows, tokenizer, saved_at, model=in_format(name, dtype), **how)
        assert_same(svdexp.load(tmp_path)[0], model, windows)
        for ratio in (saved_at, *LOWER):
            assert_same(svdexp.load(tmp_path, ratio=ratio)[0], direct[ratio], windows)


@pytest.mark.parametrize("fuse", SigmaFuse)
def test_nothing_is_shared_with_the_direct_run(
    windows: torch.Tensor, tokenizer: Any, tmp_path: Path, fuse: SigmaFuse
) -> None:
    """Both from the windows alone, without a cache between them."""
    store(tmp_path / "checkpoint", windows, tokenizer, 0.8, sigma_fuse=fuse)
    direct = tiny_model("llama_gqa")
    compress(direct, windows, replace(WHITENED, sigma_fuse=fuse), 0.5)
    assert_same(svdexp.load(tmp_path, ratio=0.5)[0], direct, windows)


@pytest.mark.parametrize(
    ("name", "allocation", "high", "low"),
    [
        ("gpt2", TruncationLoss(), 0.98, 0.96),  # the dense weight is transposed
        ("opt", Uniform(), 0.99, 0.98),
        ("llama_gqa", Uniform(), 0.97, 0.96),
    ],
)
def test_a_layer_can_become_dense_at_a_lower_ratio(
    windows: torch.Tensor, tokenizer: Any, tmp_path: Path, name: str, allocation: Allocation, high: float, low: float
) -> None:
    """Rounding leaves a layer the bits for its dense weight that it lacked at the saved ratio."""
    store(tmp_path / "checkpoint", windows, tokenizer, high, model=tiny_model(name), allocation=allocation)
    direct = tiny_model(name)
    result = compress(direct, windows, replace(WHITENED, allocation=allocation), low)
    held = json.loads((tmp_path / "checkpoint" / "config.json").read_text())["svdexp"]["layers"]
    assert any(result.ranks[layer] is None for layer in held)
    assert_same(svdexp.load(tmp_path, ratio=low)[0], direct, windows)


def test_targets_and_the_head(windows: torch.Tensor, tokenizer: Any, tmp_path: Path) -> None:
    targets = Targets(include=["*.mlp.*"], exclude=["*.down_proj"], lm_head=True)
    store(tmp_path / "checkpoint", windows, tokenizer, 0.9, model=tiny_model("llama"), targets=targets)
    direct = tiny_model("llama")
    compress(direct, windows, WHITENED, 0.4, targets=targets)
    assert isinstance(direct.lm_head, LowRankLinear)
    assert_same(svdexp.load(tmp_path, ratio=0.4)[0], direct, windows)


def test_another_number_format_rounds_the_same_components(
    saved: Path, windows: torch.Tensor, tokenizer: Any, tmp_path: Path
) -> None:
    direct = tiny_model("llama_gqa")
    result = compress(direct, windows, WHITENED, 0.5)
    checkpoint.save(direct, tokenizer, tmp_path / "direct", result.ranks)
    expected, _ = svdexp.load(tmp_path / "direct", dtype=torch.bfloat16)
    assert_same(svdexp.load(saved, dtype=torch.bfloat16, ratio=0.5)[0], expected, windows)


@pytest.mark.parametrize("ratio", [None, 0.5])
def test_a_loaded_model_saves_as_one_size(
    saved: Path, windows: torch.Tensor, tmp_path: Path, ratio: float | None
) -> None:
    loaded, words = svdexp.load(saved, ratio=ratio)
    loaded.save_pretrained(tmp_path / "again")
    words.save_pretrained(tmp_path / "again")
    assert_same(svdexp.load(tmp_path / "again")[0], loaded, windows)
    with pytest.raises(UserError, match="was saved with save=elastic"):
        svdexp.load(tmp_path / "again", ratio=0.5)


def test_the_file_holds_what_the_model_does_not(saved: Path) -> None:
    """up_proj is 48 by 32: 19 · 80 < 48 · 32 ≤ 20 · 80."""
    held = json.loads((saved / "config.json").read_text())["svdexp"]["layers"][LAYER]["rank"]
    tensors = load_file(saved / FILE)
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == {
        "spectrum": (32,),
        "A": (48, 19 - held),
        "B": (19 - held, 32),
        "W": (48, 32),
    }
    assert torch.equal(tensors["W"], tiny_model("llama_gqa").get_submodule(LAYER).weight)
    assert tensors["spectrum"].dtype == torch.float64
    assert {path.suffix for path in (saved / "elastic").iterdir()} == {".safetensors"}


@pytest.mark.parametrize("shape", [(1, 7), (2, 2), (3, 5), (48, 32), (576, 192)])
def test_the_largest_rank_is_the_last_that_is_smaller_than_dense(shape: tuple[int, int]) -> None:
    m, n = shape
    rank = largest_rank(m, n)
    assert rank * (m + n) < m * n <= (rank + 1) * (m + n)


@pytest.mark.parametrize(
    ("ratio", "sentence"),
    [
        (0.75, r"ratio=0\.75 is above 0\.7, at which checkpoint .* was saved"),
        (0, "0 < ratio <= 1, not 0"),
        (1.5, r"0 < ratio <= 1, not 1\.5"),
        (float("nan"), "0 < ratio <= 1, not nan"),
        (0.01, r"ratio=0\.01 leaves model\.layers\.0\.self_attn\.q_proj .* without a single rank"),
    ],
)
def test_ratios_it_cannot_have(saved: Path, ratio: float, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        svdexp.load(saved, ratio=ratio)


def remove(path: Path) -> None:
    path.unlink()


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def changed(key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        tensors = load_file(path)
        save_file(tensors | {key: change(tensors[key])}, path)

    return damage


def without(key: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        save_file({name: tensor for name, tensor in load_file(path).items() if name != key}, path)

    return damage


def at(index: int, value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: tensor.index_fill(0, torch.tensor(index), value)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (remove, f"{FILE} is missing or damaged"),
        (cut_short, f"{FILE} is missing or damaged"),
        (changed("A", lambda A: A[1:].contiguous()), "holds tensors of shapes"),
        (changed("B", lambda B: B[1:].contiguous()), "holds tensors of shapes"),
        (changed("W", lambda W: W.T.contiguous()), "holds tensors of shapes"),
        (changed("spectrum", lambda s: s[1:].clone()), "holds tensors of shapes"),
        (without("W"), "holds tensors of shapes"),
        (changed("spectrum", lambda s: s.flip(0)), f"the spectrum of {LAYER}"),
        (changed("spectrum", at(0, torch.inf)), f"the spectrum of {LAYER}"),
        (changed("spectrum", at(5, torch.nan)), f"the spectrum of {LAYER}"),
        (changed("spectrum", at(31, -1.0)), f"the spectrum of {LAYER}"),
    ],
)
def test_a_damaged_layer_is_refused(saved: Path, damage: Callable[[Path], None], sentence: str) -> None:
    damage(saved / FILE)
    with pytest.raises(UserError, match=sentence):
        svdexp.load(saved, ratio=0.5)
    svdexp.load(saved)  # which does not look at it


@pytest.mark.parametrize(
    "change",
    [
        {"allocation": "FromFile"},
        {"allocation": "os.system"},
        {"options": {"path": "ranks.json"}},
        {"options": {"rank_align": "${oc.env:HOME}"}},
        {"options": {"rank_align": 0}},
        {"options": {"rank_align": [1]}},
        {"ratio": 7},
        {"ratio": "???"},
        {"tokens": "many"},
        {"layers": ["model.layers.0.mlp.nothing"]},
        {"layers": ["../model"]},
        {"layers": []},
        {"layers": ["model.norm"]},
        {"more": 1},
        [],
    ],
)
def test_an_odd_recipe_is_refused(saved: Path, change: Any) -> None:
    config = json.loads((saved / "config.json").read_text())
    recipe = config["svdexp"]["elastic"]
    config["svdexp"]["elastic"] = recipe | change if isinstance(change, dict) else change
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=str(saved)):
        svdexp.load(saved, ratio=0.5)


def test_other_checkpoints_have_one_size(windows: torch.Tensor, tokenizer: Any, tmp_path: Path) -> None:
    model = tiny_model("llama_gqa")
    result = compress(model, windows, WHITENED, 0.5)
    assert result.elastic is None
    checkpoint.save(model, tokenizer, tmp_path / "checkpoint", result.ranks)
    with pytest.raises(UserError, match=r"can only be loaded as it was saved: ratio= needs .* save=elastic"):
        svdexp.load(tmp_path, ratio=0.4)
