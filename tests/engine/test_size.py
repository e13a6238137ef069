"""A size of the whole model becomes the ratio of what is compressed, and is never exceeded."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from svdexp.allocation import Sensitivity, Uniform
from svdexp.engine.compress import compress
from svdexp.engine.plan import plan
from svdexp.engine.size import WholeModel, ratio_of
from svdexp.factorisation import InputMoment
from svdexp.method import Method
from svdexp.models.structure import Targets, find_matrices, stored_bytes
from svdexp.runtime.errors import UserError
from svdexp.storage import FactorStorage, PivotStorage, RemapStorage, RTNStorage, Storage
from tests.conftest import tiny_model


def method(storage: Storage) -> Method:
    return Method("svd_llm", InputMoment(), Uniform(), storage)


def test_the_ratio_is_what_the_other_layers_leave(llama: PreTrainedModel) -> None:
    layers = find_matrices(llama, Targets())
    targeted = 4 * sum(layer.m * layer.n for layer in layers)
    rest = stored_bytes(llama) - targeted
    assert ratio_of(WholeModel(rest + targeted / 4), llama, layers) == pytest.approx(0.25, rel=1e-12)
    assert ratio_of(WholeModel(0.9), llama, layers) == pytest.approx(1 - 0.1 * stored_bytes(llama) / targeted)
    assert ratio_of(0.3, llama, layers) == 0.3
    half = find_matrices(llama, Targets(include=["*.mlp.*"]))
    assert ratio_of(WholeModel(0.9), llama, half) < ratio_of(WholeModel(0.9), llama, layers)


def test_sizes_that_cannot_be_had(llama: PreTrainedModel) -> None:
    layers = find_matrices(llama, Targets())
    with pytest.raises(UserError, match=r"^bytes=9,999\.0 MB is more than the dense model takes, \d\d\d?\.\d kB$"):
        WholeModel(9999e6).ratio(llama, layers)
    with pytest.raises(UserError, match=r"^bytes=1\.0 kB is less than what is not compressed takes alone, \d+\.\d kB"):
        plan(llama, method(FactorStorage()), WholeModel(1000), Targets())


def test_bytes_beside_a_target_that_would_ignore_them_are_refused(llama: PreTrainedModel) -> None:
    until = Method("asvd", InputMoment(), Sensitivity(ppl_target=9.0), FactorStorage())
    plan(llama, until, 0.8, Targets())  # conf/ always has a ratio
    with pytest.raises(UserError, match=r"^bytes and method\.allocation\.ppl_target both say"):
        plan(llama, until, WholeModel(0.8), Targets())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "storage", [FactorStorage(), PivotStorage(), RemapStorage(), "rtn"], ids=["factors", "pivot", "remap", "rtn"]
)
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_the_whole_model_keeps_its_promise(storage: Any, name: str, dtype: torch.dtype, windows: torch.Tensor) -> None:
    if storage == "rtn":
        storage = RTNStorage(code_bits=8)
    model = tiny_model(name).to(dtype)
    wanted = 0.75 * stored_bytes(model)
    compression = compress(model, windows, method(storage), WholeModel(0.75))
    found = stored_bytes(model)
    assert found <= wanted
    assert compression.achieved_ratio <= compression.ratio
    if isinstance(storage, FactorStorage):  # others have all of a matrix for less
        assert found > wanted - 0.08 * stored_bytes(tiny_model(name).to(dtype))


def test_layers_that_stay_dense_count_in_full(windows: torch.Tensor) -> None:
    model = tiny_model("llama")
    block: Any = model.model.layers[1]
    block.mlp.forward = lambda x: torch.zeros_like(x)  # its layers are never called
    before = stored_bytes(model)
    compression = compress(model, windows, method(FactorStorage()), WholeModel(0.8))
    assert compression.left_dense
    assert stored_bytes(model) <= 0.8 * before
