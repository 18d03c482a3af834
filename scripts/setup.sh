#!/bin/sh
# Installs what a part of the project needs, and nothing that is there already.
#
#   scripts/setup.sh GROUP...     groups: build test lint bench guest kernel image fuzz cov
#
# As root with apt-get, else with sudo apt-get.  Prints nothing when there is nothing to do.
set -eu

packages() {
    case $1 in
    build) echo gcc libc6-dev make meson ninja-build pkg-config libzydis-dev libcmocka-dev scdoc \
        libjansson-dev libssl-dev libseccomp-dev libzstd-dev libslirp-dev liburing-dev libnbd-dev libext2fs-dev \
        libarchive-dev liblzma-dev zlib1g-dev liblz4-dev ;;
    test) echo libcmocka-dev python3 qemu-system-x86 qemu-utils busybox-static cpio gzip iproute2 procps vde2 mtools dosfstools qemu-guest-agent ;;
    image) echo mmdebstrap qemu-utils uidmap e2fsprogs curl ;;
    guest) echo gcc libc6-dev gzip xz-utils zstd e2fsprogs python3 ;;
    kernel) echo gcc libc6-dev make bc flex bison perl libelf-dev xz-utils ;; # to build one
    lint) echo clang-format clang-tidy clang cppcheck mandoc shellcheck ;;
    bench) echo gcc libc6-dev mawk python3 e2fsprogs qemu-utils util-linux ;;
    fuzz) echo clang libclang-rt-dev python3 ;;
    cov) echo gcovr ;;
    *)
        echo "setup.sh: there is no group '$1' (build test lint bench guest kernel image fuzz cov)" >&2
        return 2
        ;;
    esac
}

installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

if ! command -v apt-get >/dev/null; then
    echo "setup.sh: this is not a Debian system (no apt-get): install the packages listed in $0 by hand" >&2
    exit 1
fi

missing=
for group; do
    list=$(packages "$group")
    for package in $list; do
        installed "$package" || missing="$missing $package"
    done
done
[ -n "$missing" ] || exit 0

echo "installing:$missing" >&2
as_root=
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "setup.sh: not root, and there is no sudo; as root run: apt-get install$missing" >&2
        exit 1
    fi
    as_root="sudo -n"
    # With a terminal sudo may ask for the password.
    [ -t 0 ] && as_root=sudo
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() {
    # shellcheck disable=SC2086 # a list of words, or none
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o Dpkg::Use-Pty=0 -o Acquire::Retries=3 "$@" >>"$log" 2>&1 </dev/null
}
install() {
    # shellcheck disable=SC2086
    apt install --no-install-recommends -y $missing
}
# The lists of packages may be absent or old: then fetch them and try again.
if [ -z "$(find /var/lib/apt/lists -name '*Packages*' -print -quit 2>/dev/null)" ] || ! install; then
    : >"$log"
    if ! apt update || ! install; then
        cat "$log" >&2
        echo "setup.sh: apt-get could not install:$missing" >&2
        exit 1
    fi
fi
