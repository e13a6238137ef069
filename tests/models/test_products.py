"""Every route computes what the reference does, and is taken where the table says so and nowhere else."""

import copy
import itertools
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.utils.flop_counter import FlopCounterMode

from svdexp.models.portable import svdexp_operator, svdexp_products
from svdexp.models.portable.svdexp_factors import LowRankLinear
from svdexp.models.portable.svdexp_operator import NAMES, OPERATORS, SWITCH, ready
from svdexp.models.portable.svdexp_pivot import PivotLinear
from svdexp.models.portable.svdexp_products import (
    FEW,
    FORMATS,
    FORMS,
    LINE,
    MANY,
    OPERATOR,
    REFERENCE,
    SPACED,
    TORCH,
    fitting,
    quicken,
    reordered,
    reordered_each,
    unquicken,
    without_onednn,
)
from svdexp.models.portable.svdexp_remap import RemapLinear
from svdexp.storage import FactorStorage
from tests.support.shrunk import shrunk

SHAPES = [(45, 38, 21), (38, 45, 21), (33, 33, 1), (16, 64, 16)]
compiled = pytest.mark.skipif(not ready(), reason="no compiler")


def layer_of(form: str, m: int, n: int, r: int, bias: bool = True) -> nn.Module:
    torch.manual_seed(m + n + r)
    if form == "linear":
        made: nn.Module = nn.Linear(n, m, bias=bias)
    else:
        kinds: dict[str, Any] = {"factors": LowRankLinear, "pivot": PivotLinear, "remap": RemapLinear}
        made = kinds[form].empty(n, r, m, bias)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape)
    if isinstance(made, PivotLinear):
        made.order.copy_(torch.randperm(len(made.order)))
    if isinstance(made, RemapLinear):
        for codes in (made.in_codes, made.out_codes):
            codes.random_(-127, 128)
        made.scale.copy_(torch.rand(r).half().view(torch.int16))
    quicken(nn.ModuleList([made]))
    return made.requires_grad_(False)


