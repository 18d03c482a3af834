#!/bin/bash
# Machines on the KVM engine, with 1 to 3 CPUs, are saved, restored and moved again and again, and forked; and one with a disk and an agent once
# (tests/guest/kvm-save.sh, kvm-save/inside.sh; nested in QEMU where there is no hardware virtualization).  `make kvm-save`.
#
#   ROUNDS=10     how often, with each number of CPUs; CPUS="1 2 3"
set -u
. "$(dirname "$0")/../guest/lib.sh"
. "$(dirname "$0")/lib.sh"
. "$here/machines.sh"
rounds=${ROUNDS:-10}

run() # NAME COMMAND...
{
    local name=$1
    shift
    "$@" >"$work/log" 2>&1
    case $? in
    0) ok "$name" ;;
    77) skip "$name" "$(tail -n 1 "$work/log")" ;;
    *)
        keep_log "$work/log" kvm-save
        not_ok "$name" "$(grep 'FAILED' "$work/log" | head -n 1)"
        ;;
    esac
}

noxsave= # QEMU before version 10: see kvm-nested.sh
qemu-system-x86_64 --version 2>/dev/null | grep -q 'version [1-9][0-9]' || noxsave=noxsave
"$GUISE" image export tiny "$work/tiny.tar.zst" --quiet || { not_ok image "cannot be exported" && finish; }
cp "$GUISE" "$work/guise"
ssl=$(ldconfig -p | sed -n 's/.*libssl\.so\.3 .*=> //p' | head -n 1) # which `guise image import` loads itself
TIMEOUT=1200 EXTRA="$work/guise $work/tiny.tar.zst $ssl" run "one with a disk" "$here/kvm-nested.sh" "$slow/kvm-save/inside.sh" 1 "$noxsave"
for cpus in ${CPUS:-1 2 3}; do
    ROUNDS=$rounds INNER_CPUS=$cpus TIMEOUT=$((rounds * 120 + 120)) run "$rounds times, with $cpus CPUs" "$here/kvm-save.sh"
done
finish
