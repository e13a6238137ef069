"""The benchmark measures what it says; its figures are for `make bench`."""

import json
import signal
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

import svdexp
from svdexp.bench import experts, loading, speed, stacks, sweeps
from svdexp.bench.estimates import said
from svdexp.bench.folders import write_llama, write_text
from svdexp.bench.layers import STORAGES, layer
from svdexp.bench.speed import forms_of
from svdexp.bench.stacks import CODES, CORRECTED, SMALL, compressed, decode, in_codes, prefill, random_model
from svdexp.bench.timing import REPEATS, speedup
from svdexp.bench.wide import watch
from svdexp.estimate.devices import Machine
from svdexp.estimate.speed import Speed
from svdexp.estimate.stages import Stage
from svdexp.estimate.table import render
from svdexp.models.portable.svdexp_experts import ExpertList
from svdexp.models.structure import Targets, find_matrices
from svdexp.models.work import Work
from svdexp.storage import stored_bits


@pytest.mark.parametrize("storage", STORAGES)
def test_a_timed_layer_takes_the_share_it_claims(storage: str) -> None:
    made = layer(storage, 48, 32, 0.4)
    assert 0.35 < stored_bits(made) / (48 * 32 * 16) <= 0.4
    assert made(torch.randn(3, 32)).shape == (3, 48)


def test_a_timed_model_runs() -> None:
    with torch.no_grad():
        for model in (random_model(SMALL), compressed(SMALL, "pivot", 0.4)):
            prefill(model)
            decode(model)


@pytest.mark.parametrize("name", [*CODES, *CORRECTED])
def test_a_timed_model_in_codes_runs_and_takes_their_bits(name: str) -> None:
    config = LlamaConfig(**SMALL.to_diff_dict() | {"num_hidden_layers": 1, "vocab_size": 64})
    with torch.no_grad():
        model = in_codes(config, name)
        prefill(model)
        decode(model)
    layers = find_matrices(random_model(config), Targets())
    bits = sum(stored_bits(layer.layer(model)) for layer in layers) / sum(layer.m * layer.n for layer in layers)
    least = int(name[3])
    assert least < bits < least + 1 + 0.6 * name.count("+")


def test_codes_are_timed_once_and_pairs_at_every_ratio() -> None:
    found = [str(form) for form in forms_of(["pivot", "int4+16"], [0.8, 0.4], [1, 8])]
    assert found == ["pivot 0.8", "pivot 0.8, ranks of 8", "pivot 0.4", "pivot 0.4, ranks of 8", "int4+16"]


TINY = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def test_a_folder_written_block_by_block_is_a_model_that_knows_its_words(tmp_path: Path) -> None:
    write_llama(tmp_path / "model", TINY)
    write_text(tmp_path / "text", 30, TINY["vocab_size"], 0)
    tokens = AutoTokenizer.from_pretrained(tmp_path / "model")((tmp_path / "text").read_text())["input_ids"]
    assert len(tokens) == 30
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert len(model.model.layers) == len(list((tmp_path / "model").glob("*layers*.safetensors"))) == 2
    assert model(torch.tensor([tokens])).logits.isfinite().all()


def test_opening_is_measured_with_and_without_its_first_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_llama(tmp_path / "model", TINY)
    assert loading.main(["--open", str(tmp_path / "model"), loading.PLAIN]) == 0
    found = loading.Opened(*json.loads(capsys.readouterr().out))
    assert 0 < found.seconds < found.seconds_to_token
    assert 0 <= found.bytes <= found.bytes_to_token
    loading.show({(loading.DENSE, loading.PLAIN): [loading.Opened(2, 4, 8, 16)], ("x", loading.OURS): [found] * 2}, "")
    assert "2.00" in capsys.readouterr().out


def test_what_is_opened_is_what_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = LlamaConfig(**SMALL.to_diff_dict() | {"num_hidden_layers": 1, "vocab_size": 64})
    monkeypatch.setattr(speed, "config_of", lambda *_: small)
    for name, kind in (("factors", "factors"), ("int4", "quantised")):
        loading.write(name, tmp_path / name, "demo", "bfloat16", 0.4)
        model, _ = svdexp.load(tmp_path / name)
        assert model.dtype == torch.bfloat16
        assert {entry["storage"] for entry in model.config.svdexp["layers"].values()} == {kind}


def test_sweeps_are_timed_beside_bare_passes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(sweeps, "SHAPE", TINY)
    monkeypatch.setattr(sweeps, "speedup", lambda ours, plain: (ours(), plain(), calls.append("pair"), 0.5)[-1])
    sweeps.show(tmp_path, "float32")
    assert len(calls) == 4
    assert capsys.readouterr().out.count("2.00 × a bare pass") == 4


def test_a_process_is_watched_and_killed_when_there_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    words = [sys.executable, "-c", "print('here', flush=True); import time; time.sleep(60)"]
    ended = watch(words, lambda: True)
    assert ended.code == -signal.SIGKILL
    assert (
        watch([sys.executable, "-c", "x = b'1' * 90_000_000; print('here'); import time; time.sleep(2)"]).memory > 9e7
    )
    assert "s  here" in capsys.readouterr().out


def test_timed_experts_take_the_share_they_claim_and_run_without_a_loop() -> None:
    plain = experts.dense(torch.float32, 32)
    ours = experts.compressed(plain)
    numbers = [sum(x.numel() for x in model.parameters()) for model in (ours, plain)]
    assert 0.3 < numbers[0] / numbers[1] <= experts.KEPT
    assert ours["experts"](*experts.given(5, torch.float32, 32)).shape == (5, 32)
    assert all("groups" in vars(part) for part in ours["experts"].children() if isinstance(part, ExpertList))


def test_pairs_alternate() -> None:
    calls: list[str] = []
    assert speedup(lambda: calls.append("ours"), lambda: calls.append("plain")) > 0
    assert calls == ["ours", "plain"] + ["plain", "ours"] * REPEATS


@pytest.mark.parametrize("seconds", [12.0, 340.0, 3 * 3600.0, 20 * 86400.0])
def test_an_estimates_total_is_read_from_its_table(seconds: float) -> None:
    table = render([Stage("one", Work(model=seconds), 1e9)], Machine("it", 1e9, Speed(1.0, 1.0, 1.0, 1.0), ""), "a run")
    assert said(table) == pytest.approx(seconds, rel=0.05)


def test_models_take_turns_and_are_told_beside_dense(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stacks, "DEMO", SMALL)
    monkeypatch.setattr(speed, "COPIED", 1 << 16)
    speed.main([*ASKED.split(), "--contexts", "9", "--prompts", "12"])
    said = capsys.readouterr().out
    for title in ("decode behind 9 tokens, batch 2", "prefill of 12 tokens, batch 1"):
        assert f"demo, 2 blocks, float32, {title}" in said.replace("\n", "")
    assert SMALL.num_hidden_layers == 4
    for name in ("dense ", "dense, our routes", "pivot 0.4, ranks of 8"):
        assert said.count(f"│ {name}") == 2


ASKED = "--blocks 2 --precision float32 --forms pivot --ratios 0.4 --align 8 --rounds 2 --batches 2"


def test_a_step_reads_the_weights_once_and_all_keys_and_values() -> None:
    model = random_model(SMALL)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    constants = sum(buffer.nbytes for buffer in model.buffers())
    keys = 2 * 3 * 7 * 4 * 3 * 64 * 4  # and values: texts, tokens, blocks, heads, width, bytes
    assert speed.bytes_read(model, speed.Case(3, 7, True)) == weights + constants + keys
