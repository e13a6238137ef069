"""Corrections as peft has them: of W ≈ Q + A B the A and B as a LoRA adapter, with a rank of its own for each matrix.

    FOLDER/           the model without corrections: Q in numbers (format=peft) or in AutoGPTQ's layout (format=gptq)
    FOLDER/adapter/   what peft, or GPTQModel, adds to it

The adapter lies in a folder of its own, because transformers looks for one beside a model and would load it at once.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from svdexp.checkpoints.checkpoint import architecture_of, empty_model
from svdexp.models.families.linear import is_transposed
from svdexp.models.matrices import Matrix, matrices_in
from svdexp.models.portable.modeling_svdexp import entry_of
from svdexp.models.portable.svdexp_residual import ResidualLinear
from svdexp.runtime.errors import UserError, require

FOLDER = "adapter"
PREFIX = "base_model.model"  # what peft puts before the name of a module

Corrections = dict[str, tuple[torch.Tensor, torch.Tensor]]


@torch.no_grad()
def take_corrections(model: PreTrainedModel) -> Corrections:
    """Leave of every ResidualLinear in `model`, from `checkpoint.load`, its codes, in place.

    Returns:
        A (m, r) and B (r, n), as `sides` has them, by the names of their matrices.
    """
    layers, taken = model.config.svdexp["layers"], {}
    for matrix in dense_matrices(model):
        layer = matrix.layer(model)
        if isinstance(layer, ResidualLinear):
            taken[matrix.name] = sides(layer.factors)
            matrix.put(model, layer.codes)
            layers[matrix.name] = entry_of(layer.codes, None)
    return taken


def require_corrections(model: PreTrainedModel) -> None:
    """Raise UserError unless every replaced layer of `model` has codes and a correction, and an adapter can add it."""
    skeleton = empty_model(architecture_of(model), model.config)
    kinds = set()
    for matrix in matrices_in(skeleton):
        if matrix.name not in model.config.svdexp["layers"]:
            continue
        if not isinstance(matrix.layer(model), ResidualLinear):
            raise UserError(
                f"format=peft is for corrections, and {matrix.name} has none: compress with storage=residual, "
                "or use format=hf or format=dense"
            )
        # peft would read the adapter and leave out, with a warning, what it finds no module for
        require(not matrix.rivals, f"format=peft has no experts, but {matrix.name} is one's: use format=dense")
        kinds.add(is_transposed(matrix.layer(skeleton)))
    require(bool(kinds), "format=peft is for corrections, and all layers are dense here: use format=dense")
    require(len(kinds) == 1, "format=peft: an adapter cannot say which matrices are transposed, and here some are")


def write_adapter(model: PreTrainedModel, corrections: Corrections, folder: Path) -> None:
    """Write an adapter for peft into `folder`; `model` is what it is for."""
    from peft import LoraConfig

    ranks = {name: B.shape[0] for name, (_, B) in corrections.items()}
    first = next(matrix for matrix in dense_matrices(model) if matrix.name in ranks)
    config = LoraConfig(
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),  # the factor before A B is alpha / r, which is 1 for each
        rank_pattern=ranks,
        alpha_pattern=ranks,
        target_modules=sorted(ranks),
        lora_dropout=0.0,
        fan_in_fan_out=is_transposed(first.layer(model)),
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    folder.mkdir(parents=True)
    config.save_pretrained(str(folder))
    tensors: dict[str, torch.Tensor] = {}
    for name, (A, B) in corrections.items():
        tensors[f"{PREFIX}.{name}.lora_A.weight"] = B.contiguous()  # peft calls the inner side A
        tensors[f"{PREFIX}.{name}.lora_B.weight"] = A.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def sides(factors: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """A (m, r) and B (r, n) of a layer of factors: plain ones as they are, those in codes in float32.

    bfloat16 would round codes times steps again. peft computes with an adapter in float32, whatever the file holds.
    """
    if hasattr(factors, "rank_in"):
        return factors.rank_out.weight, factors.rank_in.weight
    return factors.factor("out", torch.float32), factors.factor("in", torch.float32)


def dense_matrices(model: PreTrainedModel) -> list[Matrix]:
    """The handles of all matrices that the dense model has."""
    return matrices_in(empty_model(architecture_of(model), model.config))
