"""Checkpoints where svdexp is not installed: every architecture and storage; compiled, with adapters, in parts."""

import copy
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.quantizers import AutoQuantizationConfig

import svdexp
from svdexp.checkpoints import checkpoint
from svdexp.models.portable import modeling_svdexp, svdexp_products
from svdexp.models.structure import Targets, find_matrices
from svdexp.storage import FactorStorage, PivotStorage, RemapStorage, RTNStorage
from tests.conftest import TINY, tiny_model
from tests.support.shrunk import shrunk, truncated

STORAGES = {
    "factors": FactorStorage(),
    "pivot": PivotStorage(),
    "remap": RemapStorage(),
    "quantised": RTNStorage(5, 5, zero_points=True),
}
CLASSES = {
    "llama_gqa": ("LlamaForCausalLM", "LlamaModel"),
    "mistral": ("MistralForCausalLM", "MistralModel"),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Model"),
    "opt": ("OPTForCausalLM", "OPTModel"),
    "gpt2": ("GPT2LMHeadModel", "GPT2Model"),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXModel"),
}
# The files that travel whatever the storage, without what all their names begin with.
OPERATORS = ["operator", "code_readers", "coded_operators", "plain_operators", "remapped_operators"]
ALWAYS = ["base", "bits", "experts", "latent", "products", "serving", *OPERATORS]
STRANGER = Path(__file__).parents[1] / "support" / "elsewhere.py"
CASES = [f"{name}-{storage}" for name in CLASSES for storage in STORAGES]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A checkpoint for every case, with what the model in memory computes beside it."""
    root = tmp_path_factory.mktemp("portable")
    tokens = torch.randint(96, (2, 24), generator=torch.Generator().manual_seed(1))
    for case in CASES:
        name, _, storage = case.partition("-")
        model, ranks = shrunk(name, STORAGES[storage])
        checkpoint.save(model, tokenizer, root / case, ranks)
        with torch.no_grad():
            expected = {"tokens": tokens, "logits": model(tokens).logits}
            expected["generated"] = model.generate(tokens[:1], max_new_tokens=20, do_sample=False, eos_token_id=None)
        save_file(expected, root / case / "expected.safetensors")
    return root


@pytest.fixture(scope="module")
def reports(folders: Path) -> dict[str, dict[str, Any]]:
    """What the other process says of each case."""
    words = [sys.executable, str(STRANGER), *(str(folders / case) for case in CASES)]
    done = subprocess.run(words, cwd=folders, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {Path(report.pop("folder")).name: report for report in found}


@pytest.mark.parametrize("case", CASES)
def test_a_stranger_gets_the_same_model(case: str, folders: Path, reports: dict[str, dict[str, Any]]) -> None:
    name, base = CLASSES[case.partition("-")[0]]
    words = AutoTokenizer.from_pretrained(folders / case)("the rank of a matrix")["input_ids"]
    assert reports[case] == {
        "class": f"LowRank{name}",
        "logits": True,
        "generated": True,
        "pickled": True,
        "body": True,
        "words": words,
        "learns": True,
        "saved": True,
        "auto_map": {
            "AutoModel": f"modeling_svdexp.LowRank{base}",
            "AutoModelForCausalLM": f"modeling_svdexp.LowRank{name}",
        },
    }


def test_what_travels_is_what_svdexp_runs(folders: Path) -> None:
    ours = Path(modeling_svdexp.__file__).parent
    for format in STORAGES:
        found = {path.name: path for path in (folders / f"opt-{format}").glob("*.py")}
        listed = found.pop("svdexp_layers.py").read_text()
        used = {"quantised": ["coded"], "remap": ["coded"]}.get(format, [])
        always = ["modeling_svdexp.py", *(f"svdexp_{name}.py" for name in [*ALWAYS, *used])]
        assert sorted(found) == sorted([*always, f"svdexp_{format}.py"])
        for name, path in found.items():
            assert path.read_bytes() == (ours / name).read_bytes()
        for text in (listed, *(path.read_text() for path in found.values())):
            assert "import svdexp" not in text
            assert "from svdexp" not in text


def test_a_checkpoint_of_several_formats_has_their_files(tokenizer: Any, windows: torch.Tensor, tmp_path: Path) -> None:
    """And so has a copy that a stranger makes of it."""
    model, ranks = shrunk("llama", PivotStorage())
    name = "model.layers.1.mlp.up_proj"
    W = tiny_model("llama").get_submodule(name).weight.bfloat16()
    model.model.layers[1].mlp.up_proj = RTNStorage().layer(truncated(W, ranks[name]), None, W)
    checkpoint.save(model, tokenizer, tmp_path / "here", ranks)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "here", trust_remote_code=True)
    theirs.save_pretrained(tmp_path / "again")
    for folder in (tmp_path / "here", tmp_path / "again"):
        files = sorted(path.stem for path in folder.glob("svdexp_*.py"))
        assert files == sorted(f"svdexp_{name}" for name in [*ALWAYS, "coded", "layers", "pivot", "quantised"])
        loaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        with torch.no_grad():
            assert torch.equal(loaded(windows).logits, model(windows).logits)


def test_a_strangers_copy_comes_back(folders: Path, windows: torch.Tensor, tokenizer: Any, tmp_path: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(folders / "gpt2-remap", trust_remote_code=True)
    theirs.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ours, _ = svdexp.load(tmp_path)
    assert torch.equal(ours(windows).logits, theirs(windows).logits)
    ours.save_pretrained(tmp_path / "again")  # and one of ours goes anywhere
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert torch.equal(again(windows).logits, theirs(windows).logits)


def test_other_classes_of_the_file(folders: Path) -> None:
    assert modeling_svdexp.LowRankOPTForSequenceClassification.__mro__[1] is transformers.OPTForSequenceClassification
    for name in ("OPTForCausalLM", "LowRankOPTConfig", "LowRankNothing"):
        with pytest.raises(AttributeError, match=name):
            getattr(modeling_svdexp, name)


def test_compiled(tokenizer: Any, tmp_path: Path) -> None:
    """One block, in which every format is: each graph takes as long as a hundred other tests."""
    dense, (model, ranks) = tiny_model("llama_gqa"), shrunk("llama_gqa", FactorStorage())
    for matrix, storage in zip(find_matrices(dense, Targets()), itertools.cycle(STORAGES.values()), strict=False):
        W = matrix.weight(dense).bfloat16()
        matrix.put(model, storage.layer(truncated(W, ranks[matrix.name]), None, W))
    checkpoint.save(model, tokenizer, tmp_path, ranks)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True, dtype=torch.float32)
    del loaded.model.layers[1:]
    loaded.config.num_hidden_layers = 1
    assert {type(module).__module__.rpartition(".svdexp_")[2] for module in loaded.modules()} >= set(STORAGES)
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(loaded)(tokens).logits, loaded(tokens).logits)


@pytest.mark.parametrize(
    ("name", "children"), [("mistral-factors", ["rank_in", "rank_out"]), ("opt-pivot", ["pivots"])]
)
def test_adapters_attach_and_learn(name: str, children: list[str], folders: Path, windows: torch.Tensor) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders / name, trust_remote_code=True, dtype=torch.float32)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=children, task_type="CAUSAL_LM"))
    trainable = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    assert len(trainable) == 2 * len(children) * len(model.config.svdexp["layers"])
    optimiser, losses = torch.optim.Adam(trainable, lr=0.01), []
    for _ in range(2):
        losses.append(adapted(windows, labels=windows).loss)
        losses[-1].backward()
        optimiser.step()
        optimiser.zero_grad()
    assert losses[1] < losses[0]
    merged = adapted.merge_and_unload()
    assert merged.state_dict().keys() == before.keys()
    assert any(not torch.equal(value, before[key]) for key, value in merged.state_dict().items())


def test_what_stays_dense_goes_by_the_routes(folders: Path) -> None:
    ours, _ = svdexp.load(folders / "opt-factors")
    theirs = AutoModelForCausalLM.from_pretrained(folders / "opt-factors", trust_remote_code=True)
    for model in (ours, theirs):
        assert model.lm_head.forward.func.__name__ == "linear"
    checkpoint.unlabel(ours)
    assert "forward" not in ours.lm_head.__dict__
    model, ranks = shrunk("opt", FactorStorage())
    checkpoint.label(model, ranks)
    assert model.lm_head.forward.func is svdexp_products.linear


def test_a_head_of_its_own(tokenizer: Any, windows: torch.Tensor, tmp_path: Path) -> None:
    """The head is outside the base model, which AutoModel loads without it."""
    model, ranks = shrunk("llama", FactorStorage())
    head = FactorStorage().layer(truncated(model.lm_head.weight, 7), None, model.lm_head.weight)
    model.lm_head = head
    checkpoint.save(model, tokenizer, tmp_path / "here", ranks | {"lm_head": 7})
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "here", trust_remote_code=True)
    body = AutoModel.from_pretrained(tmp_path / "here", trust_remote_code=True)
    with torch.no_grad():
        assert torch.equal(loaded(windows).logits, model(windows).logits)
        assert torch.equal(head(body(windows)[0]), model(windows).logits)


def test_a_compressed_head_keeps_its_tokens(tokenizer: Any, windows: torch.Tensor, tmp_path: Path) -> None:
    """One sentence, and the model as it was; where the head is dense, tokens are added as to any model."""
    model, ranks = shrunk("llama", FactorStorage(), torch.float32)
    plain = copy.deepcopy(model)
    model.lm_head = FactorStorage().layer(truncated(model.lm_head.weight, 7), None, model.lm_head.weight)
    checkpoint.save(model, tokenizer, tmp_path / "head", ranks | {"lm_head": 7})
    checkpoint.save(plain, tokenizer, tmp_path / "plain", ranks)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "head", trust_remote_code=True)
    with torch.no_grad():
        before = found(windows).logits
        for how in ({"new_num_tokens": 101}, {"pad_to_multiple_of": 64}):
            with pytest.raises(ValueError, match=r"the head of this model is compressed \(targets.lm_head=true\)"):
                found.resize_token_embeddings(**how)
        found.resize_token_embeddings(96, pad_to_multiple_of=32)  # as many as there are
        assert torch.equal(found(windows).logits, before)
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", trust_remote_code=True)
        before = found(windows).logits
        found.resize_token_embeddings(97, pad_to_multiple_of=8)
        torch.testing.assert_close(found(windows).logits[..., :96], before)
        assert found(windows).logits.shape[-1] == 104


def test_a_program_that_passes_on_what_config_json_asks_for(tokenizer: Any, windows: Any, tmp_path: Path) -> None:
    """As lm-eval does where svdexp is imported."""
    model, ranks = shrunk("llama", FactorStorage(), torch.float32)
    checkpoint.save(model, tokenizer, tmp_path / "here", ranks)
    read = {"quant_method": "svdexp"}
    known = AutoQuantizationConfig.from_dict(read)
    for trusted, asked in ((True, known), (True, read), (False, known)):
        how: dict[str, Any] = {"trust_remote_code": trusted, "quantization_config": asked}
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "here", **how)
        with torch.no_grad():
            assert torch.equal(found(windows).logits, model(windows).logits)


def test_shards(monkeypatch: pytest.MonkeyPatch, tokenizer: Any, windows: torch.Tensor, tmp_path: Path) -> None:
    monkeypatch.setattr(checkpoint, "SHARD_SIZE", "10KB")
    model, ranks = shrunk("mistral", PivotStorage())
    checkpoint.save(model, tokenizer, tmp_path / "here", ranks)
    assert len(list((tmp_path / "here").glob("model-*.safetensors"))) > 2
    for loaded in (
        svdexp.load(tmp_path / "here")[0],
        AutoModelForCausalLM.from_pretrained(tmp_path / "here", trust_remote_code=True),
    ):
        with torch.no_grad():
            assert torch.equal(loaded(windows).logits, model(windows).logits)


@pytest.mark.parametrize("name", CLASSES)
def test_the_plan_for_several_devices(name: str) -> None:
    """Every rule of the architecture's goes to one side of the layers that it names, and the other side stays whole."""
    model, ranks = shrunk(name, FactorStorage())
    checkpoint.label(model, ranks)
    rules = dict(type(model.config).base_model_tp_plan or {})
    body = modeling_svdexp.low_rank(type(model.base_model))(model.config)
    found = {rule: style for rule, style in body.tp_plan.items() if not rule.startswith("embed")}
    assert found == {
        f"{rule}.{side}": style if split else "replicate"
        for rule, style in rules.items()
        for side, split in (("rank_out", style == "colwise"), ("rank_in", style == "rowwise"))
    }
    prefix = model.base_model_prefix
    whole = type(model)(model.config).tp_plan
    assert {f"{prefix}.{rule}" for rule in found} <= whole.keys()


