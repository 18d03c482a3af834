#!/bin/bash
# The time from the command to the first line of init, Debian's cloud kernel and an initrd of one small program: guise,
# cold (--course off) and with what an earlier boot has left in the cache, beside QEMU's TCG, Debian 12's and backports', on two machine types, and User-Mode Linux with its own kernel.
#
#   bench/boot.sh [--rounds N] [--quick] [--peers LIST] [--kernel NAME|FILE] [--guise FILE]
suite=boot
# shellcheck source=bench/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=bench/machines.sh
. "$bench/machines.sh"

peers="guise guise-warm qemu12-microvm qemu12-q35 qemu-backports-microvm qemu-backports-q35 uml"
rounds=5 kernel=cloud memory=512
option[kernel]=kernel
bench_options "$@"
bench_begin

case $kernel in
*/*) image=$kernel ;;
*) image=$(kernel_image "$kernel") || exit 1 ;;
esac
compile "$bench/init.c" "$work/init" -static -s || exit 1
mkdir -p "$work/root" && mv "$work/init" "$work/root/init" && pack_trees "$work/root" >"$work/initrd" || exit 1
machines_fetch || exit 1

boot() # PEER
{
    local course=on
    [ "$1" != guise ] || course=off
    machine_run "$1" 20 $memory "$image" --initrd "$work/initrd" --course $course
}

[[ $peers != *guise-warm* ]] || for _ in 1 2; do boot guise-warm >/dev/null; done # the course is noted

bench_rounds boot
bench_report
