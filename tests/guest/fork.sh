#!/bin/bash
# Copies of a machine that runs: each is what it was at that moment, and from then on another one, and nothing that goes wrong
# harms the machine.
. "$(dirname "$(readlink -f "$0")")/lib.sh"
. "$here/machines.sh"

inside() { guise exec "$1" -- sh -c "$2"; }
running() { guise ls --json | python3 -c 'import json, sys; print(*[m["name"] for m in json.load(sys.stdin)])'; }

guise launch tiny --name vm --cpus 2 --publish 0:80 >"$work/stdout" 2>"$work/stderr" || { not_ok launch "$(tail -n 1 "$work/stderr")" && finish; }
inside vm 'mkdir -p /dev/shm && mount -t tmpfs -o size=90% none /dev/shm; ip addr add 10.0.2.15/24 dev eth0; ip link set eth0 up
sysctl -w net.ipv4.tcp_timestamps=1 >/dev/null; echo before >/root/file; sync; echo unsynced >/root/other'

# A program that fills memory with a pattern and changes it all the time, and says when a byte is not what it has written; and one
# that computes.
cat >"$work/pattern.c" <<'C'
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { WORDS = 1 << 20, STEP = 511 };

int main(int argc, char **argv)
{
    uint64_t *memory = malloc(WORDS * sizeof *memory), round = 0, last = 0;
    struct timespec t;
    int file = open(argv[1], O_WRONLY | O_CREAT, 0600);
    for (size_t i = 0; i < WORDS; i++)
        memory[i] = i * 0x9e3779b97f4a7c15;
    for (;; round++) {
        for (size_t i = 0; i < WORDS; i += STEP) {
            if (memory[i] != (i + (i % STEP == 0) * round) * 0x9e3779b97f4a7c15) {
                fprintf(stderr, "word %zu of round %lu\n", i, round);
                return 1;
            }
            memory[i] = (i + round + 1) * 0x9e3779b97f4a7c15;
        }
        for (size_t i = round % STEP + 1; i < WORDS; i += 8 * STEP)
            if (i % STEP && memory[i] != i * 0x9e3779b97f4a7c15)
                return 1;
        clock_gettime(CLOCK_MONOTONIC, &t);
        uint64_t now = t.tv_sec * 1000000000ull + t.tv_nsec;
        if (now < last) {
            fputs("the clock has gone back\n", stderr);
            return 1;
        }
        last = now;
        usleep(5000);
        {
            char text[24];
            pwrite(file, text, sprintf(text, "%020lu\n", round + 1), 0);
        }
    }
}
C
gcc -O2 -static -w -o "$work/pattern" "$work/pattern.c" || finish
guise cp "$work/pattern" vm:/root/pattern >/dev/null
inside vm 'for i in 1 2; do (/root/pattern /dev/shm/round$i 2>/dev/shm/wrong$i; echo ended >>/dev/shm/wrong$i) >/dev/null 2>&1 & done; sleep 1'
healthy() # NAME: both programs still run and have seen nothing wrong
{
    inside "$1" 'a=$(cat /dev/shm/round1); for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.2; b=$(cat /dev/shm/round1); [ "$b" != "$a" ] && break; done
    [ "$b" != "$a" ] && [ ! -s /dev/shm/wrong1 ] && [ ! -s /dev/shm/wrong2 ] && echo yes'
}