def test_the_plan_of_a_model_that_is_dense_in_places() -> None:
    """vLLM takes the first rule that a name begins with, so those of the low-rank layers must come first."""
    model, ranks = shrunk("llama", FactorStorage())
    del ranks["model.layers.1.mlp.up_proj"]
    checkpoint.label(model, ranks)
    rules = list(type(model)(model.config).tp_plan)
    up = [rule for rule in rules if "up_proj" in rule]
    assert up == [f"model.layers.*.mlp.up_proj{side}" for side in (".rank_out", ".rank_in", "")]
    assert "model.layers.*.mlp.down_proj" not in rules


@pytest.mark.parametrize(("rank", "fits"), [(32, True), (33, False)])
def test_no_rank_is_beyond_the_shorter_side(rank: int, fits: bool) -> None:
    config: Any = copy.deepcopy(TINY["llama"])
    name = "model.layers.0.mlp.up_proj"  # (48, 32)
    config.svdexp = {"version": 1, "layers": {name: {"storage": "factors", "rank": rank}}}
    made = modeling_svdexp.low_rank(transformers.LlamaForCausalLM)
    if fits:
        assert made(config).get_submodule(name).rank_in.weight.shape == (32, 32)
        return
    with pytest.raises(ValueError, match=r"up_proj of shape \(48, 32\) cannot have the rank 33 of config\.json"):
        made(config)


def test_a_config_still_asks_for_the_quantiser_that_one_load_goes_without() -> None:
    config: Any = copy.deepcopy(TINY["llama"])
    config.quantization_config = dict(modeling_svdexp.QUANTISED)
    assert not modeling_svdexp.names_quantiser(modeling_svdexp.without_quantiser(config))
    assert modeling_svdexp.names_quantiser(config)


def test_pivots_and_codes_have_no_plan() -> None:
    for storage in (PivotStorage(), RemapStorage(), RTNStorage()):
        model, ranks = shrunk("llama", storage)
        checkpoint.label(model, ranks)
        assert type(model)(model.config).tp_plan == {}
