"""The flat record of a run: results.json. Its keys are stable names that other tools may rely on."""

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from svdexp.compression import Compression
from svdexp.schema import Config
from svdexp.timing import StageClock, peak_rss_bytes
from svdexp.tracking.provenance import commit, versions
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
) -> Results:
    """Everything measured and everything needed to measure it again."""
    damped = [value for value in compression.damping.values() if value > 0]
    ranked = [error for error in compression.errors.values() if error > 0]
    results: Results = {
        "model": config.model.name,
        "method": config.method.name,
        "weighting": part_name(config.method.weighting),
        "allocation": part_name(config.method.allocation),
        "update": part_name(config.method.update),
        "storage": part_name(config.storage),
        "training": {
            name: {
                "options": part_name(config.method.training[name]),
                "tokens": part.tokens,
                "curve": without_nan(part.curve),
            }
            for name, part in compression.training.items()
        },
        "targets": asdict(config.targets),
        "calibration": asdict(config.calibration),
        "eval": asdict(config.eval),
        "ratio": config.ratio,
        "achieved_ratio": compression.achieved_ratio,
        "target_bits": compression.bits,
        "target_bits_dense": compression.dense_bits,
        "damped_layers": len(damped),
        "damping_max": max(damped, default=0.0),
        "energy_lost_mean": sum(ranked) / len(ranked) if ranked else None,
    }
    results |= compressed | {dense_key(key): value for key, value in dense.items()}
    return results | circumstances(config.seed, run_dir, clock, model)


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
            "command": " ".join(sys.argv[1:]),
            "run_dir": str(run_dir),
        }
    )


def without_nan(curve: Curve) -> list[list[float | None]]:
    """The curve with None where there is no loss yet, because JSON knows no NaN."""
    return [[None if math.isnan(value) else value for value in entry] for entry in curve]


def part_name(part: Mapping[str, Any] | None) -> str | None:
    """The class of a part with the options it was given, for instance `Diagonal(alpha=0.5, scale=abs_mean)`."""
    if part is None:
        return None
    options = ", ".join(f"{key}={value}" for key, value in part.items() if key != "_target_")
    return str(part["_target_"]).rpartition(".")[2] + (f"({options})" if options else "")


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
