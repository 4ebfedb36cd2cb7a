#!/usr/bin/env bash
# tests/vm/deps.sh    installs the emulators. Where Debian 12's own stand against a newer qemu-utils that is installed,
#                     they come from its backports.
set -euo pipefail
PACKAGES=(qemu-system-arm qemu-system-x86 qemu-utils e2fsprogs)
dpkg -s "${PACKAGES[@]}" >/dev/null 2>&1 && exit
export DEBIAN_FRONTEND=noninteractive
install() { apt-get "$@" -y -q --no-install-recommends install "${PACKAGES[@]}"; }
apt-get update -q
install && exit
main=$(apt-get indextargets --format '$(SITE) $(CODENAME)' 'Created-By: Packages' | grep -v -e -security -e -updates -e -backports | head -1)
list=$(mktemp)
trap 'rm -f "$list"' EXIT
chmod 644 "$list"
echo "deb ${main% *} ${main##* }-backports main" > "$list"
apt-get -o "Dir::Etc::SourceList=$list" update -q
install -o "Dir::Etc::SourceList=$list" -t "${main##* }-backports"
