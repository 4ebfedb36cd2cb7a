#!/usr/bin/env bash
# systemd/package.sh ARCH…    packages what target/dist/ARCH holds: target/dist/coracle_VERSION_ARCH.deb and a tarball
#                             with install.sh beside it. ARCH as Debian calls it. Needs no root.
#
# CORACLE_HOST_BIN: a coracle that runs here, for manual pages and completions. VERSION overrides Cargo.toml's.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022
VERSION=${VERSION:-$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)}
HOST=${CORACLE_HOST_BIN:-target/release/coracle}
# Beside it: for the manual and the completions of the control plane.
CONTROL=${HOST%/*}/coracle-control
OUT=target/dist
# The same input gives the same bytes.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
[ $# -gt 0 ] || { echo "usage: systemd/package.sh ARCH…" >&2; exit 2; }
[ -x "$HOST" ] || { echo "package.sh: $HOST is missing: make build, or set CORACLE_HOST_BIN" >&2; exit 2; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[ -x "$CONTROL" ] || { echo "package.sh: $CONTROL is missing: build coracle-control too" >&2; exit 2; }
mkdir -p "$work/generated/man" "$work/generated/completions"
"$HOST" man "$work/generated/man"
"$HOST" completion bash > "$work/generated/completions/coracle.bash"
"$HOST" completion zsh > "$work/generated/completions/_coracle"
"$HOST" completion fish > "$work/generated/completions/coracle.fish"
mkdir -p "$work/control/man" "$work/control/completions"
"$CONTROL" man "$work/control/man"
"$CONTROL" completion bash > "$work/control/completions/coracle-control.bash"
"$CONTROL" completion zsh > "$work/control/completions/_coracle-control"
"$CONTROL" completion fish > "$work/control/completions/coracle-control.fish"

deb() { # ARCH
    local r=$work/deb-$1 s=systemd g=$work/generated
    install -Dm755 -t "$r/usr/libexec/coracle" "$OUT/$1/coracle" "$OUT/$1/coracle-shim"
    mkdir -p "$r/usr/bin" && ln -s ../libexec/coracle/coracle "$r/usr/bin/coracle"
    install -Dm755 $s/coracle-join "$r/usr/libexec/coracle/coracle-join"
    install -Dm644 -t "$r/usr/lib/systemd/system" $s/coracle.service $s/coracle.slice $s/coracle-join.service
    install -Dm644 $s/coracle.sysusers "$r/usr/lib/sysusers.d/coracle.conf"
    install -Dm644 $s/coracle.tmpfiles "$r/usr/lib/tmpfiles.d/coracle.conf"
    install -Dm644 $s/coracle.default "$r/etc/default/coracle"
    install -Dm644 $s/config.toml "$r/etc/coracle/config.toml"
    finish_deb coracle "$1" "$r" "$g"
}

control_deb() { # ARCH
    local r=$work/control-deb-$1 s=systemd
    install -Dm755 -t "$r/usr/bin" "$OUT/$1/coracle-control"
    install -Dm644 -t "$r/usr/lib/systemd/system" $s/coracle-control.service
    install -Dm644 $s/coracle-control.default "$r/etc/default/coracle-control"
    install -Dm644 $s/control.toml "$r/etc/coracle/control.toml"
    finish_deb coracle-control "$1" "$r" "$work/control"
}

# Manual, completions, documents and control files of a package, and the package.
finish_deb() { # NAME ARCH TREE GENERATED
    local name=$1 arch=$2 r=$3 g=$4 s=systemd page debian=systemd/debian
    [ "$name" = coracle ] || debian=systemd/debian-control
    install -Dm644 "$g/completions/$name.bash" "$r/usr/share/bash-completion/completions/$name"
    install -Dm644 "$g/completions/_$name" "$r/usr/share/zsh/vendor-completions/_$name"
    install -Dm644 "$g/completions/$name.fish" "$r/usr/share/fish/vendor_completions.d/$name.fish"
    for page in "$g"/man/*.1; do
        install -d "$r/usr/share/man/man1"
        gzip -9n < "$page" > "$r/usr/share/man/man1/$(basename "$page").gz"
    done
    install -Dm644 $s/debian/copyright "$r/usr/share/doc/$name/copyright"
    gzip -9n < CHANGELOG.md > "$r/usr/share/doc/$name/CHANGELOG.md.gz"
    printf '%s (%s) unstable; urgency=medium\n\n  * See CHANGELOG.md.gz.\n\n -- %s  %s\n' "$name" "$VERSION" \
        "$(sed -n 's/^Maintainer: //p' $debian/control)" "$(date -uRd "@$SOURCE_DATE_EPOCH")" \
        | gzip -9n > "$r/usr/share/doc/$name/changelog.gz"
    [ ! -e $debian/lintian-overrides ] || install -Dm644 $debian/lintian-overrides "$r/usr/share/lintian/overrides/$name"
    install -d "$r/DEBIAN"
    install -m755 $debian/postinst $debian/prerm $debian/postrm "$r/DEBIAN/"
    (cd "$r" && find etc -type f -printf '/%p\n' | sort) > "$r/DEBIAN/conffiles"
    sed -e "s/@VERSION@/$VERSION/" -e "s/@ARCH@/$arch/" -e "s/@SIZE@/$(du -ks --apparent-size "$r" | cut -f1)/" \
        $debian/control > "$r/DEBIAN/control"
    (cd "$r" && find . -type f ! -path './DEBIAN/*' -printf '%P\0' | sort -z | xargs -0 md5sum) > "$r/DEBIAN/md5sums"
    dpkg-deb --root-owner-group -Zxz --build "$r" "$OUT/${name}_${VERSION}_$arch.deb" >/dev/null
}

tarball() { # ARCH
    local name=coracle-$VERSION-$1 r=$work/coracle-$VERSION-$1
    mkdir -p "$r"
    install -m755 "$OUT/$1/coracle" "$OUT/$1/coracle-shim" systemd/install.sh systemd/coracle-join "$r/"
    install -m644 systemd/coracle.{service,slice,sysusers,tmpfiles,default} systemd/coracle-join.service systemd/config.toml LICENSE "$r/"
    cp -r "$work/generated/man" "$work/generated/completions" "$r/"
    echo "$1" > "$r/ARCH"
    (cd "$r" && find . -type f ! -name SHA256SUMS -printf '%P\0' | sort -z | xargs -0 sha256sum > SHA256SUMS)
    tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -czf "$OUT/$name.tar.gz" "$name"
}

for arch; do
    [ -x "$OUT/$arch/coracle" ] || { echo "package.sh: $OUT/$arch is empty: make cross" >&2; exit 2; }
    deb "$arch"
    # A build for boards alone has none.
    [ ! -x "$OUT/$arch/coracle-control" ] || control_deb "$arch"
    tarball "$arch"
    ls -l "$OUT"/coracle*_"${VERSION}_$arch.deb" "$OUT/coracle-$VERSION-$arch.tar.gz" | awk '{print $5, $9}'
done
