"""The divergence that distillation makes small, against torch's own in float64 and its gradient by autograd."""

import pytest
import torch
from torch.nn.functional import kl_div

from svdexp.training import logit_divergence as part
from svdexp.training.logit_divergence import divergence


@pytest.mark.parametrize("T", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient_are_those_of_torch(dtype: torch.dtype, T: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the rows do not fill the last part."""
    monkeypatch.setattr(part, "NUMBERS", 3 * 11 + 5)
    torch.manual_seed(0)
    found, wanted = ((4 * torch.randn(10, 11)).to(dtype) for _ in range(2))
    exact = found.double().requires_grad_()
    p, q = ((logits.double() / T).log_softmax(-1) for logits in (wanted, exact))
    expected = kl_div(q, p, reduction="batchmean", log_target=True)
    (5 * expected).backward()
    value = divergence(found.requires_grad_(), wanted, T)
    (5 * value).backward()
    torch.testing.assert_close(value.double(), expected.detach(), rtol=1e-6, atol=0)
    assert found.grad is not None
    assert exact.grad is not None
    assert found.grad.dtype == dtype
    error = (found.grad.double() - exact.grad).abs().max() / exact.grad.abs().max()
    assert error < 4 * torch.finfo(dtype).eps


def test_nothing_is_divergent_from_itself() -> None:
    logits = torch.randn(3, 7, requires_grad=True)
    value = divergence(logits, logits.detach(), 1.0)
    value.backward()
    assert value == 0
    assert logits.grad is not None
    assert not logits.grad.any()
