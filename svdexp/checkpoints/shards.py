"""Write a streamed model: each of its blocks is a shard, and what is not in a block is the first one."""

import json
import os
import shutil
from pathlib import Path

from transformers import PreTrainedModel

from svdexp.checkpoints.intake import INDEX, WEIGHTS, header_shapes
from svdexp.models.residency import Residency, at_hand
from svdexp.models.structure import stored_bytes

LARGEST = 2**62  # bytes: one shard, whatever it takes


def write_streamed(model: PreTrainedModel, residency: Residency, folder: Path) -> None:
    """What `save_pretrained` writes, but for the sizes of shards; one block at a time is in memory, if any.

    Raises:
        UnwritableError: the disk is full.
    """
    resident = {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_meta}
    model.save_pretrained(folder, state_dict=resident, max_shard_size=LARGEST)
    blocks = residency.blocks
    count = len(blocks) + 1
    shards = [folder / f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    (folder / WEIGHTS).rename(shards[0])
    for group, shard in zip(blocks, shards[1:], strict=True):
        share(waiting_file(model, residency, group), shard)
    index = {
        "metadata": {"total_parameters": model.num_parameters(), "total_size": stored_bytes(model)},
        "weight_map": {name: shard.name for shard in shards for name in header_shapes([shard])},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def waiting_file(model: PreTrainedModel, residency: Residency, group: str) -> Path:
    """The file of a block as it is, made if there is none."""
    if not residency.file(group).is_file():
        with at_hand(model, group, changes=True):
            pass
    return residency.file(group)


def share(source: Path, target: Path) -> None:
    """Let `target` be the file `source` too: nothing is copied, where the file system can do that."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
