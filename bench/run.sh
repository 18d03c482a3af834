#!/bin/bash
# guise beside its peers: the same programs natively, in guise and in QEMU's TCG (Debian 12's and
# backports'), with the same kernel, initrd, memory and one vCPU; interleaved round by round.
#
#   bench/run.sh [--rounds N] [--quick] [--peers LIST] [--kernel NAME|FILE] [--guise FILE] [--stat median|min]
#
# Peers: native guise qemu12-microvm qemu12-q35 backports-microvm backports-q35.  Every measurement
# goes to bench/out/results.tsv (round, peer, metric, value, checksum), the table to bench/out/table.txt.
# Exit status: 0, or 1 when guise failed or a result differs from the native one.
set -u
here=$(cd "$(dirname "$0")" && pwd)
top=$(dirname "$here")
out=$here/out
. "$top/tests/guest/packages.sh"

rounds=5 stat=median kernel=cloud memory=512 limit=90
guise=$top/build/guise
peers="native guise qemu12-microvm qemu12-q35 backports-microvm backports-q35"

usage() { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
while [ $# -gt 0 ]; do
    case $1 in
    --rounds) rounds=${2:?}; shift ;;
    --quick) rounds=1 ;;
    --peers) peers=${2//,/ }; shift ;;
    --kernel) kernel=${2:?}; shift ;;
    --guise) guise=${2:?}; shift ;;
    --stat) stat=${2:?}; shift ;;
    *) usage ;;
    esac
    shift
done

build_programs()
{
    mkdir -p "$out/root/bench" "$out/root/proc" "$out/root/dev"
    local source name
    for source in "$here"/programs/*.c; do
        name=$(basename "$source" .c)
        gcc -std=gnu17 -D_GNU_SOURCE -Wall -Wextra -O2 -static -s -o "$out/root/bench/$name" "$source" || exit 1
    done
    mv "$out/root/bench/init" "$out/root/init"
    gcc -std=gnu17 -D_GNU_SOURCE -Wall -Wextra -O2 -o "$out/watch" "$here/watch.c" || exit 1
    # /dev/console comes from the image so that init has an output before anything is mounted
    printf 'dir /dev 755 0 0\nnod /dev/console 600 0 0 c 5 1\ndir /proc 755 0 0\ndir /bench 755 0 0\n' >"$out/list"
    (cd "$out/root" && find . -type f -printf 'file /%P %p 755 0 0\n') >>"$out/list"
    gcc -std=gnu17 -D_GNU_SOURCE -Wall -Wextra -O2 -o "$out/mkcpio" "$top/tests/guest/mkcpio.c" || exit 1
    (cd "$out/root" && "$out/mkcpio" "$out/list") >"$out/initrd" || exit 1
}

qemu() # ROOT MACHINE: runs the QEMU unpacked there with its own libraries
{
    local root=$1 machine=$2
    QEMU_MODULE_DIR=$root/usr/lib/x86_64-linux-gnu/qemu "$out/watch" -t $limit -i 20 -m $memory "$root/lib64/ld-linux-x86-64.so.2" \
        --library-path "$root/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu" \
        "$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" \
        -M "$machine" -accel tcg,thread=single -cpu max -smp 1 -m $memory -nodefaults -no-user-config \
        -display none -serial stdio -no-reboot -kernel "$image" -initrd "$out/initrd" -append "$append" </dev/null
}

run_peer() # PEER: prints watch's lines
{
    case $1 in
    native) "$out/watch" -t $limit "$out/root/init" "$out/root/bench" ;;
    guise)
        "$out/watch" -t $limit -i 20 -m $memory "$guise" run --engine soft --kernel "$image" --initrd "$out/initrd" \
            --append "$append" --memory ${memory}M --cpus 1 --no-reboot --timeout $limit --serial stdio </dev/null
        ;;
    qemu12-*) qemu "$GUISE_CACHE/qemu-bookworm" "${1#qemu12-}" ;;
    backports-*) qemu "$GUISE_CACHE/qemu-backports" "${1#backports-}" ;;
    esac 2>"$out/$1.err"
}

# watch's lines to rows: round, peer, metric, value, checksum.  Programs are in seconds, system
# operations in nanoseconds (their third field is a count, not a checksum), memory in KiB.
rows()
{
    awk -v round="$1" -v peer="$2" -v OFS='\t' '
        { seconds = $1; sub(/^[^\t]*\t/, "") }
        $1 == "INIT" && !booted++ && peer != "native" { print round, peer, "boot", seconds, "-"; print round, peer, "uptime", $2, "-" }
        $1 == "RESULT" { print round, peer, $2, $3, $4 == "s" ? $5 : "-" }
        $1 == "MEMORY" && $2 > 0 { print round, peer, "memory", $2, "-" }
        $1 == "DONE" && $2 == 0 { done = 1 }
        $1 == "EXIT" { if ($2 || !done) print round, peer, "failed", $2, "-" }'
}

mkdir -p "$out"
exec 9>"$out/lock"
flock -n 9 || { say "another bench/run.sh runs: its measurements and these would be worthless"; exit 1; }
build_programs
case $kernel in
*/*) image=$kernel ;;
*) image=$(kernel_image "$kernel") || exit 1 ;;
esac
append="console=ttyS0 quiet panic=-1 mitigations=auto"
for peer in $peers; do
    case $peer in
    native | guise) ;;
    qemu12-*) packages_extract "$GUISE_CACHE/qemu-bookworm" bookworm qemu-system-x86 || exit 1 ;;
    backports-*) packages_extract "$GUISE_CACHE/qemu-backports" bookworm-backports qemu-system-x86 || exit 1 ;;
    *) usage ;;
    esac
done
if [[ " $peers " == *" guise "* ]] && [ ! -x "$guise" ]; then
    say "$guise is not there: run make first, or choose --peers"
    exit 1
fi

: >"$out/results.tsv"
# One run of one peer; its rows count only when it reached the end.
measure() # ROUND PEER
{
    run_peer "$2" | tee "$out/$2.log" | rows "$1" "$2" >"$out/rows"
    ! grep -q failed "$out/rows"
}

for ((round = 1; round <= rounds; round++)); do
    for peer in $peers; do
        say "round $round of $rounds: $peer"
        # one boot in ten of QEMU's microvm stops when the kernel cannot measure the TSC: try again
        tries=1
        [[ $peer == guise || $peer == native ]] || tries=4
        while ! measure $round "$peer" && [ $((tries -= 1)) -gt 0 ]; do
            say "  $peer again"
        done
        if grep -q failed "$out/rows"; then
            say "  failed: see bench/out/$peer.log and $peer.err"
            tail -n 3 "$out/$peer.err" >&2
            grep failed "$out/rows" >>"$out/results.tsv"
        else
            cat "$out/rows" >>"$out/results.tsv"
        fi
    done
done
awk -v stat="$stat" -v load="$(cut -d" " -f1 /proc/loadavg)" -v kernel="$(basename "$image")" -f "$here/table.awk" "$out/results.tsv" | tee "$out/table.txt"
exit "${PIPESTATUS[0]}"
