#!/usr/bin/env bash
# tests/vm/image.sh ARCH    builds a small Debian machine for tests (ARCH: amd64, arm64, armhf) and prints its directory:
#                           vmlinuz, initrd.img and base.img. Built once for the same content of this directory; the
#                           second call only prints. Needs root, and installs what is missing.
#
# CORACLE_VM_DIR: where to keep the machines; the user's cache otherwise.
set -euo pipefail
cd "$(dirname "$0")"
SUITE=bookworm
KEEP_IN=${CORACLE_VM_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/coracle/vm}
PACKAGES=systemd,systemd-sysv,udev,dbus,kmod,iproute2,nftables,procps,busybox-static,lighttpd,apt,ca-certificates,libseccomp2,e2fsprogs,kubernetes-client
# What the initrd loads to mount the root disk, and what the machine keeps of the kernel's modules.
BOOT_MODULES="virtio_pci virtio_mmio virtio_blk ext4"
KEEP_MODULES="arch crypto lib net fs/overlayfs fs/fuse fs/ext4 fs/jbd2 fs/mbcache.ko* fs/autofs
    fs/configfs fs/nls drivers/virtio drivers/block drivers/char drivers/net/*.ko* drivers/net/wireguard
    drivers/net/vxlan drivers/rtc"

die() { echo "image.sh: $*" >&2; exit 2; }

case ${1:-} in
    amd64) kernel=linux-image-cloud-amd64 user= ;;
    arm64) kernel=linux-image-arm64 user=aarch64 ;;
    armhf) kernel=linux-image-armmp-lpae user=arm ;;
    *) die "usage: image.sh amd64|arm64|armhf" ;;
esac
arch=$1
sum=$(cat image.sh guest/* | sha256sum | cut -c1-12)
dir=$KEEP_IN/$arch-$sum
if [ -f "$dir/base.img" ]; then echo "$dir"; exit 0; fi
exec 3>&1 1>&2
[ "$(id -u)" = 0 ] || die "run as root: it makes a root file system"

work= registered=
clean() {
    [ -z "$registered" ] || echo -1 > "$registered"
    [ -z "$work" ] || rm -rf "$work"
}
trap clean EXIT

need() { # PACKAGE…
    local missing=() p
    for p; do dpkg -s "$p" >/dev/null 2>&1 || missing+=("$p"); done
    [ ${#missing[@]} = 0 ] || { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"; }
}
need mmdebstrap cpio kmod e2fsprogs xz-utils busybox-static
if [ -n "$user" ]; then
    need qemu-user-static arch-test
    # Where no systemd has registered the interpreter of the foreign maintainer scripts, for as long as they run.
    formats=/proc/sys/fs/binfmt_misc
    [ -e $formats/register ] || mount -t binfmt_misc binfmt_misc $formats
    if [ ! -e $formats/qemu-$user ]; then
        cat "/usr/lib/binfmt.d/qemu-$user.conf" > $formats/register
        registered=$formats/qemu-$user
    fi
fi
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -v -- -security | head -1)
[ -n "$mirror" ] || die "apt knows no Debian mirror: run apt-get update first"

mkdir -p "$KEEP_IN"
work=$(mktemp -d "$KEEP_IN/.$arch.XXXXXX")
root=$work/root kern=$work/kern
mkdir "$kern"
nice mmdebstrap --mode=root --variant=minbase --arch="$arch" --include="$PACKAGES" \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt=force-unsafe-io \
    --aptopt='Apt::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
    --customize-hook="cd $kern && export APT_CONFIG=\$MMDEBSTRAP_APT_CONFIG && apt-get -q -o APT::Sandbox::User=root download \
        \$(apt-cache depends $kernel | sed -n 's/.*Depends: \(linux-image[^ :]*\).*/\1/p' | head -1)" \
    "$SUITE" "$root" "deb $mirror $SUITE main" > "$work/log" 2>&1 || { tail -20 "$work/log"; die "mmdebstrap failed"; }

dpkg-deb -x "$kern"/linux-image*.deb "$kern"
[ -d "$kern/lib/modules" ] || { mkdir -p "$kern/lib" && mv "$kern/usr/lib/modules" "$kern/lib/"; }
cp "$kern"/boot/vmlinuz-* "$work/vmlinuz"
version=$(basename "$kern"/lib/modules/*)
modules=$root/lib/modules/$version
mkdir -p "$modules/kernel"
(cd "$kern/lib/modules/$version/kernel" && for m in $KEEP_MODULES; do [ ! -e "$m" ] || cp -a --parents "$m" "$modules/kernel/"; done)
cp "$kern/lib/modules/$version"/modules.{builtin,builtin.modinfo,order} "$modules/"
depmod -b "$root" "$version"

# The initrd: busybox, and the modules that the root disk needs.
initrd=$work/initrd
mkdir -p "$initrd"/{bin,dev,proc,sys,newroot,m}
cp "$root/bin/busybox" "$initrd/bin/" && ln -s busybox "$initrd/bin/sh"
install -m755 guest/init "$initrd/init"
for m in $BOOT_MODULES; do modprobe -d "$root" -S "$version" --show-depends "$m" 2>/dev/null | sed -n 's/^insmod \([^ ]*\).*/\1/p'; done \
    | awk '!seen[$0]++' | while read -r file; do
        name=$(basename "$file" .xz)
        case $file in *.xz) xz -dc "$file" > "$initrd/m/$name" ;; *) cp "$file" "$initrd/m/$name" ;; esac
        echo "$name" >> "$initrd/m/order"
    done
(cd "$initrd" && find . | cpio -o -H newc -R 0:0 --quiet | gzip -1) > "$work/initrd.img"
cp "$root/bin/busybox" "$work/busybox"

install -Dm755 -t "$root/usr/local/sbin" guest/shell
install -Dm644 -t "$root/etc/systemd/system" guest/*.service
mkdir -p "$root/host" "$root/etc/systemd/system/sysinit.target.wants"
ln -s ../vm-shell.service ../vm-clock.service "$root/etc/systemd/system/sysinit.target.wants/"
echo board > "$root/etc/hostname"
echo uninitialized > "$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id"
echo '/dev/vda / ext4 rw,noatime 0 0' > "$root/etc/fstab"
for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer dpkg-db-backup.timer \
    systemd-firstboot.service systemd-pstore.service systemd-timesyncd.service getty@tty1.service lighttpd.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
# A board of the field keeps its journal in memory, or loses its card.
sed -i 's/^#Storage=.*/Storage=volatile/' "$root/etc/systemd/journald.conf"
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/tmp/*
truncate -s 2G "$work/base.img"
mke2fs -q -t ext4 -E lazy_itable_init=1,lazy_journal_init=1 -J size=16 -d "$root" "$work/base.img"
rm -rf "$root" "$kern" "$initrd" "$work/log"
rm -rf "$KEEP_IN/$arch"-*
mv "$work" "$dir"
echo "$dir" >&3