# --- identity -----------------------------------------------------------------------------------------------------
is "copies of a busy machine" "vm-1 vm-2 vm-3" eval 'guise fork vm -n 3 2>"$work/stderr" | xargs'
says "what becomes of published ports is said" "vm keeps its published ports"
is "all of them run" "vm vm-1 vm-2 vm-3" running
each() { for m in vm vm-1 vm-2 vm-3; do inside "$m" "$1"; done; }
is "each has a name" "vm vm-1 vm-2 vm-3" eval 'each hostname | xargs'
is "and a network card's address" 4 eval 'each "cat /sys/class/net/eth0/address" | sort -u | wc -l'
is "and a uuid" 4 eval 'for m in vm vm-1 vm-2 vm-3; do guise inspect $m | grep -o "\"uuid\": \"[^\"]*"; done | sort -u | wc -l'
is "the address in its own network stays" 4 eval 'each "ip addr show eth0" | grep -c "inet 10.0.2.15"'
is "random numbers differ" 4 eval 'each "head -c 16 /dev/urandom | od -An -tx1" | sort -u | wc -l'
is "and those of AF_ALG and uuids" 4 eval 'each "cat /proc/sys/kernel/random/uuid" | sort -u | wc -l'
is "only the machine has published ports" "1 0 0 0" eval 'for m in vm vm-1 vm-2 vm-3; do guise publish $m | wc -l; done | xargs'
# (Linux sets its clock by the real-time clock's seconds, to half of one.)
is "clocks are right" 4 eval "each 'd=\$((\$(date +%s) - $(date +%s))); [ \$d -ge -1 ] && [ \$d -le 20 ] && echo yes' | grep -c yes"
is "uptime goes on" yes eval '[ "$(inside vm-1 "cut -d. -f1 /proc/uptime")" -ge 1 ] && [ "$(inside vm-1 "cut -d. -f1 /proc/uptime")" -lt 600 ] && echo yes'
is "the machine's memory is whole" yes healthy vm
for m in vm-1 vm-2 vm-3; do is "and that of $m" yes healthy "$m"; done

