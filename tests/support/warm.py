"""A server that has imported what takes seconds: processes that fork from it start at once."""

import multiprocessing

PRELOADED = (
    "tests.support.unhurried",  # first
    "svdexp.runs.compression",
    "svdexp.runs.evaluation",
    "svdexp.export.publish",
    "svdexp.report.write",
    "svdexp.cells.identity",
    "transformers.models.llama.modeling_llama",
    "lm_eval.models.huggingface",
    "datasets",
    "peft",
    "wandb",
    "pytest",
    "tests.conftest",
    "tests.end_to_end.forked",
    "tests.support.ready",  # last
)
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(list(PRELOADED))
