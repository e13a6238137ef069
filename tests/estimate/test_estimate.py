"""Estimates against torch's own FLOP counter, tensors that torch keeps, and counts by hand; no weights are needed."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from svdexp.allocation import Dynamic, GlobalLoss, Sensitivity, SensitivityMetric, Uniform, expected_ranks
from svdexp.calibration.dense import forward_and_backward
from svdexp.calibration.statistics import Fisher, Gram
from svdexp.cells.guard import config_dir
from svdexp.checkpoints.loading import load_skeleton
from svdexp.engine.plan import plan
from svdexp.estimate.anatomy import workload_of
from svdexp.estimate.calibration import statistics_bytes
from svdexp.estimate.decomposition import Sides, decomposition, measured, sides
from svdexp.estimate.devices import SHEETS, Machine, published_machine
from svdexp.estimate.forecast import Forecast, beside_tensors, forecast, foreseen, shared_stages, this_machine
from svdexp.estimate.speed import Speed, measure_speed
from svdexp.estimate.stages import Stage, stages
from svdexp.estimate.stages import evaluate as work_of_evaluation
from svdexp.estimate.summary import seconds_with_cache, summary
from svdexp.estimate.table import duration, fitting, render, rounded
from svdexp.factorisation import Diagonal, Identity, TwoSided, Weighting, needs_of
from svdexp.method import build_method
from svdexp.models.structure import Targets, find_matrices, stored_bytes
from svdexp.models.work import Work, Workload, cost_of, eigh_flops, svd_flops
from svdexp.runtime.errors import UserError
from svdexp.schema import Config, EvalConfig, Numerics, validate
from svdexp.storage import FactorStorage, FormStorage
from svdexp.update import RefitOutput
from tests.conftest import TINY, tiny_model
from tests.estimate.workloads import workload_at
from tests.support.experts import tiny_experts

CONF = Path(config_dir())
MIXTURES = {"d2_moe"}  # methods that want experts
METHODS = sorted({path.stem for path in (CONF / "method").glob("*.yaml")} - MIXTURES)
PARTS = [
    "method.traversal=blockwise",
    "method=asvd method.traversal=blockwise",
    "method=asvd method.allocation.metric=stable_rank method.allocation.ppl_target=20",
    "method/allocation=dynamic method.allocation.alpha=null",
    "method/weighting=two_sided method.weighting.diagonal_left=true",
    "method.numerics=cholesky",
    "storage=factors save=elastic",
    "storage=remap",
    "storage=gptq4",
    "storage=awq_int4",
    "cache=null",
    "save=none eval.texts=[] eval.efficiency=null",
    "targets.include=['*.q_proj']",
]
# A fast accelerator, in round numbers.
ACCELERATOR = Speed(model=200e12, float32=20e12, float64=10e12, eigen=0.5e12)


@pytest.fixture(autouse=True, scope="module")
def _hydra() -> Iterator[None]:
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def work_on(model: PreTrainedModel, **numbers: float) -> Workload:
    wanted: dict[str, Any] = {"ratio": 0.8, "windows": 6, "length": 24} | numbers
    return workload_at(model, wanted.pop("ratio"), **wanted)


def skeleton(config: LlamaConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)


def rows_of(words: list[str], model: PreTrainedModel | None = None) -> list[Stage]:
    """The stages of a composed run, of the model that it names or of `model`."""
    config = validate(compose("config", words))
    method = build_method(config)
    model = model or load_skeleton(config.model, torch.float32)
    layers, budget, fixed, *_ = plan(model, method, config.ratio, Targets(**vars(config.targets)))
    part = config.calibration
    ranks = expected_ranks(method.allocation, budget, fixed)
    workload = workload_of(model, layers, budget, ranks, windows=part.samples, length=part.seq_len)
    counts = [config.eval.windows or 1 for _ in config.eval.texts]
    return stages(workload, method, config.eval, counts, save=config.save, cached=config.cache is not None)


@pytest.mark.parametrize("name", sorted(TINY))
def test_passes_are_what_torch_counts(name: str, windows: torch.Tensor) -> None:
    model = tiny_model(name)
    model.set_attn_implementation("eager")  # torch does not count its fused attention on CPUs
    workload = work_on(model)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(windows[:2], use_cache=False)
    assert workload.forward(2).model == pytest.approx(forward.get_total_flops(), rel=0.02)
    with FlopCounterMode(display=False) as backward:
        forward_and_backward(model, windows[:1])
    passes = workload.forward_backward(1)
    assert passes.model + passes.backward == pytest.approx(backward.get_total_flops(), rel=0.02)


def test_what_a_backward_pass_keeps(model: PreTrainedModel, windows: torch.Tensor) -> None:
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward_and_backward(model, windows[:1])
    assert 0.5 < work_on(model).forward_backward(1).bytes / sum(kept.values()) < 2


@pytest.mark.parametrize("name", sorted(TINY))
def test_shapes_alone_give_what_the_model_gives(name: str) -> None:
    bare = skeleton(TINY[name])
    assert find_matrices(bare, Targets()) == find_matrices(tiny_model(name), Targets())
    assert work_on(bare) == work_on(tiny_model(name))


def test_a_tied_head_is_known_without_weights() -> None:
    assert find_matrices(skeleton(TINY["llama"]), Targets(lm_head=True))[-1].name == "lm_head"
    with pytest.raises(Exception, match="tied"):
        find_matrices(skeleton(TINY["llama_gqa"]), Targets(lm_head=True))


def test_statistics_by_hand(llama: PreTrainedModel) -> None:
    assert Gram.flops(3) == 2 * 3 * 3
    assert Gram.flops(1024) == 2 * 256 * (1024 + 768 + 512 + 256)  # the blocks from the diagonal rightwards
    assert Fisher.flops(2, 3) == 2 * 2 * 3
    workload = work_on(llama)
    inputs = 32**2 + 32**2 + 32**2 + 48**2  # q, k, v share one, gate and up another
    gradients = 32**2 + 2 * 16**2 + 32**2 + 2 * 48**2 + 32**2
    assert statistics_bytes(workload.layers, ["gram"], workload) == 3 * inputs * 4
    assert statistics_bytes(workload.layers, ["grad_gram"], workload) == 3 * gradients * 4
    outputs, returned = gradients, 32**2 + 2 * 32**2 + 32**2 + 2 * 32**2 + 48**2
    assert statistics_bytes(workload.layers, ["output_gram"], workload) == 3 * outputs * 4
    assert statistics_bytes(workload.layers, ["input_grad_gram"], workload) == 3 * returned * 4
    assert statistics_bytes(workload.layers, ["fisher"], workload) == sum(4 * x.m * x.n for x in workload.layers)


def test_sides_of_weightings() -> None:
    def sides_of(weighting: Weighting, m: int, n: int) -> Sides:
        return sides(weighting, needs_of(weighting, m, n))

    assert sides_of(Identity(), 2, 3) == Sides(0, 0)
    assert sides_of(Diagonal(), 2, 3) == Sides(0, 1)
    assert sides_of(TwoSided(), 3, 3) == Sides(2, 2)
    assert sides_of(TwoSided(), 2, 3) == Sides(2, 0, seen=True)
    assert sides_of(TwoSided(), 3, 2) == Sides(0, 2, seen=True)
    assert sides_of(TwoSided(diagonal_left=True), 3, 2) == Sides(1, 2)


def test_decompositions_by_hand() -> None:
    assert eigh_flops(2) == 72
    assert svd_flops(3, 2) == svd_flops(2, 3) == 6 * 3 * 4 + 20 * 8
    plain = decomposition(2, 3, Sides(0, 0), Numerics.eigh)
    assert (plain.float32, plain.float64, plain.eigen) == (2 * 12 + 2 * 12, 0, 72)  # W Wᵀ, and Uᵀ W
    assert plain == decomposition(3, 2, Sides(0, 0), Numerics.eigh)
    assert decomposition(2, 3, Sides(0, 2), Numerics.eigh).float32 == plain.float32 + 2 * 2 * 3 * 3  # W C
    assert decomposition(2, 3, Sides(0, 0, seen=True), Numerics.eigh).float32 == 2 * 12
    assert decomposition(3, 2, Sides(0, 2), Numerics.output_eigh).eigen == eigh_flops(3)
    assert decomposition(3, 2, Sides(0, 2), Numerics.double_svd).eigen == eigh_flops(2) + svd_flops(3, 2)
    for shape, near in (((2, 3), Sides(2, 0)), ((3, 2), Sides(0, 2))):
        assert decomposition(*shape, near, Numerics.eigh).float64 == pytest.approx(8 / 3 + 4 * 16 - 8)
    left = decomposition(2, 3, Sides(2, 0), Numerics.cholesky)
    assert left.float64 - decomposition(2, 3, Sides(0, 0), Numerics.cholesky).float64 == pytest.approx(
        2 * 2**3 / 3 + 2 * 2 * 2 * 3 + 2 * 2 * 2
    )


@pytest.mark.parametrize(("left", "right"), [(0, 2), (2, 0), (2, 2)])
def test_losses_of_forms_by_hand(left: int, right: int) -> None:
    """Of (9, 24), one of the layers of 21 rows in all that one tensor feeds; the whole forms are looked at once, the
    rounded factors at rank 8."""
    m, n, rows = 9, 24, 21
    words = ["gptq4-g2", "gptq2-g2", "gptq3-row", "rtn8-row", "factors", "factors8-row"]
    found = measured(m, n, rows, Sides(left, right), FormStorage(words).menu.values())
    losing = {(0, 2): 2 * m * n * n, (2, 0): 2 * m * m * n, (2, 2): 2 * m * n * n + 2 * m * m * n - m * n * n}
    inputs = right == 2
    walking = 3 * m * n * n  # half of the matrix for every column, two FLOPs each
    factors = 2 * (4 / 3 * n**3) * m / rows  # of two sizes of groups, shared by rows
    looks = 5 * losing[left, right] + 2 * 8 * m * n
    assert found.float64 == pytest.approx(looks + inputs * (walking + factors))
    assert found.bytes == 8 * 3 * rows * n


def test_sizes_are_tried_on_the_text_that_is_asked_about(model_folder: Path, llama: PreTrainedModel) -> None:
    def tried(counts: list[int], *words: str) -> Work:
        about = ["eval.texts=[pydoc,wikitext2]", "eval.efficiency=null", "ppl=1.05x", *words]
        config = validate(compose("config", [f"model.path={model_folder}", *about]))
        method = build_method(config)
        layers, budget, fixed, *_ = plan(llama, method, 0.8, Targets())
        found = foreseen(config, method, llama, layers, budget, fixed, counts, streamed=False)
        return next(row.work for row in found if row.name == "search")

    assert tried([3, 5], "ppl_text=wikitext2") == tried([5, 3]) != tried([3, 5])


def test_parts_state_their_own_cost(llama: PreTrainedModel) -> None:
    workload = work_on(llama)
    trial = workload.forward(2).model
    sensitivity = Sensitivity(candidates=[0.5, 0.7], windows=2)
    assert cost_of(sensitivity, workload).model == 2 * len(workload.layers) * trial
    assert cost_of(Sensitivity(metric=SensitivityMetric.stable_rank), workload).model == 0
    assert cost_of(Dynamic(), workload) == workload.forward(6, head=False)
    searched = cost_of(Dynamic(alpha=None, windows=2), workload).model - cost_of(Dynamic(), workload).model
    assert searched == pytest.approx(11 * workload.forward(2, compressed=True).model)
    scaled = cost_of(GlobalLoss(measured=0.1, windows=2, length=12), workload)
    body, whole = (workload.forward(2, length=12, head=head).model for head in (False, True))
    behind = 7 * (1 + 2 / 3 + 1 / 3)  # of three blocks, of seven matrices each
    assert scaled.model == pytest.approx((1 + behind) * body + (1 + 21) * (whole - body))
    assert cost_of(GlobalLoss(measured=None), workload) == Work()
    assert cost_of(Uniform(), workload) == cost_of(FactorStorage(), workload) == Work()
    runs = 4 + 2  # four distinct inputs a block
    update = cost_of(RefitOutput(samples=4), workload)
    assert update.model == pytest.approx(runs * workload.forward(5, head=False, compressed=True).model)
    assert update.eigen > 0


def test_tasks_are_counted_by_their_requests(llama: PreTrainedModel) -> None:
    workload = work_on(llama)
    one = work_of_evaluation(workload, EvalConfig(tasks=["piqa"], limit=10), [], compressed=False)
    assert one == workload.forward(10 * 2, length=40)
    shots = work_of_evaluation(workload, EvalConfig(tasks=["mmlu"], num_fewshot=5), [], compressed=True)
    assert shots == workload.forward(14042, length=6 * 140, compressed=True)
    assert "evaluate" not in [row.name for row in rows_of(["eval.texts=[]", "eval.efficiency=null"], llama)]
    named = rows_of(["eval.texts=[]", "eval.efficiency=null", "eval.tasks=[commonsense]"], llama)
    assert {"evaluate_dense", "evaluate"} <= {row.name for row in named}


def test_compression_takes_work_away(llama: PreTrainedModel) -> None:
    workload = work_on(llama, ratio=0.5)
    layers = sum(layer.m * layer.n for layer in workload.layers)
    saved = workload.forward(1).model - workload.forward(1, compressed=True).model
    kept = sum(workload.rank(layer) * (layer.m + layer.n) for layer in workload.layers)
    assert saved == 2 * 24 * (layers - kept)
    assert kept == pytest.approx(layers / 2, rel=0.03)
    assert [workload.rank(layer) for layer in workload.layers[:2]] == [8, 6]  # (32, 32) and, after rounding, (16, 32)


@pytest.mark.parametrize("words", [*(f"method={name}" for name in METHODS), *(f"method=svd_llm {x}" for x in PARTS)])
def test_every_method_has_an_estimate(words: str, model_folder: Path) -> None:
    words_of_one = dict(word.split("=", 1) for word in words.split())  # the last of two methods counts
    rows = rows_of([f"model.path={model_folder}", *(f"{key}={value}" for key, value in words_of_one.items())])
    seconds = [ACCELERATOR.seconds(row.work) for row in rows]
    assert all(math.isfinite(value) and value >= 0 for value in seconds)
    assert all(math.isfinite(row.bytes) and row.bytes > 0 for row in rows)
    assert sum(seconds) > 0
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert {"allocation", "storage"} <= set(names)
    if "quantise" not in words:
        assert ("update" if "dobi" in words else "factorisation") in names
    assert "total" in render(rows, Machine("it", 1e12, ACCELERATOR, ""), "a run")


@pytest.mark.parametrize("method", sorted(MIXTURES))
def test_methods_that_want_experts_have_an_estimate_of_them(method: str, model_folder: Path) -> None:
    """The gradients that the mean asks for are in it, and what experts share multiplies as well."""
    words = [f"model.path={model_folder}", "ratio=0.6"]
    mine, plain = (
        {row.name: row.work for row in rows_of([*words, f"method={name}"], tiny_experts("mixtral"))}
        for name in (method, "svd_llm")
    )
    assert mine.keys() == plain.keys()
    for stage in ("calibration", "evaluate"):
        assert ACCELERATOR.seconds(mine[stage]) > ACCELERATOR.seconds(plain[stage])


def test_a_model_of_seven_billion_parameters() -> None:
    shape = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    model = skeleton(LlamaConfig(vocab_size=32000, **shape), torch.bfloat16)
    words = ["calibration.samples=256", "calibration.seq_len=2048", "eval=ppl", "eval.texts=[wikitext2]"]
    workload = work_on(model, length=2048)
    assert workload.model_bytes == pytest.approx(13.5e9, rel=0.01)
    assert workload.forward(1).model / 2048 == pytest.approx(2 * 6.6e9 + 32 * 4 * 2048 * 4096, rel=0.01)

    rows = {row.name: row for row in rows_of(["method=kron", *words], model)}
    statistics = 32 * 4 * (4 + 7) * 4096**2  # 23.6 GB; C and G themselves are 63.7
    activations = rows["calibration"].bytes - 13.5e9 - statistics
    assert 5e9 < activations < 12e9  # one window of 2048 tokens: what 224 layers take in and give out, and the logits
    assert rows["factorisation"].bytes < 30e9
    assert 0.1 < sum(ACCELERATOR.seconds(row.work) for row in rows.values()) / 3600 < 1

    blockwise = rows_of(["method=svd_llm", "method.traversal=blockwise", *words], model)
    assert max(row.bytes for row in blockwise) < 30e9
    trials = {row.name: row for row in rows_of(["method=asvd", *words], model)}["allocation"]
    assert trials.work.model == pytest.approx(32 * 7 * 6 * workload.forward(4).model)


def test_speed_is_measured_without_touching_the_runs_random_numbers() -> None:
    state = torch.get_rng_state()
    speed = measure_speed(torch.device("cpu"), torch.float32, ((48, 32), (32, 48)), 64)
    assert torch.equal(state, torch.get_rng_state())
    assert min(value for key, value in vars(speed).items() if key != "launch") > 1e6
    assert 0 < speed.launch < 1e-2
    assert speed.seconds(Work(model=speed.model, eigen=2 * speed.eigen)) == pytest.approx(3)
    assert speed.backward is not None
    assert speed.seconds(Work(backward=4 * speed.backward)) == pytest.approx(4)
    assert replace(speed, backward=None).seconds(Work(backward=speed.model)) == pytest.approx(1)


def test_no_larger_matrices_are_timed_than_the_models(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a tiny run that would take longer than the run itself."""
    measure_speed.cache_clear()
    sides: list[int] = []
    monkeypatch.setattr("svdexp.estimate.speed._random", lambda side: sides.append(side) or torch.eye(side))
    this_machine(torch.device("cpu"), torch.bfloat16, find_matrices(llama, Targets()), 16)
    assert sides == 3 * [48]
    this_machine(torch.device("cpu"), torch.bfloat16, find_matrices(llama, Targets()), 16)
    assert sides == 3 * [48]  # once a process
    sides.clear()
    measure_speed(torch.device("cpu"), torch.bfloat16, ((2000, 8),), 16)
    assert sorted(sides) == [512, 1024, 1024]


