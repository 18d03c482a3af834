# shellcheck shell=bash
# What the benchmarks share: options, peers, rounds, measurements, the table.  Sourced by the scripts of bench/, which set
# `suite` and `peers`, perhaps more of `option` and `quick`, and then say
#
#   bench_options "$@"       --rounds N, --quick, --peers LIST, --guise FILE and those of `option`
#   bench_begin              takes the lock; from here on no other benchmark runs
#   bench_rounds FUNCTION    FUNCTION PEER prints what bench/watch.c prints of one guest; peers take turns in every round
#   bench_report             the table, and the script's exit status
#
# What a guest prints, with tabs between the fields, everything else being ignored:
#
#   NAME, UNIT   VALUE   [CHECK]    a measurement; a unit with a slash is a rate (more is better); checks must agree
#   STAMP        NAME               the measurement is when this line arrives, in seconds since the command was started
#   START        NAME               the host's clock is to agree with the time that is reported next, within a tenth
#   FAILED       WHY
#   DONE                            nothing counts without it
#
# Measurements are kept in out/SUITE.tsv (round, peer, name, unit, value, check), the table in out/SUITE.txt, all of it in
# out/SUITE.json.
# shellcheck source=tests/guest/lib.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../tests/guest/lib.sh" # sets here (tests/guest), top, work and GUISE
bench=$top/bench
out=${BENCH_OUT:-$bench/out}
rounds=3
tab=$'\t'
declare -A option=([rounds]=rounds [peers]=peers [guise]=GUISE)

quick() { :; } # what else is less in a quick run

