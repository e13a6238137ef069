"""Perplexity against its definition; speed as a plausible positive figure."""

import math
import mmap
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, PreTrainedModel, StaticCache

from svdexp.data import scored_tokens
from svdexp.evaluation import Passage, efficiency, evaluate, kept_perplexity, measure_efficiency, perplexity
from svdexp.evaluation.efficiency import Run, _caches, peak_memory, percentiles
from svdexp.models.structure import stored_bytes
from svdexp.runs.inputs import evaluation_windows
from svdexp.runtime.errors import UserError
from svdexp.runtime.shelves import Cache
from svdexp.schema import CacheKind, Config, EfficiencyConfig, EvalConfig, MethodConfig, ModelConfig
from svdexp.storage import FactorStorage
from tests.conftest import tiny_model
from tests.support.shrunk import shrunk


@pytest.mark.parametrize("batch_size", [1, 4])
def test_perplexity_is_its_definition(model: PreTrainedModel, windows: torch.Tensor, batch_size: int) -> None:
    logits = model(windows).logits.double()
    probabilities = logits.softmax(-1)[:, :-1].gather(-1, windows[:, 1:, None]).squeeze(-1)
    losses = -probabilities.log()
    result = perplexity(model, windows, batch_size)
    assert result.value == pytest.approx(math.exp(losses.mean()), rel=1e-5)
    assert result.tokens == losses.numel() == 6 * 23
    spread = losses.mean(1).std().item() / math.sqrt(6)
    assert result.stderr == pytest.approx(math.exp(losses.mean()) * spread, rel=1e-4)


def test_a_non_finite_loss_names_the_window(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    llama.model.norm.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="window 0 is nan"):
        perplexity(llama, windows)


def test_windows_by_text_are_measured_and_never_mixed_up_in_the_cache(
    llama: PreTrainedModel, tokenizer: Any, text_file: Path, tmp_path: Path
) -> None:
    cache = Cache(tmp_path)

    def figures(**options: Any) -> tuple[int, float]:
        part = EvalConfig(texts=["files"], files=[str(text_file)], windows=4, seq_len=16, **options)
        config = Config(ModelConfig(), method=MethodConfig(), eval=part, ratio=0.8)
        found = evaluate(llama, evaluation_windows(config, tokenizer), config, cache, "dense")
        return found["ppl_tokens/files"], found["ppl/files"]

    every, fewer = figures(), figures(windows_by_text={"files": 2})
    assert (every[0], fewer[0]) == (4 * 15, 2 * 15)
    stream = torch.tensor(tokenizer(text_file.read_text())["input_ids"])
    assert fewer[1] == pytest.approx(perplexity(llama, stream[:32].view(2, 16)).value)
    assert figures() == every
    assert len(list((tmp_path / "perplexity").iterdir())) == 2
    with pytest.raises(UserError, match=r"eval: .* too few for eval\.windows_by_text\.files=999 × eval\.seq_len=16"):
        figures(windows_by_text={"files": 999})
    assert figures(windows_by_text={"files": None})[0] == 4000 // 16 * 15


def test_of_the_same_windows_other_tokens_may_count(
    llama: PreTrainedModel, windows: torch.Tensor, tmp_path: Path
) -> None:
    whole = scored_tokens(len(windows), windows.shape[1], windows.shape[1])
    half, found = whole.clone(), []
    half[:, :12] = False
    for scored in (whole, half):
        part = Passage(windows, scored, None)  # type: ignore[arg-type]
        found.append(kept_perplexity(llama, part, 1, "tiny", Cache(tmp_path))["value"].item())
    assert found == pytest.approx([perplexity(llama, windows, scored=scored).value for scored in (whole, half)])
    assert found[0] != found[1]


def test_each_attention_has_its_own_figures(llama: PreTrainedModel, windows: torch.Tensor, tmp_path: Path) -> None:
    """They round in different ways."""
    for attention in ("sdpa", "eager", "sdpa"):
        llama.set_attn_implementation(attention)
        kept_perplexity(llama, Passage(windows, windows > 0, None), 1, "tiny", Cache(tmp_path))  # type: ignore[arg-type]
    assert len(list((tmp_path / "perplexity").iterdir())) == 2


def test_speed_is_measured_with_a_cache(model: PreTrainedModel) -> None:
    speed = measure_efficiency(model, EfficiencyConfig(batch_size=2, prompt=8, generate=4, repeats=1), "tiny")
    assert speed.prefill_spread == speed.decode_spread == 0  # of one run
    assert all(value > 0 for key, value in speed.figures().items() if not key.startswith("speed_spread/"))
    assert speed.latency[0] <= speed.latency[1] <= speed.latency[2]
    assert speed.first_token == pytest.approx(2 * 8 / speed.prefill * 1e3)


