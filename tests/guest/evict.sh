#!/bin/bash
# A code cache far too small for what runs: translations are dropped all the time, and nobody must notice.
set -u
. "$(dirname "$0")/lib.sh"

kernel=$(kernel_image cloud) || { not_ok evict "the kernel could not be fetched"; finish; }
cat >"$work/init" <<'END'
#!/bin/busybox sh
/bin/busybox --install -s /bin
i=0
while [ $i -lt 3 ]; do
    seq 1 2000 | awk -v i=$i '{ n = (n * 31 + $1 * i) % 65521; print n }' | sort -n | tee /list | sha256sum
    gzip -c /list | gzip -dc | md5sum
    i=$((i + 1))
done
echo DONE
poweroff -f
END
"$top/scripts/guest-image.sh" busybox "$work/initrd" --add "$work/init:init:755" >&2 ||
    { not_ok evict "the image could not be built"; finish; }

run_with() # SIZE
{
    guest "$kernel" "$work/initrd" "console=ttyS0 quiet panic=-1" 300 --engine soft --stats --code-cache "$1" \
        >"$work/console.$1"
    local status=$?
    [ $status = 0 ] && grep -q '^DONE' "$work/console.$1" || not_ok "evict-$1" "$(why $status)"
    evictions=$(sed -n 's/^ *evictions *//p' "$work/stderr")
}

run_with 64M
sed '/DONE/q' "$work/console.64M" >"$work/wanted"
for size in 2M 4M; do
    run_with $size
    if sed '/DONE/q' "$work/console.$size" | cmp -s - "$work/wanted"; then
        ok "evict-$size: same results"
    else
        not_ok "evict-$size" "other results than with room"
    fi
    if [ "${evictions:-0}" -gt 20 ]; then ok "evict-$size: has evicted"; else not_ok "evict-$size" "$evictions evictions"; fi
done
finish
