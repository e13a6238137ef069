"""A model that is not on the CPU, and a cache on disk, which gives what it kept on the CPU."""

from pathlib import Path

import pytest
import torch

from svdexp.allocation import Forms, Uniform
from svdexp.engine.compress import compress
from svdexp.factorisation import InputMoment
from svdexp.method import Method
from svdexp.models.structure import Targets
from svdexp.runtime.shelves import Cache
from svdexp.storage import FactorStorage, FormStorage, ResidualStorage
from svdexp.update import RefitOutput
from tests.conftest import tiny_model
from tests.support import far

WEIGHTING, UNIFORM = InputMoment(), Uniform()
METHODS = {
    "refit": Method("svd_llm_update", WEIGHTING, UNIFORM, FactorStorage(), update=RefitOutput()),
    "residual": Method("residual", WEIGHTING, UNIFORM, ResidualStorage(3, 8)),
    "forms": Method("mixed", WEIGHTING, Forms(), FormStorage(["gptq4-g8", "factors8-g8", "pivot"])),
}


@pytest.mark.parametrize("name", METHODS)
def test_what_was_kept_comes_to_where_the_model_is(
    name: str, windows: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, targets = tiny_model("llama"), Targets(include=["*layers.1.*attn.[kqo]_proj"])
    here = compress(model, windows[:2], METHODS[name], 0.75, targets=targets)
    far.send(away := tiny_model("llama"))
    monkeypatch.setattr(torch, "tensor", far.tensor)
    with far.Elsewhere():
        there = compress(away, windows[:2], METHODS[name], 0.75, targets=targets, cache=Cache(tmp_path), weights="any")
        with torch.no_grad():
            found = away(windows[:1].to(far.FAR), use_cache=False).logits
            wanted = model(windows[:1], use_cache=False).logits
    assert (there.ranks, there.forms, there.bits) == (here.ranks, here.forms, here.bits)
    assert {tensor.device for tensor in away.state_dict().values()} == {far.FAR}
    torch.testing.assert_close(far.held(found), wanted, rtol=0, atol=0.01 * float(wanted.abs().max()))


def test_tensors_of_two_devices_do_not_mix() -> None:
    near = torch.ones(2, 2)
    assert torch.equal(far.held(far.Far(near) @ far.Far(near)), 2 * near)
    with pytest.raises(RuntimeError, match="several devices"):
        _ = far.Far(near) @ near
