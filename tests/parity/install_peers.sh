#!/bin/sh
# Installs the peers of peers.txt next to the project: install_peers.sh [python]; PYTHON or python3 without an argument.
set -eu
python=${1:-${PYTHON:-python3}}
# Without dependencies, because verl asks for a transformers older than the project's, and its wheel for a Python older
# than 3.13, though what the tests call runs with both. peers.txt lists what is needed instead.
exec "$python" -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python \
    --requirement "$(dirname "$0")/peers.txt"