def test_a_tiny_models_memory_is_mostly_pythons_own(
    model_folder: Path, llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    config = validate(compose("config", [f"model.path={model_folder}", "method=svd_llm", "storage=factors"]))
    method = build_method(config)
    layers, budget, fixed, *_ = plan(llama, method, config.ratio, Targets())
    text = forecast(config, method, llama, layers, budget, fixed, [1], this_machine(cpu, llama.dtype, layers, 16)).text
    now = psutil.Process().memory_info().rss / 1e9
    peak = float(text.split("peak memory")[1].split("GB")[0].split()[-1])
    assert 0.9 * now < peak < 1.5 * now
    own = float(text.split("libraries take")[1].split("GB")[0])
    assert 0.8 * now < own <= peak

    class Held:
        """A process that holds the model and 5 GB more."""

        def memory_info(self) -> SimpleNamespace:
            return SimpleNamespace(rss=5_000_000_000 + stored_bytes(llama))

    monkeypatch.setattr(psutil, "Process", Held)
    assert beside_tensors(llama) == 5_000_000_000
    assert beside_tensors(skeleton(TINY["llama_gqa"])) == 5_000_000_000 + stored_bytes(llama)
    elsewhere = forecast(config, method, llama, layers, budget, fixed, [1], published_machine("rtx4090", llama.dtype))
    assert elsewhere.beside == 0
    assert elsewhere.bytes < 1e9


def test_a_forecast_is_of_the_configured_run(model_folder: Path, llama: PreTrainedModel) -> None:
    words = [f"model.path={model_folder}", "ratio=0.3", "cache=null", "calibration.samples=5", "calibration.seq_len=48"]
    config = validate(compose("config", words))
    method = build_method(config)
    layers, budget, fixed, *_ = plan(llama, method, config.ratio, Targets())
    counts = [config.eval.windows or 1 for _ in config.eval.texts]
    machine = this_machine(torch.device("cpu"), llama.dtype, layers, 48)
    shown = forecast(config, method, llama, layers, budget, fixed, counts, machine).rows
    expected = rows_of(words, llama)
    assert [(row.name, row.work) for row in shown] == [(row.name, row.work) for row in expected]
    beside = {round(row.bytes - other.bytes) for row, other in zip(shown, expected, strict=True)}
    assert len(beside) == 1
    assert beside.pop() > 0
    there = forecast(config, method, llama, layers, budget, fixed, counts, published_machine("rtx4090", llama.dtype))
    ours, theirs = ({row.name: row.work.flops for row in part} for part in (shown, there.rows))
    assert theirs["evaluate_dense"] < ours["evaluate_dense"]  # only a CPU measures the dense model by our routes, too
    assert theirs | {"evaluate_dense": 0} == ours | {"evaluate_dense": 0}


def test_devices_that_are_not_here() -> None:
    h100, a100, rtx = (published_machine(name, torch.bfloat16) for name in ("h100-80gb", "a100-80gb", "rtx4090"))
    assert h100.speed.model == pytest.approx(0.6 * 989e12)
    assert (
        published_machine("a100-80gb", torch.float32).speed.model == a100.speed.float32 == pytest.approx(0.8 * 19.5e12)
    )
    assert h100.memory == a100.memory > 3 * rtx.memory
    assert not any(published_machine(name, torch.float16).shared for name in SHEETS)
    with pytest.raises(UserError, match=r"dry_run\.device=h200 is not known; choose from h100-80gb, .*, this"):
        published_machine("h200", torch.bfloat16)


def test_whether_a_run_fits_is_said_plainly() -> None:
    machine = Machine("it", 100e9, ACCELERATOR, "")
    small, large = Stage("small", Work(), 90e9), Stage("large", Work(), 91e9)
    assert fitting([small], machine) == "fits: every stage stays below 90% of the 100 GB of it"
    assert fitting([small, large], machine) == "DOES NOT FIT: large (91 GB) takes more than 90% of the 100 GB of it"


def test_cells_of_a_sweep_share_what_their_cache_keeps() -> None:
    machine = Machine("it", 100e9, Speed(1.0, 1.0, 1.0, 1.0), "")

    def cell(**shared: str) -> Forecast:
        return Forecast("", [Stage("calibration", Work(10), 1e9), Stage("save", Work(100), 95e9)], machine, 0, shared)

    alike = {"a": cell(calibration="x"), "b": cell(calibration="x"), "c": cell(calibration="y")}
    assert seconds_with_cache(alike) == 2 * 10 + 3 * 100
    assert seconds_with_cache({"a": cell(), "b": cell()}) == 2 * 110
    dense = Stage("evaluate_dense", Work(50), 1e9, anew=Work(20))  # of which speed is measured in every run
    twice = {name: Forecast("", [dense], machine, 0, {"evaluate_dense": "x"}) for name in ("a", "b")}
    assert seconds_with_cache(twice) == 50 + 20
    text = summary(alike)
    assert "all 3 cells" in text
    assert text.count("NO") == 3
    assert text.endswith("leaves 5.3 min of that")


def test_what_runs_share_is_what_their_stages_depend_on(model_folder: Path) -> None:
    def shared(*words: str) -> dict[str, str]:
        config = validate(compose("config", [f"model.path={model_folder}", *words]))
        return shared_stages(config, build_method(config))

    assert shared("ratio=0.5", "method=svd_llm") == shared("ratio=0.6", "method=svd_llm", "storage=factors")
    other = shared("method=svd_llm", "calibration.samples=4")
    assert other["evaluate_dense"] == shared("method=svd_llm")["evaluate_dense"]
    assert other["calibration"] != shared("method=svd_llm")["calibration"]
    assert "factorisation" not in shared("method=svd_llm", "method.traversal=blockwise")
    fixed = shared("method=svd_llm", "+targets.ranks={*.q_proj:3}")  # which no statistic depends on
    assert fixed == shared("method=svd_llm") != shared("method=svd_llm", "targets.include=['*.q_proj']")


def test_few_digits() -> None:
    assert [rounded(x) for x in (0, 0.001, 0.123, 9.96, 13.48, 1234)] == ["0", "< 0.01", "0.12", "10", "13", "1,200"]
    spoken = [duration(x) for x in (0.2, 12.3, 130, 5 * 3600, 20 * 86400)]
    assert spoken == ["< 1 s", "12 s", "2.2 min", "5.0 h", "20 days"]
