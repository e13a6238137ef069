"""How long a text a model was made for, and whether it can compute longer ones at all."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

# Some tables have a few rows more than there are positions: the first are padding's.
SPARE_ROWS = 2


@dataclass(frozen=True)
class Positions:
    """How many tokens one text may have; `firm` where there is no computing beyond them."""

    count: int
    firm: bool


def positions_of(model: PreTrainedModel) -> Positions | None:
    """The positions that the model's config speaks of; None where it speaks of none, as those of recurrent models.

    They are firm where a table has an entry for each: rotary positions, most ALiBi and recurrences are computed for any
    length. The model may be on the meta device.
    """
    config: Any = model.config.get_text_config()
    count: Any = getattr(config, "max_position_embeddings", None)
    if isinstance(count, int) and count > 0:
        return Positions(count, _has_table(model, count))
    # The word of architectures whose ALiBi is a table, made anew in every forward pass.
    count = getattr(config, "max_seq_len", None)
    return Positions(count, True) if isinstance(count, int) and count > 0 else None


def _has_table(model: PreTrainedModel, count: int) -> bool:
    embedding = model.get_input_embeddings()
    rows = range(count, count + SPARE_ROWS + 1)
    return any(size in rows for part in model.modules() if part is not embedding for size in _table_sizes(part))


def _table_sizes(module: nn.Module) -> Iterator[int]:
    """Which sizes of the module's own tensors may count positions: the rows of embeddings, and all sizes of what is
    kept beside parameters, such as masks and sines."""
    if isinstance(module, nn.Embedding):
        yield module.num_embeddings
    kept = [*module.buffers(recurse=False), *(x for x in vars(module).values() if isinstance(x, torch.Tensor))]
    for tensor in kept:
        if tensor.ndim >= 2:
            yield from tensor.shape
