"""Dobi-SVD's remapped checkpoints: files written here from the layout's description, read by svdexp.load."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import svdexp
from svdexp.checkpoints import checkpoint, dobi
from svdexp.models.portable.svdexp_factors import LowRankLinear
from svdexp.runtime.errors import UserError
from tests.conftest import tiny_model

# Of (32, 32), (16, 32), (48, 32) and (32, 48); from 16, 32/3 and 19.2 on factors are no smaller than the matrix.
RANKS = {"q": 20, "k": 5, "v": 10, "o": 15, "gate": 12, "up": 20, "down": 7, "fc1": 7, "fc2": 30, "out": 16}
DENSE = {"q", "up", "fc2", "out"}
GATE, K = "model.layers.0.mlp.gate_proj", "model.layers.1.self_attn.k_proj"


def code_table() -> list[float]:
    """The 256 values, by loops."""
    values = [0.0, 1.0]
    for i in range(7):
        step = 0.9 / 2**i
        for j in range(2**i):
            middle = (0.1 + j * step + 0.1 + (j + 1) * step) / 2
            values += [middle * 10 ** (i - 6), -middle * 10 ** (i - 6)]
    return sorted(values)


def nearest(row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and largest magnitude of one row."""
    table, peak = torch.tensor(code_table()), row.abs().max()
    codes = [int((table - value).abs().argmin()) for value in row / peak]
    return torch.tensor(codes, dtype=torch.uint8), peak


def remap(W: torch.Tensor, rank: int) -> dict[str, Any]:
    """One layer's entry; the singular values go to the longer side's factor, as in the published files."""
    m, n = W.shape
    U, S, Vt = torch.linalg.svd(W.float(), full_matrices=False)
    us, vt = (U * S, Vt) if m >= n else (U, S[:, None] * Vt)
    us, vt, side = us[:, :rank].T, vt[:rank], min(m, n)
    (us_quan, us_absmax), (vt_quan, vt_absmax) = (
        zip(*(nearest(row[:side]) for row in rows), strict=True) for rows in (us, vt)
    )
    rest = ("us", us[:, side:].T.half()) if m > n else ("vt", vt[:, side:].half()) if m < n else None
    return {
        "us_quan": torch.stack(us_quan),
        "vt_quan": torch.stack(vt_quan),
        "us_absmax": torch.stack(us_absmax).half(),
        "vt_absmax": torch.stack(vt_absmax).half(),
        "tuple_info": rest,
    }


def product(entry: dict[str, Any]) -> torch.Tensor:
    """What the entry stands for, (m, n), number by number; factors are rounded to float16."""
    table, sides = code_table(), []
    for matrix in ("us", "vt"):
        rows = [
            [table[code] * float(peak) for code in codes]
            for codes, peak in zip(entry[f"{matrix}_quan"].tolist(), entry[f"{matrix}_absmax"], strict=True)
        ]
        sides.append(torch.tensor(rows))
    A, B = sides[0].T, sides[1]
    if entry["tuple_info"] is not None:
        label, rest = entry["tuple_info"]
        A = torch.cat([A, rest.float()]) if label == "us" else A
        B = torch.cat([B, rest.float()], dim=1) if label == "vt" else B
    return A.half().float() @ B.half().float()


def linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and "lm_head" not in name}


def rank_of(name: str) -> int:
    return RANKS[name.rpartition(".")[2].partition("_")[0]]


def export(model: PreTrainedModel, tokenizer: Any, folder: Path) -> PreTrainedModel:
    """Write `folder` as the reference does, and return the model that it stands for, in float32."""
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    remapped = {name: remap(linear.weight, rank_of(name)) for name, linear in linears(model).items()}
    torch.save(remapped, folder / "remapping_weight.pt")
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    others = {name: tensor for name, tensor in state.items() if "self_attn." not in name and "mlp." not in name}
    torch.save(others, folder / "pytorch_model.bin")
    dense = {f"{name}.weight": product(entry) for name, entry in remapped.items()}
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()} | dense)
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("dobi")
    export(tiny_model("llama_gqa"), tokenizer, folder)
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(exported, tmp_path / "dobi"))


