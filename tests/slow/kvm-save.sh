#!/bin/bash
# Machines on the KVM engine, with 1 to 3 CPUs, are saved, restored and moved again and again (tests/guest/kvm-save.sh, nested in
# QEMU where there is no hardware virtualization).  `make kvm-save`.
#
#   ROUNDS=10     how often, with each number of CPUs; CPUS="1 2 3"
set -u
. "$(dirname "$0")/../guest/lib.sh"
. "$(dirname "$0")/lib.sh"

for cpus in ${CPUS:-1 2 3}; do
    ROUNDS=${ROUNDS:-10} INNER_CPUS=$cpus TIMEOUT=$((${ROUNDS:-10} * 120 + 120)) "$here/kvm-save.sh" >"$work/log" 2>&1
    case $? in
    0) ok "saved and moved with $cpus CPUs: $(grep '^inside: it has moved' "$work/log" | wc -l) moves" ;;
    77) skip "saved and moved with $cpus CPUs" "$(tail -n 1 "$work/log")" ;;
    *)
        keep_log "$work/log" "kvm-save-$cpus"
        not_ok "saved and moved with $cpus CPUs" "$(tail -n 1 "$work/log")"
        ;;
    esac
done
finish
