#!/usr/bin/env bash
# An example to copy: methods × ratios × models on a SLURM cluster, one GPU a cell. Start it again to go on with it:
# finished cells are skipped, failed ones are tried again. Run it on a login node, in tmux or screen.
#
#     PARTITION=gpu ACCOUNT=mylab launch/slurm_sweep.sh [more overrides]
set -euo pipefail
cd "$(dirname "$0")/.."

exec python -m svdexp -m \
    method=svd_llm,asvd,kron ratio=0.8,0.6,0.4 model=llama2-7b,mistral-7b eval=svd_llm \
    hydra.sweep.dir="${SWEEP:-outputs/multirun/slurm_sweep}" \
    hydra/launcher=slurm \
    hydra.launcher.partition="${PARTITION:?}" hydra.launcher.account="${ACCOUNT:-null}" \
    hydra.launcher.mem_gb=80 hydra.launcher.timeout_min=480 hydra.launcher.array_parallelism=16 \
    "$@"