def change(path: Path, edit: Callable[[Any], Any]) -> None:
    content = torch.load(path, weights_only=True)
    edit(content)
    torch.save(content, path)


def test_the_table_is_the_described_one() -> None:
    table = dobi.dynamic_map()
    torch.testing.assert_close(table, torch.tensor(code_table()), rtol=1e-6, atol=0)
    assert table.shape == (256,)
    assert (table[0], table[-1]) == (-0.99296875, 1)
    assert bool((table.diff() > 0).all())


@pytest.mark.parametrize("name", ["llama", "llama_gqa", "mistral"])
def test_logits_are_those_of_the_decoded_matrices(
    name: str, windows: torch.Tensor, tokenizer: Any, tmp_path: Path
) -> None:
    expected = export(tiny_model(name), tokenizer, tmp_path)(windows).logits
    model, words = svdexp.load(tmp_path, dtype=torch.float32)
    assert not model.training
    assert words("rank")["input_ids"] == tokenizer("rank")["input_ids"]
    torch.testing.assert_close(model(windows).logits, expected, rtol=0, atol=5e-5)
    for path, layer in ((path, model.get_submodule(path)) for path in linears(tiny_model(name))):
        assert isinstance(layer, nn.Linear if path.rpartition(".")[2].partition("_")[0] in DENSE else LowRankLinear)
        assert isinstance(layer, nn.Linear) or layer.rank_in.out_features == rank_of(path)
    half, _ = svdexp.load(tmp_path)
    assert half.dtype == half.config.dtype == torch.float16
    torch.testing.assert_close(half(windows).logits.float(), expected, rtol=0, atol=2e-3)


def test_codes_lose_little(exported: Path) -> None:
    """The error of the decoded matrix is that of truncation and a few per cent of rounding."""
    entries = torch.load(exported / "remapping_weight.pt", weights_only=True)
    for name, linear in linears(tiny_model("llama_gqa")).items():
        U, S, Vt = torch.linalg.svd(linear.weight, full_matrices=False)
        k = rank_of(name)
        truncated = (U * S)[:, :k] @ Vt[:k]
        assert float((product(entries[name]) - truncated).norm() / truncated.norm()) < 0.03


def test_an_imported_model_can_be_saved(exported: Path, windows: torch.Tensor, tokenizer: Any, tmp_path: Path) -> None:
    model, words = svdexp.load(exported)
    layers = model.config.svdexp["layers"]
    assert layers[GATE] == {"storage": "factors", "rank": RANKS["gate"]}
    assert len(layers) == 3 * 5  # k, v, o, gate and down of three blocks
    checkpoint.save(model, words, tmp_path / "checkpoint", {name: entry["rank"] for name, entry in layers.items()})
    assert not list((tmp_path / "checkpoint").glob("*.bin"))
    again, _ = svdexp.load(tmp_path)
    assert again.dtype == torch.float16
    assert again.config.svdexp == model.config.svdexp
    assert torch.equal(again(windows).logits, model(windows).logits)


