#!/usr/bin/env bash
# An example to copy: Optuna looks for the alpha of ASVD's scaling, by perplexity.
# It needs hydra-optuna-sweeper.
#
#     launch/tune_alpha.sh [more overrides]
set -euo pipefail
cd "$(dirname "$0")/.."

exec python -m svdexp -m \
    hydra/sweeper=optuna hydra.sweeper.n_trials="${TRIALS:-20}" objective=ppl/pydoc \
    method=svd_llm method/weighting=diagonal 'method.weighting.alpha=interval(0.1,1.0)' \
    eval.efficiency=null save=none hydra.sweep.dir="${SWEEP:-outputs/multirun/alpha}" \
    "$@"
