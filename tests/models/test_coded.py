"""Products with codes: every route gives what the reference gives, and each is taken where the table says."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from svdexp.models.factors import Factors
from svdexp.models.portable import svdexp_coded, svdexp_operator, svdexp_remap
from svdexp.models.portable.svdexp_coded import DECODED, PACKED, Rule, packable
from svdexp.models.portable.svdexp_products import OPERATOR, REFERENCE
from svdexp.models.portable.svdexp_quantised import QuantisedLinear
from svdexp.storage import RemapStorage, ResidualStorage, RTNStorage
from svdexp.storage.residual import Rounding

FORMATS = [torch.float32, torch.bfloat16, torch.float16]
# Bits, group, own zeros.
GRIDS = [
    *(
        (4, 32, False),
        (4, 64, True),
        (4, None, False),
        (4, 48, False),
        (8, None, False),
        (8, 64, False),
        (3, 32, False),
    ),
    *((2, 128, True), (5, None, False), (6, 32, False), (3, 8, True), (6, None, True), (8, 24, True)),
    *((2, 32, False), (2, None, True), (4, 96, True)),
]
SHAPES = [(48, 64), (33, 40), (7, 200), (130, 96)]


@pytest.fixture(params=[True, False], ids=["compiled", "plain"])
def built(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With compiled operators, where there is a compiler, and without."""
    if request.param and not svdexp_operator.ready():
        pytest.skip("no compiler here")
    answer = bool(request.param)
    for file in (svdexp_coded, svdexp_remap):
        monkeypatch.setattr(file, "ready", lambda: answer)
    return answer


def layer_of(m: int, n: int, grid: tuple[int, int | None, bool], dtype: torch.dtype) -> QuantisedLinear:
    torch.manual_seed(0)
    made = RTNStorage(grid[0], grid[1], zero_points=grid[2]).whole(torch.randn(m, n) + 0.3, torch.randn(m))
    return made.to(dtype).requires_grad_(False)


