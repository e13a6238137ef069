"""Quantised factors: bits are bytes, casts leave codes alone, checkpoints of that size, and GPTQ through the model."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import svdexp
from svdexp.allocation import GlobalLoss, Whole
from svdexp.checkpoints import checkpoint
from svdexp.engine.compress import compress
from svdexp.method import Method
from svdexp.models.factors import Factors, low_rank_layer
from svdexp.models.families import LINEAR
from svdexp.models.portable.svdexp_factors import LowRankLinear
from svdexp.models.portable.svdexp_quantised import QuantisedLinear
from svdexp.models.structure import Targets, find_matrices
from svdexp.runtime.errors import UserError
from svdexp.storage import FactorStorage, GPTQStorage, RemapStorage, RTNStorage, stored_bits
from svdexp.storage.quantised import numbers_of, unit_columns
from svdexp.storage.rounding import gptq, to_nearest
from svdexp.update import RefitOutput
from tests.conftest import tiny_model
from tests.storage.test_pivot import random_factors
from tests.storage.test_rounding import by_the_book, correlated
from tests.test_compress import WHITENED

STORAGES = [
    *(RTNStorage(8, None), RTNStorage(6, 7), RTNStorage(4, 4), RTNStorage(3, 1), RTNStorage(4, 1000)),
    *(RTNStorage(5, 8), RTNStorage(2, 3), RTNStorage(3, 7, zero_points=True), RTNStorage(5, None, zero_points=True)),
]
SHAPES = [(7, 5, 3), (5, 7, 3), (6, 6, 6), (9, 4, 1), (1, 8, 1), (40, 30, 29)]
UP = "model.layers.0.mlp.up_proj"


def layer_names(model: PreTrainedModel) -> list[str]:
    return [layer.name for layer in find_matrices(model, Targets())]


def promised(storage: RTNStorage, rank: int | None, m: int, n: int) -> int:
    return storage.whole_bits(m, n) if rank is None else storage.bits(rank, m, n)


def build(factors: Factors, storage: RTNStorage, bias: torch.Tensor | None = None) -> QuantisedLinear:
    return storage.layer(factors, bias, torch.empty(len(factors.A), factors.B.shape[1]))


@pytest.mark.parametrize("storage", STORAGES, ids=str)
@pytest.mark.parametrize(("m", "n", "rank"), SHAPES)
def test_bits_are_those_of_the_tensors(storage: RTNStorage, m: int, n: int, rank: int) -> None:
    layer = build(random_factors(m, n, rank), storage, torch.randn(m))
    assert 8 * sum(buffer.nbytes for buffer in layer.buffers()) == stored_bits(layer) == storage.bits(rank, m, n)


def test_bits_by_hand() -> None:
    """Rank 33 of (64, 40): B has 33 × 40 codes and two scales a row, A 64 × 33 and two."""
    assert RTNStorage(4, 32).bits(33, 64, 40) == 4 * 33 * (40 + 64) + 16 * 2 * (33 + 64)
    assert RTNStorage(8, None).bits(33, 64, 40) == 8 * 33 * (40 + 64) + 16 * (33 + 64)
    assert RTNStorage(4, 32, zero_points=True).whole_bits(64, 40) == RTNStorage(4, 32).whole_bits(64, 40) + 4 * 2 * 64
    assert RTNStorage(5, 32).whole_bits(3, 5) == 8 * 10 + 16 * 3  # 15 codes take 2 units of 5 bytes
    assert RTNStorage(6, None).bits(3, 5, 3) == 8 * 9 + 8 * 12 + 16 * 8  # 9 codes take 3 units of 3 bytes, 15 take 4


@pytest.mark.parametrize("storage", STORAGES, ids=str)
@pytest.mark.parametrize("spread", [0, 6])
def test_both_factors_are_within_half_a_step(storage: RTNStorage, spread: int) -> None:
    """However much magnitudes of components differ, each column of A keeps its digits."""
    factors = random_factors(40, 30, 20)
    factors = Factors(factors.A * torch.logspace(0, -spread, 20, dtype=torch.float64), factors.B)
    layer, length = build(factors, storage), factors.A.norm(dim=0)
    for side, whole in (("out", factors.A / length), ("in", factors.B * length[:, None])):
        error = (layer.factor(side, torch.float64) - whole).abs().amax(1)
        step = whole.abs().amax(1) / (2 ** (storage.code_bits - 1) - 0.5)
        assert bool((error <= (1.02 if storage.zero_points else 0.51) * step + 2.0**-25).all())


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_layer_computes_a_b_x_plus_bias(storage: RTNStorage) -> None:
    bias, x = torch.randn(7), torch.randn(2, 4, 5)
    layer = build(random_factors(7, 5, 3), storage, bias)
    torch.testing.assert_close(layer(x), x @ layer.weight.T + bias)
    assert layer.weight.shape == (7, 5)
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_a_whole_matrix_is_rounded_as_it_is(storage: RTNStorage) -> None:
    W, bias, x = torch.randn(7, 30), torch.randn(7), torch.randn(2, 4, 30)
    layer = storage.whole(W, bias)
    assert 8 * sum(buffer.nbytes for buffer in layer.buffers()) == stored_bits(layer) == storage.whole_bits(7, 30)
    expected = storage.grid.numbers(to_nearest(W, storage.grid)).float()
    torch.testing.assert_close(layer.weight, expected)
    torch.testing.assert_close(layer(x), x @ expected.T + bias)
    layer.validate()


def test_gptq_of_a_whole_matrix_makes_up_for_errors_on_its_inputs() -> None:
    torch.manual_seed(0)
    storage, dense = GPTQStorage(3, 8), torch.nn.Linear(32, 24)
    x = torch.randn(200, 32) @ torch.randn(32, 32) + 3
    with torch.no_grad():
        C, y = x.T @ x / 200, dense(x)
        calibrated = storage.calibrated_whole(dense.weight, dense.bias, C)
        nearest = storage.nearest.whole(dense.weight, dense.bias)
        torch.testing.assert_close(calibrated.weight, storage.grid.numbers(gptq(dense.weight, C, storage.grid)).float())
        assert float((calibrated(x) - y).norm()) < 0.7 * float((nearest(x) - y).norm())


def test_a_cast_of_the_model_leaves_what_is_stored() -> None:
    layer = build(random_factors(9, 4, 3), RTNStorage())
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    layer.double().half().float().to(torch.bfloat16)
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())
    assert all(buffer.dtype == before[name].dtype for name, buffer in layer.named_buffers())


def test_components_of_zeros_stay_zeros() -> None:
    factors = random_factors(6, 9, 3)
    factors.A[:, 1] = 0
    layer = build(factors, RTNStorage(8, None))
    torch.testing.assert_close(layer.weight.double(), factors.A @ factors.B, rtol=0.05, atol=0.1)
    assert build(Factors(torch.zeros(6, 3), torch.zeros(3, 9)), RTNStorage()).weight.abs().max() == 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e12])
def test_what_float16_cannot_hold_is_refused(value: float) -> None:
    factors = random_factors(9, 4, 2)
    factors.A[8, 0] = value
    with pytest.raises(UserError, match=r"\(9, 4\) at rank 2: .* use storage=factors"):
        build(factors, RTNStorage())


def test_gptq_makes_up_for_errors_on_the_layers_inputs() -> None:
    torch.manual_seed(0)
    factors, storage = random_factors(24, 32, 16), GPTQStorage(3, 8)
    plain = low_rank_layer(factors, torch.randn(24), torch.empty(24, 32))
    x = torch.randn(200, 32) @ torch.randn(32, 32) + 3
    calibrated = storage.calibrated(plain, x.T @ x / 200)
    nearest = storage.layer(factors, plain.bias, torch.empty(24, 32))
    assert stored_bits(calibrated) == stored_bits(nearest) == storage.bits(16, 24, 32)
    assert torch.equal(calibrated.bias, plain.bias)
    y = plain(x)
    assert float((calibrated(x) - y).norm()) < 0.7 * float((nearest(x) - y).norm())


def test_gptq_rounds_each_factor_for_the_inputs_that_it_gets() -> None:
    """By the recursion in float64: B for x, A for what the rounded B makes of x, not for what B itself would."""
    factors, storage = unit_columns(random_factors(24, 32, 16)), GPTQStorage(3, 8)
    C = correlated(32).float()
    layer = storage.calibrated(low_rank_layer(factors, None, torch.empty(24, 32, dtype=torch.float64)), C)
    C = C.double()
    B = storage.grid.numbers(by_the_book(factors.B, C, storage.grid))
    A, other = (storage.grid.numbers(by_the_book(factors.A, x @ C @ x.T, storage.grid)) for x in (B, factors.B))
    assert not torch.allclose(A, other, atol=1e-3)
    torch.testing.assert_close(layer.factor("in", torch.float64), B)
    torch.testing.assert_close(layer.factor("out", torch.float64), A)


@torch.no_grad()
def test_gptq_sees_what_the_quantised_layers_before_it_produce(
    windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second moment of each layer is that of its inputs in the finished model: what is before it is finished."""
    model, seen = tiny_model("llama_gqa"), {}
    calibrated = GPTQStorage.calibrated

    def spy(self: GPTQStorage, plain: LowRankLinear, C: torch.Tensor) -> QuantisedLinear:
        made = calibrated(self, plain, C)
        seen[made] = C
        return made

    monkeypatch.setattr(GPTQStorage, "calibrated", spy)
    compress(model, windows, replace(WHITENED, storage=GPTQStorage(4, 16)), 0.25)
    inputs: dict[Any, list[torch.Tensor]] = {}
    for layer in seen:
        layer.register_forward_pre_hook(lambda module, args: inputs.setdefault(module, []).append(args[0][0]))
    for window in windows:
        model(window[None])
    assert len(seen) == 21
    for layer, C in seen.items():
        X = torch.cat(inputs[layer])
        torch.testing.assert_close(C, X.T @ X / len(X), rtol=1e-3, atol=1e-4)