@pytest.fixture
def by(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Lets one route be taken wherever the table may name one; the list that it gives has those that were taken."""

    def force(route: str) -> list[str]:
        taken: list[str] = []
        most = {TORCH: 1, OPERATOR: FEW, SPACED: MANY, REFERENCE: 0}[route]
        keys = itertools.product(FORMS, FORMATS, range(1, most + 1), (False, True))
        monkeypatch.setattr(svdexp_products, "ROUTES", dict.fromkeys(keys, route))
        found = svdexp_products.route

        def route_of(*args: Any) -> str:
            taken.append(found(*args))
            return taken[-1]

        monkeypatch.setattr(svdexp_products, "route", route_of)
        return taken

    return force


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("form", ["linear", "factors", "pivot"])
@pytest.mark.parametrize("route", [TORCH, pytest.param(OPERATOR, marks=compiled), SPACED, REFERENCE])
def test_every_route_computes_the_layer(by: Any, route: str, form: str, dtype: torch.dtype) -> None:
    taken = by(route)
    for m, n, r in SHAPES:
        for bias in (True, False):
            layer = layer_of(form, m, n, r, bias)
            b: Any = layer.bias
            for shape in [(n,), (1, 1, n)] + [(2, 4, n), (3, n)] * (route != TORCH):
                x = torch.randn(shape).to(dtype)
                found = layer.to(dtype)(x)
                assert found.dtype == dtype
                W = exact_weight(layer)
                exact = x.double() @ W.T + (0 if b is None else b.double())
                largest = (x.double().abs() @ W.abs().T).max()
                assert (found.double() - exact).abs().max() <= 4 * torch.finfo(dtype).eps * largest
    assert set(taken) == {route}


@compiled
def test_channels_are_reordered_to_the_last_bit() -> None:
    for dtype, width in itertools.product((*FORMATS, torch.float64), (7, 70)):
        order, x = torch.randperm(width).short(), torch.randn(3, 5, width).to(dtype)
        assert torch.equal(reordered(x, order), x[..., order.long()])
        assert torch.equal(reordered(x.mT, order[:5].argsort().int()), x.mT[..., order[:5].argsort()])
        assert reordered(x[:0], order).shape == (0, 5, width)
    with pytest.raises(RuntimeError, match="no permutation"):
        OPERATORS["reordered"](torch.ones(2, 3), torch.tensor([0, 1, 3], dtype=torch.int16))


@pytest.mark.parametrize("built", [False, pytest.param(True, marks=compiled)])
def test_every_row_is_reordered_by_an_order_of_its_own(built: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svdexp_products, "ready", lambda: built)
    which = torch.tensor([2, 0, 0, 1, 2])
    for dtype, width in itertools.product((*FORMATS, torch.float64), (7, 70)):
        orders = torch.stack([torch.randperm(width).short() for _ in range(3)])
        x = torch.randn(5, width).to(dtype)
        expected = torch.stack([row[orders[index].long()] for row, index in zip(x, which, strict=True)])
        assert torch.equal(reordered_each(x, orders, which), expected)
        assert torch.equal(reordered_each(x[:0], orders, which[:0]), x[:0])
    if built:
        for wrong in (torch.tensor([0, 3]), torch.tensor([0, -1]), torch.tensor([0])):
            with pytest.raises(RuntimeError, match=r"no such order|no order for each row"):
                OPERATORS["reordered_each"](torch.ones(2, 7), orders[:, :7].argsort().short(), wrong)


@compiled
def test_pivots_reorder_prompts_by_the_operator_where_no_gradient_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    given, calls = OPERATORS["reordered"], []
    monkeypatch.setitem(OPERATORS, "reordered", lambda *args: (calls.append(1), given(*args))[1])
    for m, n in ((12, 9), (9, 12)):
        layer, x = layer_of("pivot", m, n, 4), torch.randn(FEW + 1, n)
        expected = layer(x)
        assert calls.pop()
        torch.testing.assert_close(layer(x.requires_grad_()), expected)
        assert not calls


def test_a_head_gets_last_tokens_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies apart is gathered first."""
    given, shapes = nn.functional.linear, []
    monkeypatch.setattr(nn.functional, "linear", lambda x, *args: (shapes.append(x.shape), given(x, *args))[1])
    layer = layer_of("linear", 12, 9, 4)
    x = torch.randn(FEW + 1, 5, 9)
    torch.testing.assert_close(layer(x[:, -1:]), layer(x)[:, -1:])
    assert shapes == [(FEW + 1, 9), (FEW + 1, 5, 9)]


def exact_weight(layer: nn.Module) -> torch.Tensor:
    weight: Any = copy.deepcopy(layer).double().weight
    return weight


def test_the_table() -> None:
    """What the measurements of docs/speed.md say."""
    for dtype in FORMATS:
        for form in FORMS:
            assert fitting(form, dtype, 1, built=True) == fitting(form, dtype, FEW, built=True) == OPERATOR
            assert fitting(form, dtype, 1, built=False) == TORCH
            assert fitting(form, dtype, 2, built=False) == REFERENCE
            assert fitting(form, torch.float64, 1, built=True) == REFERENCE
            for built in (False, True):
                spaced = form == "columns" or (form == "pair" and dtype == torch.bfloat16)
                assert fitting(form, dtype, FEW + 1, built) == (SPACED if spaced else REFERENCE)


@pytest.mark.parametrize("form", ["factors", "remap"])
def test_what_lies_between_the_products_of_a_prompt(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 16 bits rows begin at lines, which oneDNN reads faster, where that is worth it; numbers lie between them."""
    given, seen = nn.functional.linear, []
    monkeypatch.setattr(nn.functional, "linear", lambda x, *args: (seen.append(x), given(x, *args))[1])
    m, n, r, x = 45, 38, 21, torch.randn(FEW + 1, 2, 38).bfloat16()
    layer = layer_of(form, m, n, r).bfloat16()
    bias: Any = layer.bias
    exact = x.double() @ exact_weight(layer).T + bias.double()
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, *shape: x.new_full(shape, torch.nan))
    for worth, step in ((len(x) * 2 * m * r, LINE // x.element_size()), (len(x) * 2 * m * r + 1, r)):
        monkeypatch.setattr(svdexp_products, "WORTH", worth)
        torch.testing.assert_close(layer(x).double(), exact, rtol=0, atol=0.02 * exact.abs().max().item())
        between = seen[-1]
        assert between.stride()[-2:] == (step, 1)
        assert between.as_strided((2 * len(x), step), (step, 1)).isfinite().all()


def test_pivots_are_added_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    given, seen = nn.functional.linear, []
    monkeypatch.setattr(nn.functional, "linear", lambda x, *args: (seen.append(x), given(x, *args))[1])
    layer_of("pivot", 45, 38, 21)(torch.randn(FEW + 1, 2, 38))
    assert [x.stride() for x in seen] == [(38, 1)]


def test_what_others_hang_on_a_layer_runs(by: Any) -> None:
    taken, seen = by(TORCH), []
    for form in ("factors", "pivot"):
        layer = layer_of(form, 12, 9, 4)
        x = torch.randn(1, 9)
        expected = layer(x)
        assert taken.pop() == TORCH
        inner = next(iter(layer.children()))
        hook = inner.register_forward_hook(lambda *_: seen.append(1))
        torch.testing.assert_close(layer(x), expected)
        assert (taken.pop(), seen.pop()) == (REFERENCE, 1)
        hook.remove()
        # as accelerate puts a function of its own there
        inner.forward = lambda x, forward=inner.forward: 2 * forward(x)
        assert not torch.equal(layer(x), expected)


@pytest.mark.parametrize("route", [TORCH, pytest.param(OPERATOR, marks=compiled), SPACED])
@pytest.mark.parametrize("form", ["linear", "factors", "pivot"])
def test_gradients_are_those_of_the_reference(by: Any, route: str, form: str) -> None:
    taken, layer, x = by(route), layer_of(form, 12, 9, 4), torch.randn(1, 9, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0)[None])
    layer.requires_grad_(True)(x.detach()).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.requires_grad_(False)(x.detach()).dtype == torch.bfloat16
    assert set(taken) == {REFERENCE}
    layer(x.detach())
    assert taken[-1] == route


@pytest.mark.parametrize("route", [TORCH, pytest.param(OPERATOR, marks=compiled)])
@pytest.mark.parametrize("form", ["linear", "factors", "pivot"])
def test_forward_derivatives_are_those_of_the_reference(by: Any, route: str, form: str) -> None:
    """Operators have none, and torch takes them for zero without a word."""
    for m, n in ((12, 9), (9, 12)):
        taken, layer, x = by(route), layer_of(form, m, n, 4), torch.randn(1, n)
        expected = x @ layer.weight.T  # of a linear map, but for the bias
        torch.testing.assert_close(torch.func.jvp(layer, (x,), (x,))[1], expected)
        with dual_level():
            torch.testing.assert_close(unpack_dual(layer(make_dual(x, x))).tangent, expected)
        torch.testing.assert_close(torch.func.vmap(layer)(x[None])[0], layer(x))
        assert taken == [REFERENCE] * 3 + [route]


@compiled
@pytest.mark.parametrize("form", ["linear", "factors", "pivot"])
def test_operators_are_compiled_into_graphs_and_counted(form: str) -> None:
    for m, n in ((12, 9), (9, 12)):
        layer, x = layer_of(form, m, n, 4), torch.randn(3, n)
        expected = layer(x)
        torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), expected)
        with FlopCounterMode(display=False) as counter:
            layer(x)
        assert counter.get_total_flops() == 2 * 3 * sum(W.numel() for W in layer.parameters() if W.ndim == 2)


@compiled
def test_what_is_exported_runs_without_operators() -> None:
    layer, x = layer_of("factors", 12, 9, 4), torch.randn(3, 9)
    exported = torch.export.export(layer, (x,))
    assert "svdexp" not in exported.graph_module.code
    torch.testing.assert_close(exported.module()(x), layer(x))


def test_dense_layers_of_a_compressed_model_go_by_the_table_until_it_is_none(by: Any) -> None:
    taken = by(TORCH)
    model, _ = shrunk("llama", FactorStorage())
    tokens = torch.arange(1)[None]
    head = model.get_output_embeddings()
    with torch.no_grad():
        plain = model(tokens).logits
        before = len(taken)
        quicken(model)
        torch.testing.assert_close(model(tokens).logits, plain)
        assert len(taken) == 2 * before + 1  # the head alone
        again = pickle.loads(pickle.dumps(copy.deepcopy(head)))
        assert again.forward.args[0] is again
        unquicken(model)
        assert "forward" not in head.__dict__
        assert torch.equal(model(tokens).logits, plain)


def test_onednn_is_left_as_it_was() -> None:
    """By threads that overlap, and by one that fails."""
    inside, leave = threading.Event(), threading.Event()

    def wait() -> torch.Tensor:
        inside.set()
        leave.wait()
        return torch.zeros(1)

    first = threading.Thread(target=without_onednn, args=(wait,))
    first.start()
    inside.wait()
    assert not torch._C._get_mkldnn_enabled()
    with pytest.raises(ZeroDivisionError):
        without_onednn(lambda: 1 // 0)
    assert not torch._C._get_mkldnn_enabled()
    leave.set()
    first.join()
    assert torch._C._get_mkldnn_enabled()


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators are looked for anew."""
    monkeypatch.setattr(svdexp_operator, "OPERATORS", {})
    monkeypatch.setattr(svdexp_operator, "_ASKED", [])


def test_the_switch(unasked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    monkeypatch.setattr(svdexp_operator, "_made", lambda: pytest.fail("looked for"))
    assert not ready()


@pytest.mark.parametrize("compiler", ["true", "false", "not-there"])
def test_a_compiler_that_makes_nothing(
    unasked: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiler: str
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(svdexp_operator.shutil, "which", lambda name: f"/bin/{compiler}")
    assert not ready()
    assert not list(tmp_path.rglob("*.so"))


def test_a_library_that_is_none(unasked: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = tmp_path / "it.so"
    library.write_bytes(b"no library")
    monkeypatch.setattr(svdexp_operator, "SOURCE", "nothing else is called so")
    monkeypatch.setattr(svdexp_operator, "_built", lambda *_: library)
    assert not ready()


@compiled
@pytest.mark.parametrize("wrong", NAMES)
def test_an_operator_that_computes_something_else_is_refused(wrong: str) -> None:
    def changed(*args: Any) -> Any:
        given = OPERATORS[wrong](*args)
        return args[0].mul_(1.1) if given is None else given * 1.1  # decode writes into what it is given

    svdexp_operator._compare(OPERATORS)
    with pytest.raises(AssertionError, match="wrong by"):
        svdexp_operator._compare(OPERATORS | {wrong: changed})


@compiled
def test_another_copy_of_the_file_has_the_same_operators() -> None:
    """As a checkpoint's, opened beside svdexp."""
    copied: dict[str, Any] = {"__name__": "elsewhere", "__package__": svdexp_operator.__package__}
    exec(Path(svdexp_operator.__file__).read_text(), copied)
    assert copied["ready"]()
    assert copied["OPERATORS"] == OPERATORS


def test_without_a_compiler_on_path_all_works_and_nothing_is_said(tmp_path: Path) -> None:
    program = """
import torch
from svdexp.bench.layers import layer
from svdexp.models.portable.svdexp_operator import ready
print(layer("pivot", 12, 9, 0.6)(torch.ones(1, 9)).shape, ready())
"""
    surroundings = os.environ | {"PATH": str(tmp_path), "TORCH_EXTENSIONS_DIR": str(tmp_path / "cache")}
    surroundings.pop("CXX", None)
    done = subprocess.run([sys.executable, "-c", program], env=surroundings, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "torch.Size([1, 12]) False\n", "")
    assert not list(tmp_path.iterdir())
