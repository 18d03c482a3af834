#!/bin/bash
# A kernel is built in guests with two and four vCPUs, by as many processes at once: what comes out is the same to the byte, and the
# same as on the host where that has a chroot.  `make kernel-build`.
#
#   tests/slow/kernel-build.sh      CPUS="2 4"
set -u
. "$(dirname "$0")/../guest/lib.sh"
. "$(dirname "$0")/lib.sh"
packages=(bash dash coreutils make gcc libc6-dev bc flex bison perl findutils grep sed mawk diffutils gzip xz-utils libelf-dev cpio)
tree=$GUISE_CACHE/kernel-build

build()
{
    local key source
    key=$(cat "$here/packages.sh" "$top/scripts/guest-image.sh" "$slow/kernel-build-init" <(echo "${packages[@]}") | sha256sum)
    [ "$(cat "$tree.key" 2>/dev/null)" != "$key" ] || return 0
    source=$(kernel_source) || return 1
    rm -rf "$tree" "$tree.key" "$tree.img"
    "$top/scripts/guest-image.sh" tree "$tree" "${packages[@]}" >&2 || return 1
    rm -rf "$tree"/usr/share/{doc,man,locale}
    mkdir -p "$tree/linux"
    # Of what a tinyconfig does not build only what configures it.
    (cd "$source" && { find . -name 'Kconfig*' -o -name 'Makefile*' -o -name 'Kbuild*'
        find arch/x86 block certs crypto fs init include io_uring ipc kernel lib mm net scripts security usr virt tools/{include,objtool,build,lib,scripts,arch/x86} \
            drivers/{base,acpi,clocksource,char,firmware,irqchip,pci,platform,rtc,tty,video,virtio} -type f -o -type l
    } | sort -u | tar -cf - --no-recursion -T -) | tar -xf - -C "$tree/linux" || return 1
    cp "$slow/kernel-build-init" "$tree/kernel-build" && chmod 755 "$tree/kernel-build" || return 1
    mkdir -p "$tree/out"
    /sbin/mke2fs -q -t ext4 -E root_owner=0:0 -d "$tree" "$tree.img" $(($(du -sm "$tree" | cut -f 1) * 5 / 4 + 200))M || return 1
    echo "$key" >"$tree.key"
}

sum_of() { sed -n 's/^SUM \([0-9a-f]*\).*/\1/p' "$1"; }

on_host()
{
    local user=()
    [ "$(id -u)" = 0 ] || user=(--map-root-user)
    unshare "${user[@]}" --mount bash -c 'mount --rbind /dev "$0/dev" && mount --rbind /proc "$0/proc" && mount -t tmpfs out "$0/out" &&
        exec chroot "$0" /kernel-build "$1"' "$tree" "$(nproc)"
}

mkdir -p "$GUISE_CACHE"
(flock 8 && build) 8>"$tree.lock" || { not_ok kernel-build "the image could not be built"; finish; }
kernel=$(kernel_image "${KERNEL:-cloud}") || { not_ok kernel-build "no kernel"; finish; }
wanted=
on_host >"$work/host" 2>&1 && wanted=$(sum_of "$work/host")
if [ -n "$wanted" ]; then say "on the host: $(grep '^BUILT' "$work/host")"; else skip kernel-build-host "$(tail -n 1 "$work/host")"; fi
for cpus in ${CPUS:-2 4}; do
    name=kernel-build-$cpus
    guest "$kernel" "" "console=ttyS0 panic=-1 root=/dev/nvme0n1 ro init=/kernel-build jobs=$cpus" 3600 --memory 2048M --cpus "$cpus" \
        --disk "$tree.img,ro" >"$work/console"
    status=$?
    sum=$(sum_of "$work/console")
    complaint=$(check_log "$work/console" | head -n 1)
    if [ $status != 0 ] || [ -z "$sum" ]; then
        not_ok "$name" "$(why $status), last lines: $(tail -n 3 "$work/console" | tr '\n' '|')"
    elif [ "$sum" != "${wanted:=$sum}" ]; then
        not_ok "$name" "another kernel comes out: $sum, not $wanted"
    elif [ -n "$complaint" ]; then
        not_ok "$name" "in the kernel's log: $complaint"
    else
        ok "$name ($(sed -n 's/^BUILT //p' "$work/console"))"
        continue
    fi
    keep_log "$work/console" "$name"
done
finish
