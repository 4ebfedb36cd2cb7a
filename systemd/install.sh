#!/bin/sh
# install.sh               installs Coracle from this directory, or upgrades it; pods run on
# install.sh --uninstall   stops the pods and removes everything, data included
set -eu
cd "$(dirname "$0")"
die() { echo "install.sh: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || die "run it as root"

BIN=/usr/local/libexec/coracle
UNITS=/etc/systemd/system
files="$BIN/coracle $BIN/coracle-shim /usr/local/bin/coracle $UNITS/coracle.service $UNITS/coracle.slice
    $BIN/coracle-join $UNITS/coracle-join.service
    /etc/sysusers.d/coracle.conf /etc/tmpfiles.d/coracle.conf /etc/default/coracle
    /usr/local/share/bash-completion/completions/coracle /usr/local/share/zsh/site-functions/_coracle
    /usr/local/share/fish/vendor_completions.d/coracle.fish"
booted() { [ -d /run/systemd/system ]; }

if [ "${1:-}" = --uninstall ]; then
    if booted; then systemctl disable --now coracle.service coracle-join.service || true; fi
    [ ! -x /usr/local/bin/coracle ] || /usr/local/bin/coracle teardown
    if booted; then systemctl stop coracle.slice || true; fi
    made=$(cat "$BIN/made" 2>/dev/null || true)
    rm -f $files /usr/local/share/man/man1/coracle.1 /usr/local/share/man/man1/coracle-*.1
    rm -rf "$BIN" /etc/coracle /var/lib/coracle /run/coracle
    # The directories that were not there before us, innermost first, unless somebody else uses them now.
    for d in $made; do rmdir --ignore-fail-on-non-empty "$d" 2>/dev/null || true; done
    if getent passwd coracle >/dev/null && command -v userdel >/dev/null; then userdel coracle || true; fi
    if booted; then systemctl daemon-reload; fi
    echo "Coracle is gone."
    exit 0
fi
[ $# = 0 ] || die "usage: install.sh [--uninstall]"

sha256sum --quiet --strict -c SHA256SUMS || die "the files here are not those that were packed: fetch the archive again"
./coracle version >/dev/null 2>&1 || die "these programs do not run here: this archive is for $(cat ARCH), and needs glibc 2.34 or newer"

# Makes a directory, and notes which of its parents that took.
dir() {
    new= up=$1
    while [ ! -d "$up" ]; do new="$new$up
"; up=$(dirname "$up"); done
    mkdir -p "$1" "$BIN"
    [ -z "$new" ] || { printf %s "$new"; cat "$BIN/made" 2>/dev/null || true; } > "$BIN/made.new"
    [ ! -e "$BIN/made.new" ] || mv -f "$BIN/made.new" "$BIN/made"
}
put() { dir "$(dirname "$3")"; install -m "$1" "$2" "$3.new"; mv -f "$3.new" "$3"; }
dir "$BIN"
put 755 coracle $BIN/coracle
put 755 coracle-shim $BIN/coracle-shim
sed 's,/usr/bin/coracle,/usr/local/bin/coracle,' coracle-join > coracle-join.local
put 755 coracle-join.local $BIN/coracle-join
rm coracle-join.local
dir /usr/local/bin && ln -sf $BIN/coracle /usr/local/bin/coracle
sed 's,/usr/bin/coracle,/usr/local/bin/coracle,' coracle.service > coracle.service.local
put 644 coracle.service.local $UNITS/coracle.service
rm coracle.service.local
put 644 coracle.slice $UNITS/coracle.slice
sed "s,/usr/libexec/coracle,$BIN," coracle-join.service > coracle-join.service.local
put 644 coracle-join.service.local $UNITS/coracle-join.service
rm coracle-join.service.local
put 644 coracle.sysusers /etc/sysusers.d/coracle.conf
put 644 coracle.tmpfiles /etc/tmpfiles.d/coracle.conf
[ -e /etc/default/coracle ] || put 644 coracle.default /etc/default/coracle
[ -e /etc/coracle/config.toml ] || put 644 config.toml /etc/coracle/config.toml
put 644 completions/coracle.bash /usr/local/share/bash-completion/completions/coracle
put 644 completions/_coracle /usr/local/share/zsh/site-functions/_coracle
put 644 completions/coracle.fish /usr/local/share/fish/vendor_completions.d/coracle.fish
for page in man/*.1; do put 644 "$page" "/usr/local/share/man/man1/${page#man/}"; done
if booted; then
    systemd-sysusers coracle.conf
    systemd-tmpfiles --create coracle.conf
    systemctl daemon-reload
    systemctl enable --quiet coracle.service coracle-join.service
    systemctl restart coracle.service
fi
echo "Coracle $(./coracle version | cut -d' ' -f2) is installed. Put a pod's manifest into /var/lib/coracle/manifests, or try: coracle doctor"
