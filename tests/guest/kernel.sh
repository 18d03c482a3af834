#!/bin/bash
# The kernel's own self-checks, as packaged by Debian.
#
#   tests/guest/kernel.sh            FULL=1: the long ones too, KERNELS="generic backports"
#
# Debian configures neither rcutorture nor ftrace's start-up test; ftrace, tracepoints (static keys)
# and probes are exercised from user space instead, and RCU by namespaces that come and go.
set -u
. "$(dirname "$0")/lib.sh"

# The modules that are loaded, with what they depend on, in a directory laid out as in the guest.
modules() # KERNEL DIRECTORY
{
    local directory version busybox
    directory=$(kernel_directory "$1") || return 1
    version=$(basename "$directory"/lib/modules/*)
    mkdir -p "$2/$version"
    (cd "$directory/lib/modules/$version" &&
        find kernel/lib kernel/crypto kernel/arch/x86/crypto -name '*.ko*' | cpio -pdm --quiet "$2/$version" &&
        cp modules.builtin modules.order "$2/$version")
    find "$2" -name '*.ko.xz' -exec xz -d {} +
    busybox=$(find "$GUISE_CACHE/busybox-static" -name busybox -type f -size +100k | head -n 1)
    "$busybox" depmod -b "$work" "$version" 2>/dev/null || (cd "$2/$version" && "$busybox" depmod -b "$work" "$version")
}

run_checks() # KERNEL CHECKS APPEND SECONDS
{
    local kernel=$1 checks=$2 image status check line initrd=$work/kernel-$1.cpio.gz
    if [ ! -e "$initrd" ]; then
        rm -rf "$work/lib"
        modules "$kernel" "$work/lib/modules" &&
            "$top/scripts/guest-image.sh" busybox "$initrd" --add "$here/kernel-init:init:755" --add "$work/lib/modules:lib/modules" >&2 ||
            { not_ok "kernel-$kernel" "the image could not be built"; return; }
    fi
    image=$(kernel_image "$kernel") || { not_ok "kernel-$kernel" "no kernel"; return; }
    guest "$image" "$initrd" "console=ttyS0 quiet loglevel=1 panic=-1 log_buf_len=8M guise.checks=$checks $3" "$4" --memory 1024M >"$work/console"
    status=$?
    for check in ${checks//,/ }; do
        line=$(grep "^CHECK $check " "$work/console")
        case $line in
        '') not_ok "kernel-$kernel-$check" "not done: $(why $status), last line: $(tail -n 1 "$work/console")" ;;
        "CHECK $check ok") ok "kernel-$kernel-$check" ;;
        *) not_ok "kernel-$kernel-$check" "${line#CHECK "$check" }" ;;
        esac
    done
}

run_checks cloud ftrace,events,probes,rcu "" 300
run_checks cloud ftraceboot "ftrace=function" 300
run_checks generic statickeys,usercopy,crypto "" 900
if [ -n "${FULL:-}" ]; then
    for kernel in ${KERNELS:-generic backports}; do
        run_checks "$kernel" ftrace,events,probes,rcu,statickeys,crypto "" 900
        run_checks "$kernel" bpf "" 1800
    done
else
    run_checks generic bpf test_suite=test_bpf 600
fi
finish
