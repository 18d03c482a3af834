#!/bin/bash
# User code that runs directly: in a process of its own, whenever it can and at random points, among programs that
# must not notice and others that try to make something of it (direct/init.c); and what that process may do.
#
#   tests/guest/direct.sh [MODE...]      on, always, random; all unless told
set -u
. "$(dirname "$0")/lib.sh"
modes=("$@")
[ $# -gt 0 ] || modes=(on always random)

kernel=$(kernel_image cloud) || { not_ok direct "the kernel could not be fetched"; finish; }
gcc -std=gnu17 -D_GNU_SOURCE -O2 -Wall -static -o "$work/init" "$here/direct/init.c" ||
    { not_ok direct "the guest's program does not compile"; finish; }
"$top/scripts/guest-image.sh" busybox "$work/initrd" --add "$work/init:init:755" >&2 ||
    { not_ok direct "the image could not be built"; finish; }

run_mode() # MODE
{
    local name what
    # On the host's last CPU: a guest that was told its number would notice.
    (
        taskset -cp "$(($(nproc --all) - 1))" $BASHPID >/dev/null 2>&1
        guest "$kernel" "$work/initrd" "console=ttyS0 quiet panic=-1" 300 --memory 512M --engine "soft,direct=$1" --stats \
            >"$work/console.$1"
    )
    local status=$?
    while read -r name what; do
        case $name in
        ok) ok "direct-$1: $what" ;;
        not) not_ok "direct-$1:" "${what#ok }" ;;
        esac
    done <"$work/console.$1"
    if [ $status != 0 ] || ! grep -q '^DONE' "$work/console.$1"; then not_ok "direct-$1" "$(why $status)"; fi
    cp "$work/stderr" "$work/stats.$1"
    if grep -q '^direct execution: none' "$work/stderr"; then
        skip "direct-$1" "$(sed -n 's/^direct execution: none, //p' "$work/stderr")"
    elif grep -q 'left for page mapped' "$work/stderr"; then
        ok "direct-$1 has run directly"
    else
        not_ok "direct-$1" "nothing has run directly"
    fi
    [ "$1" = always ] || return
    if grep -q 'made room in [1-9]' "$work/stderr"; then
        ok "direct-$1 has made room"
    else
        not_ok "direct-$1 has made room" "$(grep 'made room' "$work/stderr")"
    fi
}

# The processes for guest code below a process.
directs()
{
    local pid
    for pid in $(pgrep -P "$1"); do
        if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = guise-direct ]; then echo "$pid"; else directs "$pid"; fi
    done
}

# What such a process has: no memory but the guest's and the stub's, one descriptor, no rights, no system calls.
check_jail()
{
    local vm pid status maps descriptors
    "$GUISE" run --kernel "$kernel" --initrd "$work/initrd" --append "console=ttyS0 quiet panic=-1" --memory 512M \
        --engine soft,direct=always --no-reboot --timeout 120 --serial null </dev/null 2>/dev/null &
    vm=$!
    # One that has run something: some of the programs see to it that theirs is ended soon.
    for _ in $(seq 300); do
        sleep 0.1
        pid=$(directs $vm | head -n 1)
        status=$(cat "/proc/$pid/status" 2>/dev/null)
        # shellcheck disable=SC2012 # numbers
        descriptors=$(ls "/proc/$pid/fd" 2>/dev/null | tr '\n' ' ')
        maps=$(cat "/proc/$pid/maps" 2>/dev/null)
        ! grep -q '/memfd:guise-ram ' <<<"$maps" || break
    done
    if [ -n "$maps" ] && ! grep -vE '/memfd:guise-(ram|direct) |^6ffff0000000-6ffff0001000 r-xp |\[vsyscall\]$' <<<"$maps"; then
        ok "its memory is the guest's"
    else
        not_ok "its memory is the guest's" "$(grep -vE '/memfd:guise' <<<"$maps" | head -n 1)"
    fi
    if grep -q '^NoNewPrivs:.1' <<<"$status" && grep -q '^Seccomp:.2' <<<"$status" &&
        ! grep -E '^Cap(Inh|Prm|Eff|Amb)' <<<"$status" | grep -qv '0000000000000000$'; then
        ok "it has no rights"
    else
        not_ok "it has no rights" "$(grep -E 'NoNewPrivs|Seccomp|Cap' <<<"$status" | tr -s '\t\n' ' ')"
    fi
    if [ "$descriptors" = "3 " ]; then ok "it has one descriptor"; else not_ok "it has one descriptor" "$descriptors"; fi
    kill -9 $vm
    wait $vm 2>/dev/null
    for _ in $(seq 50); do [ -d "/proc/$pid" ] || break; sleep 0.1; done
    if [ -d "/proc/$pid" ]; then not_ok "it ends with its VM"; else ok "it ends with its VM"; fi
}

# Who makes these processes is killed, and they with it: programs that wait at that moment do not notice.
check_loss()
{
    local vm helper
    printf '#!/bin/sh\nfor i in $(seq 30); do echo tick $i; sleep 0.1; done\nbusybox poweroff -f\n' >"$work/ticks"
    "$top/scripts/guest-image.sh" busybox "$work/initrd-ticks" --add "$work/ticks:init:755" >&2 || return
    "$GUISE" run --kernel "$kernel" --initrd "$work/initrd-ticks" --append "console=ttyS0 quiet panic=-1" --memory 512M \
        --engine soft,direct=always --no-reboot --timeout 120 --serial stdio </dev/null >"$work/ticks.out" 2>"$work/stderr" &
    vm=$!
    for _ in $(seq 300); do
        ! grep -q '^tick 5' "$work/ticks.out" || break
        sleep 0.1
    done
    helper=$(ps -o ppid= -p "$(directs $vm | head -n 1)")
    if [ -n "$helper" ] && kill -9 $helper && wait $vm && grep -q '^tick 30' "$work/ticks.out"; then
        ok "a guest goes on without them"
    else
        not_ok "a guest goes on without them" "$(tail -n 1 "$work/ticks.out"; tail -n 1 "$work/stderr")"
    fi
}

for mode in "${modes[@]}"; do run_mode "$mode"; done
[ "$(id -u)" != 0 ] || check_jail
[ "$(id -u)" != 0 ] || check_loss
finish