def routes_of(layer: QuantisedLinear, dtype: torch.dtype, built: bool, tokens: int) -> set[str]:
    W = layer.codes_of("out")
    compiled = {DECODED} | ({OPERATOR} if tokens <= 8 else set())
    return (compiled if built and W.rows_are_bytes else set()) | (
        {PACKED} if dtype is torch.bfloat16 and packable(W) else set()
    )


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_route_is_the_reference(
    grid: tuple[int, int | None, bool], dtype: torch.dtype, built: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for m, n in SHAPES:
        layer = layer_of(m, n, grid, dtype)
        for tokens in (1, 2, 3, 7, 20):
            x = torch.randn(tokens, n).to(dtype)
            W = layer.factor("out", dtype).double()
            exact = x.double() @ W.T
            size = (x.double().abs() @ W.abs().T + 1) * torch.finfo(dtype).eps
            for how in routes_of(layer, dtype, built, tokens):
                monkeypatch.setattr(svdexp_coded, "RULES", (Rule(how, (dtype,), None),))
                with torch.no_grad():
                    assert svdexp_coded.route(x, layer.codes_of("out"), layer.bias) == how
                    error = (layer(x).double() - exact - layer.bias.double()).abs() / size  # type: ignore[union-attr]
                assert float(error.max()) < 4, (how, m, n, tokens)


def test_decoded_numbers_are_the_references(built: bool) -> None:
    if not built:
        return
    for grid in GRIDS:
        for dtype in FORMATS:
            for m, n in SHAPES:
                layer = layer_of(m, n, grid, dtype)
                W = layer.codes_of("out")
                if W.rows_are_bytes:
                    numbers = svdexp_coded.lent((m, n), dtype)
                    svdexp_operator.OPERATORS["decode"](numbers, *W[:4], W.group or 0)
                    assert torch.equal(numbers, layer.factor("out", dtype)), (grid, dtype, m, n)


@pytest.mark.parametrize(
    ("grid", "dtype", "tokens", "compiled", "plain"),
    [
        ((4, 32, False), torch.bfloat16, 1, OPERATOR, PACKED),
        ((4, 32, False), torch.bfloat16, 8, OPERATOR, PACKED),
        ((8, None, False), torch.bfloat16, 1, OPERATOR, PACKED),
        ((3, 32, False), torch.float32, 1, OPERATOR, REFERENCE),
        ((4, 32, False), torch.float16, 1, OPERATOR, REFERENCE),
        ((4, 32, False), torch.bfloat16, 9, DECODED, PACKED),
        ((4, 32, False), torch.bfloat16, 33, DECODED, REFERENCE),
        ((4, 32, False), torch.float32, 300, DECODED, REFERENCE),
        ((4, 7, False), torch.bfloat16, 1, REFERENCE, REFERENCE),  # groups begin within a byte
    ],
    ids=str,
)
def test_the_table(
    grid: tuple[int, int | None, bool], dtype: torch.dtype, tokens: int, compiled: str, plain: str, built: bool
) -> None:
    W = layer_of(48, 64, grid, dtype).codes_of("out")
    with torch.no_grad():
        assert svdexp_coded.route(torch.randn(tokens, 64).to(dtype), W) == (compiled if built else plain)


def test_who_trains_goes_by_the_reference(built: bool) -> None:
    layer, x = layer_of(48, 64, (4, 32, False), torch.bfloat16), torch.randn(1, 64).bfloat16()
    assert svdexp_coded.route(x, layer.codes_of("out"), layer.bias) != REFERENCE
    assert svdexp_coded.route(x.requires_grad_(), layer.codes_of("out"), layer.bias) == REFERENCE
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0, keepdim=True).to(x.dtype), rtol=0.02, atol=0.1)
    layer.bias.requires_grad_()  # type: ignore[union-attr]
    assert svdexp_coded.route(x.detach(), layer.codes_of("out"), layer.bias) == REFERENCE
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert svdexp_coded.route(x.detach(), layer.codes_of("out")) == REFERENCE
    assert svdexp_coded.route(x.detach()[:0], layer.codes_of("out")) == REFERENCE


@torch.no_grad()
def test_what_is_packed_follows_the_codes(built: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svdexp_coded, "RULES", (Rule(PACKED, (torch.bfloat16,), None),))
    layer, other = (layer_of(48, 64, grid, torch.bfloat16) for grid in ((4, 32, False), (4, 32, False)))
    x = torch.randn(3, 64).bfloat16()
    first = layer(x)
    assert layer.packs
    assert not any("packs" in key for key in layer.state_dict())
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(again(x), first)
    assert not pickle.loads(pickle.dumps(layer)).packs
    layer.out_codes.copy_(other.out_codes.flip(0))  # in place
    changed = layer(x)
    assert not torch.equal(changed, first)
    other.out_codes = layer.out_codes.clone()  # another tensor
    assert torch.equal(other(x), changed)


@torch.no_grad()
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize(("m", "n"), [(45, 64), (64, 45), (33, 33), (16, 96)])
def test_remapped_factors(m: int, n: int, dtype: torch.dtype, built: bool) -> None:
    torch.manual_seed(0)
    factors = Factors(torch.randn(m, 13), torch.randn(13, n))
    layer: Any = RemapStorage().layer(factors, torch.randn(m), torch.empty(m, n)).to(dtype).requires_grad_(False)
    for tokens in (1, 3, 20):
        x = torch.randn(tokens, n).to(dtype)
        A, B = (layer.factor(side, dtype).double() for side in ("out", "in"))
        h = layer.latent(x)
        for found, exact, size in (
            (h, x.double() @ B.T, x.double().abs() @ B.abs().T),
            (layer.rebuilt(h), h.double() @ A.T + layer.bias.double(), h.double().abs() @ A.abs().T + 1),
        ):
            assert bool(((found.double() - exact).abs() <= 2 * torch.finfo(dtype).eps * (size + 1)).all())
        assert torch.equal(layer(x), layer.rebuilt(h))


