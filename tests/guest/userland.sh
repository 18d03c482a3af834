#!/bin/bash
# Debian's programs in a guest: what they print must equal what the same files print on the host.
#
#   tests/guest/userland.sh [NAME...]       the scripts of tests/guest/userland; all unless told
set -u
. "$(dirname "$0")/lib.sh"

packages=(libc-bin bash coreutils diffutils findutils sed grep gzip mawk python3 perl gcc libc6-dev openssl nodejs procps util-linux iproute2)
packages32=(libc-bin bash coreutils perl-base mawk busybox-static)
names=("$@")
[ $# -gt 0 ] || for script in "$here"/userland/*.sh; do names+=("$(basename "$script" .sh)"); done

# One tree for both: the guest gets it as an initramfs, the host runs in it.
tree=$GUISE_CACHE/userland
build()
{
    local key
    key=$(cat "$here/packages.sh" "$top/scripts/guest-image.sh" <(echo "${packages[@]}" "${packages32[@]}") | sha256sum)
    if [ "$(cat "$tree.key" 2>/dev/null)" != "$key" ]; then
        rm -rf "$tree" "$tree.key"
        ARCHITECTURE=i386 packages_extract "$GUISE_CACHE/i386" bookworm "${packages32[@]}" || return 1
        "$top/scripts/guest-image.sh" tree "$tree" "${packages[@]}" >&2 || return 1
        rm -rf "$tree"/usr/share/{doc,man,locale,info,lintian,bug} "$tree"/usr/lib/gcc/*/*/{lto1,lto-wrapper,*san*,*.a.old}
        mkdir -p "$tree/i386"
        cp -a "$GUISE_CACHE/i386/." "$tree/i386" && rm -rf "$tree"/i386/usr/share/{doc,man,locale}
        mkdir -p "$tree"/i386/{tmp,dev,proc} "$tree/suite"
        ln -sf dash "$tree/i386/bin/sh"
        ln -sf mawk "$tree/i386/usr/bin/awk"
        # The default of these alternatives, which maintainer scripts would have made.
        ln -sf mawk "$tree/usr/bin/awk"
        echo "$key" >"$tree.key"
    fi
}

# The scripts of this run, laid over the tree.
prepare()
{
    suite=$work/over/suite
    mkdir -p "$suite/tests"
    cp "$here/userland-run" "$suite/run"
    chmod 755 "$suite/run"
    ln -s suite/run "$work/over/init"
    local name
    for name in "${names[@]}"; do
        cp "$here/userland/$name.sh" "$suite/tests/" || return 1
    done
    cp "$here"/userland/*.c "$suite/tests/"
}

# A private mount namespace: what is mounted below the tree is gone when the command ends.
in_tree()
{
    local user=()
    [ "$(id -u)" = 0 ] || user=(--map-root-user)
    unshare "${user[@]}" --mount --pid --fork bash -c '
        mount --rbind /dev "$0/dev" && mount -t proc proc "$0/proc" && mount -t tmpfs tmp "$0/tmp" &&
        mount --bind "$1" "$0/suite" &&
        mount -t tmpfs tmp "$0/i386/tmp" && exec chroot "$0" /usr/bin/env -i /suite/run host' "$tree" "$suite"
}

# Does the host lack what the script needs?  Then there is nothing to compare with, but the guest has to get through.
cannot_compare() # NAME
{
    [ "$1" = i386 ] && ! "$tree/i386/bin/busybox" true 2>/dev/null
}

ends_well() { tail -n 1 "$1" | grep -q 'ends with 0$'; }

section() { sed -n "/^=== $1 begins/,/^=== $1 ends/p" "$2"; }

mkdir -p "$GUISE_CACHE"
(flock 8 && build) 8>"$tree.lock" && prepare || { not_ok userland "the image could not be built"; finish; }
pack_trees "$tree" "$work/over" | zstd -q -3 >"$work/initrd.zst" || { not_ok userland "the initramfs could not be built"; finish; }
in_tree >"$work/expected" 2>&1 </dev/null
kernel=$(kernel_image "${KERNEL:-cloud}") || { not_ok userland "no kernel"; finish; }
guest "$kernel" "$work/initrd.zst" "console=ttyS0 quiet loglevel=1 panic=-1 rdinit=/init" "${SECONDS_LIMIT:-900}" --memory 2048M >"$work/console"
status=$?
[ $status = 0 ] || say "guise: $(why $status)"
for name in "${names[@]}"; do
    section "$name" "$work/expected" >"$work/expected-$name"
    section "$name" "$work/console" >"$work/got-$name"
    if cannot_compare "$name" && ends_well "$work/got-$name"; then
        skip "userland-$name" "the host runs no 32-bit code to compare with; the guest got through"
    elif cannot_compare "$name"; then
        not_ok "userland-$name" "fails in the guest: $(tail -n 2 "$work/got-$name" | tr '\n' ' ')"
    elif ! ends_well "$work/expected-$name"; then
        not_ok "userland-$name" "fails on the host: $(tail -n 2 "$work/expected-$name" | tr '\n' ' ')"
    elif cmp -s "$work/expected-$name" "$work/got-$name"; then
        ok "userland-$name ($(wc -l <"$work/got-$name") lines)"
    else
        not_ok "userland-$name" "$(diff "$work/expected-$name" "$work/got-$name" | sed -n '2,5p' | tr '\n' '|')"
        mkdir -p "$GUISE_CACHE/logs"
        diff "$work/expected-$name" "$work/got-$name" >"$GUISE_CACHE/logs/userland-$name.diff"
    fi
done
finish
