"""A program like `python -m svdexp` whose cells take a fraction of a second.

ratio=1 fails, seed=7 is killed, seed=9 is interrupted; the environment variable that TOY_TELLS names is printed.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import hydra
from omegaconf import DictConfig

from svdexp.cells.guard import cli, config_dir, guarded
from svdexp.schema import Config, validate


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="config")
def main(cfg: DictConfig) -> None:
    guarded(cfg, validate, job)


def job(config: Config, run_dir: Path) -> None:
    begin = time.time()
    if config.seed == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    if config.seed == 9:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a program in the background may not have
        os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.5)
    if config.ratio == 1:
        raise RuntimeError("a defect")
    if name := os.environ.get("TOY_TELLS"):
        print(f"{name} is {os.environ.get(name)}")
    slot = [os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("OMP_NUM_THREADS")]
    (run_dir / "times.json").write_text(json.dumps({"begin": begin, "end": time.time(), "slot": slot}))


if __name__ == "__main__":
    sys.exit(cli(main, Config))
