"""What precision=auto is on a device, and the switch with which the tests choose it for a CPU."""

import pytest
import torch

from svdexp.checkpoints.loading import resolve_dtype
from svdexp.runtime.errors import UserError
from svdexp.schema import Precision

CPU = torch.device("cpu")
SWITCH = "SVDEXP_TEST_PRECISION"


@pytest.mark.parametrize("feature", ["amx_bf16", "avx512_bf16", "bf16"])
def test_auto_is_bfloat16_where_the_cpu_computes_it(feature: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, feature: True})
    assert resolve_dtype(Precision.auto, CPU) == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, feature: False})
    assert resolve_dtype(Precision.auto, CPU) == torch.float32


@pytest.mark.parametrize("name", ["bfloat16", "float32"])
def test_the_switch_is_what_auto_is_on_a_cpu_and_nothing_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, name)
    for native in (False, True):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda native=native: {"avx512_bf16": native})
        assert resolve_dtype(Precision.auto, CPU) == getattr(torch, name)
    assert resolve_dtype(Precision.float16, CPU) == torch.float16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert resolve_dtype(Precision.auto, torch.device("cuda")) == torch.float16


def test_another_word_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "bf16")
    with pytest.raises(UserError, match="SVDEXP_TEST_PRECISION is bfloat16 or float32, not bf16"):
        resolve_dtype(Precision.auto, CPU)
