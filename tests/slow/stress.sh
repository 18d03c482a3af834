#!/bin/bash
# stress-ng's stressors, one after the other, in a guest with four vCPUs: all have to check their results and find them right, and the
# kernel's log stays clean.  `make stress`.
#
#   tests/slow/stress.sh [STRESSOR...]     STRESS_SECONDS=300 in all (up to 1800), CPUS=4
#                                          CLASSES=cpu,memory, of stress-ng's classes
set -u
. "$(dirname "$0")/../guest/lib.sh"
. "$(dirname "$0")/lib.sh"
seconds=${STRESS_SECONDS:-300}
cpus=${CPUS:-4}
classes=${CLASSES:-cpu,cpu-cache,memory,vm,scheduler,interrupt,os}
# What asks for devices and rights that this guest has not, is meant to take it down, fills its log (memhotplug), or takes an
# interrupted fallocate on tmpfs for a failure (iomix).
not_these=(apparmor binderfs bigheap dev dev-shm efivar cgroup hdd led loop module netlink-proc netlink-task pci ramfs rawdev
    rawpkt reboot smi softlockup swap sysbadaddr sysinval sysfs procfs klog memhotplug iomix ptyfs quota watchdog rdrand tsc-deadline oom-pipe
    enosys far-branch ipsec-mb uprobe userfaultfd zlib)

tree=$GUISE_CACHE/stress
build()
{
    local key
    key=$(cat "$here/packages.sh" "$top/scripts/guest-image.sh" | sha256sum)
    [ "$(cat "$tree.key" 2>/dev/null)" != "$key" ] || return 0
    rm -rf "$tree" "$tree.key"
    "$top/scripts/guest-image.sh" tree "$tree" stress-ng bash coreutils >&2 || return 1
    # What draws pictures takes more room than all else.
    rm -rf "$tree"/usr/share/{doc,man,locale,X11,icons} "$tree"/usr/lib/x86_64-linux-gnu/{dri,libLLVM*,libz3*,libicu*}
    echo "$key" >"$tree.key"
}

mkdir -p "$GUISE_CACHE" "$work/over"
(flock 8 && build) 8>"$tree.lock" || { not_ok stress "the image could not be built"; finish; }
cp "$slow/stress-init" "$work/over/stress-init" && chmod 755 "$work/over/stress-init"
pack_trees "$tree" "$work/over" | zstd -q -3 >"$work/initrd.zst" || { not_ok stress "the initramfs could not be built"; finish; }
kernel=$(kernel_image "${KERNEL:-cloud}") || { not_ok stress "no kernel"; finish; }
guest "$kernel" "$work/initrd.zst" "console=ttyS0 panic=-1 rdinit=/stress-init seconds=$seconds stressors=$(IFS=, && echo "$*") \
classes=$classes not=$(IFS=, && echo "${not_these[*]}")" $((seconds * 2 + 600)) --memory 2048M --cpus "$cpus" >"$work/console"
status=$?
# Processes that get too much memory are meant to end, and say so at length.
complaint=$(grep -E 'BUG:|WARNING: CPU|Oops|Kernel panic|soft lockup|hard LOCKUP|rcu.*(stall|starved)|blocked for more than|nobody cared' "$work/console" | head -n 1)
failed=$(sed -n 's/^RESULT \([^ ]*\) failed.*/\1/p' "$work/console" | paste -sd' ')
number=$(grep -c '^RESULT .* passed' "$work/console")
if [ $status != 0 ] || ! grep -q '^DONE' "$work/console"; then
    not_ok stress "$(why $status), last line: $(tail -n 1 "$work/console")"
elif [ -n "$failed" ]; then
    not_ok stress "failed: $failed"
elif [ -n "$complaint" ]; then
    not_ok stress "in the kernel's log: $complaint"
else
    ok "stress ($number stressors, $(grep -c '^RESULT .* skipped' "$work/console") skipped, $cpus CPUs)"
    finish
fi
keep_log "$work/console" stress
finish
