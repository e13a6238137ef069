"""Which layers of a checkpoint are given the same input: vLLM builds their first factors as one product."""

import torch
from transformers import PreTrainedModel

from svdexp.calibration.collector import shared_inputs
from svdexp.models.hooks import submodules


@torch.no_grad()
def say_together(model: PreTrainedModel) -> None:
    """Let the config say which of the layers in it are given the same input: in vLLM their first factors are joined."""
    table = model.config.svdexp
    token = torch.zeros(1, 1, dtype=torch.long)
    leaders = shared_inputs(submodules(model, table["layers"]), lambda: model(token, use_cache=False))
    groups: dict[str, list[str]] = {}
    for name, leader in leaders.items():
        groups.setdefault(leader, []).append(name)
    table["together"] = [names for names in groups.values() if len(names) > 1]