def test_biases_in_the_file_are_taken(windows: torch.Tensor, tokenizer: Any, tmp_path: Path) -> None:
    """OPT has biases and its fc1 and fc2 are under no mlp, so the file holds their dense weights as well."""
    model = export(tiny_model("opt"), tokenizer, tmp_path)
    with pytest.raises(UserError, match=r"pytorch_model\.bin lacks model\.decoder\.layers\.0\.self_attn\.k_proj\.bias"):
        svdexp.load(tmp_path)
    biases = {f"{name}.bias": linear.bias for name, linear in linears(model).items()}
    change(tmp_path / "pytorch_model.bin", lambda tensors: tensors.update(biases))
    loaded, _ = svdexp.load(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(loaded(windows).logits, model(windows).logits, rtol=0, atol=5e-5)


@pytest.mark.parametrize("missing", ["lm_head.weight", "model.embed_tokens.weight"])
def test_of_tied_embeddings_one_is_enough(folder: Path, windows: torch.Tensor, missing: str) -> None:
    expected, _ = svdexp.load(folder)
    change(folder / "pytorch_model.bin", lambda tensors: tensors.pop(missing))
    model, _ = svdexp.load(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model(windows).logits, expected(windows).logits)


def test_an_untied_head_is_needed(tokenizer: Any, tmp_path: Path) -> None:
    export(tiny_model("llama"), tokenizer, tmp_path)
    change(tmp_path / "pytorch_model.bin", lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(UserError, match=r"pytorch_model\.bin lacks lm_head\.weight"):
        svdexp.load(tmp_path)


def test_there_is_one_size(exported: Path) -> None:
    with pytest.raises(UserError, match=r"Dobi-SVD's, .* takes no ratio="):
        svdexp.load(exported, ratio=0.5)


def infinite(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.arange(len(scale)) == 2, torch.inf, scale.float()).half()


@pytest.mark.parametrize(
    ("key", "edit", "sentence"),
    [
        ("us_quan", lambda x: None, "us_quan is not a tensor of 1 to 32 rows"),
        ("us_quan", lambda x: x[:0], "us_quan is not a tensor of 1 to 32 rows"),
        ("us_quan", lambda x: x[0, 0], "us_quan is not a tensor of 1 to 32 rows"),
        ("us_quan", lambda x: x.repeat(3, 1), "us_quan is not a tensor of 1 to 32 rows"),
        ("us_quan", lambda x: x[:, 1:], r"us_quan must be torch\.uint8 of shape \(12, 32\), not .* \(12, 31\)"),
        ("us_quan", lambda x: x.short(), r"us_quan must be torch\.uint8 .*, not torch\.int16"),
        ("vt_quan", lambda x: x[1:], r"vt_quan must be torch\.uint8 of shape \(12, 32\), not .* \(11, 32\)"),
        ("vt_quan", lambda x: "codes", r"vt_quan must be .*, not 'codes'"),
        ("us_absmax", lambda x: x.float(), r"us_absmax must be torch\.float16 of shape \(12,\), not torch\.float32"),
        ("vt_absmax", lambda x: x[:, None], r"vt_absmax must be torch\.float16 of shape \(12,\)"),
        ("us_absmax", infinite, "us_absmax is not finite"),
        ("vt_absmax", lambda x: x * torch.nan, "vt_absmax is not finite"),
        ("tuple_info", lambda x: None, "tuple_info is not a pair of 'us' and a tensor"),
        ("tuple_info", lambda x: ("vt", x[1]), "tuple_info is not a pair of 'us' and a tensor"),
        ("tuple_info", lambda x: ("us", x[1][1:]), r"tuple_info must be torch\.float16 of shape \(16, 12\)"),
        ("tuple_info", lambda x: ("us", x[1] / 0), "tuple_info is not finite"),
    ],
)
def test_damaged_entries_are_named(folder: Path, key: str, edit: Callable[[Any], Any], sentence: str) -> None:
    change(folder / "remapping_weight.pt", lambda table: table[GATE].update({key: edit(table[GATE][key])}))
    with pytest.raises(UserError, match=rf"remapping_weight\.pt: model\.layers\.0\.mlp\.gate_proj: {sentence}"):
        svdexp.load(folder)


def test_a_square_matrix_has_no_rest(folder: Path) -> None:
    change(folder / "remapping_weight.pt", lambda table: table["model.layers.0.self_attn.q_proj"].update(tuple_info=3))
    with pytest.raises(UserError, match=r"q_proj: tuple_info is not None"):
        svdexp.load(folder)


@pytest.mark.parametrize(
    ("file", "edit", "sentence"),
    [
        ("remapping_weight.pt", lambda t: t.pop(K), r"remapping_weight\.pt lacks model\.layers\.1\.self_attn\.k_proj,"),
        ("remapping_weight.pt", lambda t: t[K].pop("vt_quan"), r"k_proj: vt_quan must be .*, not None"),
        ("remapping_weight.pt", lambda t: t.update({K: [1]}), r"k_proj: us_quan is not a tensor of 1 to 16 rows"),
        (
            "remapping_weight.pt",
            lambda t: t.update({"a.b": t[K]}),
            r"a\.b is not a linear layer in the blocks of Llama",
        ),
        ("remapping_weight.pt", lambda t: t.update({"model.norm": t[K]}), r"model\.norm is not a linear layer"),
        ("remapping_weight.pt", lambda t: t.update(lm_head=t[K]), r"lm_head is not a linear layer in the blocks"),
        ("remapping_weight.pt", lambda t: t.update({K: t[GATE]}), r"k_proj: us_quan must be .* \(12, 16\)"),
        ("remapping_weight.pt", lambda t: t.update({3: t[K]}), r"remapping_weight\.pt is not a table of names"),
        ("pytorch_model.bin", lambda t: t.pop("model.norm.weight"), r"pytorch_model\.bin lacks model\.norm\.weight"),
        ("pytorch_model.bin", lambda t: t.update(x=torch.ones(1)), r"pytorch_model\.bin: x is not a tensor of Llama"),
        (
            "pytorch_model.bin",
            lambda t: t.update({"model.norm.weight": torch.ones(31)}),
            r"model\.norm\.weight must be numbers of shape \(32,\), not torch\.float32 of shape \(31,\)",
        ),
        (
            "pytorch_model.bin",
            lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}),
            r"model\.norm\.weight must be numbers of shape \(32,\), not torch\.int8",
        ),
        (
            "pytorch_model.bin",
            lambda t: t.update({"lm_head.weight": t["lm_head.weight"] + 1}),
            r"lm_head\.weight differs from model\.embed_tokens\.weight",
        ),
    ],
)
def test_files_that_do_not_fit_the_model_are_refused(
    folder: Path, file: str, edit: Callable[[Any], Any], sentence: str
) -> None:
    change(folder / file, edit)
    with pytest.raises(UserError, match=sentence):
        svdexp.load(folder)


