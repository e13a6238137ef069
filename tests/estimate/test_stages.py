"""The rows of an estimate against counts by hand, on a tiny Llama: q, k, v, o are 32 wide, the gated MLP is 48."""

from bisect import bisect_left
from dataclasses import replace
from typing import Any

import pytest
import torch

from svdexp.allocation import EffectiveRank, Forms, Uniform
from svdexp.calibration.compressed_path import compressed_path
from svdexp.calibration.statistics import INPUT_STATISTICS, Gram
from svdexp.estimate.calibration import statistics_bytes
from svdexp.estimate.decomposition import Sides, decomposition, measured, sides
from svdexp.estimate.devices import Machine
from svdexp.estimate.speed import Speed
from svdexp.estimate.stages import Stage, stages
from svdexp.estimate.table import render
from svdexp.factorisation import InputMoment, TwoSided
from svdexp.method import Method
from svdexp.models.work import Work, Workload, cost_of
from svdexp.schema import RATIO_STEPS, EfficiencyConfig, EvalConfig, Numerics, Save, Traversal
from svdexp.storage import FactorStorage, FormStorage
from svdexp.training import BlockRefine
from tests.conftest import tiny_model
from tests.estimate.workloads import workload_at
from tests.storage.test_target import Signs

METHOD = Method("svd_llm", InputMoment(), Uniform(), FactorStorage())
BLOCKS, WINDOWS, LENGTH, RATIO = 3, 6, 24, 0.5
SHAPES = [(32, 32), (16, 32), (16, 32), (32, 32), (48, 32), (48, 32), (32, 48)]  # of one block
MATRICES = BLOCKS * sum(m * n for m, n in SHAPES)
# Uniform ranks 8, 5 and 9 of (32, 32), (16, 32) and (48, 32); what rounding left is one rank more for k, v and the MLP
# of the first block, and for k, v and the gate of the second.
KEPT = BLOCKS * (2 * 8 * 64 + 2 * 5 * 48 + 3 * 9 * 80) + 4 * 48 + 4 * 80
COMPONENTS = BLOCKS * sum(4 * min(m, n) * (m + n) for m, n in SHAPES)
# Inputs of q, o, and gate and up, which share one; outputs of k, v and down, which have fewer than their inputs.
MOMENTS = [32, 32, 32, 16, 16, 32]
GRAMS = BLOCKS * 4 * sum(width**2 for width in MOMENTS)
WHITENED = {(m, n): Sides(0, 0 if m < n else 2, m < n) for m, n in SHAPES}


@pytest.fixture(scope="module")
def workload() -> Workload:
    model = tiny_model("llama_gqa")
    return workload_at(model, RATIO, windows=WINDOWS, length=LENGTH)


def rows(
    workload: Workload, method: Method = METHOD, evaluation: EvalConfig | None = None, **options: Any
) -> dict[str, Stage]:
    evaluation = evaluation or EvalConfig(texts=[], efficiency=None)
    found = stages(workload, method, evaluation, [], **({"save": Save.checkpoint, "cached": True} | options))
    return {row.name: row for row in found}


def test_sums_are_counted_once_for_an_input_that_layers_share(workload: Workload) -> None:
    per_token = BLOCKS * sum(2 * width**2 for width in MOMENTS)
    assert sum(map(Gram.flops, MOMENTS)) == per_token / BLOCKS
    assert rows(workload)["calibration"].work.float32 == WINDOWS * LENGTH * per_token


def test_routes_over_the_larger_side_take_its_moments(workload: Workload) -> None:
    """So does what decomposes another matrix than W."""
    inputs = 4 * BLOCKS * (3 * 32**2 + 48**2)
    gradients = 4 * BLOCKS * (32**2 + 16**2 + 16**2 + 32**2 + 48**2 + 48**2 + 32**2)
    dense = rows(workload)["calibration"].bytes
    for numerics in (Numerics.cholesky, Numerics.double_svd):
        found = rows(workload, replace(METHOD, numerics=numerics))["calibration"]
        assert found.bytes - dense == inputs - GRAMS
    kron = replace(METHOD, weighting=TwoSided())
    split = replace(kron, storage=Signs())
    assert split.storage.split
    wider = rows(workload, split)["calibration"].bytes - rows(workload, kron)["calibration"].bytes
    assert wider == inputs - GRAMS + gradients - 4 * BLOCKS * sum(min(shape) ** 2 for shape in SHAPES)


def test_a_blockwise_run_passes_every_block_twice(workload: Workload) -> None:
    """To measure and to move on; one window more shows shared inputs, two record the blocks' arguments."""
    found = rows(workload, replace(METHOD, traversal=Traversal.blockwise))["calibration"].work
    passes = 2 * WINDOWS + 3
    matrices = 2 * LENGTH * KEPT
    attention = 4 * LENGTH * LENGTH * 32 * BLOCKS
    assert found.model == passes * (matrices + attention)