@torch.no_grad()
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize(("m", "n"), [(45, 64), (64, 45), (33, 33), (16, 96)])
def test_numbers_of_remapped_factors_are_the_references_to_the_last_bit(
    m: int, n: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not svdexp_operator.ready():
        pytest.skip("no compiler here")
    given, made = svdexp_operator.OPERATORS["renumber"], []
    monkeypatch.setitem(svdexp_operator.OPERATORS, "renumber", lambda *args: (given(*args), made.append(args[0])))
    torch.manual_seed(0)
    factors = Factors(torch.randn(m, 21), torch.randn(21, n))
    layer: Any = RemapStorage().layer(factors, None, torch.empty(m, n)).to(dtype).requires_grad_(False)
    h = layer.latent(torch.randn(20, n).to(dtype))
    assert torch.equal(made.pop(), layer.factor("in", dtype))
    layer.rebuilt(h)
    assert torch.equal(made.pop(), layer.factor("out", dtype))
    assert not made


@torch.no_grad()
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_codes_and_their_correction_multiply_at_once_where_nobody_listens(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not svdexp_operator.ready():
        pytest.skip("no compiler here")
    given, calls = svdexp_operator.OPERATORS["corrected"], []
    monkeypatch.setitem(svdexp_operator.OPERATORS, "corrected", lambda *args: (calls.append(1), given(*args))[1])
    torch.manual_seed(0)
    cases = (((33, 64), 16, False, None), ((70, 40), 5, True, None), ((130, 96), 80, False, 32))
    for (m, n), rank, zeros, group in cases:
        storage = ResidualStorage(4, 32, zero_points=zeros, rounding=Rounding.nearest, factor_group=group)
        W = torch.randn(m, n)
        factors, bias = Factors(torch.randn(m, rank), torch.randn(rank, n)), torch.randn(m)
        layer: Any = storage.layer(factors, bias, W, storage.target(W)[1]).to(dtype).requires_grad_(False)
        Q, A, B = (
            of.factor(side, dtype).double()
            for of, side in ((layer.codes, "out"), (layer.factors, "out"), (layer.factors, "in"))
        )
        for tokens in (1, 3):
            x = torch.randn(tokens, n).to(dtype)
            size = x.double().abs() @ (Q.abs() + A.abs() @ B.abs()).T + 1
            exact = x.double() @ (Q + A @ B).T + layer.bias.double()
            with FlopCounterMode(display=False) as counter:
                found = layer(x)
            assert calls.pop()
            assert counter.get_total_flops() == 2 * tokens * (m * n + rank * (m + n))
            assert bool(((found.double() - exact).abs() <= 4 * torch.finfo(dtype).eps * size).all())
        layer.factors.register_forward_hook(lambda *_: calls.append(2))
        layer(x)
        assert calls.pop() == 2
        assert not calls


@torch.no_grad()
@pytest.mark.parametrize(("m", "n"), [(45, 64), (64, 45)])
def test_products_of_remapped_factors_are_counted(m: int, n: int, built: bool) -> None:
    """Two for each number of both and each token, by whatever route."""
    layer: Any = RemapStorage().layer(Factors(torch.randn(m, 13), torch.randn(13, n)), None, torch.empty(m, n))
    with FlopCounterMode(display=False) as counter:
        layer.requires_grad_(False)(torch.randn(3, n))
    assert counter.get_total_flops() == 2 * 3 * 13 * (m + n)


@torch.no_grad()
def test_compiled_by_torch(built: bool) -> None:
    """One graph, whatever the route."""
    layer = layer_of(48, 64, (4, 32, False), torch.float32)
    torch._dynamo.reset()
    step = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for tokens in (1, 12):
        x = torch.randn(tokens, 64)
        torch.testing.assert_close(step(x), layer(x))