def test_codes_become_numbers_once_while_gptq_goes_on(windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in each of the passes of each window; what is computed is what the finished layers compute."""
    model, decoded, factor = tiny_model("llama_gqa"), [], QuantisedLinear.factor

    def spy(self: QuantisedLinear, side: str, dtype: torch.dtype) -> torch.Tensor:
        decoded.append((self, side))
        return factor(self, side, dtype)

    monkeypatch.setattr(QuantisedLinear, "factor", spy)
    compress(model, windows, replace(WHITENED, storage=GPTQStorage(4, 16)), 0.25)
    assert len(decoded) == len(set(decoded)) == 2 * 21
    for layer in {layer for layer, _ in decoded}:
        assert "forward" not in vars(layer)
        x, bias = torch.randn(3, layer.shapes["in"][1]), torch.randn(layer.shapes["out"][0])
        layer.bias = torch.nn.Parameter(bias)
        torch.testing.assert_close(numbers_of(layer)(x), layer(x), rtol=1e-5, atol=1e-5)  # few tokens: an operator's


@pytest.mark.parametrize("storage", [RTNStorage(), GPTQStorage()], ids=["rtn", "gptq"])
def test_every_architecture(model: PreTrainedModel, windows: torch.Tensor, storage: RTNStorage) -> None:
    result = compress(model, windows, replace(WHITENED, storage=storage), 0.2)
    assert 0.16 < result.achieved_ratio <= 0.2
    for name, rank in result.ranks.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, QuantisedLinear)
        assert result.layer_bits[name] == promised(storage, rank, *layer.weight.shape)
    assert bool(model(windows).logits.isfinite().all())


@pytest.mark.parametrize("storage", [RTNStorage(), GPTQStorage()], ids=["rtn", "gptq"])
def test_no_matrix_is_factorised_where_whole_ones_fit(
    model: PreTrainedModel, windows: torch.Tensor, storage: RTNStorage
) -> None:
    dense = {name: LINEAR.weight(model.get_submodule(name)).clone() for name in layer_names(model)}
    result = compress(model, windows, replace(WHITENED, storage=storage), 0.6)
    assert set(result.ranks.values()) == {None}
    assert result.achieved_ratio < 0.35  # 4 bits, and 16 for each group, of which these matrices' last ones are short
    for name, W in dense.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, QuantisedLinear)
        assert result.layer_bits[name] == storage.whole_bits(*W.shape)
        assert float((layer.weight - W).norm()) < 0.2 * float(W.norm())


def test_between_factors_and_whole_matrices_the_price_decides(windows: torch.Tensor) -> None:
    model, method = tiny_model("llama_gqa"), replace(WHITENED, storage=RTNStorage(), allocation=GlobalLoss())
    result = compress(model, windows, method, 0.27)
    kept = [rank is None for rank in result.ranks.values()]
    assert any(kept)
    assert not all(kept)
    storage = RTNStorage()
    for name, rank in result.ranks.items():
        layer: Any = model.get_submodule(name)
        assert stored_bits(layer) == promised(storage, rank, *layer.weight.shape)


def test_quantising_alone(windows: torch.Tensor) -> None:
    """method=quantise is rounding every matrix, and says what it takes where that is more than the ratio."""
    model, method = tiny_model("llama_gqa"), Method("quantise", None, Whole(), RTNStorage(8, None))
    dense = {name: LINEAR.weight(model.get_submodule(name)).clone() for name in layer_names(model)}
    with pytest.raises(UserError, match=r"ratio=0.5 is too small: .* in 0\.5\d+ of their bits"):
        compress(tiny_model("llama_gqa"), windows, method, 0.5)
    compress(model, windows, method, 0.6)
    grid = RTNStorage(8, None).grid
    for name, W in dense.items():
        numbers = grid.numbers(to_nearest(W, grid))
        torch.testing.assert_close(model.get_submodule(name).weight, numbers.float())


def test_no_factors_no_fixed_ranks(windows: torch.Tensor) -> None:
    method = Method("quantise", None, Whole(), RTNStorage())
    with pytest.raises(UserError, match=r"targets\.ranks: .* makes no factors"):
        compress(tiny_model("llama_gqa"), windows, method, 0.6, targets=Targets(ranks={"*.up_proj": 4}))


def test_updates_come_before_codes(windows: torch.Tensor) -> None:
    """With 8 bits a refitted model is nearly the one in plain factors."""
    ranks = {"*.layers.1.*": None, "*.up_proj": 7}
    logits = []
    for storage in (FactorStorage(), GPTQStorage(8, None)):
        model = tiny_model("llama_gqa")
        method = replace(WHITENED, storage=storage, update=RefitOutput())
        targets = Targets(ranks={**ranks, "*": 9})
        found = compress(model, windows, method, 1.0, targets=targets)
        assert found.ranks[UP] == 7
        logits.append(model(windows).logits)
    assert float((logits[1] - logits[0]).norm() / logits[0].norm()) < 0.03


@pytest.mark.parametrize("storage", STORAGES, ids=str)
@pytest.mark.parametrize("ratio", [0.2, 0.9])
def test_checkpoint_holds_the_promised_bits_and_gives_the_same_logits(
    storage: RTNStorage, ratio: float, windows: torch.Tensor, tmp_path: Path, tokenizer: object
) -> None:
    model = tiny_model("llama_gqa")
    result = compress(model, windows, replace(WHITENED, storage=storage), ratio)
    checkpoint.save(model, tokenizer, tmp_path / "checkpoint", result.ranks)
    with safe_open(tmp_path / "checkpoint" / "model.safetensors", "pt") as file:
        sizes = {key: file.get_tensor(key).nbytes for key in file.keys()}  # noqa: SIM118
    for name, rank in result.ranks.items():
        shape = model.get_submodule(name).weight.shape
        stored = 8 * sum(size for key, size in sizes.items() if key.startswith(f"{name}."))
        assert stored == result.layer_bits[name] == promised(storage, rank, *shape)
    loaded, _ = svdexp.load(tmp_path)
    assert torch.equal(loaded(windows).logits, model(windows).logits)
    for name, buffer in model.named_buffers():
        assert torch.equal(loaded.get_buffer(name), buffer)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tokenizer: object) -> Path:
    folder, model = tmp_path_factory.mktemp("saved"), tiny_model("llama_gqa")
    windows = torch.arange(48).view(2, 24)
    ranks = compress(model, windows, replace(WHITENED, storage=RTNStorage(4, 16)), 0.3).ranks
    checkpoint.save(model, tokenizer, folder / "checkpoint", ranks)
    return folder / "checkpoint"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"code_bits": 7}, "codes have 2, 3, 4, 5, 6, 8 bits, not 7"),
        ({"code_bits": 8}, "_codes has shape .*, not"),
        ({"group_size": 0}, "a group has at least 1 code, not 0"),
        ({"group_size": "many"}, "a group has at least 1 code, not many"),
        ({"group_size": 3}, "_scale has shape .*, not"),
        ({"zero_points": True}, "_zero"),
        ({"zero_points": 1}, f"entry of {UP} in config.json is not understood"),
        ({"device": "cuda"}, f"entry of {UP} in config.json is not understood"),
        (None, f"entry of {UP} in config.json is not understood"),
    ],
)
def test_a_table_that_promises_other_codes(saved: Path, tmp_path: Path, options: Any, sentence: str) -> None:
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((saved / "config.json").read_text())
    entry = config["svdexp"]["layers"][UP]
    assert entry["options"] == {"code_bits": 4, "group_size": 16}
    entry["options"] = entry["options"] | options if options else options
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=sentence):
        svdexp.load(tmp_path)


def test_scales_that_are_no_numbers(saved: Path, tmp_path: Path) -> None:
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(saved / "model.safetensors")
    tensors[f"{UP}.out_scale"][0, 0] = torch.tensor([torch.nan], dtype=torch.float16).view(torch.int16)[0]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{UP} is damaged: its scales are not finite"):
        svdexp.load(tmp_path)


@pytest.mark.parametrize("storage", [RTNStorage(4, 8), RTNStorage(8, None), RemapStorage()], ids=str)
def test_the_weight_has_the_format_of_the_models_numbers(storage: RTNStorage | RemapStorage) -> None:
    """Some architectures multiply by `layer.weight` themselves, which takes numbers of one format."""
    factors = Factors(torch.randn(12, 3), torch.randn(3, 10))
    layer = storage.layer(factors, None, torch.zeros(1, dtype=torch.bfloat16))
    assert layer.weight.dtype == torch.bfloat16
    wide = layer.float().weight
    assert wide.dtype == torch.float32
    torch.testing.assert_close(layer.to(torch.float16).weight, wide.half())
    assert copy.deepcopy(layer).to("meta").weight.dtype == torch.float16
