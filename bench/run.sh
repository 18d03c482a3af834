#!/bin/bash
# The workloads of bench/workloads natively (in a chroot), in guise, in QEMU's TCG (Debian 12's and backports') and in
# User-Mode Linux: the same files, kernel (but UML's), memory and one vCPU.
#
#   bench/run.sh [--rounds N] [--quick] [--peers LIST] [--only LIST] [--kernel NAME|FILE] [--guise FILE]
#                [--scale N]
#
# Programs that compute do N times (8 unless told, 1 in quick runs) what takes 0.04 to 0.9 seconds natively.
# --only takes names of workloads and of groups.  bench/README.md says how to add one.
suite=run
# shellcheck source=bench/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=bench/machines.sh
. "$bench/machines.sh"
# shellcheck source=bench/image.sh
. "$bench/image.sh"

peers="native guise qemu12 qemu-backports uml"
rounds=2 kernel=cloud memory=1024 only=all
scale=8
option[kernel]=kernel option[only]=only option[scale]=scale
quick() { only=quick scale=1 peers="native guise qemu-backports uml"; }
bench_options "$@"
bench_begin

case $kernel in
*/*) image=$kernel ;;
*) image=$(kernel_image "$kernel") || exit 1 ;;
esac
machines_fetch && workloads_image || exit 1
[ -n "$(workload_choose "$only")" ] || { say "no workload or group is called $only" && exit 2; }

run() # PEER
{
    local limit=5000 names
    names=$(workload_choose "$only" "$round")
    if [ "$1" != native ]; then
        machine_run "$1" $limit $memory "$image" --disk "$workloads/disk.img" --append "only=$names scale=$scale"
        return
    fi
    only=$names scale=$scale machine_native $limit $memory "$workloads/tree"
}

bench_rounds run
bench_report
