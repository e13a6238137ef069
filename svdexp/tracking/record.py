"""The flat record of a run: results.json. Its keys are stable names that other tools may rely on."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from svdexp.choices import GROUPS, part_of
from svdexp.compression import Compression
from svdexp.schema import Config, ModelConfig
from svdexp.timing import StageClock, peak_rss_bytes
from svdexp.tracking.provenance import command, commit, versions
from svdexp.training import Curve

Results = dict[str, Any]


def dense_key(key: str) -> str:
    """Where the dense model's value of a figure stands.

    `ppl/TEXT` → `ppl_dense/TEXT`, `params` → `params_dense`, and, because prefill and decode are parts of one
    measurement, `tokens_per_second/decode` → `tokens_per_second/decode_dense`.
    """
    head, slash, tail = key.partition("/")
    return f"{head}_dense/{tail}" if slash and head != "tokens_per_second" else f"{key}_dense"


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
    ranked = [error for error in compression.errors.values() if error > 0]
    results: Results = {
        **identified(config.model, weights),
        "method": config.method.name,
        **parts(config),
        **{key: getattr(config.method, key) for key in ("traversal", "numerics", "sigma_fuse")},
        "training": {
            name: {
                **asdict(part_of("method/training", config.method.training[name])),
                "tokens": done.tokens,
                "curve": without_nan(done.curve),
            }
            for name, done in compression.training.items()
        },
        "targets": asdict(config.targets),
        "calibration": asdict(config.calibration),
        "eval": asdict(config.eval),
        "ratio": config.ratio,
        "achieved_ratio": compression.achieved_ratio,
        "target_bits": compression.bits,
        "target_bits_dense": compression.dense_bits,
        "left_dense": {reason: list(names) for reason, names in compression.left_dense.items()},
        "damped_layers": len(damped),
        "damping_max": max(damped, default=0.0),
        "energy_lost_mean": sum(ranked) / len(ranked) if ranked else None,
    }
    results |= compressed | {dense_key(key): value for key, value in dense.items()}
    return results | circumstances(config.seed, run_dir, clock, model)


def identified(model: ModelConfig, weights: str) -> Results:
    """Which model: its name, where it came from, and the fingerprint of its weights in the format of the run."""
    return {
        "model": model.name,
        "model_path": model.path,
        "model_revision": model.revision,
        "model_fingerprint": weights,
    }


def parts(config: Config) -> Results:
    """Of weighting, allocation, update and storage the choice by its name, and all options beside it."""
    said: Results = {}
    for key, group in GROUPS.items():
        values = config.storage if key == "storage" else getattr(config.method, key)
        part = part_of(group, values) if values else None
        said |= {key: part and part.name, f"{key}_options": part and dict(part.options)}
    return said


def circumstances(seed: int, run_dir: Path, clock: StageClock, model: PreTrainedModel) -> Results:
    """What a run took, and what it ran on and with."""
    results = {f"seconds/{stage}": seconds for stage, seconds in clock.seconds.items()}
    return (
        results
        | memory(clock)
        | {
            "device": device_name(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "seed": seed,
            "commit": commit(),
            "versions": versions(),
            "command": command(),
            "run_dir": str(run_dir),
        }
    )


def without_nan(curve: Curve) -> list[list[float | None]]:
    """The curve with None where there is no loss yet, because JSON knows no NaN."""
    return [[None if math.isnan(value) else value for value in entry] for entry in curve]


def memory(clock: StageClock) -> Results:
    """Peak memory of the process and, on CUDA, of the fullest device: of the whole run and by stage."""
    figures: Results = {"peak_rss_bytes": peak_rss_bytes()}
    figures |= {f"peak_rss_bytes/{stage}": held for stage, held in clock.rss.items()}
    if any(clock.device.values()):
        figures["peak_device_bytes"] = max(clock.device.values())
        figures |= {f"peak_device_bytes/{stage}": held for stage, held in clock.device.items()}
    return figures


def device_name(device: torch.device) -> str:
    """What computed: the CUDA device's name, or the CPU's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(torch.cpu.get_capabilities().get("cpu_name", device.type)) if device.type == "cpu" else device.type