# --- the network --------------------------------------------------------------------------------------------------
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
python3 -m http.server --bind 127.0.0.1 --directory "$work" "$port" >/dev/null 2>&1 &
server=$!
echo hello >"$work/page"
for _ in $(seq 100); do (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break; sleep 0.1; done
is "each reaches the world, with timestamps of TCP's" 4 eval "each 'wget -q -O - http://10.0.2.2:$port/page' | grep -c hello"
kill "$server"
wait "$server" 2>/dev/null # its port is free
status "a port is led to a copy" 0 guise publish vm-1 "$port:80"
status "but not to another one, too" 5 guise publish vm-2 "$port:80"

# --- memory -------------------------------------------------------------------------------------------------------
memory() { guise inspect "$1" | python3 -c 'import json, sys; m = json.load(sys.stdin); print(m["memory_private_bytes"] >> 20, m["memory_shared_bytes"] >> 20)'; }
read -r own shared <<<"$(memory vm-3)"
if [ "$own" -gt 0 ] && [ "$own" -lt 40 ] && [ "$shared" -gt 20 ]; then ok "most memory is shared"; else not_ok "most memory is shared" "$own MiB private, $shared shared"; fi
inside vm-3 'head -c 30m /dev/urandom >/dev/shm/noise'
read -r more _ <<<"$(memory vm-3)"
if [ $((more - own)) -ge 28 ]; then ok "until it is written to"; else not_ok "until it is written to" "$own, then $more MiB"; fi

# --- disks --------------------------------------------------------------------------------------------------------
is "the disk is what it was" "before unsynced" inside vm-1 'cat /root/file /root/other | xargs'
inside vm-1 'echo one >/root/file; sync'
inside vm-2 'echo two >/root/file; sync'
inside vm 'echo zero >/root/file; sync'
is "what one writes no other sees" "zero one two before" eval 'each "cat /root/file" | xargs'

# --- copies of copies, and what goes ---------------------------------------------------------------------------------
is "a copy of a copy" vm-1-1 guise fork vm-1
is "has the copy's disk" one inside vm-1-1 'cat /root/file'
is "and its memory" yes healthy vm-1-1
is "and another one of that" deep guise fork vm-1-1 --name deep
is "whose memory is whole" yes healthy deep
boot_id() { inside again 'cat /proc/sys/kernel/random/boot_id' 2>/dev/null; }
boots_again()
{
    local before after i
    guise fork vm-1-1 --name again -q && before=$(boot_id) && inside again '(sleep 0.1; reboot -f) >/dev/null 2>&1 &'
    for ((i = 0; i < 100; i++)); do
        sleep 0.2
        after=$(boot_id) && [ "$after" != "$before" ] && inside again hostname && return
    done
}
is "a copy's guest may reset" "again again" eval 'boots_again | xargs'
guise rm --force again >/dev/null
status "a name that is taken" 5 guise fork vm --name vm-2
kill -9 "$(guise inspect vm | sed -n 's/.*"pid": \([0-9]*\).*/\1/p')"
sleep 0.3
for m in vm-2 vm-1-1 deep; do is "$m lives on when the machine is killed" yes healthy "$m"; done
status "the machine is removed" 0 guise rm --force vm
guise kill vm-2
status "a copy starts again without it" 0 guise start vm-2
is "from the disk that it has" two inside vm-2 'cat /root/file'
guise kill vm-3
guise start vm-3 >/dev/null 2>&1
is "what was synced before the fork is in another's" before inside vm-3 'cat /root/file'
inside deep 'echo deeper >/root/file; sync'
guise kill vm-1
guise rm vm-1
guise kill deep
guise start deep >/dev/null 2>&1
is "a copy's copy's copy, too" deeper inside deep 'cat /root/file'

# --- snapshots of copies ------------------------------------------------------------------------------------------
status "a copy is saved" 0 guise snapshot vm-1-1 now
inside vm-1-1 'echo later >/root/file; sync'
status "and goes back" 0 guise restore vm-1-1 now
is "as it was" one inside vm-1-1 'cat /root/file'
is "with its memory" yes healthy vm-1-1
is "a restored machine is copied" vm-1-1-1 guise fork vm-1-1
is "with its memory, too" yes healthy vm-1-1-1

# --- the generation ID, for a kernel that knows it: no agent, no disk -------------------------------------------------
kernel=$("$top/scripts/guest-kernel.sh" generic)
cat >"$work/generation-init" <<'SH'
#!/bin/sh
mount -t proc proc /proc
while :; do dmesg -c | grep 'crng reseeded due to virtual machine fork'; cat /proc/sys/kernel/random/uuid; sleep 1; done
SH
chmod +x "$work/generation-init"
if image "$work/generation.cpio" --add "$work/generation-init:begin:755"; then
    guise create --kernel "$kernel" --initrd "$work/generation.cpio" --append 'console=ttyS0 quiet rdinit=/begin' --name generation >/dev/null
    guise start generation >/dev/null 2>&1
    for _ in $(seq 100); do guise logs generation 2>/dev/null | grep -q -- -4 && break || sleep 0.2; done
    is "a machine without an agent is copied" generation-1 guise fork generation
    reseeded() { for _ in $(seq 50); do guise logs "$1" | grep -q 'due to virtual machine fork' && echo yes && break || sleep 0.2; done; }
    is "its kernel starts its random numbers anew" yes reseeded generation-1
    is "that of the machine has no reason to" "" eval 'guise logs generation | grep "due to"'
    guise snapshot generation one >/dev/null
    guise restore generation one
    is "but after a restore" yes reseeded generation
    guise rm --force generation generation-1
else
    not_ok "an image for the generation ID"
fi

# --- what goes wrong ----------------------------------------------------------------------------------------------
for moment in 0.01 0.03 0.06 0.1; do
    guise fork vm-1-1 --name killed >/dev/null 2>&1 &
    sleep "$moment"
    kill -9 $! 2>/dev/null
    wait $! 2>/dev/null
    sleep 0.3
    guise rm --force killed >/dev/null 2>&1
done
is "commands that are killed do the machine no harm" yes healthy vm-1-1
is "and it can be copied afterwards" after eval 'for _ in $(seq 50); do guise fork vm-1-1 --name after 2>"$work/stderr" && break || sleep 0.1; done'
is "as it is" one inside after 'cat /root/file'
guise rm --force after
for moment in 0.02 0.1 0.2; do
    env --default-signal=INT "$GUISE" fork vm-1-1 -n 10 --name many >"$work/stdout" 2>/dev/null &
    sleep "$moment"
    kill -INT $! 2>/dev/null
    wait $! 2>/dev/null
    is "of copies that are interrupted after $moment s those are there that it has told of" "$(sort "$work/stdout" | xargs)" eval 'ls "$GUISE_DATA/vms" | grep "^many" | sort | xargs'
    xargs -r "$GUISE" rm --force <"$work/stdout"
done
mkdir -p "$GUISE_RUNTIME/half-2.ctl/in-the-way"
status "of three copies one fails" 1 guise fork vm-1-1 -n 3 --name half
says "the reason is said" "half-2 has not come up"
is "the others run" "half-1 half-3" eval 'xargs <"$work/stdout"'
is "and it is not there" "" eval 'ls "$GUISE_DATA/vms" | grep half-2'
rm -r "$GUISE_RUNTIME/half-2.ctl"
guise rm --force half-1 half-3

if mkdir -p full && mount -t tmpfs -o size=60M,mode=700 none full 2>/dev/null; then
    (
        export GUISE_DATA=$work/full GUISE_RUNTIME=$work/run-full
        rm -rf "$work/tiny"
        tiny_image tiny && guise launch tiny --name small >/dev/null 2>&1
        inside small 'echo here >/root/file; sync'
        head -c 60M /dev/zero >full/filler 2>/dev/null
        status "a full disk" 1 guise fork small
        says "is said" "No space left"
        is "and leaves nothing" small eval 'ls "$GUISE_DATA/vms" | xargs'
        rm full/filler
        is "the machine runs on" here inside small 'cat /root/file'
        is "and is copied when there is room" small-1 guise fork small
        is "with its disk" here inside small-1 'cat /root/file'
        guise kill small small-1
        exit $((failures > 0))
    ) || failures=$((failures + 1))
    umount full
else
    skip "a full disk" "nothing can be mounted here"
fi

status "a machine that is not there" 4 guise fork vm-4
guise kill vm-2
status "is not forked" 5 guise fork vm-2
says "with the reason" "guise start vm-2"
mkdir shared
guise launch tiny --name sharing --share shared:/mnt >/dev/null 2>&1
echo hello >shared/file
cat >waits.sh <<'S'
exec 3</mnt/file
while [ ! -e /root/go ]; do sleep 0.1; done
cat <&3 >/root/new
mv /root/new /root/out
S
guise cp waits.sh sharing:/root/waits.sh
guise exec sharing -- sh -c 'sh /root/waits.sh >/dev/null 2>&1 & sleep 0.3'
is "with a shared folder, which copies share" sharing-1 guise fork sharing
for m in sharing sharing-1; do
    guise exec $m -- sh -c "echo $m >/mnt/from-$m; touch /root/go"
    is "$m has open what was open" hello guise exec $m -- sh -c 'while [ ! -e /root/out ]; do sleep 0.1; done; cat /root/out'
done
is "both write to it" "sharing sharing-1" eval 'cat shared/from-sharing shared/from-sharing-1 | xargs'
guise rm --force sharing-1
guise rm --force sharing

# --- translated code ------------------------------------------------------------------------------------------------
# Copies execute what its engine has translated, until they change it: while that has room, while
# it is evicted all the time, and after the machine has gone on.
work_hard='for i in 1 2; do awk "BEGIN { for (i = 0; i < 6000; i++) s = s sprintf(\"%c\", 65 + i % 26); print s }" | gzip | gunzip | sed "s/A/b/g" | tr B-D x-z | sort | md5sum; find /bin /sbin 2>/dev/null | sort | head -n 60 | md5sum; done | md5sum'
# What a copy can go back to is mapped once more, until it has.
mapped() # PID: MiB
{
    python3 -c 'import sys
print(sum(int(b, 16) - int(a, 16) for a, b in (l.split()[0].split("-") for l in open(sys.argv[1]) if "guise-code" in l and " r-xp " in l)) >> 20)' "/proc/$1/maps"
}
rested() # NAME: soon
{
    local pid
    pid=$(guise inspect "$1" | grep -o '"pid": [0-9]*' | grep -o '[0-9]*')
    for _ in $(seq 100); do
        [ "$(mapped "$pid")" -lt 18 ] && echo yes && return
        sleep 0.1
    done
    mapped "$pid"
}
for cache in 18M 2M; do
    guise launch tiny --name one --code-cache $cache >/dev/null
    guise cp "$work/pattern" one:/root/pattern >/dev/null
    inside one 'mkdir -p /dev/shm && mount -t tmpfs -o size=90% none /dev/shm; for i in 1 2; do (/root/pattern /dev/shm/round$i 2>/dev/shm/wrong$i; echo ended >>/dev/shm/wrong$i) >/dev/null 2>&1 & done; sleep 0.3'
    expected=$(inside one "$work_hard")
    guise fork one -n 2 -q >/dev/null
    is "a copy computes what the machine does (cache of $cache)" "$expected" inside one-1 "$work_hard"
    is "the machine goes on" "$expected" inside one "$work_hard"
    guise fork one -q >/dev/null
    guise fork one-1 -q >/dev/null
    is "a copy made later does" "$expected" inside one-3 "$work_hard"
    is "so does a copy of a copy" "$expected" inside one-1-1 "$work_hard"
    for name in one one-2 one-1-1; do is "$name is well" yes healthy $name; done
    guise rm --force one-1 one-2 one-3 one-1-1 >/dev/null
    inside one 'killall pattern; sleep 0.2'
    guise fork one -q >/dev/null
    [ $cache = 2M ] || is "a copy that rests has what it was given" yes rested one-1
    is "and goes on" "$expected" inside one-1 "$work_hard"
    sleep 0.5
    guise fork one-1 -q >/dev/null
    is "so does a copy of it" "$expected" inside one-1-1 "$work_hard"
    guise rm --force one one-1 one-1-1 >/dev/null
done

# Of several CPUs each begins with what any of them has translated.  Programs go on on all of them: one writes code on one CPU and
# runs it on another, another one computes; the kernel patches itself (a static key) in front of all of them.
cat >"$work/patch.c" <<'C'
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static _Atomic uint32_t written, run;
static uint8_t *code;

static void stay_on(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
}

static void *reader(void *unused)
{
    stay_on(1);
    for (uint32_t n = 1;; n++) {
        while (written != n)
            sched_yield();
        uint32_t a = 0, c = 0;
        __asm__ volatile("cpuid" : "+a"(a), "+c"(c) : : "rbx", "rdx", "memory");
        uint32_t got = ((uint32_t (*)(void))(void *)code)();
        if (got != n) {
            fprintf(stderr, "%u instead of %u\n", got, n);
            _exit(1);
        }
        run = n;
    }
}

int main(int argc, char **argv)
{
    pthread_t thread;
    int file = open(argv[1], O_WRONLY | O_CREAT, 0600);
    code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(code, "\xb8\0\0\0\0\xc3", 6); /* mov eax, n; ret */
    pthread_create(&thread, NULL, reader, NULL);
    stay_on(0);
    for (uint32_t n = 1;; n++) {
        char text[24];
        memcpy(code + 1, &n, 4);
        written = n;
        while (run != n)
            sched_yield();
        usleep(1000);
        pwrite(file, text, sprintf(text, "%020u\n", n), 0);
    }
}
C
gcc -O2 -static -w -o "$work/patch" "$work/patch.c" -lpthread || finish
each_cpu() # NAME CPUS: what work_hard says there on each, at the same time
{
    inside "$1" "for c in \$(seq 0 $(($2 - 1))); do taskset -c \$c sh /root/work & done; wait" | sort | uniq -c
}
echo "$work_hard" >"$work/work"
key='for i in 1 2 3; do sysctl -w kernel.sched_schedstats=1 kernel.sched_schedstats=0; done >/dev/null && sysctl -n kernel.sched_schedstats'
patches() # NAME: what is patched is run
{
    inside "$1" 'a=$(cat /dev/shm/round2); for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.2; [ "$(cat /dev/shm/round2)" != "$a" ] && echo yes && break; done'
}
for cpus in 2 4; do
    guise launch tiny --name some --cpus $cpus >/dev/null
    for program in pattern patch work; do guise cp "$work/$program" some:/root/$program >/dev/null; done
    inside some 'mkdir -p /dev/shm && mount -t tmpfs -o size=90% none /dev/shm; i=0; for p in pattern patch; do i=$((i + 1)); (/root/$p /dev/shm/round$i 2>/dev/shm/wrong$i; echo ended >>/dev/shm/wrong$i) >/dev/null 2>&1 & done; sleep 0.3'
    expected=$(each_cpu some $cpus)
    guise fork some -n 2 -q >/dev/null
    is "each CPU of a copy computes what the machine does ($cpus CPUs)" "$expected" each_cpu some-1 $cpus
    is "the copy's kernel patches itself" 0 inside some-1 "$key"
    is "and the machine's" 0 inside some "$key"
    is "the machine goes on" "$expected" each_cpu some $cpus
    guise fork some -q >/dev/null
    guise fork some-1 -q >/dev/null
    is "a copy made later computes" "$expected" each_cpu some-3 $cpus
    is "so does a copy of a copy" "$expected" each_cpu some-1-1 $cpus
    for name in some some-1 some-2 some-1-1; do
        is "$name is well" yes healthy $name
        is "what one of its CPUs writes another one runs" yes patches $name
    done
    guise rm --force some some-1 some-2 some-3 some-1-1 >/dev/null
done

# --- clones -------------------------------------------------------------------------------------------------------
is "one that does not run is cloned" twin guise clone vm-2 twin
status "not one that runs" 5 guise clone vm-1-1 other
says "which is forked" "guise fork vm-1-1"
guise start vm-2 >/dev/null 2>&1
guise start twin >/dev/null 2>&1
is "with its disk" two inside twin 'cat /root/file'
is "and a name" twin inside twin hostname
inside twin 'echo twin >/root/file; sync'
is "which is its own from then on" two inside vm-2 'cat /root/file'
is "and has another address" 2 eval 'for m in vm-2 twin; do inside $m "cat /sys/class/net/eth0/address"; done | sort -u | wc -l'
# --- warm ---------------------------------------------------------------------------------------------------------
guise kill vm-2 twin vm-1-1 vm-1-1-1
warm() { guise run tiny --warm "$@"; }
is "run --warm boots the first time" 1 eval 'warm -- cat /proc/sys/kernel/random/boot_id | wc -l'
is "and leaves one that stands by" 1 eval 'ls "$GUISE_DATA/vms" | grep -c "^warm-"'
is "which is parked" 1 eval 'guise ls | grep -c "^warm-.* parked "'
standing_by() { find "$GUISE_DATA/vms" -mindepth 1 -maxdepth 1 -name 'warm-*' -printf '%f\n'; }
by=$(standing_by)
is "from then on it is copied" "$by" eval 'for _ in 1 2 3; do warm -- true; done; ls "$GUISE_DATA/vms" | grep "^warm-"'
is "with random numbers, names and addresses of their own" "3 3 3" eval 'for _ in 1 2 3; do warm -- sh -c "head -c 16 /dev/urandom | od -An -tx1; hostname; cat /sys/class/net/eth0/address"; done >all
for i in 1 2 0; do awk "NR % 3 == $i" all | sort -u | wc -l; done | xargs'
is "the disk is the image's" "" eval 'warm -- sh -c "echo x >/root/x; sync"; warm -- cat /root/x'
status "the status is the command's" 3 warm -- sh -c 'exit 3'
is "a name" called warm --name called -- hostname
is "other options are another machine" 2 eval 'warm --memory 256M -- true; ls "$GUISE_DATA/vms" | grep -c "^warm-"'
for size in 192M 200M 208M; do warm --memory "$size" -- true; done
is "there are four at most" 4 eval 'ls "$GUISE_DATA/vms" | grep -c "^warm-"'
name=$(standing_by | head -n 1)
status "one that stands by is not saved" 5 guise snapshot "$name"
"$GUISE" run tiny --warm -- sleep 100 2>/dev/null &
sleep 1
kill -9 $!
wait $! 2>/dev/null
for moment in 0.01 0.03 0.06; do
    "$GUISE" run tiny --warm -- true >/dev/null 2>&1 &
    sleep "$moment"
    kill -9 $! 2>/dev/null
    wait $! 2>/dev/null
done
left() { find "$GUISE_DATA/vms" -mindepth 1 -maxdepth 1 -printf '%f\n' | grep -vE "^(\.|warm-|vm-|half-|twin|deep)"; }
for _ in $(seq 50); do guise ls >/dev/null && left >/dev/null || break; sleep 0.2; done # a process ends when it has begun
is "of commands that are killed nothing is left" "" left
status "shared folders are refused" 2 warm --share shared:/mnt -- true
standing_by | xargs "$GUISE" rm --force
is "they are taken away" 0 eval 'ls "$GUISE_DATA/vms" | grep -c "^warm-"'
finish
