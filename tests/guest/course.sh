#!/bin/bash
# What a kernel translated when it booted is translated ahead the next time, by advice in a file that may be anything.
set -u
. "$(dirname "$0")/lib.sh"

kernel=$(kernel_image cloud) || { not_ok course "the kernel could not be fetched"; finish; }
[ "$(nproc)" -gt 1 ] || { skip course "one CPU: nothing is translated ahead"; finish; }
cat >"$work/init" <<'END'
#!/bin/busybox sh
/bin/busybox --install -s /bin
seq 1 500 | awk '{ n = (n * 31 + $1) % 65521; print n }' | sort -n | sha256sum
echo DONE
poweroff -f
END
"$top/scripts/guest-image.sh" busybox "$work/initrd" --add "$work/init:init:755" >&2 ||
    { not_ok course "the image could not be built"; finish; }
initrd=$work/initrd
export XDG_CACHE_HOME=$work/cache
courses=$XDG_CACHE_HOME/guise/courses
mkdir -p "$XDG_CACHE_HOME"

# boot NAME [OPTION...]: is as the first one was; $blocks: translated when they were met; $taken: before
boot()
{
    local name=$1 status=0
    shift
    guest "$kernel" "$initrd" "console=ttyS0 quiet panic=-1 ${append:-}" 60 --engine soft --stats "$@" >"$work/console" ||
        status=$?
    sed -n '/^[0-9a-f]\{64\}/p; /^DONE/p' "$work/console" >"$work/said"
    [ -e "$work/wanted" ] || cp "$work/said" "$work/wanted"
    if [ $status = 0 ] && grep -q '^DONE' "$work/said" && cmp -s "$work/said" "$work/wanted"; then
        ok "$name"
    else
        not_ok "$name" "$(why $status)"
    fi
    blocks=$(sed -n 's/^ *blocks *//p' "$work/stderr" | head -n 1)
    taken=$(sed -n 's/^translated ahead: .* blocks, \([0-9]*\) taken.*/\1/p' "$work/stderr")
}

file() { find "$courses" -type f 2>/dev/null | head -n 1; }

# taken_from NAME LEAST: of several boots one, for another thread has to find a CPU
taken_from()
{
    for _ in 1 2 3 4 5; do
        boot "$1" && [ "${taken:-0}" -ge "$2" ] && [ "$blocks" -le $((all / 5)) ] && { ok "$1: translates almost nothing"; return; }
    done
    not_ok "$1: translates almost nothing" "$blocks blocks of $all, ${taken:-0} taken"
}

boot "with --course off" --course off
if [ -z "$(file)" ]; then ok "leaves nothing"; else not_ok "leaves nothing" "$(file)"; fi
boot "the first boot"
all=$blocks course=$(file)
if [ -s "$course" ] && [ "$(stat -c %a "$course")" = 600 ]; then
    ok "leaves its course"
else
    not_ok "leaves its course" "$(ls -l "$courses" 2>&1)"
fi
taken_from "the second boot" $((all / 2))
append="nokaslr" taken_from "without address randomization" $((all / 2))
append="nosmap loglevel=7 mitigations=off init=/init" boot "another command line"
boot "two CPUs" --cpus 2
boot "a small code cache" --code-cache 2M

cp "$course" "$work/good"
size=$(stat -c %s "$course")
printf 'spoilt' | dd of="$course" bs=1 seek=$((size / 2)) conv=notrunc status=none
boot "a spoilt course"
if [ "${taken:-0}" = 0 ]; then ok "is not used"; else not_ok "is not used" "$taken taken"; fi
boot "then it is noted again"
taken_from "and used" $((all / 2))
for what in cut empty other nonsense; do
    case $what in
    cut) head -c $((size / 3)) "$work/good" >"$course" ;;
    empty) : >"$course" ;;
    other) python3 - "$work/good" "$course" <<'PY' ;;
import sys, zlib
good = bytearray(open(sys.argv[1], "rb").read())
for at in range(len(good) // 4, len(good), 97): # every so many bytes something else, and the check sum is right
    good[at] = (good[at] * 7 + 1) & 255
table = []
for n in range(256):
    for _ in range(8):
        n = n >> 1 ^ (0x82f63b78 if n & 1 else 0)
    table.append(n)
crc = 0xffffffff
for byte in good[:24] + good[28:]:
    crc = crc >> 8 ^ table[(crc ^ byte) & 255]
good[24:28] = (crc ^ 0xffffffff).to_bytes(4, "little")
open(sys.argv[2], "wb").write(good)
PY
    nonsense) head -c "$size" /dev/urandom >"$course" ;;
    esac
    boot "one that is $what"
done
rm "$course"
ln -s "$work/elsewhere" "$course"
boot "a symbolic link"
if [ ! -e "$work/elsewhere" ]; then ok "is not followed"; else not_ok "is not followed" "it was written"; fi
rm "$course"
for i in 1 2 3; do (mkdir "$work/$i" && cp "$work/wanted" "$work/$i" && work=$work/$i && boot "three at once: $i") & done
wait
boot "after them"
XDG_CACHE_HOME=/proc/nonesuch boot "no cache directory"
finish