class Command:
    def __reduce__(self) -> Any:
        return os.mkdir, ("made-by-a-pickle",)


@pytest.mark.parametrize("file", ["remapping_weight.pt", "pytorch_model.bin"])
def test_a_pickle_is_not_run(folder: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    torch.save({"command": Command()}, folder / file)
    with pytest.raises(
        UserError, match=rf"{file} is damaged, or holds more than tensors, which svdexp does not unpickle$"
    ):
        svdexp.load(folder)
    assert not Path("made-by-a-pickle").exists()


@pytest.mark.parametrize("file", ["remapping_weight.pt", "pytorch_model.bin"])
def test_damaged_files_are_named(folder: Path, file: str) -> None:
    content = (folder / file).read_bytes()
    for damaged in (b"", b"hello world", content[:100], content[: len(content) // 2], content[:-1]):
        (folder / file).write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{file} is damaged"):
            svdexp.load(folder)
    torch.save([1, 2], folder / file)
    with pytest.raises(UserError, match=rf"{file} is not a table of names"):
        svdexp.load(folder)


def test_the_other_file_is_needed(folder: Path) -> None:
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"pytorch_model\.bin cannot be read: No such file"):
        svdexp.load(folder)


def test_a_config_of_another_shape_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 4}))
    with pytest.raises(UserError, match=r"remapping_weight\.pt: model\.layers\.0\.self_attn\.k_proj: us_quan must be"):
        svdexp.load(folder)