def test_a_dense_model_takes_turns_with_itself_by_our_routes(llama: PreTrainedModel) -> None:
    """Every second generation goes by the routes, warm-up included; afterwards no layer does."""
    quickened: list[bool] = []
    head = llama.lm_head
    watching = head.register_forward_pre_hook(lambda *_: quickened.append("forward" in vars(head)))
    shape = EfficiencyConfig(prompt=8, generate=2, warmup=1, repeats=2)
    speed = measure_efficiency(llama, shape, "tiny", routed=True)
    watching.remove()
    assert quickened == [False] + ([False] * 3 + [True] * 3) * 3  # the first counts FLOPs
    assert "forward" not in vars(head)
    assert {key for key in speed.figures() if "routed" in key} == {
        "tokens_per_second_routed/prefill",
        "tokens_per_second_routed/decode",
    }
    assert measure_efficiency(llama, shape, "tiny").routed is None


def test_figures_are_of_all_repeats_and_of_nothing_before_them(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two texts of 8 tokens and 2 more, by hand; what warms up is as slow as nothing else."""
    own = [Run(1.0, [1.0, 1.0], 10), Run(2.0, [0.5, 0.5], 20), Run(4.0, [0.25, 0.25], 30)]
    routed, warmup = Run(0.5, [0.125, 0.125], 40), Run(99.0, [99.0], 99)
    taken = iter([warmup, warmup, own[0], routed, own[1], routed, own[2], routed])
    monkeypatch.setattr(efficiency, "_run", lambda *about: next(taken))
    shape = EfficiencyConfig(batch_size=2, prompt=8, generate=2, warmup=1, repeats=3)
    found = measure_efficiency(llama, shape, "tiny", routed=True)
    assert (found.prefill, found.decode) == (8.0, 4.0)  # of 16, 8 and 4; of 2, 4 and 8
    assert (found.prefill_spread, found.decode_spread) == (12 / 8, 6 / 4)
    assert found.first_token == 2000.0
    steps = [1000.0, 1000.0, 500.0, 500.0, 250.0, 250.0]
    np.testing.assert_allclose(found.latency, np.percentile(steps, [50, 90, 99]))
    assert found.cache_bytes == 30
    assert found.routed == (32.0, 16.0)


def test_memory_is_the_weights_and_what_came_on_top(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficiency, "peak_memory", lambda device: nullcontext([1000]))
    found = measure_efficiency(llama, EfficiencyConfig(prompt=8, generate=1, repeats=1), "tiny")
    assert found.peak_bytes == 1000 + stored_bytes(llama)


def test_prompts_begin_with_the_token_that_texts_do(llama: PreTrainedModel) -> None:
    """And are the seed's otherwise."""
    seen: list[torch.Tensor] = []
    with llama.register_forward_pre_hook(lambda module, args: seen.append(args[0])):
        for first in (None, 7):
            measure_efficiency(llama, EfficiencyConfig(batch_size=2, prompt=8, generate=1), "tiny", 3, first)
    plain, begun = (
        next(x for x in part if x.shape == (2, 8)) for part in (seen[: len(seen) // 2], seen[-len(seen) // 2 :])
    )
    assert torch.equal(plain, torch.randint(96, (2, 8), generator=torch.Generator().manual_seed(3)))
    assert begun[:, 0].tolist() == [7, 7]
    assert torch.equal(begun[:, 1:], plain[:, 1:])


def test_kv_cache_is_counted(llama: PreTrainedModel) -> None:
    """Keys and values of 3 blocks, 2 heads of 8, 4 bytes, 2 sequences of 8 + 4 tokens."""
    speed = measure_efficiency(llama, EfficiencyConfig(batch_size=2, prompt=8, generate=4, repeats=1), "tiny")
    assert speed.cache_bytes == 2 * 3 * 2 * 8 * 4 * 2 * 12


def test_a_latent_cache_is_smaller() -> None:
    """By the ranks of k and v, 2 sequences of 12 tokens; a dense model's stays."""
    shape = EfficiencyConfig(batch_size=2, prompt=8, generate=4, repeats=1)
    latent, (model, ranks) = replace(shape, cache=CacheKind.latent), shrunk("llama", FactorStorage(), torch.float32)
    kept = sum(rank for name, rank in ranks.items() if name.endswith(("k_proj", "v_proj")))
    assert measure_efficiency(model, shape, "tiny").cache_bytes == 2 * 3 * 32 * 4 * 2 * 12
    assert measure_efficiency(model, latent, "tiny").cache_bytes == (kept + 3) * 4 * 2 * 12  # and 3 positions
    dense = tiny_model("llama")
    assert measure_efficiency(dense, latent, "tiny").cache_bytes == 2 * 3 * 32 * 4 * 2 * 12


def test_a_latent_cache_that_saves_nothing_is_refused() -> None:
    model, _ = shrunk("gpt2", FactorStorage(), torch.float32)
    shape = EfficiencyConfig(prompt=8, generate=1, repeats=1, cache=CacheKind.latent)
    with pytest.raises(UserError, match=r"^eval\.efficiency\.cache=latent: .* GPT2LMHeadModel has none"):
        measure_efficiency(model, shape, "tiny")
    with pytest.raises(UserError, match=r"cache=latent cannot be compiled"):
        EfficiencyConfig(compile=True, cache=CacheKind.latent)


def test_flops_are_those_of_the_matrices(llama: PreTrainedModel) -> None:
    """Two per entry of every matrix that multiplies a token, the tied head included; attention comes on top."""
    speed = measure_efficiency(llama, EfficiencyConfig(prompt=8, generate=1, repeats=1), "tiny")
    entries = sum(m.weight.numel() for m in llama.modules() if isinstance(m, torch.nn.Linear))
    assert 2 * entries <= speed.flops <= 2.2 * entries
    several = measure_efficiency(llama, EfficiencyConfig(batch_size=3, prompt=8, generate=1, repeats=1), "tiny")
    assert several.flops == speed.flops


def test_products_with_a_single_vector_are_counted() -> None:
    """Which torch does not count by itself."""
    W, x, b = torch.randn(3, 5), torch.randn(5), torch.randn(3)
    with FlopCounterMode(display=False, custom_mapping=efficiency.VECTOR_FLOPS) as counter:
        torch.mv(W, x)
        torch.addmv(b, W, x)
    assert counter.get_total_flops() == 2 * (2 * 3 * 5)


def test_peak_memory_sees_what_was_held_only_meanwhile() -> None:
    # a mapping of its own: an allocator may have memory left over
    with peak_memory(torch.device("cpu")) as peak, mmap.mmap(-1, 200_000_000) as held:
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
        for _ in range(1000):  # until it was looked at: a busy machine may keep the watcher waiting
            if peak[0] > 150e6:
                break
            time.sleep(0.1)
    assert 150e6 < peak[0] < 400e6


def test_percentiles_are_numpys() -> None:
    values = torch.rand(57).tolist()
    np.testing.assert_allclose(percentiles(values), np.percentile(values, [50, 90, 99]))
    assert percentiles([3.0]) == (3.0, 3.0, 3.0)


def test_compiled_speed(llama: PreTrainedModel) -> None:
    del llama.model.layers[1:]  # each takes half a minute to compile
    llama.config.num_hidden_layers = 1
    shape = EfficiencyConfig(prompt=8, generate=3, repeats=1, compile=True)
    graphs = torch._dynamo.utils.counters["stats"]
    graphs.clear()
    found = measure_efficiency(llama, shape, "tiny")
    assert found.decode > 0
    assert found.cache_bytes == measure_efficiency(llama, replace(shape, compile=False), "tiny").cache_bytes
    assert graphs["unique_graphs"] == 2  # of the prompt and of every step after it


def test_only_what_is_compiled_has_one_static_cache(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Emptied before each run; where the architecture cannot be compiled with one it is as without."""
    prompt, shape = torch.ones(1, 8, dtype=torch.long), EfficiencyConfig(prompt=8, generate=3, compile=True)
    empty_cache = _caches(llama, prompt, shape)
    first = empty_cache()
    assert isinstance(first, StaticCache)
    llama(prompt, past_key_values=first)
    assert first.get_seq_length() == 8
    assert empty_cache() is first
    assert first.get_seq_length() == 0
    assert isinstance(_caches(llama, prompt, replace(shape, compile=False))(), DynamicCache)
    monkeypatch.setattr(llama, "_can_compile_fullgraph", False)
    assert isinstance(_caches(llama, prompt, shape)(), DynamicCache)


def test_a_prompt_longer_than_the_context_is_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(UserError, match=r"prompt=60 and generate=5 are more than the model's 64 positions"):
        measure_efficiency(llama, EfficiencyConfig(prompt=60, generate=5), "tiny")
