#!/bin/bash
# `make run`: a root shell in a virtual machine, or one command whose status this script returns.
#
#   GUISE=build/guise scripts/run-guest.sh [--image FILE] [--kernel FILE|cloud|generic|backports] [CMD] [-- OPTION...]
#
# The options behind -- go to `guise run`.
#
# How the status gets out: the guest's /init prints it behind the command's output, on the same serial line, as
# one control byte (0x1e), a word of 32 random hexadecimal digits that this script has chosen for this run,
# and the number.  That is cut off here.  It needs no device that exists for this purpose only, works on every
# machine with a serial port, and no output of a program looks like it by chance.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
cache=${GUISE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/guise}
guise=${GUISE:-$here/../build/guise}

image=
kernel=cloud
cmd=
while [ $# -gt 0 ]; do
    case $1 in
    --image) image=${2:?--image needs a file} && shift ;;
    --kernel) kernel=${2:?--kernel needs a file or a name} && shift ;;
    --) shift && break ;;
    -*)
        echo "run-guest.sh: there is no option $1" >&2
        exit 2
        ;;
    *) cmd=$1 ;;
    esac
    shift
done

if [ -z "$image" ]; then
    image=$cache/busybox.cpio
    if [ ! -e "$image" ] || [ "$here/guest-init" -nt "$image" ] || [ "$here/guest-image.sh" -nt "$image" ]; then
        "$here/guest-image.sh" busybox "$image"
    fi
fi
case $kernel in */*) ;; *) kernel=$("$here/guest-kernel.sh" "$kernel") ;; esac

# panic=-1: a guest that crashes ends, and is reported, instead of hanging.
append="console=ttyS0 quiet loglevel=0 panic=-1"
if [ -z "$cmd" ]; then
    if [ -t 0 ]; then
        size=$(stty size)
        append="$append guise.term=${TERM:-linux}"
        [ "$size" = "0 0" ] || append="$append guise.rows=${size% *} guise.cols=${size#* }"
    fi
    exec "$guise" run --kernel "$kernel" --initrd "$image" --append "$append" --memory 512M --no-reboot "$@"
fi

mark=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
encoded=$(printf '%s\n' "$cmd" | base64 -w0)
append="$append guise.mark=$mark guise.cmd=$encoded"
if [ ${#append} -gt 2000 ]; then
    echo "run-guest.sh: the command is longer than a kernel's command line can carry: put it into the image" >&2
    exit 2
fi
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
# Without a terminal the command reads nothing: a serial line has no end of file to pass on.
[ -t 0 ] || exec </dev/null
# sed keeps the missing line feed of a last line, so the output comes out byte for byte.
{
    status=0
    "$guise" run --kernel "$kernel" --initrd "$image" --append "$append" --memory 512M --no-reboot "$@" || status=$?
    echo "$status" >"$tmp/guise"
} | LC_ALL=C sed -u -e "/\x1e$mark:/{h;s/.*\x1e$mark:\([0-9]*\).*/\1/;w $tmp/guest" -e "x;s/\x1e$mark:.*//}"
status=$(cat "$tmp/guise")
[ "$status" = 0 ] || exit "$status"
if [ ! -s "$tmp/guest" ]; then
    echo "run-guest.sh: the guest powered off without a word about the command" >&2
    exit 1
fi
exit "$(cat "$tmp/guest")"
