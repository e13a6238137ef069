"""What vLLM's transformers backend finds in a model that it builds; vLLM itself runs in `make engines`."""

import copy
import inspect
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from svdexp.models.portable.modeling_svdexp import low_rank
from svdexp.models.portable.svdexp_serving import ATTENTION
from tests.conftest import TINY

TABLE = {
    "version": 1,
    "layers": {
        "model.layers.0.mlp.up_proj": {"storage": "factors", "rank": 3},
        "model.layers.1.mlp.up_proj": {"storage": "factors", "rank": 4},
        "model.layers.1.self_attn.q_proj": {"storage": "factors", "rank": 5},
    },
}


def built(attention: str) -> Any:
    """A model of this attention, with low-rank layers in two of three blocks."""
    config: Any = copy.deepcopy(TINY["llama"])
    config.svdexp = TABLE
    return low_rank(LlamaForCausalLM)._from_config(config, attn_implementation=attention).eval()


def test_modules_of_one_class_have_the_same_children_compressed(windows: torch.Tensor) -> None:
    AttentionInterface.register(ATTENTION, sdpa_attention_forward)
    served, plain = built(ATTENTION), built("sdpa")
    served.load_state_dict(plain.state_dict())
    mlps = [type(block.mlp) for block in served.model.layers]
    assert mlps[0] is mlps[1] is not mlps[2]
    assert issubclass(mlps[0], mlps[2])
    attention = [type(block.self_attn) for block in served.model.layers]
    assert attention[0] is attention[2] is not attention[1]
    assert len({type(block.mlp) for block in plain.model.layers}) == 1
    torch.testing.assert_close(served(windows).logits, plain(windows).logits)


@pytest.mark.parametrize("name", ["LlamaModel", "LlamaForCausalLM"])
def test_the_constructor_has_its_architecture_s_signature(name: str) -> None:
    import transformers

    architecture = getattr(transformers, name)
    assert inspect.signature(low_rank(architecture).__init__) == inspect.signature(architecture.__init__)
