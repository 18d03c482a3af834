#!/bin/bash
# Builds an initramfs from Debian packages.  Needs no root, installs nothing.
#
#   scripts/guest-image.sh busybox OUT            one static busybox and scripts/guest-init
#   scripts/guest-image.sh packages OUT NAME...   the same, and these packages with all they depend on
#   scripts/guest-image.sh tree DIR NAME...       the latter as a directory instead of an archive
#
#   --add FROM:TO[:MODE]   puts a file or directory of this machine into the image (any number of times)
#
# OUT is an uncompressed cpio archive, or compressed if its name ends in .gz, .xz or .zst.
# Nothing of the packages is executed: their maintainer scripts do not run.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=tests/guest/packages.sh
. "$here/../tests/guest/packages.sh"

usage() {
    sed -n '2,/^set/p' "$here/guest-image.sh" | sed '$d; s/^# \{0,1\}//' >&2
    exit 2
}

additions=()
words=()
while [ $# -gt 0 ]; do
    case $1 in
    --add)
        [ $# -ge 2 ] || usage
        additions+=("$2")
        shift
        ;;
    -*) usage ;;
    *) words+=("$1") ;;
    esac
    shift
done
set -- "${words[@]}"
[ $# -ge 2 ] || usage
kind=$1
out=$2
shift 2
case $kind in
busybox) [ $# = 0 ] || usage ;;
packages | tree) [ $# -ge 1 ] || usage ;;
*) usage ;;
esac

work=$(mktemp -d "${TMPDIR:-/tmp}/guise-image.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root

# One static busybox, kept: it is what guest-init is written for, and gives what no package gives.
package_one "$GUISE_CACHE/busybox-static" bookworm busybox-static
busybox=$(find "$GUISE_CACHE/busybox-static" -name busybox -type f -size +100k | head -n 1)

# Debian 12's layout: the old top-level directories are links into /usr.
mkdir -p "$root"/usr/{bin,sbin,lib,lib32,lib64,libx32} "$root"/{dev,proc,sys,run,tmp,root,etc,var}
for directory in bin sbin lib lib32 lib64 libx32; do
    ln -s "usr/$directory" "$root/$directory"
done

if [ "$kind" != busybox ]; then
    # Kept too, one directory for each list of packages; its own top-level directories merge into the links.
    set_name=$(printf '%s\n' "$@" | sort -u | sha256sum | cut -c1-16)
    packages_extract "$GUISE_CACHE/sets/$set_name" bookworm "$@"
    (cd "$GUISE_CACHE/sets/$set_name" && tar -cf - --exclude=./.packages .) | tar -xf - -C "$root" --keep-directory-symlink
fi
chmod 1777 "$root/tmp"
[ -e "$root/var/run" ] || ln -s /run "$root/var/run"

# What dpkg makes in maintainer scripts: the default one of several alternatives.
for pair in awk:mawk pager:more cc:gcc c++:g++; do
    if [ -e "$root/usr/bin/${pair#*:}" ] && [ ! -e "$root/usr/bin/${pair%%:*}" ]; then
        ln -s "${pair#*:}" "$root/usr/bin/${pair%%:*}"
    fi
done

cp "$busybox" "$root/usr/bin/busybox"
chmod 755 "$root/usr/bin/busybox"
for applet in $("$busybox" --list-full); do
    case $applet in */*) ;; *) continue ;; esac # linuxrc: not for an initramfs
    if [ ! -e "$root/$applet" ] && [ ! -L "$root/$applet" ]; then
        mkdir -p "$root/${applet%/*}"
        ln -s /usr/bin/busybox "$root/$applet"
    fi
done
[ -e "$root/etc/passwd" ] ||
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$root/etc/passwd"
[ -e "$root/etc/group" ] || printf 'root:x:0:\ntty:x:5:\nnogroup:x:65534:\n' >"$root/etc/group"
printf '127.0.0.1 localhost guest\n' >"$root/etc/hosts"
cp "$here/guest-init" "$root/init"
chmod 755 "$root/init"

for addition in ${additions[@]+"${additions[@]}"}; do
    IFS=: read -r from to mode <<<"$addition"
    mkdir -p "$root/$(dirname "$to")"
    cp -aL "$from" "$root/$to"
    [ -z "$mode" ] || chmod "$mode" "$root/$to"
done

mkdir -p "$(dirname "$out")"
if [ "$kind" = tree ]; then
    mv -T "$root" "$out"
    exit 0
fi

# mkcpio can make the console's device node and give all to root without being root.
gcc -std=gnu17 -D_GNU_SOURCE -O2 -o "$work/mkcpio" "$here/../tests/guest/mkcpio.c"
list() {
    find . -mindepth 1 -type d -printf 'dir /%P %m 0 0\n'
    printf 'nod /dev/console 600 0 0 c 5 1\n'
    find . -mindepth 1 -type f -printf 'file /%P %p %m 0 0\n'
    find . -mindepth 1 -type l -printf 'slink /%P %l 777 0 0\n'
}
compress() {
    case $out in
    *.gz) gzip -n -6 ;;
    *.xz) xz -T0 --check=crc32 -6 ;;
    *.zst) zstd -q -T0 ;;
    *) cat ;;
    esac
}
# Names with blanks cannot be in a list of words; Debian's packages have a few, in documentation.
(cd "$root" && list | awk '{ n = NF } $1 == "dir" && n == 5 || $1 == "nod" || ($1 == "file" || $1 == "slink") && n == 6' \
    >"$work/list" && "$work/mkcpio" "$work/list") | compress >"$out.new"
mv "$out.new" "$out"
