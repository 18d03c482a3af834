#!/bin/bash
# The tables of bench/report.py: medians, ratios, and what a promise that is not kept, a failure and a wrong result lead to.
# The library that User-Mode Linux is run with, bench/uml-ptrace.c.
set -u
top=$(dirname "$(dirname "$(dirname "$(readlink -f "$0")")")")
BENCH_OUT=$(mktemp -d)
export BENCH_OUT
trap 'rm -rf "$BENCH_OUT"' EXIT
failures=0

report() { python3 "$top/bench/report.py" table vm --peers "guise qemu" >"$BENCH_OUT/table" 2>&1; }

measured() # LINE...: round, peer, name, unit, value, check, with commas between
{
    printf '%s\n' "$@" | tr , '\t' >"$BENCH_OUT/vm.tsv"
}

check() # NAME STATUS TEXT: the table has this status and this text
{
    local status=0
    report || status=$?
    if [ $status = "$2" ] && grep -q -- "$3" "$BENCH_OUT/table"; then
        echo "ok $1"
    else
        failures=$((failures + 1))
        echo "not ok $1 status $status, wanted $2 and '$3'"
        sed 's/^/    /' "$BENCH_OUT/table"
    fi
}

first="command to first output"
measured "1,guise,$first,s,0.8,-" "2,guise,$first,s,0.6,-" "3,guise,$first,s,0.7,-" "1,qemu,$first,s,2.1,-"
check "median and ratio" 0 "0.700 s .*3.00 *kept"
python3 -c '
import json, sys
m = json.load(open(sys.argv[1]))["measurements"]["command to first output"]
assert m["peers"]["guise"]["values"] == [0.8, 0.6, 0.7] and m["ratios"]["tcg/guise"] == 3, m' "$BENCH_OUT/vm.json" &&
    echo "ok the same for programs" || { failures=$((failures + 1)) && echo "not ok the same for programs"; }
measured "1,guise,$first,s,0.8,-" "1,qemu,$first,s,1.2,-"
check "a promise that is not kept" 1 "promised $first: guise/tcg <= 0.5; it is 0.67: NOT KEPT"
measured "1,guise,failed,-,time was up,-" "1,qemu,$first,s,1.2,-"
check "guise failed" 1 "FAILED round 1, guise: time was up"
measured "1,guise,$first,s,0.5,-" "1,qemu,failed,-,time was up,-"
check "only QEMU failed" 0 "FAILED round 1, qemu: time was up"
measured "1,guise,random 4 KiB reads,1/s,3000,-" "1,qemu,random 4 KiB reads,1/s,1000,-"
check "a rate: more is better" 0 "3000 1/s *1000 1/s *3.00"
measured "1,guise,sum,s,1,aa" "1,qemu,sum,s,1,bb"
check "a wrong result" 1 "sum gave bb, others aa"

# A tracer that keeps x87 and SSE registers only: 576 bytes, fewer than any host with AVX takes.
cat >"$BENCH_OUT/tracer.c" <<'PROGRAM'
#include <elf.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static int traced(void)
{
    long call = 62, first = getpid();
    int low;
    ptrace(PTRACE_TRACEME, 0, 0, 0);
    __asm__ volatile("movd %3, %%xmm0; syscall; movd %%xmm0, %0"
                     : "=r"(low), "+a"(call)
                     : "D"(first), "r"(1), "S"(SIGSTOP)
                     : "xmm0", "rcx", "r11", "memory");
    return low;
}

int main(void)
{
    static long word = 12345;
    _Alignas(64) unsigned char registers[576];
    struct iovec io = {registers, sizeof registers};
    int status;
    pid_t pid = fork();
    if (pid == 0)
        _exit(traced());
    waitpid(pid, &status, 0);
    if (ptrace(PTRACE_PEEKDATA, pid, &word, 0) != word || ptrace(PTRACE_GETREGSET, pid, NT_X86_XSTATE, &io))
        return 1;
    *(int *)(registers + 160) += 41; /* xmm0 */
    *(long *)(registers + 512) = 3;  /* XSTATE_BV */
    if (ptrace(PTRACE_SETREGSET, pid, NT_X86_XSTATE, &io))
        puts("refused");
    ptrace(PTRACE_CONT, pid, 0, 0);
    waitpid(pid, &status, 0);
    printf("xmm0 is %d\n", WEXITSTATUS(status));
    return 0;
}
PROGRAM
name="a tracer that keeps few of the registers gives them back"
if ! gcc -O2 -o "$BENCH_OUT/tracer" "$BENCH_OUT/tracer.c" ||
    ! gcc -std=gnu17 -D_GNU_SOURCE -O2 -shared -fPIC -o "$BENCH_OUT/uml-ptrace.so" "$top/bench/uml-ptrace.c"; then
    failures=$((failures + 1)) && echo "not ok $name: it does not compile"
elif ! "$BENCH_OUT/tracer" | grep -q refused; then
    echo "skip $name: this host takes them without the library"
elif is=$(LD_PRELOAD=$BENCH_OUT/uml-ptrace.so "$BENCH_OUT/tracer") && [ "$is" = "xmm0 is 42" ]; then
    echo "ok $name"
else
    failures=$((failures + 1)) && echo "not ok $name: $is"
fi
exit $((failures > 0))
