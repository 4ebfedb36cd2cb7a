#!/usr/bin/env bash
# cross/build.sh [--test] TARGET…    release binaries for boards, without containers and with nothing installed on the
#                                    host beyond Debian's cross compilers. TARGET: aarch64-unknown-linux-gnu,
#                                    armv7-unknown-linux-gnueabihf, x86_64-unknown-linux-gnu.
#
# Debian's rustc builds its own std from rust-web-src; libseccomp is unpacked, never installed, and linked statically,
# so the binaries need glibc alone. They land in target/dist/ARCH, ARCH as Debian calls it. With --test, the unit tests
# are built and run by qemu-user instead. Needs root only where a package is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
WORK=$PWD/target/cross
# What qemu-user can run: no namespaces, no cgroups.
UNIT_TESTS=(-p coracle-api -p coracle-pod -p coracle-store -p coracle-shim -p coracle-runtime -p coracle --lib --bins)

die() { echo "cross/build.sh: $*" >&2; exit 2; }

need() { # PACKAGE…: installs what is missing
    local missing=() p
    for p; do dpkg -s "$p" >/dev/null 2>&1 || missing+=("$p"); done
    [ ${#missing[@]} = 0 ] || { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"; }
}

sysroot() { # ARCH: libseccomp for ARCH below $WORK/ARCH, by an apt of our own: the host's knows its own architecture only
    local arch=$1 d=$WORK/$1 site
    [ -n "$(find "$d" -name libseccomp.a 2>/dev/null)" ] && return
    site=$(apt-get indextargets --format '$(SITE) $(CODENAME)' 'Created-By: Packages' | grep -v -e -security -e -updates -e -backports | head -1)
    [ -n "$site" ] || die "apt knows no Debian mirror: run apt-get update first"
    mkdir -p "$d"/{lists/partial,cache/archives/partial}
    echo "deb ${site% *} ${site##* } main" > "$d/sources.list"
    local apt=(apt-get -q -o "APT::Architecture=$arch" -o "APT::Architectures=$arch" -o "Dir::State::lists=$d/lists" -o "Dir::Cache=$d/cache"
        -o "Dir::Etc::sourcelist=$d/sources.list" -o Dir::Etc::sourceparts=- -o APT::Sandbox::User=root)
    "${apt[@]}" update
    (cd "$d" && "${apt[@]}" download libseccomp-dev && dpkg-deb -x libseccomp-dev_*.deb .)
    rm -rf "$d"/lists "$d"/cache "$d"/*.deb
}

build() { # TARGET
    local target=$1 arch gnu cc var qemu
    case $target in
        aarch64-unknown-linux-gnu) arch=arm64 gnu=aarch64-linux-gnu; cc=gcc-aarch64-linux-gnu qemu=qemu-aarch64-static ;;
        armv7-unknown-linux-gnueabihf) arch=armhf gnu=arm-linux-gnueabihf; cc=gcc-arm-linux-gnueabihf qemu=qemu-arm-static ;;
        x86_64-unknown-linux-gnu) arch=amd64 gnu=x86_64-linux-gnu; cc=gcc qemu= ;;
        *) die "unknown target $target" ;;
    esac
    need rustc-web cargo-web rust-web-src "$cc" patch
    [ "$arch" = amd64 ] && need libc6-dev || need "libc6-dev-$arch-cross"
    sysroot "$arch"
    var=$(tr 'a-z-' 'A-Z_' <<< "$target")
    export RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1
    export "CARGO_TARGET_${var}_LINKER=$gnu-gcc" "CC_${target//-/_}=$gnu-gcc" "AR_${target//-/_}=$gnu-ar"
    export LIBSECCOMP_LINK_TYPE=static LIBSECCOMP_LIB_PATH=$WORK/$arch/usr/lib/$gnu
    local options=(--locked -Zbuild-std=std,panic_abort --target "$target" --target-dir "$WORK/target")
    if [ -n "$test" ]; then
        [ -z "$qemu" ] || { need qemu-user-static; export "CARGO_TARGET_${var}_RUNNER=$qemu -L /usr/$gnu"; }
        /usr/bin/cargo test "${options[@]}" "${UNIT_TESTS[@]}"
        return
    fi
    # Apart: cargo would give the agent what the control plane asks of their libraries too, half a megabyte of time zones.
    /usr/bin/cargo build --release "${options[@]}" -p coracle -p coracle-shim
    /usr/bin/cargo build --release "${options[@]}" -p coracle-control
    mkdir -p "target/dist/$arch"
    local b
    for b in coracle coracle-shim coracle-control; do
        cp "$WORK/target/$target/release/$b" "target/dist/$arch/"
        printf '%-8s %-14s %9s bytes, needs %s\n' "$arch" "$b" "$(stat -c %s "target/dist/$arch/$b")" \
            "$("$gnu-objdump" -T "target/dist/$arch/$b" 2>/dev/null | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1 | grep . || echo nothing)"
    done
}

test=
[ "${1:-}" != --test ] || { test=1; shift; }
[ $# -gt 0 ] || die "usage: cross/build.sh [--test] TARGET…"
for target; do build "$target"; done
