#!/bin/bash
# How long copies of a running machine take, what memory they cost, what a fork costs the machine, and how long
# `guise run IMAGE --warm -- true` takes.
#
#   bench/fork.sh [IMAGE]         a busybox on Debian's kernel unless told; COPIES=10 at a time, ROUNDS=10
#
# "running": from the beginning of the command until a copy's CPUs run, by its event log; "ready": until its agent has told it who
# it is.  Memory is what only the processes of one copy have (Private_Clean and Private_Dirty of /proc/PID/smaps), helpers
# included, when it is ready and has done nothing else; and its proportional share (PSS).
# shellcheck source=bench/lib.sh
. "$(dirname "$0")/lib.sh"
copies=${COPIES:-10} rounds=${ROUNDS:-10}
machines_begin ${1:+"$1"}
image=$machines_image

machine_start forked
"$GUISE" exec forked -- sh -c 'mkdir -p /dev/shm; mount | grep -q " /dev/shm " || mount -t tmpfs -o size=90% none /dev/shm'

speed() # NAME: seconds that the machine takes to compute, and to write 64 MiB
{
    "$GUISE" exec forked -- sh -c 'head -c 64m /dev/zero >/dev/shm/x; for i in 1 2; do cat /proc/uptime | cut -d" " -f1; [ $i = 2 ] || awk "BEGIN { for (i = 0; i < 3000000; i++) x = x * 1.1 + i }"; done
        head -c 64m /dev/zero >/dev/shm/x; cut -d" " -f1 /proc/uptime' |
        xargs | awk -v name="$1" '{ printf "%-34s computes %.2f s, writes 64 MiB %.2f s\n", name, $2 - $1, $3 - $2 }'
}
speed "the machine before"
speed "and again"

python3 - "$GUISE" "$copies" "$rounds" "$image" <<'PY'
import datetime, json, os, re, subprocess, sys, time
guise, copies, rounds, image = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
data = os.environ['GUISE_DATA']

def children(pid):
    found = [pid]
    for entry in os.listdir('/proc'):
        if entry.isdigit():
            try:
                parent = int(open(f'/proc/{entry}/stat').read().rsplit(')', 1)[1].split()[1])
            except OSError:
                continue
            if parent == pid:
                found += children(int(entry))
    return found

def memory(name):
    pid = json.loads(subprocess.check_output([guise, 'inspect', name]))['pid']
    sums = {'Private_Clean': 0, 'Private_Dirty': 0, 'Pss': 0}
    for process in children(pid):
        for line in open(f'/proc/{process}/smaps_rollup'):
            word = line.split(':')[0]
            if word in sums:
                sums[word] += int(line.split()[1])
    return (sums['Private_Clean'] + sums['Private_Dirty']) / 1024, sums['Pss'] / 1024

def event(name, wanted):
    for line in open(f'{data}/vms/{name}/events.log'):
        e = json.loads(line)
        if e['event'] == wanted:
            return datetime.datetime.fromisoformat(e['time'].replace('Z', '+00:00')).timestamp()

def fork(n):
    begun = time.time()
    names = subprocess.check_output([guise, 'fork', 'forked', '-n', str(n), '-q']).decode().split()
    ended = time.time()
    return names, [(event(x, 'started') - begun) * 1000 for x in names], (ended - begun) * 1000

def middle(values):
    return sorted(values)[len(values) // 2]

running, ready, private, share = [], [], [], []
for _ in range(rounds):
    names, started, took = fork(1)
    running += started
    ready.append(took)
    used = memory(names[0])
    private.append(used[0])
    share.append(used[1])
    subprocess.check_call([guise, 'rm', '--force', *names], stdout=subprocess.DEVNULL)
print(f'one copy, {rounds} times: running after {middle(running):.0f} ms (least {min(running):.0f}, most {max(running):.0f}), '
      f'ready after {middle(ready):.0f} ms (least {min(ready):.0f}, most {max(ready):.0f})')
print(f'its memory: {middle(private):.1f} MiB private, {middle(share):.1f} MiB PSS')
names, started, took = fork(copies)
print(f'{copies} copies at once: running after {max(started) / copies:.0f} ms each, ready after {took / copies:.0f} ms each')
used = [memory(x) for x in names]
print(f'their memory: {middle([u[0] for u in used]):.1f} MiB private, {middle([u[1] for u in used]):.1f} MiB PSS')
subprocess.check_call([guise, 'rm', '--force', *names], stdout=subprocess.DEVNULL)
subprocess.call([guise, 'run', image, '--warm', '--', 'true'])
warm = []
for _ in range(rounds):
    begun = time.time()
    subprocess.check_call([guise, 'run', image, '--warm', '--', 'true'])
    warm.append((time.time() - begun) * 1000)
print(f'run --warm -- true, {rounds} times: {middle(warm):.0f} ms (least {min(warm):.0f}, most {max(warm):.0f})')
PY
"$GUISE" fork forked -q >/dev/null
speed "the machine after a fork"
speed "and again"