def test_spectra_for_a_blockwise_run_cost_a_second_decomposition(workload: Workload) -> None:
    method = replace(METHOD, allocation=EffectiveRank())
    once = rows(workload, method)["factorisation"].work
    twice = rows(workload, replace(method, traversal=Traversal.blockwise))["factorisation"].work
    alone = rows(workload, replace(METHOD, traversal=Traversal.blockwise))["factorisation"].work
    assert (twice.eigen, twice.float64) == (2 * once.eigen, 2 * once.float64)
    assert alone.eigen == once.eigen


def test_a_decomposition_holds_its_moments_and_the_larger_of_two_steps() -> None:
    """Float64, (2, 3): C beside four matrices of its size that damp it, or four of W's and five of (3, 3)."""
    assert decomposition(2, 3, Sides(0, 2), Numerics.cholesky).bytes == 8 * (9 + max(4 * 9, 4 * 6 + 5 * 9))
    both = decomposition(20, 3, Sides(2, 2), Numerics.cholesky).bytes
    assert both == 8 * (9 + 400 + max(4 * 400, 400 + 4 * 60 + 5 * 9))


def test_on_the_smaller_side_a_decomposition_holds_what_is_as_large_as_that() -> None:
    """Four matrices in float64, seven with a root; in float32 W, what becomes of it, and C where that is there."""
    assert decomposition(2, 30, Sides(0, 0, True), Numerics.eigh).bytes == 8 * 4 * 4 + 4 * 2 * 60
    assert decomposition(30, 2, Sides(0, 2, True), Numerics.eigh).bytes == 8 * 7 * 4 + 4 * 2 * 60
    assert decomposition(2, 30, Sides(0, 2), Numerics.eigh).bytes == 8 * 4 * 4 + 4 * (2 * 60 + 900)


def test_without_a_cache_statistics_and_components_stay_in_memory(workload: Workload) -> None:
    on_disk, in_memory = rows(workload), rows(workload, cached=False)
    for name in ("factorisation", "allocation", "storage"):
        assert in_memory[name].bytes - on_disk[name].bytes == COMPONENTS + GRAMS, name
    assert in_memory["calibration"].bytes == on_disk["calibration"].bytes


