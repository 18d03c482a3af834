#!/bin/bash
# kill -9 of guise while the guest writes: nothing that the guest had flushed is lost, and its file system is clean.
#
#   tests/guest/disk-kill.sh            ROUNDS=50: that many for each kind of disk (1 unless told)
#                                       KINDS="raw overlay virtio"   SEED=N
#
# Each round boots, replays the journal, says which records are there (devices/write-verify.c), and writes more until it is
# killed.  What it had reported as flushed on the serial line must be among what the next round finds.
# shellcheck disable=SC2046,SC2086 # lists of words
set -u
. "$(dirname "$0")/lib.sh"

rounds=${ROUNDS:-1}
RANDOM=${SEED:-$RANDOM}
echo "seed: SEED=$RANDOM" >&2
kernel=$(kernel_image cloud) || { not_ok kernel "could not be fetched"; finish; }
modules=$(kernel_modules "$kernel" virtio_blk) || { not_ok modules "missing"; finish; }
gcc -std=gnu17 -D_GNU_SOURCE -O2 -static -o "$work/write-verify" "$here/devices/write-verify.c" || { not_ok program "no"; finish; }
initrd=$work/kill.cpio
image "$initrd" $(module_additions $modules) --add "$work/write-verify:bin/write-verify:755" || { not_ok image "no"; finish; }

boot() # DEVICE COMMAND DISK: in the background; sets pid, console is $work/console
{
    local command
    command="$(module_commands $modules) mkdir /mnt && mount -t ext4 /dev/$1 /mnt && write-verify verify /mnt && $2"
    rm -f "$work/console"
    "$GUISE" run --kernel "$kernel" --initrd "$initrd" --memory 256M --timeout 300 --no-reboot --serial "file:$work/console" \
        --append "console=ttyS0 quiet loglevel=0 panic=-1 guise.cmd=$(printf '%s\n' "$command" | base64 -w0)" $GUEST_OPTIONS \
        --disk "$3" </dev/null 2>"$work/stderr" &
    pid=$!
}

await() # LINE: until it is on the console; 1: the guest has ended without it
{
    until grep -q "^$1" "$work/console" 2>/dev/null; do
        kill -0 "$pid" 2>/dev/null || return 1
        sleep 0.05
    done
}

# What was reported as flushed up to here against what is there now; remembers the latter.
compare()
{
    sed -n '/^verified /q; s/^\(found\|damaged\) //p' "$work/console" | tr -d '\r' >"$work/found"
    grep '^damaged' "$work/console" && return 1
    awk 'NR == FNR { found[$1, $2] = $3; next }
        found[$1, $2] + 0 < $3 + 0 { print "lost: " $0 ", there is " found[$1, $2] + 0; bad = 1 }
        END { exit bad }' "$work/found" "$work/flushed"
}

remember() # whole lines only: the last one may have been cut off
{
    sed '$d' "$work/console" | tr -d '\r' | sed -n 's/^flushed //p' | awk '{ last[$1 " " $2] = $3 } END { for (k in last) print k, last[k] }' \
        >"$work/new"
    cat "$work/new" "$work/found" | sort -k1,2 -k3,3n >"$work/flushed"
}

clean() # KIND: the file system, after its journal has been replayed, on a copy
{
    rm -f "$work/copy.img"
    case $1 in raw) cp --sparse=always "$work/raw.img" "$work/copy.img" ;; *) "$GUISE" disk copy "$work/$1.overlay" "$work/copy.img" ;; esac || return 1
    e2fsck -p "$work/copy.img" >"$work/fsck" 2>&1
    [ $? -le 1 ] && e2fsck -fn "$work/copy.img" >>"$work/fsck" 2>&1
}

round() # KIND DEVICE DISK: one kill; prints what is wrong
{
    boot "$2" "write-verify write /mnt $RANDOM" "$3"
    await "begun" || { echo "the guest ended: $(tail -n 1 "$work/console") $(tail -n 1 "$work/stderr")" && return 1; }
    compare || return 1
    sleep "$((RANDOM % 2)).$((RANDOM % 10))$((RANDOM % 10))"
    kill -9 "$pid" 2>/dev/null || { echo "it had ended by itself" && return 1; }
    wait "$pid" 2>/dev/null
    remember
    flushed=$((flushed + $(grep -c '^flushed' "$work/console")))
    if [ "$1" != raw ]; then "$GUISE" disk check "$work/$1.overlay" >/dev/null || return 1; fi
    clean "$1" || { cat "$work/fsck" && return 1; }
}

last() # DEVICE DISK: one more look, and an orderly end
{
    boot "$1" "umount /mnt" "$2"
    wait "$pid"
    grep -q '^verified' "$work/console" || { echo "the guest ended: $(tail -n 1 "$work/console")" && return 1; }
    compare
}

kind() # NAME DEVICE DISK
{
    local i why
    : >"$work/flushed"
    flushed=0
    for i in $(seq "$rounds"); do
        if ! round "$@" >"$work/why"; then
            not_ok "$1: what was flushed survives a kill -9" "round $i: $(head -n 3 "$work/why" | tr '\n' ' ')"
            [ -z "${KEEP:-}" ] || cp -r "$work" "$KEEP"
            return
        fi
    done
    if why=$(last "$2" "$3") && clean "$1"; then
        ok "$1: what was flushed survives a kill -9 ($rounds rounds, $flushed flushes)"
    else
        not_ok "$1: what was flushed survives a kill -9" "in the end: $why"
    fi
}

truncate -s 128M "$work/base.img" "$work/raw.img"
mke2fs -q -t ext4 "$work/base.img" && mke2fs -q -t ext4 "$work/raw.img" || { not_ok mke2fs "no"; finish; }
for name in overlay virtio; do "$GUISE" disk create "$work/$name.overlay" --base "$work/base.img" || { not_ok overlay "not made"; finish; }; done
for kind in ${KINDS:-raw overlay virtio}; do
    case $kind in
    raw) kind raw nvme0n1 "$work/raw.img" ;;
    overlay) kind overlay nvme0n1 "$work/overlay.overlay" ;;
    virtio) kind virtio vda "$work/virtio.overlay,bus=virtio" ;;
    esac
done
finish
