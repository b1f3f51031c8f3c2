#!/bin/sh
# Installs Chromium for the tests that open pages, unless a browser that they find is there: 113 MB to download, and up
# to 850 MB on the disk of a system that has none of its libraries. It comes from Debian's packages, as root.
set -eu
for name in chromium chromium-browser google-chrome; do
    if command -v "$name" > /dev/null; then
        exit 0
    fi
done
if ! command -v apt-get > /dev/null; then
    echo "Chromium is not installed, and there is no apt-get to install it; install it with your package manager." >&2
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "Chromium is not installed, and only root can install it: sudo sh $0" >&2
    exit 1
fi
apt-get update --quiet --quiet
DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --quiet --no-install-recommends chromium fonts-dejavu-core
