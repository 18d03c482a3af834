#!/bin/bash
# The kernel's own torture of its locks, of RCU and of calls between CPUs: locktorture, rcutorture and scftorture, on four
# vCPUs, with CPUs that go and come meanwhile.  `make torture`.
#
#   tests/slow/torture.sh [TYPE...]      TORTURE_SECONDS=120 each, CPUS=4; KERNELS="plain debug", the latter with lockdep
#
# The kernel is Debian's linux-source-6.1 with torture-config; the first time it is built, which takes some minutes.
set -u
. "$(dirname "$0")/../guest/lib.sh"
. "$(dirname "$0")/lib.sh"
seconds=${TORTURE_SECONDS:-120}
cpus=${CPUS:-4}
types=("$@")
[ $# -gt 0 ] || types=(spin_lock spin_lock_irq rw_lock rw_lock_irq mutex_lock ww_mutex_lock rtmutex_lock rwsem_lock percpu_rwsem_lock
    rcu srcu srcud tasks tasks-rude tasks-tracing scf)

build() # NAME: its directory gets arch/x86/boot/bzImage and the modules
{
    local to=$GUISE_CACHE/torture/$1 parts=("$slow/torture-config") key source
    [ "$1" = plain ] || parts+=("$slow/torture-config-$1")
    source=$(kernel_source) || return 1
    key=$(cat "${parts[@]}" | sha256sum)
    [ "$(cat "$to/key" 2>/dev/null)" != "$key" ] || return 0
    say "building the kernel $1"
    mkdir -p "$to" && make -s -C "$source" O="$to" tinyconfig >"$to/log" 2>&1 &&
        (cd "$source" && scripts/kconfig/merge_config.sh -m -O "$to" "$to/.config" "${parts[@]}") >>"$to/log" 2>&1 &&
        make -s -C "$source" O="$to" olddefconfig >>"$to/log" 2>&1 &&
        nice make -s -j "$(nproc)" -C "$source" O="$to" bzImage modules >>"$to/log" 2>&1 ||
        { tail -n 5 "$to/log" >&2 && return 1; }
    echo "$key" >"$to/key"
}

make_initrd() # NAME
{
    local to=$GUISE_CACHE/torture/$1
    "$top/scripts/guest-image.sh" busybox "$work/initrd-$1" --add "$slow/torture-init:init:755" --add "$to/kernel/torture.ko:torture.ko" \
        --add "$to/kernel/locking/locktorture.ko:locktorture.ko" --add "$to/kernel/rcu/rcutorture.ko:rcutorture.ko" \
        --add "$to/kernel/scftorture.ko:scftorture.ko" >&2
}

# CPUs go and come: locktorture counts in seconds, rcutorture and scftorture in ticks.
module_of() # TYPE: the module and its options
{
    case $1 in
    *_lock | *_lock_irq) echo "module=locktorture options=torture_type=$1,onoff_interval=1,onoff_holdoff=5" ;;
    scf) echo "module=scftorture options=onoff_interval=200,onoff_holdoff=5" ;;
    *) echo "module=rcutorture options=torture_type=$1,onoff_interval=200,onoff_holdoff=5" ;;
    esac
}

torture() # KERNEL TYPE
{
    local name=torture-$1-$2 status complaint result
    guest "$GUISE_CACHE/torture/$1/arch/x86/boot/bzImage" "$work/initrd-$1" "console=ttyS0 panic=-1 $(module_of "$2") seconds=$seconds" \
        $((seconds * 2 + 300)) --memory 1024M --cpus "$cpus" >"$work/console"
    status=$?
    complaint=$(grep -E 'BUG:|WARNING:|Oops|Call Trace|Kernel panic|soft lockup|detected stall|self-detected|starved|possible .*(deadlock|recursion)|suspicious RCU|nobody cared|!!!' "$work/console" |
        grep -v "built as module" | head -n 1)
    result=$(sed -n 's/.*--- End of test: \([A-Z_]*\).*/\1/p' "$work/console" | tail -n 1)
    if [ $status != 0 ] || ! grep -q '^DONE' "$work/console"; then
        not_ok "$name" "$(why $status), last line: $(tail -n 1 "$work/console")"
    elif [ "$result" != SUCCESS ]; then
        not_ok "$name" "its end: ${result:-none}"
    elif [ -n "$complaint" ]; then
        not_ok "$name" "in its log: $complaint"
    else
        ok "$name ($seconds s, $cpus CPUs)"
        return
    fi
    keep_log "$work/console" "$name"
}

for kernel in ${KERNELS:-plain debug}; do
    build "$kernel" && make_initrd "$kernel" || { not_ok "torture-$kernel" "the kernel could not be built"; continue; }
    for type in "${types[@]}"; do torture "$kernel" "$type"; done
done
finish
