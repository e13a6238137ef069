"""Training of what is stored: gradients through rounding, and models that are saved as they were trained."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import svdexp
from svdexp.allocation import Forms, Uniform, Whole
from svdexp.checkpoints import checkpoint
from svdexp.engine.compress import compress
from svdexp.factorisation import InputMoment, TwoSided
from svdexp.method import Method
from svdexp.models.matrices import layers_of
from svdexp.models.portable.svdexp_quantised import QuantisedLinear
from svdexp.runtime.errors import UserError
from svdexp.runtime.shelves import Cache
from svdexp.storage import (
    AWQStorage,
    DeltaStorage,
    FactorStorage,
    FormStorage,
    PivotStorage,
    RemapStorage,
    ResidualStorage,
    RTNStorage,
    Storage,
    stored_bits,
)
from svdexp.training import BlockRefine, Distill, Student, Training, learner
from svdexp.training.stored import Scales, half, straight
from tests.conftest import tiny_model
from tests.storage.test_pivot import random_factors
from tests.storage.test_rounding import correlated, drawn
from tests.support.experts import tiny_experts
from tests.training.test_training import divergence, loud, speech

DISTILL = Distill(steps=30, batch=3, seq_len=12, lr=1e-2, check_every=10, stored=True)
REFINE = BlockRefine(steps=20, batch=3, lr=1e-2, check_every=10, stored=True)
MIXED = Method("mixed", TwoSided(), Forms(), FormStorage(["gptq2-g8-zp-fit", "gptq3-g8", "dense"]))
LOW_RANK = Method("svd_llm", InputMoment(), Uniform(), FactorStorage())

STORAGES: list[Storage] = [
    RTNStorage(4, 5),
    RTNStorage(3, None, zero_points=True),
    AWQStorage(4, 8),
    RemapStorage(),
    ResidualStorage(3, 8, factor_bits=16),
    ResidualStorage(2, 5, zero_points=True, factor_bits=8),
    PivotStorage(),
    FactorStorage(),
]


def layer_of(storage: Storage, m: int = 14, n: int = 21, rank: int = 5) -> nn.Module:
    """A layer with a bias that holds random factors, and of a residual storage random codes."""
    W, bias = drawn(m, n).float(), torch.randn(m)
    _, kept = storage.target(W, correlated(n))
    if isinstance(storage, AWQStorage):
        plain = FactorStorage().layer(random_factors(m, n, rank), bias, W)

        class Holder(nn.Module):
            layer = plain

        return storage.stored(Holder(), OnlyLayer(), correlated(n))
    return storage.layer(random_factors(m, n, rank), bias, W, kept)


class OnlyLayer:
    """The handle of a matrix that is the only one."""

    def layer(self, model: nn.Module) -> nn.Module:
        return model.layer


def moved(layer: nn.Module, seed: int = 3) -> nn.Module:
    """The learner of `layer` after it learnt something."""
    found = learner(layer)
    assert found is not None
    torch.manual_seed(seed)
    for parameter in found.learnt():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return found


@pytest.mark.parametrize("storage", STORAGES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_learner_computes_what_is_stored(storage: Storage, dtype: torch.dtype) -> None:
    layer = layer_of(storage).to(dtype)
    for found in (learner(layer), moved(layer)):
        stored, x = found.stored(), torch.randn(3, 40, 21).to(dtype)
        assert type(stored) is type(layer)
        assert {key: part.dtype for key, part in stored.state_dict().items()} == {
            key: part.dtype for key, part in layer.state_dict().items()
        }
        assert stored_bits(stored) == stored_bits(layer)
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            assert torch.equal(found(x), stored(x))
            assert torch.equal(found(x.float()), stored(x)), "norms may give float32 where products are of 16 bits"
        assert {parameter.dtype for parameter in found.learnt()} == {torch.float32}
        if dtype is torch.float32:  # products of factors in bfloat16 are rounded on the way
            torch.testing.assert_close(found.weight, stored.weight)
    changed = [key for key, part in stored.state_dict().items() if not torch.equal(part, layer.state_dict()[key])]
    assert changed
    assert not any(key.endswith(("codes", "zero", "bias", "order")) for key in changed)
    untouched = learner(layer).stored()
    assert all(torch.equal(part, layer.state_dict()[key]) for key, part in untouched.state_dict().items())


@pytest.mark.parametrize("storage", STORAGES[:6], ids=str)
def test_gradients_are_those_of_the_relaxed_layer(storage: Storage) -> None:
    """Central differences, in float64, of what the layer computes where roundings stay what they are."""
    found, x, R = moved(layer_of(storage)), torch.randn(6, 21), torch.randn(6, 14)
    for parameter in found.learnt():
        parameter.requires_grad_(True)
    (found(x) * R).sum().backward()
    directions = [torch.randn_like(parameter).double() for parameter in found.learnt()]
    slope = sum(float((p.grad * d).sum()) for p, d in zip(found.learnt(), directions, strict=True))
    relaxed = copy.deepcopy(found)
    rounded = {
        module: ((module(torch.float32) - module.start * (1 + module.gain)).detach().double())
        for module in relaxed.modules()
        if hasattr(module, "gain")
    }
    values = []
    for h in (1e-4, -1e-4):
        moved_by = {id(p): h * d for p, d in zip(relaxed.learnt(), directions, strict=True)}
        values.append(float((in_double(relaxed, rounded, moved_by, x.double()) * R.double()).sum()))
    assert slope == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-4)


def in_double(
    found: nn.Module, rounded: dict[nn.Module, torch.Tensor], by: dict[int, torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    """What a learner computes with its parameters moved, each rounding being a constant that is added."""
    if hasattr(found, "codes"):
        return in_double(found.codes, rounded, by, x) + in_double(found.factors, rounded, by, x)

    class Relaxed:
        def __init__(self, module: nn.Module):
            self.module = module

        def __call__(self, dtype: torch.dtype) -> torch.Tensor:
            module = self.module
            gain = module.gain.detach().double() + by[id(module.gain)]
            return module.start.double() * (1 + gain) + rounded[module]

    layer = found.layer
    if hasattr(found, "scales"):
        scales = {side: Relaxed(module) for side, module in found.scales.items()}
        columns = {side: Relaxed(module) for side, module in found.columns.items()}
        other = copy.copy(found)
        other._modules = {}
        other.scales, other.columns, other.layer = scales, columns, layer
        factors = [other.factor(side, torch.float64) for side in layer.shapes]
        bias = None if layer.bias is None else layer.bias.double()
    elif hasattr(found, "rest"):
        scale, rest = Relaxed(found.scale)(torch.float64), found.rest.detach()
        rest = rest.half().double() + by[id(found.rest)]
        B, A = layer.in_codes.double() * scale[:, None], layer.out_codes.double() * scale
        factors = [torch.cat([B, rest], 1) if 21 > 14 else B, A]
        bias = layer.bias.double()
    else:
        factors = [p.detach().double() + by[id(p)] for p in found.learnt()]
        bias = None
    for factor in factors:
        x = x @ factor.T
    return x if bias is None else x + bias


def test_rounding_lets_gradients_pass() -> None:
    values = torch.randn(5, requires_grad=True)
    rounded = straight(values, values.detach().round())
    assert torch.equal(rounded, values.round())
    (rounded * torch.arange(5.0)).sum().backward()
    assert torch.equal(values.grad, torch.arange(5.0))


def test_scales_stay_finite_and_of_their_sign() -> None:
    """Whatever is learnt; zeros, of rows without numbers, stay zeros."""
    scales = Scales(torch.tensor([1.0, 1.0, 60000.0, 0.0], dtype=torch.float16).view(torch.int16))
    scales.gain.data = torch.tensor([0.5, -3.0, 1.0, 2.0])
    expected = torch.tensor([1.5, 2.0**-24, 65504.0, 0.0])
    assert torch.equal(scales.kept().view(torch.float16).float(), expected)
    assert torch.equal(scales(torch.float32), expected)


def test_numbers_beyond_float16_become_its_largest() -> None:
    assert torch.equal(half(torch.tensor([1e6, -1e6, 0.5])).float(), torch.tensor([65504.0, -65504.0, 0.5]))


def test_gradients_are_not_rounded_with_the_scales() -> None:
    """A cast to float16 would let them pass as float16, in which these are zero."""
    scales = Scales(torch.ones(3, dtype=torch.float16).view(torch.int16))
    scales.gain.requires_grad_(True)
    (scales(torch.float32) * 1e-12).sum().backward()
    assert torch.equal(scales.gain.grad, torch.full((3,), 1e-12))


ENGINE = {
    "mixed": MIXED,
    "rtn": replace(LOW_RANK, storage=RTNStorage(3, 8)),
    "awq": Method("quantise", None, Whole(), AWQStorage(2, 8)),
    "remap": replace(LOW_RANK, storage=RemapStorage()),
    "residual": replace(LOW_RANK, storage=ResidualStorage(2, 8, factor_bits=16)),
}
RATIOS = {"mixed": 0.3, "rtn": 0.2, "awq": 0.6, "remap": 0.4, "residual": 0.6}


@pytest.mark.parametrize("name", ENGINE)
@pytest.mark.parametrize("training", [DISTILL, REFINE], ids=["distill", "block_refine"])
def test_what_is_learnt_is_what_is_saved(name: str, training: Training, tmp_path: Path) -> None:
    """The loss falls, no bit more is stored, and the last held-out score is that of the model that loads."""
    dense = loud(tiny_model("llama_gqa"))
    windows = speech(dense)
    wanted = dense(windows).logits
    method, ratio = ENGINE[name], RATIOS[name]
    if name == "residual":  # plain numbers take smaller steps than shares of scales
        training = replace(training, lr=2e-3)
    plain, model = copy.deepcopy(dense), copy.deepcopy(dense)
    before = compress(plain, windows, method, ratio)
    after = compress(model, windows, replace(method, training={"lesson": training}), ratio)
    assert after.layer_bits == before.layer_bits
    assert after.forms == before.forms
    assert divergence(model, wanted, windows) < 0.95 * divergence(plain, wanted, windows)
    curve = after.training["lesson"].curve
    assert curve[-1][1] < curve[1][1] if isinstance(training, Distill) else len(curve) > 1
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for matrix in after.layers:
        ours, theirs = matrix.layer(model), matrix.layer(plain)
        assert type(ours) is type(theirs)
        if isinstance(ours, QuantisedLinear):
            assert torch.equal(ours.out_codes, theirs.out_codes)
    checkpoint.save(model, None, tmp_path, after.ranks)
    loaded, _ = svdexp.load(tmp_path)
    alone = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert torch.equal(loaded(windows).logits, model(windows).logits)
    assert torch.equal(alone(windows).logits, model(windows).logits)


def test_the_stored_model_is_the_trained_one() -> None:
    """Logits with learners in place, moved as training moves them, and with what is stored of them."""
    dense = tiny_model("llama_gqa")
    windows = speech(dense)
    model = copy.deepcopy(dense)
    done = compress(model, windows, MIXED, 0.3)
    dense_layers = layers_of(dense, done.layers)
    for matrix in done.layers:
        if not matrix.is_dense(model):
            matrix.put(model, moved(matrix.layer(model)))
    student = Student(model, {matrix: dense_layers[matrix.name] for matrix in done.layers})
    assert len(student.learners) == sum(word != "dense" for word in done.forms.values())
    logits = model(windows).logits
    with student.as_teacher() as teacher:
        assert torch.equal(teacher(windows).logits, dense(windows).logits)
    for name, found in student.learners.items():
        next(matrix for matrix in done.layers if matrix.name == name).put(model, found.stored())
    assert torch.equal(model(windows).logits, logits)


def test_factors_learn_before_storage_and_codes_after(windows: torch.Tensor, tmp_path: Path) -> None:
    """In whatever order they are named; and a second run finds both on the shelf."""
    trainings: dict[str, Training] = {"distill": DISTILL, "block_refine": replace(REFINE, stored=False, lr=1e-3)}
    method = replace(ENGINE["rtn"], training=trainings)
    runs, models = [], []
    for _ in range(2):
        models.append(tiny_model("llama_gqa"))
        runs.append(compress(models[-1], windows, method, 0.2, cache=Cache(tmp_path)))
    assert list(runs[0].training) == ["block_refine", "distill"]
    assert torch.equal(models[0](windows).logits, models[1](windows).logits)
    assert str(runs[0].training) == str(runs[1].training)


def test_half_precision_models_stay_that(windows: torch.Tensor) -> None:
    model = tiny_model("llama_gqa").to(torch.bfloat16)
    compress(model, windows, replace(MIXED, training={"distill": DISTILL, "block_refine": REFINE}), 0.3)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {matrix.dtype for matrix in model.modules() if isinstance(matrix, QuantisedLinear)} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (MIXED, r"has codes, which method\.training does not repair; set method\.training\.distill\.stored=true"),
        (
            ENGINE["residual"],
            r"but method\.training fits them to all of it; set method\.training\.distill\.stored=true",
        ),
        (ENGINE["awq"], r"method\.training has no effect, .*; set method\.training\.distill\.stored=true"),
    ],
)
def test_what_holds_no_plain_factors_says_how_to_train_it(method: Method, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        replace(method, training={"distill": replace(DISTILL, stored=False)})


def test_all_that_is_left_dense_teaches_nothing(windows: torch.Tensor, model: PreTrainedModel) -> None:
    everything = replace(MIXED, storage=FormStorage(["dense"]), training={"distill": DISTILL})
    assert compress(model, windows, everything, 1.0).training == {}


def test_codes_of_any_model_learn(model: PreTrainedModel) -> None:
    windows = speech(loud(model))
    wanted, plain = model(windows).logits, copy.deepcopy(model)
    compress(plain, windows, ENGINE["rtn"], 0.2)
    compress(model, windows, replace(ENGINE["rtn"], training={"refine": REFINE, "distill": DISTILL}), 0.2)
    assert divergence(model, wanted, windows) < 0.95 * divergence(plain, wanted, windows)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_codes_of_experts_learn(name: str) -> None:
    model = loud(tiny_experts(name))
    windows = speech(model)
    wanted, plain = model(windows).logits, copy.deepcopy(model)
    method = replace(ENGINE["rtn"], allocation=Whole(), weighting=None)
    compress(plain, windows, method, 0.9)
    done = compress(model, windows, replace(method, training={"refine": REFINE, "distill": DISTILL}), 0.9)
    assert all(isinstance(layer.layer(model), QuantisedLinear) for layer in done.layers)
    assert divergence(model, wanted, windows) < 0.95 * divergence(plain, wanted, windows)


def test_deltas_of_experts_learn_and_their_mean_stays(tmp_path: Path) -> None:
    model = loud(tiny_experts("mixtral"))
    windows = speech(model)
    wanted, plain = model(windows).logits, copy.deepcopy(model)
    method = Method("d2_moe", InputMoment(), Uniform(), DeltaStorage())
    compress(plain, windows, method, 0.9)
    lessons: dict[str, Training] = {"refine": replace(REFINE, lr=2e-3), "distill": replace(DISTILL, lr=2e-3)}
    done = compress(model, windows, replace(method, training=lessons), 0.9)
    assert divergence(model, wanted, windows) < 0.95 * divergence(plain, wanted, windows)
    ours, theirs = model.state_dict(), plain.state_dict()
    means = [key for key in ours if key.endswith(".base")]
    assert means
    assert all(torch.equal(ours[key], theirs[key]) for key in means)
    checkpoint.save(model, None, tmp_path, done.ranks)
    assert torch.equal(svdexp.load(tmp_path)[0](windows).logits, model(windows).logits)


def test_activations_may_be_computed_again(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    """Though no linear layer is left by which blocks could be told."""
    method = replace(ENGINE["awq"], training={"distill": replace(DISTILL, steps=2, checkpointing=True)})
    assert compress(llama, windows, method, 0.6).training["distill"].tokens == 2 * 3 * 12
