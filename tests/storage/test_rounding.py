"""Codes: packing is exact, rounding within half a step, GPTQ against its recursion and against rounding to nearest."""

import pytest
import torch

from svdexp.models.portable.svdexp_layers import CODE_BITS, pack, packed_bytes, unpack
from svdexp.storage.rounding import DAMPING, Grid, Rounded, gptq, to_nearest

GRIDS = [Grid(bits, size) for bits in CODE_BITS for size in (None, 1, 5, 16)]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(width: int) -> torch.Tensor:
    """A second moment (width, width) of 40 samples with common directions, and a channel that is always zero."""
    X = drawn(40, width) @ drawn(width, width, seed=1) + 5 * drawn(40, 1, seed=2)
    X[:, 2] = 0
    return X.T @ X / 40


@pytest.mark.parametrize("bits", CODE_BITS)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 31, 1000])
def test_packed_codes_come_back(bits: int, count: int) -> None:
    codes = torch.randint(2**bits, (count,), generator=torch.Generator().manual_seed(count))
    packed = pack(codes, bits)
    assert (packed.dtype, len(packed)) == (torch.uint8, packed_bytes(count, bits))
    assert torch.equal(unpack(packed, count, bits).long(), codes)
    assert bits * count <= 8 * len(packed) <= bits * count + 24


@pytest.mark.parametrize("bits", CODE_BITS)
def test_packed_codes_are_a_stream_of_bits(bits: int) -> None:
    """Lowest bits first: as one large number, code k stands at bit k · bits."""
    codes = torch.randint(2**bits, (48,), generator=torch.Generator().manual_seed(0))
    stream = int.from_bytes(bytes(pack(codes, bits).tolist()), "little")
    assert [stream >> bits * k & 2**bits - 1 for k in range(48)] == codes.tolist()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("columns", [1, 5, 13, 32])
@pytest.mark.parametrize("size", [1e-9, 1.0, 1e4])
def test_every_entry_is_within_half_a_step_of_its_group(grid: Grid, columns: int, size: float) -> None:
    W = size * drawn(6, columns)
    W[3] = 0
    rounded = to_nearest(W, grid)
    assert int(rounded.codes.min()) >= 0
    assert int(rounded.codes.max()) < 2**grid.bits
    stored = grid.numbers(rounded)
    assert bool((stored[3] == 0).all())
    width = grid.group_size or columns
    for start in range(0, columns, width):
        part = slice(start, start + width)
        step = rounded.scale[:, start // width].double()
        tight = (W[:, part].abs().amax(1) / (2 ** (grid.bits - 1) - 0.5)).clamp_min(2.0**-24)
        assert bool((step >= tight).all())
        assert bool((step <= tight * (1 + 2.0**-10) + 2.0**-24).all())
        assert bool(((stored - W)[:, part].abs() <= 0.5 * step[:, None] * (1 + 1e-9)).all())


def by_the_book(W: torch.Tensor, C: torch.Tensor, grid: Grid) -> Rounded:
    """Optimal brain quantisation in the order of the columns: after each, the inverse of what is left (eq. 2 and 3)."""
    W, columns = W.clone(), W.shape[1]
    H = C + DAMPING * C.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    size = grid.group_size or columns
    codes, scales = torch.zeros_like(W), []
    for i in range(columns):
        if i % size == 0:
            scales.append(grid.scales(W[:, i : i + size]))
        inverse = torch.linalg.inv(H[i:, i:])
        codes[:, i] = grid.nearest(W[:, i], scales[-1][:, 0].double())
        error = W[:, i] - (codes[:, i] - grid.middle) * scales[-1][:, 0].double()
        W[:, i:] -= torch.outer(error / inverse[0, 0], inverse[0])
    return Rounded(codes.int(), torch.cat(scales, dim=1))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("columns", [3, 16, 150])
def test_gptq_is_the_recursion(grid: Grid, columns: int) -> None:
    W, C = drawn(4, columns, seed=3), correlated(columns)
    ours, theirs = gptq(W, C, grid), by_the_book(W, C, grid)
    # Rounding errors of 1e-12 may tip a number that lies on the border of two codes.
    assert float((ours.codes == theirs.codes).double().mean()) > 0.99
    assert float((ours.scale == theirs.scale).double().mean()) > 0.99


def lost(W: torch.Tensor, rounded: Rounded, grid: Grid, C: torch.Tensor) -> float:
    change = W - grid.numbers(rounded)
    return float((change @ C * change).sum())


@pytest.mark.parametrize("bits", CODE_BITS)
@pytest.mark.parametrize("group_size", [None, 16])
def test_gptq_loses_less_on_correlated_inputs(bits: int, group_size: int | None) -> None:
    grid, W, C = Grid(bits, group_size), drawn(16, 64, seed=3), correlated(64)
    assert lost(W, gptq(W, C, grid), grid, C) < 0.5 * lost(W, to_nearest(W, grid), grid, C)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("C", [torch.eye(24), torch.zeros(24, 24)], ids=["white", "none"])
def test_gptq_rounds_to_nearest_where_inputs_say_nothing(grid: Grid, C: torch.Tensor) -> None:
    W = drawn(5, 24)
    ours, nearest = gptq(W, C, grid), to_nearest(W, grid)
    assert torch.equal(ours.codes, nearest.codes)
    assert torch.equal(ours.scale, nearest.scale)


def test_gptq_leaves_its_arguments_alone() -> None:
    W, C = drawn(4, 16), correlated(16)
    before = W.clone(), C.clone()
    gptq(W, C, Grid(4, 8))
    assert torch.equal(W, before[0])
    assert torch.equal(C, before[1])
