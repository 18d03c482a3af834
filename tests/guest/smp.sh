#!/bin/bash
# Several CPUs: what they promise each other (programs of smp/), in each way of running user code, and Debian's cloud kernel
# with few and many of them.
#
#   tests/guest/smp.sh       ONLY=mprotect, the checks whose names begin so; LONG=20, for so many times as long;
#                            MODES="off always" CPUS="2 4"; BOOTS="2 64", how many CPUs just boot
set -u
. "$(dirname "$0")/lib.sh"
read -ra modes <<<"${MODES-off on always}"
read -ra numbers <<<"${CPUS-2 4}"
read -ra boots <<<"${BOOTS-2 4 8 64}"
long=${LONG:-0.4}

kernel=$(kernel_image cloud) || { not_ok smp "the kernel could not be fetched"; finish; }
# Without a red zone: some checks call and push in the middle of a function.
gcc -std=gnu17 -D_GNU_SOURCE -O2 -Wall -Wextra -mno-red-zone -static -pthread -o "$work/init" "$here"/smp/*.c ||
    { not_ok smp "the guest's programs do not compile"; finish; }
"$top/scripts/guest-image.sh" busybox "$work/initrd" --add "$work/init:init:755" >&2 ||
    { not_ok smp "the image could not be built"; finish; }

run_guest() # NAME CPUS SECONDS WORDS [OPTION...]: its lines as checks
{
    local name=$1 cpus=$2 seconds=$3 words=$4 complaint what
    shift 4
    guest "$kernel" "$work/initrd" "console=ttyS0 panic=-1 cpus=$cpus $words" "$seconds" --memory 512M --cpus "$cpus" "$@" \
        >"$work/console"
    local status=$?
    while read -r word what; do
        case $word in
        ok) ok "$name: $what" ;;
        not) not_ok "$name:" "${what#ok }" ;;
        esac
    done <"$work/console"
    complaint=$(check_log "$work/console" | head -n 1)
    if [ $status != 0 ] || ! grep -q '^DONE' "$work/console"; then
        not_ok "$name" "$(why $status), last line: $(tail -n 1 "$work/console")"
    elif [ -n "$complaint" ]; then
        not_ok "$name" "in the kernel's log: $complaint"
    else
        ok "$name: the kernel's log is clean"
    fi
    [ $status = 0 ] && [ -z "$complaint" ] || { mkdir -p "$GUISE_CACHE/logs" && cp "$work/console" "$GUISE_CACHE/logs/$name.log"; }
}

for cpus in "${boots[@]}"; do run_guest "boot-$cpus" "$cpus" 120 only=all; done
for mode in "${modes[@]}"; do
    for cpus in "${numbers[@]}"; do
        words="long=$long${ONLY:+ only=${ONLY// /_}}${TIMES:+ times=1}"
        [ "$mode" = off ] || words="$words direct=$mode"
        run_guest "smp-$mode-$cpus" "$cpus" 800 "$words" --engine "soft,direct=$mode"
        [ -z "${TIMES:-}" ] || sed -n '/^  /p' "$work/console" >&2
    done
done
finish
