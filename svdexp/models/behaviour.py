"""What a model does with a few tokens: whether it predicts the next one, and whether its blocks can be replayed alone.

Both are seen in gradients. The embeddings of the tokens require one, so what depends on the text has one too, and a
token on which no logit depends has one of exactly zero. On the meta device torch's fake tensors run, which have shapes
but no values.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from svdexp.models.hooks import output_hooks
from svdexp.models.path import Pass, block_passes, own_code
from svdexp.models.structure import find_blocks, named_blocks
from svdexp.runtime.errors import UserError
from svdexp.runtime.words import quiet

TOKENS = 16
# Of the largest gradient: below is what rounding in a convolution by Fourier transforms leaves of a zero.
ROUNDING = 1e-6


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient within this context."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def gradients_from_embeddings(model: Any) -> Iterator[list[torch.Tensor]]:
    """Within this context gradients are taken, and start at the embeddings of tokens; the list holds these."""
    found: list[torch.Tensor] = []

    def require_gradient(name: str, args: object, kwargs: object, output: torch.Tensor) -> torch.Tensor:
        found.append(output.requires_grad_())
        return output.clone()  # some architectures scale it in place, which torch refuses for what a gradient starts at

    with output_hooks({"embeddings": model.get_input_embeddings()}, require_gradient), torch.enable_grad():
        yield found


def require_next_token(model: PreTrainedModel) -> None:
    """Raise UserError for a model that looks at later tokens, as masked language models and encoders do.

    And for one that does not run at all. On the meta device its config and the attention in its blocks are believed.
    """
    if bidirectional(model) if _is_skeleton(model) else looks_ahead(model):
        raise UserError(
            f"model: {type(model).__name__} with this config looks at later tokens, so it does not predict the next "
            "one; svdexp compresses causal language models"
        )


def bidirectional(model: PreTrainedModel) -> bool:
    """Whether transformers says so: of the config, or of all attention in the blocks, or, where these say nothing, by
    `is_decoder`, which some causal architectures leave false."""
    config: Any = model.config.get_text_config()
    if getattr(config, "is_causal", True) is False:
        return True
    _, blocks = find_blocks(model)
    causal = [part.is_causal for part in blocks.modules() if isinstance(getattr(part, "is_causal", None), bool)]
    return not any(causal) if causal else getattr(config, "is_decoder", True) is False


def looks_ahead(model: PreTrainedModel) -> bool:
    """Whether a logit depends on a later token."""
    generator = torch.Generator().manual_seed(0)
    with frozen(model), gradients_from_embeddings(model) as embedded:
        logits = _logits(model)[0, : TOKENS // 2].float()
        # any direction will do but that of all ones, in which softmax sees nothing
        direction = torch.randn(logits.shape, generator=generator).to(logits.device)
        if not embedded or not logits.requires_grad:
            return False
        try:
            (gradient,) = torch.autograd.grad((logits * direction).sum(), embedded[:1])
        except RuntimeError:  # of a kernel that computes forwards only
            return bidirectional(model)
    largest = gradient.float().abs().reshape(TOKENS, -1).amax(1)
    return bool(largest[TOKENS // 2 :].max() > ROUNDING * largest.max())


def require_replayable(model: PreTrainedModel, knob: str, instead: str) -> None:
    """Raise UserError where blocks cannot be run one after the other, each on its own, as `knob` wants.

    `instead` says what to set. On the meta device a model that does not run on shapes alone passes.
    """
    reason = why_not_replayed(model)
    if reason:
        raise UserError(
            f"{knob} goes block by block, and blocks of {type(model).__name__} do not run alone: {reason}; {instead}"
        )


def why_not_replayed(model: PreTrainedModel) -> str | None:
    """Why the blocks cannot be replayed, if they cannot.

    They can where each runs once, gets what the one before it gave, and else nothing that depends on the text.
    """
    shapes_only: AbstractContextManager[Any] = nullcontext()
    if _is_skeleton(model):
        shapes_only = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with shapes_only, quiet("torch._subclasses.fake_tensor"):  # which logs the traceback of what is caught here
            return _find_fault(_passes(model), list(named_blocks(model)))
    except Exception:
        if _is_skeleton(model):
            return None  # the run itself will say
        raise


def _passes(model: PreTrainedModel) -> list[Pass]:
    passes: list[Pass] = []
    with block_passes(model, passes.append), frozen(model), gradients_from_embeddings(model):
        _run(model, model.base_model)
    return passes


def _find_fault(passes: Sequence[Pass], blocks: Sequence[str]) -> str | None:
    for name in blocks:
        times = sum(one.block == name for one in passes)
        if times != 1:
            return f"{name} runs {times} times for every token"
    if [one.block for one in passes] != list(blocks):
        return "they run in another order than they stand in"
    # only now, because a mapping that blocks share is filled on the way
    for one in passes:
        for key, value in one.arguments.items():
            if any(tensor.requires_grad for tensor in tensors_in(value)):
                return f"{one.block} is given {key}, which depends on the text"
    for before, after in pairwise(passes):
        if before.output is not after.state and not _same(before.output, after.state):
            return f"{after.block} is given something else than {before.block} gives"
    return None


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested mappings and sequences."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    try:
        return torch.equal(a, b.to(a.device))
    except RuntimeError:  # shapes alone cannot say
        return a.shape == b.shape


def _is_skeleton(model: PreTrainedModel) -> bool:
    return any(parameter.is_meta for parameter in model.parameters())


def _logits(model: Any) -> torch.Tensor:
    with own_code(model, TOKENS):
        logits: torch.Tensor = _run(model, model).logits
    return logits


def _run(model: Any, body: Any) -> Any:
    rows = model.get_input_embeddings().weight.shape[0]
    tokens = torch.randint(rows, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    return body(tokens.to(model.device), use_cache=False)
