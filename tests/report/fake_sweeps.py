"""Records and layers as runs leave them, of any sweep, without running one."""

import json
import math
from pathlib import Path
from typing import Any

DENSE = {"ppl/wiki": 6.0, "ppl/ptb": 20.0}
PARAMS, TARGETS = 7_000_000_000, 6_500_000_000
PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")


def leave(folder: Path, **figures: Any) -> None:
    """A record of little."""
    folder.mkdir(parents=True)
    record = {"model": "m", "method": "svd", "storage": "factors", "achieved_ratio": 0.5, "peak_rss_bytes": 2e9}
    (folder / "results.json").write_text(json.dumps(record | figures))


def leave_cell(sweep: Path, method: str, ratio: float, quality: float, **figures: Any) -> Path:
    """A whole run of a 7B model; its perplexities grow with `quality` and falling ratio."""
    folder = sweep / f"{method}_{ratio}"
    factor = 1 + quality * (1 - ratio) ** 2
    found: dict[str, Any] = {
        **{key: value * factor for key, value in DENSE.items()},
        **{key.replace("ppl/", "ppl_dense/"): value for key, value in DENSE.items()},
        **{key.replace("ppl/", "ppl_tokens/"): 100_000 for key in DENSE},
    }
    for task, chance in {"piqa": 0.5, "arc_easy": 0.25, "hellaswag": 0.25}.items():
        found |= {f"acc/{task}": chance + 0.35 / factor, f"acc_dense/{task}": chance + 0.35, f"acc_rows/{task}": 200}
    for phase, speed in {"prefill": 5000.0, "decode": 40.0}.items():
        found |= {f"tokens_per_second/{phase}": speed * (1.9 - ratio + 0.1 * math.sin(quality))}
        found |= {f"tokens_per_second/{phase}_dense": speed}
    target = 16 * TARGETS
    leave(
        folder,
        **{
            "model": "llama2-7b",
            "method": method,
            "ratio": ratio,
            "params_dense": PARAMS,
            "target_bits_dense": target,
            "target_bits": int(ratio * target),
            "seconds/calibration": 60.0,
            **found,
            **figures,
        },
    )
    rows = [
        {
            **{"name": f"model.layers.{block}.{projection}", "block": block, "projection": projection},
            **{"m": 4096, "n": 4096, "energy_lost": (1 - ratio) * (1 - 0.5**quality) * (block + 1) / 64},
            **{"rank": None if block == 0 else int(2048 * ratio * (0.6 + block / 80)), "bits": 1, "bits_dense": 2},
        }
        for block in range(32)
        for projection in PROJECTIONS
    ]
    (folder / "layers.json").write_text(json.dumps(rows))
    return folder
