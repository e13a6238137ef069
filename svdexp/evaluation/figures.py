"""All figures of one model: perplexities, accuracies, speed and size, dense and compressed alike."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from svdexp.data import resolve_bos
from svdexp.evaluation.accuracy import accuracies
from svdexp.evaluation.efficiency import measure_efficiency, require_context
from svdexp.evaluation.passage import Passage
from svdexp.evaluation.perplexity import perplexity
from svdexp.evaluation.tasks import Exam
from svdexp.models.fingerprint import model_fingerprint
from svdexp.models.structure import stored_bytes
from svdexp.record import Results
from svdexp.record.results import BYTES, PARAMS, PPL, PPL_STDERR, PPL_TOKENS
from svdexp.runtime.processes import Processes
from svdexp.runtime.shelves import Cache, fingerprint
from svdexp.schema import Config, EvaluateConfig


def evaluate(
    model: PreTrainedModel,
    texts: Mapping[str, Passage],
    config: Config | EvaluateConfig,
    cache: Cache,
    what: str,
    exams: Sequence[Exam] = (),
    tokenizer: Any = None,
    weights: str | None = None,
    routed: bool = False,
) -> Results:
    """Figures of one model: ppl/TEXT and acc/TASK, their standard errors and counts, those of `Efficiency`,
    params, bytes.

    Perplexities and accuracies come from the cache where the same weights met the same text before; speed never does.
    Tasks need the tokenizer. `weights` is the model's fingerprint, where it was taken already; `routed` as of
    `measure_efficiency`. Of processes that share the run, each measures its part of every text, and the main one all
    the rest.
    """
    figures: Results = {}
    if config.eval.efficiency:
        require_context(model.config, config.eval.efficiency)
    if weights is None and (texts or exams):
        weights = model_fingerprint(model)
    for name, text in texts.items():
        bar = f"perplexity of the {what} model, {name}"
        found = kept_perplexity(model, text, config.eval.batch_size, bar, cache, weights)
        figures |= PPL.says({name: found["value"].item()})
        figures |= PPL_STDERR.says({name: found["stderr"].item()})
        figures |= PPL_TOKENS.says({name: int(found["tokens"].item())})
    if not Processes().main:
        return figures
    figures |= accuracies(
        model, tokenizer, exams, batch_size=config.eval.batch_size, cache=cache, weights=weights, what=what
    )
    if config.eval.efficiency is not None:
        first = resolve_bos(config.eval.bos, tokenizer).token if tokenizer else None
        bar = f"speed of the {what} model"
        speed = measure_efficiency(model, config.eval.efficiency, bar, config.seed, first, routed)
        figures |= speed.figures()
    return figures | PARAMS.says(sum(p.numel() for p in model.parameters())) | BYTES.says(stored_bytes(model))


def kept_perplexity(
    model: PreTrainedModel, text: Passage, batch_size: int | None, bar: str, cache: Cache, weights: str | None = None
) -> dict[str, torch.Tensor]:
    """The fields of `Perplexity`, from the cache or measured and put there; in every process the same.

    `weights` is the model's fingerprint, where it was taken already.
    """
    processes = Processes()
    tokens = fingerprint({"windows": text.windows, "scored": text.scored})
    about = {"model": weights or model_fingerprint(model), "windows": tokens, **surroundings(model)}
    shelf = cache.shelf("perplexity", **about)
    known = processes.agree(shelf.get("perplexity"))
    if known is None:
        result = perplexity(model, text.windows, batch_size, bar, text.scored, processes)
        known = {key: torch.tensor(value, dtype=torch.float64) for key, value in vars(result).items()}
        if processes.main:
            shelf.put("perplexity", known)
    return known


def surroundings(model: PreTrainedModel) -> dict[str, str | None]:
    """What changes a perplexity beside weights and windows: each device and each attention rounds in its own way."""
    return {"device": model.device.type, "attention": model.config._attn_implementation}
