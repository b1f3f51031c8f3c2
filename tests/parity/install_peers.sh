#!/bin/sh
# Installs the peers of peers.txt next to the project: install_peers.sh [python]; PYTHON or python3 without an argument.
# Peers whose versions would replace those go to folders of their own, .peers/NAME for apart/NAME.txt.
set -eu
python=${1:-${PYTHON:-python3}}
here=$(dirname "$0")
# Without dependencies, because verl asks for a transformers older than the project's, and its wheel for a Python older
# than 3.13, though what the tests call runs with both. peers.txt lists what is needed instead.
install() {
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python "$@"
}
install --requirement "$here/peers.txt"
for list in "$here"/apart/*.txt; do
    install --upgrade --target "$here/../../.peers/$(basename "$list" .txt)" --requirement "$list"
done
