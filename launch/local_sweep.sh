#!/usr/bin/env bash
# An example to copy: the same grid over the GPUs of this machine, one cell each; CUDA_VISIBLE_DEVICES narrows them.
set -euo pipefail
cd "$(dirname "$0")/.."

exec python -m svdexp -m \
    method=svd_llm,asvd,kron ratio=0.8,0.6,0.4 model=llama2-7b,mistral-7b eval=svd_llm \
    hydra.sweep.dir="${SWEEP:-outputs/multirun/local_sweep}" \
    hydra/launcher=local_gpus "$@"