bench_usage()
{
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

bench_options() # ARGUMENTS
{
    local known=" $peers " peer
    while [ $# -gt 0 ]; do
        if [ "$1" = --quick ]; then
            rounds=1
            quick
        elif [[ $1 = --* ]] && [ -n "${option[${1#--}]:-}" ] && [ $# -gt 1 ]; then
            printf -v "${option[${1#--}]}" %s "$2"
            shift
        else
            bench_usage
        fi
        shift
    done
    peers=${peers//,/ }
    for peer in $peers; do
        [[ $known = *" $peer "* ]] || { say "$suite: there is no peer $peer, choose of$known" && exit 2; }
    done
    if [[ " $peers " = *" guise "* ]] && [ ! -x "$GUISE" ]; then
        say "$GUISE is not there: run make first, or choose --peers"
        exit 1
    fi
}

compile() # SOURCE OUT OPTION...
{
    gcc -std=gnu17 -D_GNU_SOURCE -Wall -Wextra -O2 -I "$bench/workloads" -o "$2" "$1" "${@:3}"
}

bench_begin()
{
    mkdir -p "$out"
    exec 9>"$out/lock"
    flock -n 9 || { say "another benchmark runs: its measurements and these would be worthless" && exit 1; }
    compile "$bench/watch.c" "$out/watch" || exit 1
}

# watch's lines to rows.
bench_rows() # PEER
{
    tr -d '\r' | awk -F '\t' -v OFS='\t' -v round="$round" -v peer="$1" '
        function fail(why) { print round, peer, "failed", "-", why, "-"; failed = 1 }
        $2 == "STAMP" { print round, peer, $3, "s", $1, "-" }
        $2 == "START" { start[$3] = $1 }
        $2 == "FAILED" { fail($3) }
        $2 == "DONE" { done = 1 }
        $2 ~ /^EXIT / { status = substr($2, 6) }
        $2 ~ /^MEMORY [1-9]/ { print round, peer, "memory", "MB", substr($2, 8) / 1024, "-" }
        NF >= 3 && match($2, /, [^ ,]+$/) {
            name = substr($2, 1, RSTART - 1)
            print round, peer, name, substr($2, RSTART + 2), $3, (NF > 3 ? $4 : "-")
            if (name in start) {
                host = $1 - start[name]
                if (host - $3 > 0.3 + host / 10 || $3 - host > 0.3 + host / 10)
                    fail(name " took " host " s by the clock of the host and " $3 " s by that of the guest")
            }
        }
        END { if (!done && !failed) fail(status == 124 ? "time was up" : "it ended early, status " status) }'
}

bench_measure() # FUNCTION PEER: rows into $work/rows; status 1 if it did not even boot
{
    "$1" "$2" 2>"$out/$suite-$2.err" | tee "$out/$suite-$2.log" | bench_rows "$2" >"$work/rows"
    grep -qv "${tab}failed$tab\|${tab}memory$tab" "$work/rows"
}

# Some boots of QEMU's microvm stop when the kernel cannot measure the TSC: QEMU may try again, guise may not.  What fails
# later is told, and what was measured before is kept.
bench_rounds() # FUNCTION
{
    local peer tries
    results=$out/$suite.tsv
    started=$SECONDS
    : >"$results"
    for ((round = 1; round <= rounds; round++)); do
        for peer in $peers; do
            say "$suite, round $round of $rounds: $peer"
            tries=1
            [[ $peer != qemu* ]] || tries=3
            while ! bench_measure "$1" "$peer" && [ $((tries -= 1)) -gt 0 ]; do say "  $peer again"; done
            cat "$work/rows" >>"$results"
            grep -q "${tab}failed$tab" "$work/rows" || continue
            sed -n "s/.*${tab}failed$tab-$tab\(.*\)$tab-$/  failed: \1/p" "$work/rows" >&2
            tail -n 3 "$out/$suite-$peer.err" | sed 's/^/  /' >&2
        done
    done
}

bench_report()
{
    python3 "$bench/report.py" table "$suite" --peers "$peers" --seconds $((SECONDS - started))
    exit
}

# --- machines with names: those who measure them say
#
#   machines_begin [IMAGE]          a store and sockets of their own, with the image `tiny` unless told another; whatever is there in the
#                                   end goes, after the function `machines_end`
#   machine_start NAME OPTION...    launches one of that image
#   guest_program NAME <SOURCE      a C program, as $work/NAME
#   machine_give NAME PROGRAM...    such programs, to its /root

machines_end() { :; }

machines_gone()
{
    machines_end
    "$GUISE" ls -a --json | grep -o '"name": "[^"]*"' | cut -d'"' -f4 | xargs -r "$GUISE" rm --force >/dev/null
    rm -rf "$work"
}

machines_begin() # [IMAGE]
{
    machines_image=${1:-tiny}
    export GUISE_DATA=$work/data GUISE_RUNTIME=$work/run
    trap machines_gone EXIT
    if [ $# -eq 0 ]; then
        tiny_image tiny || exit 1
    else # of the cache: the image is there, machines are not
        mkdir -p "$GUISE_DATA" && ln -s "$GUISE_CACHE/data/images" "$GUISE_DATA/images"
    fi
}

machine_start() # NAME OPTION...
{
    local name=$1
    shift
    "$GUISE" launch "$machines_image" --name "$name" "$@" >/dev/null || exit 1
}

guest_program() # NAME <SOURCE
{
    cat >"$work/$1.c"
    gcc -O2 -static -o "$work/$1" "$work/$1.c" || exit 1
}

machine_give() # NAME PROGRAM...
{
    local name=$1 program
    shift
    for program; do "$GUISE" cp "$work/$program" "$name:/root/$program" || exit 1; done
}

use_qemu() # 12|backports: what with-qemu runs from now on
{
    local release=bookworm-backports
    [ "$1" = backports ] || release=bookworm
    export QEMU_ROOT=$GUISE_CACHE/qemu-${release#bookworm-}
    packages_extract "$QEMU_ROOT" $release qemu-system-x86
}

with_libraries() # ROOT: `loader`, the words before a program of unpacked packages
{
    loader=("$1/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" --library-path "$1/lib/x86_64-linux-gnu:$1/usr/lib/x86_64-linux-gnu")
}

# One guest of scripts/run-guest.sh's, watched: guise's own or with-qemu's.
watch_guest() # LIMIT PEER KERNEL INITRD COMMAND OPTION...
{
    local program=$GUISE
    [[ $2 != qemu* ]] || program=$here/with-qemu
    GUISE=$program "$out/watch" -t "$1" "$top/scripts/run-guest.sh" --kernel "$3" --image "$4" "$5" -- --timeout "$1" "${@:6}"
}
