"""Codes: packing is exact, rounding within half a step, GPTQ against its recursion and against rounding to nearest."""

from dataclasses import replace

import pytest
import torch

from svdexp.models.portable.svdexp_bits import CODE_BITS, pack, packed_bytes, unit, unpack
from svdexp.storage.rounding import DAMPING, SHARES, Grid, Inputs, Rounded, gptq, rounded_up, to_nearest, turns, walk

GRIDS = [Grid(bits, size) for bits in CODE_BITS for size in (None, 1, 5, 16)]
FITTED = [Grid(bits, size, bits == 3, fit=True) for bits in (2, 3, 4) for size in (None, 5, 16)]
ASYMMETRIC = [Grid(bits, size, zero_points=True) for bits in (2, 3, 5, 8) for size in (None, 5, 16)]


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
    assert bits * count <= 8 * len(packed) < bits * count + 8 * unit(bits)[1]


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


def alone(H: torch.Tensor, left: list[int]) -> float:
    """1 / what a unit error of the first column of `left` costs, once the others of these make up for it."""
    return float(torch.linalg.inv(H[left][:, left])[0, 0])


def by_the_book(W: torch.Tensor, C: torch.Tensor, grid: Grid) -> Rounded:
    """Optimal brain quantisation: after each column the inverse of what is left says how others move (eq. 2, 3)."""
    W, columns = W.clone(), W.shape[1]
    H = C + DAMPING * C.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    size = grid.group_size or columns
    left, done = torch.ones(columns, dtype=torch.bool), set()
    codes, (scale, zero) = torch.zeros_like(W), grid.levels(W)
    order = torch.cat(turns(C.diagonal(), grid.group_size)).tolist()
    for i in order:
        group = i // size
        if group not in done:
            done.add(group)
            members = [j for j in order if j // size == group]
            costs = torch.tensor([1 / alone(H, order[order.index(j) :]) for j in members], dtype=torch.float64)
            levels = grid.levels_of(W[:, None, members], costs)
            scale[:, group], zero[:, group] = (level[:, 0] for level in levels)
        inverse = torch.zeros_like(H)
        inverse[left[:, None] & left] = torch.linalg.inv(H[left][:, left]).flatten()
        codes[:, i] = grid.nearest(W[:, i], scale[:, group].double(), zero[:, group])
        error = W[:, i] - (codes[:, i] - zero[:, group]) * scale[:, group].double()
        W -= torch.outer(error / inverse[i, i], inverse[i])
        left[i] = False
    return grid.rounded(codes.int(), scale, zero)


def test_large_inputs_come_first_and_groups_stay_together() -> None:
    diagonal = torch.tensor([1.0, 5, 2, 4, 3, 9, 0])
    assert [part.tolist() for part in turns(diagonal, 3)] == [[5, 3, 4], [1, 2, 0], [6]]
    assert torch.cat(turns(diagonal, None)).tolist() == [5, 1, 3, 4, 2, 0, 6]


@pytest.mark.parametrize("grid", ASYMMETRIC, ids=str)
@pytest.mark.parametrize("columns", [1, 5, 13, 32])
def test_zero_points_halve_the_steps_of_one_sided_groups(grid: Grid, columns: int) -> None:
    """Numbers of one sign waste no code; of both signs, every number lies within a step, and zero is exact."""
    W = drawn(6, columns).abs() + 0.1
    rounded, symmetric = to_nearest(W, grid), to_nearest(W, Grid(grid.bits, grid.group_size))
    assert int(rounded.codes.min()) >= 0
    assert int(rounded.codes.max()) <= grid.highest
    assert rounded.zero is not None
    assert symmetric.zero is None
    assert bool((rounded.scale <= 0.51 * symmetric.scale).all())
    assert float((grid.numbers(rounded) - W).abs().max()) <= 0.5 * float(rounded.scale.max()) * (1 + 1e-9)
    W = drawn(6, columns)
    W[:, 0] = 0
    rounded = to_nearest(W, grid)
    stored, size = grid.numbers(rounded), grid.group_size or columns
    assert bool((stored[:, 0] == 0).all())
    steps = rounded.scale.double().repeat_interleave(size, 1)[:, :columns]
    assert bool(((stored - W).abs() <= steps).all())


def test_grids_walk_together_as_they_do_alone() -> None:
    W, C = drawn(5, 40, seed=3), correlated(40)
    for size in (None, 16):
        grids = [Grid(2, size), Grid(3, size, zero_points=True), Grid(8, size), Grid(5, size)]
        done = walk(W, Inputs.of(C), grids)
        for grid, together, error in zip(grids, done.rounded(), done.errors(W), strict=True):
            alone = gptq(W, C, grid)
            torch.testing.assert_close(error, W - grid.numbers(alone), rtol=0, atol=1e-12)
            assert torch.equal(together.codes, alone.codes)
            assert torch.equal(together.scale, alone.scale)
            assert (together.zero is None) == (alone.zero is None) == (not grid.zero_points)


@pytest.mark.parametrize("grid", GRIDS + ASYMMETRIC + FITTED, ids=str)
@pytest.mark.parametrize("columns", [3, 16, 140])
def test_gptq_is_the_recursion(grid: Grid, columns: int) -> None:
    W, C = drawn(4, columns, seed=3), correlated(columns)
    ours, theirs = gptq(W, C, grid), by_the_book(W, C, grid)
    # Rounding errors of 1e-12 may tip a number that lies on the border of two codes.
    assert float((ours.codes == theirs.codes).double().mean()) > 0.99
    assert float((ours.scale == theirs.scale).double().mean()) > 0.99


@pytest.mark.parametrize("grid", FITTED, ids=str)
def test_a_fitted_step_is_the_best_of_its_shares(grid: Grid) -> None:
    """By brute force, group by group, with weights; what lies beyond the codes is cut off."""
    W, weights = drawn(6, 13).pow(3), drawn(13, seed=1).square()
    plain = replace(grid, fit=False)
    for start in range(0, 13, grid.group_size or 13):
        part = slice(start, start + (grid.group_size or 13))
        found, zero = grid.levels_of(W[:, None, part], weights[part])
        reaching, same = plain.levels_of(W[:, None, part])
        assert torch.equal(zero, same)
        assert bool((found <= reaching).all())
        lost = []
        for share in SHARES:
            step = rounded_up(share * reaching.double()).double()
            held = (plain.nearest(W[:, part], step, zero) - zero) * step
            lost.append(((W[:, part] - held).square() * weights[part]).sum(1))
        step = found.double()
        held = (plain.nearest(W[:, part], step, zero) - zero) * step
        ours = ((W[:, part] - held).square() * weights[part]).sum(1)
        torch.testing.assert_close(ours, torch.stack(lost).amin(0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bits", [2, 3])
def test_fitted_steps_lose_less(bits: int) -> None:
    W, C = drawn(16, 64, seed=3), correlated(64)
    plain, fitted = Grid(bits, 16), Grid(bits, 16, fit=True)
    assert lost(W, gptq(W, C, fitted), fitted, C) < 0.95 * lost(W, gptq(W, C, plain), plain, C)
    white = torch.eye(64, dtype=torch.float64)
    assert lost(W, to_nearest(W, fitted), fitted, white) < lost(W, to_nearest(W, plain), plain, white)


def lost(W: torch.Tensor, rounded: Rounded, grid: Grid, C: torch.Tensor) -> float:
    change = W - grid.numbers(rounded)
    return float((change @ C * change).sum())


@pytest.mark.parametrize("bits", CODE_BITS)
@pytest.mark.parametrize("group_size", [None, 16])
def test_gptq_loses_less_on_correlated_inputs(bits: int, group_size: int | None) -> None:
    grid, W, C = Grid(bits, group_size), drawn(16, 64, seed=3), correlated(64)
    assert lost(W, gptq(W, C, grid), grid, C) < 0.5 * lost(W, to_nearest(W, grid), grid, C)


@pytest.mark.parametrize("grid", GRIDS + ASYMMETRIC, ids=str)
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
