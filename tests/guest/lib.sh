# shellcheck shell=bash
# What the guest suites share: sourced by the scripts of tests/guest.
#
# A suite prints `ok NAME`, `not ok NAME REASON` or `skip NAME REASON` for each check and ends with status 0 when all
# were ok.  GUISE is the program under test; anything that takes `guise run`'s options will do.

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
top=$(dirname "$(dirname "$here")")
. "$here/packages.sh"
GUISE=${GUISE:-$top/build/guise}
GUEST_OPTIONS=${GUEST_OPTIONS:-} # more options for every `guise run`, such as --engine soft
failures=0
work=$(mktemp -d "${TMPDIR:-/tmp}/guise-guest.XXXXXX")
trap 'rm -rf "$work"' EXIT

ok() { echo "ok $*"; }

skip() { echo "skip $*"; } # NAME REASON...: a check that this host has no means for

not_ok() # NAME REASON...
{
    failures=$((failures + 1))
    echo "not ok $*"
}

finish() { exit $((failures > 0)); }

# guest KERNEL INITRD APPEND SECONDS [OPTIONS]: the guest's console, carriage returns taken out, on
# standard output; guise's exit status.  What guise itself says is in $work/stderr.
guest()
{
    local kernel=$1 initrd=$2 append=$3 seconds=$4
    shift 4
    # shellcheck disable=SC2086 # GUEST_OPTIONS is a list of words
    "$GUISE" run --kernel "$kernel" ${initrd:+--initrd "$initrd"} --append "$append" --timeout "$seconds" \
        --no-reboot --serial stdio $GUEST_OPTIONS "$@" </dev/null 2>"$work/stderr" | tr -d '\r'
    return "${PIPESTATUS[0]}"
}

# why STATUS: a failed run in words
why()
{
    case $1 in
    6) echo "time was up" ;;
    *) echo "exit status $1: $(tail -n 1 "$work/stderr")" ;;
    esac
}

# A console has all of the kernel's log at the default level, and init's copy of its warnings, where init prints one as boot-init
# does.  Warnings that a kernel prints on any machine of this kind are listed in boot-known.txt.
check_log() # FILE: prints the first complaint
{
    sed -n '/^LOG-BEGIN/,/^LOG-END/{s/^[0-4] //p}' "$1" | sed 's/^\[ *[0-9.]*\] //' |
        grep -Evx -f <(grep -v '^#' "$here/boot-known.txt") | head -n 1
    grep -E 'BUG:|Oops|Call Trace|Kernel panic|soft lockup|hard LOCKUP|rcu.*(stall|starved)|blocked for more than|nobody cared|segfault|general protection' "$1" | head -n 1
}

# image OUT ARGS...: scripts/guest-image.sh, kept in the cache until this script, the image script
# or a file that is added changes.
image()
{
    local out=$1 key
    shift
    key=$(printf '%s\n' "$@" | sed -n 's/^\([^:]*\):.*/\1/p' | cat - <(echo "$top/scripts/guest-image.sh") |
        xargs sha256sum 2>/dev/null | cat - <(echo "$@") | sha256sum | cut -c1-32)
    if [ "$(cat "$out.key" 2>/dev/null)" != "$key" ] || [ ! -e "$out" ]; then
        "$top/scripts/guest-image.sh" "${image_kind:-busybox}" "$out" "$@" >&2 || return 1
        echo "$key" >"$out.key"
    fi
}