def test_an_elastic_checkpoint_holds_the_dense_weights_and_all_components(workload: Workload) -> None:
    """Of every matrix, ranks up to where factors cost as much as the matrix, and the matrix itself."""
    elastic = rows(workload, save=Save.elastic)["storage"].bytes
    added = BLOCKS * 4 * sum(m * n // (m + n) * (m + n) + m * n for m, n in SHAPES)
    assert elastic - rows(workload)["storage"].bytes == pytest.approx(added, rel=0.05)


def test_saving_holds_two_compressed_models(workload: Workload) -> None:
    small = workload.model_bytes - 4 * (MATRICES - KEPT)
    activations = LENGTH * (2 * 4 * (32 + 48) + 96 * (4 + 8))  # the widest, and logits beside their copy and softmax
    assert rows(workload)["save"].bytes == 2 * small + activations
    assert rows(workload)["save"].work == workload.forward(2, compressed=True)  # a window through either
    assert "save" not in rows(workload, save=Save.none)


def test_speed_takes_prompts_and_steps(workload: Workload) -> None:
    """A warm-up and two repeats of the prompt; twice four steps after four to warm up: a token and all weights each.

    The dense model goes through all that twice, by its own products and by our routes.
    """
    shape = EfficiencyConfig(batch_size=1, prompt=8, generate=4, repeats=2)
    found = rows(workload, evaluation=EvalConfig(texts=[], efficiency=shape))["evaluate_dense"].work

    def forward(tokens: int) -> float:
        return tokens * (2 * (MATRICES + 96 * 32) + 4 * tokens * 32 * BLOCKS)

    assert found.model == 2 * (3 * forward(8) + (2 * 4 + 4) * forward(1))
    weights = workload.itemsize * (MATRICES + 96 * 32)
    once = workload.forward(3, length=8).moved + 12 * (workload.forward(1, length=1).moved + weights)
    assert found.moved == 2 * once


def test_speed_takes_every_warm_up_and_our_routes_only_where_there_are_any(workload: Workload) -> None:
    """As `measure_efficiency` has it: each warm-up is a prompt and at most four steps; routes are a CPU's, and what is
    compiled has none."""
    shape = EfficiencyConfig(batch_size=2, prompt=8, generate=6, repeats=2, warmup=5)
    evaluation = EvalConfig(texts=[], efficiency=shape)
    once = (workload.forward(7 * 2, length=8) + workload.decoding(2 * 6 + 5 * 4, 2)).flops
    compiled = EvalConfig(texts=[], efficiency=replace(shape, compile=True))
    found = rows(workload, evaluation=evaluation)["evaluate_dense"]
    assert found.work.flops == pytest.approx(2 * once)
    assert found.anew == found.work, "no cache keeps speeds"
    assert rows(workload, evaluation=evaluation, routed=False)["evaluate_dense"].work.flops == pytest.approx(once)
    assert rows(workload, evaluation=compiled)["evaluate_dense"].work.flops == pytest.approx(once)


def test_the_dense_model_sees_all_windows_without_its_head_in_one_batch(workload: Workload) -> None:
    found = rows(workload)["calibration"]
    assert found.work.model == WINDOWS * LENGTH * (2 * MATRICES + 4 * LENGTH * 32 * BLOCKS)
    assert found.bytes == workload.model_bytes + GRAMS + WINDOWS * LENGTH * 2 * 4 * (32 + 48)


def test_every_matrix_is_decomposed(workload: Workload) -> None:
    found = rows(workload)["factorisation"].work
    one_by_one = [decomposition(*shape, WHITENED[shape], METHOD.numerics) for shape in SHAPES]
    assert found.eigen == BLOCKS * sum(work.eigen for work in one_by_one)
    assert found.float32 == BLOCKS * sum(work.float32 for work in one_by_one)
    assert found.float64 == pytest.approx(BLOCKS * sum(work.float64 for work in one_by_one))


def test_forms_are_measured_beside_what_shares_their_input(workload: Workload) -> None:
    method = Method("mixed", InputMoment(), Forms(), FormStorage(["gptq4-g8", "factors"]))
    found, needs = rows(workload, method)["factorisation"].work, method.statistics(workload.layers)
    fed = [64, 64, 64, 32, 96, 96, 32]  # rows of all that q, k and v, o, gate and up, and down share their input with
    expected = Work()
    for layer, together in zip(workload.layers, BLOCKS * fed, strict=True):
        given = sides(InputMoment(), needs[layer.name])
        expected += decomposition(layer.m, layer.n, given, method.numerics)
        expected += measured(layer.m, layer.n, together, given, method.storage.menu.values())
    assert found.float64 == pytest.approx(expected.float64)
    assert found.eigen == expected.eigen


def test_products_of_the_other_numerics() -> None:
    """Of (3, 2) under C: its check and Cholesky factor n³/3 each, 2 m n² in W C or W S, then what goes back."""
    C = Sides(0, 2)
    assert decomposition(3, 2, C, Numerics.cholesky).float64 == pytest.approx(2 * 8 / 3 + 2 * 12 + 8)
    assert decomposition(3, 2, C, Numerics.double_svd).float64 == pytest.approx(8 / 3 + 2 * 12 + 2 * 8)
    assert decomposition(3, 2, C, Numerics.output_eigh).float64 == pytest.approx(8 / 3 + 2 * 12 + 2 * 18 + 2 * 12)


def test_seeing_compressed_inputs_takes_sums_of_the_windows_there_are(workload: Workload) -> None:
    per_token = BLOCKS * (3 * 2 * 32**2 + 2 * 48**2)
    assert compressed_path(workload, 4).float32 == 4 * LENGTH * per_token
    assert compressed_path(workload, 100) == compressed_path(workload, WINDOWS)


def test_the_first_window_is_looked_at(workload: Workload) -> None:
    """Without the head; a weighting that looks at gradients needs it, and a backward pass."""
    assert rows(workload)["usage"].work == workload.forward(1, head=False)
    assert rows(workload, replace(METHOD, weighting=TwoSided()))["usage"].work == workload.forward_backward(1)


def test_texts_are_counted_together_and_in_batches(workload: Workload) -> None:
    shape = EvalConfig(texts=[], seq_len=16, batch_size=2, efficiency=None)
    found = {row.name: row for row in stages(workload, METHOD, shape, [3, 4], save=Save.none, cached=True)}
    assert found["evaluate_dense"].work == workload.forward(7, length=16, batch=2)
    assert found["evaluate"].work == workload.forward(7, length=16, batch=2, compressed=True)
    small = workload.model_bytes - 4 * (MATRICES - KEPT)
    assert found["evaluate_dense"].bytes - workload.model_bytes == found["evaluate"].bytes - small


def sizes_tried(smallest: int) -> int:
    """How many a bisection looks at before it knows the smallest that is near enough."""
    asked: list[int] = []

    def near(step: int) -> bool:
        asked.append(step)
        return step >= smallest

    bisect_left(range(1, RATIO_STEPS + 1), True, key=near)
    return len(asked)


def test_a_search_takes_as_many_sizes_as_a_bisection_may_try_and_the_dense_model(workload: Workload) -> None:
    most = max(map(sizes_tried, range(1, RATIO_STEPS + 1)))
    evaluation = EvalConfig(texts=[], seq_len=16, batch_size=2, efficiency=None)
    found = rows(workload, evaluation=evaluation, judged=5)["search"]
    assert found.work == workload.forward(5, length=16, batch=2, compressed=True) * (1 + most)
    small = workload.model_bytes - 4 * (MATRICES - KEPT)
    assert found.bytes == workload.model_bytes + small + found.work.bytes


def test_trainings_follow_each_other_beside_the_dense_model(workload: Workload) -> None:
    parts = {"first": BlockRefine(steps=1, batch=2), "second": BlockRefine(steps=3, batch=2)}
    one, other = (cost_of(part, workload) for part in parts.values())
    found = rows(workload, replace(METHOD, training=parts))["training"]
    assert found.work == one + other
    assert found.work.model > max(one.model, other.model) > 0
    small = workload.model_bytes - 4 * (MATRICES - KEPT)
    assert found.bytes == workload.model_bytes + small + found.work.bytes


def test_a_table_adds_times_up_and_keeps_the_largest_sizes() -> None:
    speed = Speed(model=1e12, float32=1e11, float64=1e10, eigen=1e9)
    one = Stage("one", Work(model=3e12, float32=2e11), 3e9, 1e9)
    parts = [one, Stage("two", Work(float64=3e10, eigen=4e9), 2e9, 5e9)]
    total = next(
        line for line in render(parts, Machine("it", 1e12, speed, ""), "a run").splitlines() if "total" in line
    )
    assert total.replace("│", " ").split()[-6:] == ["12", "s", "3.0", "GB", "5.0", "GB"]


def test_statistics_of_one_size_are_made_once(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Counted(Gram):
        def __init__(self, n: int, device: torch.device) -> None:
            made.append(n)
            super().__init__(n, device)

    monkeypatch.setitem(INPUT_STATISTICS, "gram", Counted)
    for _ in range(2):
        assert statistics_bytes(workload.layers, ["gram"], workload) == BLOCKS * 4 * (3 * 32**2 + 48**2)
    assert sorted(made) == [32, 48]


def test_of_a_streamed_model_one_block_is_in_memory(workload: Workload) -> None:
    """Its weights, its statistics and what it keeps for a backward pass; the windows go forward twice for gradients."""
    method = replace(METHOD, weighting=TwoSided())
    whole, found = rows(workload, method), rows(workload, method, streamed=True)
    gone = BLOCKS - 1
    weights = workload.body * workload.itemsize // BLOCKS
    assert whole["factorisation"].bytes - found["factorisation"].bytes == gone * weights
    assert found["factorisation"].work == whole["factorisation"].work
    gradients = BLOCKS * 4 * sum(min(shape) ** 2 for shape in SHAPES)
    statistics = (GRAMS + gradients) // BLOCKS
    kept = LENGTH * workload.stored * workload.itemsize // BLOCKS
    assert whole["calibration"].bytes - found["calibration"].bytes == gone * (weights + statistics + kept)
    more = found["calibration"].work.model - whole["calibration"].work.model
    assert more == workload.forward(WINDOWS + 3, head=False).model
    assert found["calibration"].work.float32 == whole["calibration"].work.float32


def test_what_is_done_between_products_takes_time_too() -> None:
    workload = workload_at(tiny_model("llama"), 0.5, windows=6, length=24)
    stored = 3 * (4 * 32 + 2 * 48 + 32 + 32 + 32 + 32 + 48)  # outputs of all layers, and their distinct inputs
    forward = workload.forward(4, batch=2, head=False)
    assert forward.moved == 4 * 24 * 4 * stored * 4
    assert forward.launches == 2 * 3 * 45
    assert workload.forward(1).moved - workload.forward(1, head=False).moved == 24 * 96 * (4 + 16)
    assert workload.forward_backward(2).moved == 3 * workload.forward(2).moved
    assert workload.forward_backward(2).launches == 3 * workload.forward(2).launches
    step = workload.decoding(1, rows=2)
    weights = 4 * (workload.body + workload.head)
    assert step.moved == workload.forward(2, length=1).moved + weights
    assert workload.decoding(5, rows=2).moved == 5 * step.moved
    assert workload.decoding(5, rows=2).launches == 5 * 3 * 45
    speed = Speed(1.0, 1.0, 1.0, 1.0, bandwidth=10.0, launch=2.0)
    assert speed.seconds(Work(model=1.0, moved=20.0, launches=3.0)) == 1 + 2 + 6
    assert Work(moved=1, launches=2) + Work(moved=3, launches=4) == Work(moved=4, launches=6)
