#!/bin/bash
# Runs a command of this checkout in a new, minimal Debian 12: does the project really bring what it needs?
# Wants root and mmdebstrap.  Files that git does not know are not copied.
#
#   scripts/fresh-root.sh [--user] [--include PACKAGE,...] COMMAND...
#
#   scripts/fresh-root.sh .ci/run
#   scripts/fresh-root.sh --user --include make make run CMD='uname -a'
#
# --user: as an ordinary user who may use sudo, instead of root.
set -euo pipefail
top=$(dirname "$(dirname "$(readlink -f "$0")")")
include=
user=
while [ $# -gt 0 ]; do
    case $1 in
    --user) user=1 ;;
    --include) include=${2:?} && shift ;;
    *) break ;;
    esac
    shift
done
[ $# -gt 0 ] || { sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2; exit 2; }
[ -z "$user" ] || include=${include:+$include,}sudo

root=$(mktemp -d "${TMPDIR:-/tmp}/guise-fresh.XXXXXX")
trap 'rm -rf --one-file-system "$root"' EXIT
sources=()
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list; do
    [ ! -s "$file" ] || sources+=("$file")
done
mmdebstrap --quiet --variant=minbase ${include:+--include="$include"} bookworm "$root" "${sources[@]}"
cp /etc/resolv.conf "$root/etc/" 2>/dev/null || true
chroot "$root" useradd --create-home --shell /bin/sh developer
mkdir "$root/home/developer/guise"
(cd "$top" && git ls-files -z | tar --null --files-from=- --ignore-failed-read -cf - 2>/dev/null) | tar -xf - -C "$root/home/developer/guise"
# unshare(1) inside wants / to be a mount point.
# shellcheck disable=SC2016 # expanded inside
inside='mount --bind "$1" "$1" && mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && mount --rbind /sys "$1/sys" && root=$1 && shift && exec "$@"'
if [ -n "$user" ]; then
    echo 'developer ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/developer"
    chroot "$root" chown -R developer: /home/developer
    enter=(chroot "$root" setpriv --reuid developer --regid developer --init-groups)
    home=/home/developer
else
    enter=(chroot "$root")
    home=/root
fi
# shellcheck disable=SC2016
unshare --mount --pid --fork sh -c "$inside" sh "$root" "${enter[@]}" env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=$home LANG=C.UTF-8 ${CI:+CI="$CI"} sh -c 'cd /home/developer/guise && exec "$@"' sh "$@"
