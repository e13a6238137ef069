"""Which layers share an input, from shapes alone."""

import torch
from transformers import AutoModelForCausalLM

from svdexp.bench.families import tiny_config
from svdexp.estimate.anatomy import input_leaders
from svdexp.models.structure import Targets, find_matrices


def test_experts_by_a_loop_of_their_own() -> None:
    """DBRX goes through the experts that were chosen, which shapes do not tell: what came before them is known."""
    config = tiny_config("dbrx")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config).eval()
    matrices = find_matrices(model, Targets(exclude=["*.experts*"]))
    leaders = input_leaders(model, matrices)
    assert leaders == {matrix.name: matrix.name for matrix in matrices}
    assert any("Wqkv" in name for name in leaders)