# kernel_modules KERNEL NAME...: the files of these modules of a kernel of kernel_image's and of what they depend on, in
# the order in which they are to be loaded; those of virtio over PCI come first.  Compressed ones are unpacked into the cache,
# as busybox's insmod wants them.
kernel_modules()
{
    local tree=${1%/boot/*}/lib/modules name
    shift
    for name in virtio_pci "$@"; do module_with_dependencies "$tree" "$name" || return 1; done | awk '!seen[$0]++'
}

module_with_dependencies() # TREE NAME
{
    local file dependency plain
    file=$(find "$1" -name "${2//_/[_-]}.ko" -o -name "${2//_/[_-]}.ko.xz" | head -n 1)
    if [ "${file%.xz}" != "$file" ]; then
        plain=$(basename "$1"/*)
        plain=$GUISE_CACHE/modules/$plain/$(basename "$file" .xz)
        mkdir -p "${plain%/*}"
        [ -e "$plain" ] || { xz -dc "$file" >"$plain.$$" && mv "$plain.$$" "$plain"; } || return 1
        file=$plain
    fi
    [ -n "$file" ] || { grep -qs "/${2//_/[_-]}\.ko" "$1"/*/modules.builtin && return 0 || return 1; }
    for dependency in $(tr '\0' '\n' <"$file" | sed -n 's/^depends=//p' | tr , ' '); do
        module_with_dependencies "$1" "$dependency" || return 1
    done
    echo "$file"
}

module_additions() # FILE...: the words for `image`
{
    local file
    for file; do echo "--add $file:modules/${file##*/}"; done
}

module_commands() # FILE...: the guest's commands that load them
{
    local file
    for file; do echo "insmod /modules/${file##*/} &&"; done
}

# pack_trees DIRECTORY...: the initramfs of these trees laid over each other, with a console, on standard output
pack_trees()
{
    local tool=$work/mkcpio directory
    [ -x "$tool" ] || gcc -std=gnu17 -D_GNU_SOURCE -O2 -o "$tool" "$here/mkcpio.c" || return 1
    for directory; do
        find "$directory" -mindepth 1 -type d -printf 'dir /%P %m 0 0\n'
        printf 'nod /dev/console 600 0 0 c 5 1\n'
        find "$directory" -mindepth 1 -type f ! -name '* *' -printf 'file /%P %p %m 0 0\n'
        find "$directory" -mindepth 1 -type l ! -name '* *' -printf 'slink /%P %l 777 0 0\n'
    done >"$work/list"
    "$tool" "$work/list"
}

# tiny_image NAME: an image of a busybox, with its own init and the modules of Debian's cloud kernel that guests use, in the present
# GUISE_DATA.
tiny_image()
{
    local kernel version modules tree=$work/tiny
    kernel=$("$top/scripts/guest-kernel.sh" cloud) || return 1
    modules=$(echo "${kernel%/boot/*}"/lib/modules/*)
    version=${modules##*/}
    "$top/scripts/guest-image.sh" tree "$tree" busybox-static >&2 || return 1
    rm "$tree/init"
    mkdir -p "$tree/usr/lib/modules/$version"
    (cd "$modules" && tar -cf - modules.builtin modules.order kernel/drivers/virtio kernel/net/vmw_vsock kernel/fs/fuse \
        kernel/fs/overlayfs kernel/net/packet kernel/net/core/failover.ko \
        kernel/drivers/acpi/button.ko kernel/drivers/net/{virtio_net,net_failover}.ko) |
        tar -xf - -C "$tree/usr/lib/modules/$version"
    "$tree/usr/bin/busybox" depmod -b "$tree" "$version"
    printf '::sysinit:/bin/echo init runs\n::respawn:/bin/sleep 1000\n' >"$tree/etc/inittab"
    "$GUISE" image import "$tree" --name "$1" --kernel "$kernel" --size 256M >"$work/import" 2>&1 || { cat "$work/import" >&2 && return 1; }
}

# debian_image: GUISE_DATA becomes a store below the cache with the image `debian` in it, built by `guise image build` once a
# week: that takes a minute, and many suites want one.
debian_image()
{
    export GUISE_DATA=$GUISE_CACHE/data
    mkdir -p "$GUISE_CACHE"
    "$top/scripts/setup.sh" image >&2
    (
        flock 9
        [ -z "$(find "$GUISE_CACHE/debian.built" -mtime -7 2>/dev/null)" ] || ! "$GUISE" image info debian >/dev/null 2>&1 || exit 0
        say "building the image debian"
        "$GUISE" image build debian --replace >/dev/null 2>"$work/stderr" && touch "$GUISE_CACHE/debian.built"
    ) 9>"$GUISE_CACHE/debian.lock"
}
