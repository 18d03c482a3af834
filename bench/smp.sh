#!/bin/bash
# Two vCPUs at work beside one: programs of bench/workloads that compute, two copies at once on two vCPUs against one copy on
# one; and the same natively, which is what this host's CPUs can do.  The times are of one copy: those of all, divided by their number.
#
#   bench/smp.sh [--rounds N] [--quick] [--peers LIST] [--only LIST] [--kernel NAME|FILE] [--guise FILE]
#                [--scale N]
#
# Peers: guise-N and native-N, with N copies.
suite=smp
# shellcheck source=bench/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=bench/machines.sh
. "$bench/machines.sh"
# shellcheck source=bench/image.sh
. "$bench/image.sh"

peers="guise-1 guise-2 native-1 native-2"
rounds=3 kernel=cloud memory=1024 only=sha256,hash,interp,sort,matrix,fib
scale=8
option[kernel]=kernel option[only]=only option[scale]=scale
quick() { scale=4; }
bench_options "$@"
[ -x "$GUISE" ] || { say "$GUISE is not there: run make first" && exit 1; }
bench_begin

case $kernel in
*/*) image=$kernel ;;
*) image=$(kernel_image "$kernel") || exit 1 ;;
esac
workloads_image || exit 1

run() # PEER
{
    local limit=2000 copies=${1##*-}
    if [[ $1 = guise-* ]]; then
        machine_run guise $limit $memory "$image" --disk "$workloads/disk.img" --cpus "$copies" --append "only=$only scale=$scale copies=$copies"
        return
    fi
    # shellcheck disable=SC2046
    only=$only scale=$scale copies=$copies "$out/watch" -t $limit unshare --mount $([ "$(id -u)" = 0 ] || echo --map-root-user) sh -c '
        mount --rbind /proc "$1/proc" && mount --rbind /dev "$1/dev" && mount -t tmpfs -o mode=1777 tmp "$1/tmp" &&
            exec chroot "$1" /bench/init' sh "$workloads/tree"
}

bench_rounds run
bench_report
