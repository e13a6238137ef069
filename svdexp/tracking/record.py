"""The flat record of a run, as results.json has it."""

import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from svdexp.cells.choices import GROUPS, part_of
from svdexp.engine.result import Compression
from svdexp.engine.search import Search
from svdexp.record import Results, as_dense
from svdexp.record import results as keys
from svdexp.record.kinds import Trained
from svdexp.runtime.clock import StageClock, peak_rss_bytes
from svdexp.schema import Config, ModelConfig
from svdexp.tracking.provenance import command, commit, versions
from svdexp.training import Curve


def record(
    config: Config,
    run_dir: Path,
    dense: Results,
    compressed: Results,
    compression: Compression,
    clock: StageClock,
    model: PreTrainedModel,
    weights: str,
) -> Results:
    """Everything measured and everything needed to measure it again; `weights` is the dense model's fingerprint."""
    damped = [value for value in compression.damping.values() if value > 0]
    forms = Counter(form.partition("@")[0] for form in compression.forms.values())
    ranked = [error for error in compression.errors.values() if error > 0]
    results: Results = {
        **identified(config.model, weights),
        **keys.METHOD.says(config.method.name),
        **parts(config),
        **keys.TRAVERSAL.says(config.method.traversal),
        **keys.NUMERICS.says(config.method.numerics),
        **keys.SIGMA_FUSE.says(config.method.sigma_fuse),
        **keys.TRAINING.says(trainings(config, compression)),
        **keys.TARGETS.says(asdict(config.targets)),
        **keys.CALIBRATION.says(asdict(config.calibration)),
        **keys.EVAL.says(asdict(config.eval)),
        **keys.RATIO.says(compression.ratio),
        **(keys.SEARCH.says(search_in_words(compression.search)) if compression.search else {}),
        **keys.ACHIEVED_RATIO.says(compression.achieved_ratio),
        **keys.TARGET_BITS.says(compression.bits),
        keys.TARGET_BITS.dense: compression.dense_bits,
        **keys.LEFT_DENSE.says({reason: list(names) for reason, names in compression.left_dense.items()}),
        **(keys.FORMS.says(dict(sorted(forms.items()))) if forms else {}),
        **keys.DAMPED_LAYERS.says(len(damped)),
        **keys.DAMPING_MAX.says(max(damped, default=0.0)),
        **keys.ENERGY_LOST_MEAN.says(sum(ranked) / len(ranked) if ranked else None),
    }
    results |= compressed | as_dense(dense)
    return results | circumstances(config.seed, run_dir, clock, model)


def identified(model: ModelConfig, weights: str) -> Results:
    """Which model: its name, where it came from, and the fingerprint of its weights in the format of the run."""
    return {
        **keys.MODEL.says(model.name),
        **keys.MODEL_PATH.says(model.path),
        **keys.MODEL_REVISION.says(model.revision),
        **keys.MODEL_FINGERPRINT.says(weights),
    }


def parts(config: Config) -> Results:
    """Of weighting, allocation, update and storage the choice by its name, and all options beside it."""
    said: Results = {}
    for key, options in keys.PARTS.items():
        values = config.storage if key is keys.STORAGE else getattr(config.method, key.name)
        part = part_of(GROUPS[key.name], values) if values else None
        said |= key.says(part.name if part else None) | options.says(dict(part.options) if part else None)
    return said


def trainings(config: Config, compression: Compression) -> dict[str, Trained]:
    """By training the choice with its options, what it saw, and how it went."""
    chosen = {name: part_of("method/training", config.method.training[name]) for name in compression.training}
    return {
        name: {
            "name": chosen[name].name,
            "options": chosen[name].options,
            "tokens": done.tokens,
            "curve": without_nan(done.curve),
        }
        for name, done in compression.training.items()
    }


def search_in_words(search: Search) -> dict[str, Any]:
    """How a ratio was found: `tried` has pairs of a ratio and the perplexity there, null where there is none."""
    wanted = search.wanted
    tried = [[trial.ratio, trial.ppl] for trial in search.trials]
    return {"text": wanted.text, "factor": wanted.factor, "dense": search.dense, "tried": tried}


def circumstances(seed: int, run_dir: Path, clock: StageClock, model: PreTrainedModel) -> Results:
    """What a run took, and what it ran on and with."""
    return {
        **by_stage(clock),
        **peaks(clock),
        **keys.DEVICE.says(device_name(model.device)),
        **keys.DTYPE.says(str(model.dtype).removeprefix("torch.")),
        **keys.THREADS.says(torch.get_num_threads()),
        **keys.SEED.says(seed),
        **keys.COMMIT.says(commit()),
        **keys.VERSIONS.says(versions()),
        **keys.COMMAND.says(command()),
        **keys.RUN_DIR.says(str(run_dir)),
    }


def without_nan(curve: Curve) -> list[list[float | None]]:
    """The curve with None where there is no loss yet, because JSON knows no NaN."""
    return [[None if math.isnan(value) else value for value in entry] for entry in curve]


def by_stage(clock: StageClock) -> Results:
    """Seconds of the stages that have ended, and peak memory of the process and, on CUDA, of the fullest device."""
    figures = keys.SECONDS.says(clock.seconds) | keys.PEAK_RSS_BY_STAGE.says(clock.rss)
    return figures | (keys.PEAK_DEVICE_BY_STAGE.says(clock.device) if any(clock.device.values()) else {})


def peaks(clock: StageClock) -> Results:
    """Peak memory of the whole run."""
    figures = keys.PEAK_RSS.says(peak_rss_bytes())
    return figures | (keys.PEAK_DEVICE.says(max(clock.device.values())) if any(clock.device.values()) else {})


def device_name(device: torch.device) -> str:
    """What computed: the CUDA device's name, or the CPU's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(torch.cpu.get_capabilities().get("cpu_name", device.type)) if device.type == "cpu" else device.type
