#!/bin/bash
# RUSTC_WRAPPER of every build: two things that a manifest cannot say. (bash: other shells drop the environment that
# cargo hands to tests, CARGO_BIN_EXE_coracle-shim, for the hyphen in its name.)
#
# libcontainer 0.7 does not compile for 32-bit glibc: casts only, applied to a copy of the crate as fetched.
# The shim is linked statically and without relocations: that is most of its memory, and a board runs one per pod.
set -eu
here=$(dirname "$0")
rustc=$1
shift
from= out= name= kind= target=
previous=
for word; do
    case $previous in
        --crate-name) name=$word ;;
        --crate-type) kind=$word ;;
        --out-dir) out=$word ;;
        --target) target=$word ;;
    esac
    case $word in */libcontainer-0.7.0/src/lib.rs) from=${word%/src/lib.rs} ;; esac
    previous=$word
done
if [ "$name" = coracle_shim ] && [ "$kind" = bin ]; then
    exec "$rustc" "$@" -C target-feature=+crt-static -C relocation-model=static
fi
case $target in
    arm*-gnueabi*) ;;
    *) from= ;;
esac
[ -n "$from" ] || exec "$rustc" "$@"

copy=$out/../libcontainer-0.7.0
if [ ! -d "$copy" ]; then
    making=$(mktemp -d "$out/../libcontainer.XXXXXX")
    cp -r "$from/." "$making"
    patch -s -d "$making" -p1 < "$here/libcontainer-32bit.patch"
    # Another build may have been quicker; its copy is the same.
    mv -T "$making" "$copy" 2>/dev/null || rm -rf "$making"
fi
n=$#
while [ "$n" -gt 0 ]; do
    word=$1
    shift
    case $word in */libcontainer-0.7.0/src/lib.rs) word=$copy/src/lib.rs ;; esac
    set -- "$@" "$word"
    n=$((n - 1))
done
exec "$rustc" "$@"
