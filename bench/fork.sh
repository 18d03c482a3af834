#!/bin/bash
# How long copies of a running machine take, what memory they cost, what a fork costs the machine, and how long
# `guise run IMAGE --warm -- true` takes.
#
#   bench/fork.sh [IMAGE]         a busybox on Debian's kernel unless told; CPUS=1 of a machine, COPIES=10 at a time, ROUNDS=10;
#                                 exit status 1 when a copy costs more than MOST_MIB of memory, 6 unless
#                                 told, and 2 for each CPU but the first
#
# "running": from the beginning of the command until a copy's CPUs run, by its event log; "ready": until its agent has told it who
# it is.  Memory is what the host has less for each of COPIES more copies that are ready and have done nothing else for a second: a memory
# cgroup counts all that their processes have it allocate, helpers, page tables and the kernel's own structures included, and says
# how much of it is the cache of files; where there can be none, the host's own figures (/proc/meminfo) do, which others
# change as well.  Beside it stands what only the processes of one copy have (Private_Clean and Private_Dirty of /proc/PID/smaps).
# shellcheck source=bench/lib.sh
. "$(dirname "$0")/lib.sh"
cpus=${CPUS:-1} copies=${COPIES:-10} rounds=${ROUNDS:-10}
machines_begin ${1:+"$1"}
image=$machines_image

machine_start forked --cpus "$cpus"
"$GUISE" exec forked -- sh -c 'mkdir -p /dev/shm; mount | grep -q " /dev/shm " || mount -t tmpfs -o size=90% none /dev/shm'

speed() # NAME: seconds that the machine takes to compute, and to write 64 MiB
{
    "$GUISE" exec forked -- sh -c 'head -c 64m /dev/zero >/dev/shm/x; for i in 1 2; do cat /proc/uptime | cut -d" " -f1; [ $i = 2 ] || awk "BEGIN { for (i = 0; i < 3000000; i++) x = x * 1.1 + i }"; done
        head -c 64m /dev/zero >/dev/shm/x; cut -d" " -f1 /proc/uptime' |
        xargs | awk -v name="$1" '{ printf "%-34s computes %.2f s, writes 64 MiB %.2f s\n", name, $2 - $1, $3 - $2 }'
}
speed "the machine before"
speed "and again"

python3 - "$GUISE" "$copies" "$rounds" "$image" "$cpus" <<'PY'
import datetime, json, os, re, subprocess, sys, time
guise, copies, rounds, image, cpus = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
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
    sums = {'Private_Clean': 0, 'Private_Dirty': 0}
    for process in children(pid):
        for line in open(f'/proc/{process}/smaps_rollup'):
            word = line.split(':')[0]
            if word in sums:
                sums[word] += int(line.split()[1])
    return sum(sums.values()) / 1024

def start_group():
    """A memory cgroup below ours, for processes to be put into; None: there can be none."""
    words = [line.rstrip().split(':', 2) for line in open('/proc/self/cgroup')]
    mounts = [line.split()[1:4] for line in open('/proc/mounts')]
    for _, controllers, path in words:
        v1 = 'memory' in controllers.split(',')
        for at, kind, options in mounts:
            if kind != ('cgroup' if v1 else 'cgroup2') or (v1 and 'memory' not in options.split(',')) or (not v1 and controllers):
                continue
            group = f'{at}{path}/guise-bench-{os.getpid()}'
            try:
                os.mkdir(group)
            except OSError:
                continue
            if os.path.exists(f'{group}/memory.stat'):
                return group
            os.rmdir(group)

def in_group(group):
    """All in it, and of that the cache of files, in bytes."""
    stat = dict(line.split() for line in open(f'{group}/memory.stat'))
    if 'file' in stat:
        return int(open(f'{group}/memory.current').read()), int(stat['file']) - int(stat['shmem'])
    return int(open(f'{group}/memory.usage_in_bytes').read()), int(stat['cache']) - int(stat['shmem'])

def in_host():
    """The same of the host."""
    host = {line.split(':')[0]: int(line.split()[1]) * 1024 for line in open('/proc/meminfo')}
    files = host['Cached'] + host['Buffers'] - host['Shmem']
    return host['AnonPages'] + host['Shmem'] + host['PageTables'] + host['KernelStack'] + host['SUnreclaim'] + files, files

def event(name, wanted):
    for line in open(f'{data}/vms/{name}/events.log'):
        e = json.loads(line)
        if e['event'] == wanted:
            return datetime.datetime.fromisoformat(e['time'].replace('Z', '+00:00')).timestamp()

def fork(n, group=None):
    enter = (lambda: open(f'{group}/cgroup.procs', 'w').write(str(os.getpid()))) if group else None
    begun = time.time()
    names = subprocess.check_output([guise, 'fork', 'forked', '-n', str(n), '-q'], preexec_fn=enter).decode().split()
    ended = time.time()
    return names, [(event(x, 'started') - begun) * 1000 for x in names], (ended - begun) * 1000

def middle(values):
    return sorted(values)[len(values) // 2]

running, ready = [], []
for _ in range(rounds):
    names, started, took = fork(1)
    running += started
    ready.append(took)
    subprocess.check_call([guise, 'rm', '--force', *names], stdout=subprocess.DEVNULL)
base, _, _ = fork(1) # what all of them have in common is there
group = start_group()
before = (0, 0) if group else in_host()
more, _, _ = fork(copies, group)
time.sleep(1) # they rest
after = in_group(group) if group else in_host()
host = [(b - a) / copies / 1048576 for a, b in zip(before, after)]
subprocess.check_call([guise, 'rm', '--force', *base, *more], stdout=subprocess.DEVNULL)
for _ in range(20 if group else 0):
    try:
        os.rmdir(group)
        break
    except OSError:
        time.sleep(0.1)
print(f'one copy, {rounds} times: running after {middle(running):.0f} ms (least {min(running):.0f}, most {max(running):.0f}), '
      f'ready after {middle(ready):.0f} ms (least {min(ready):.0f}, most {max(ready):.0f})')
names, started, took = fork(copies)
print(f'{copies} copies at once: running after {max(started) / copies:.0f} ms each, ready after {took / copies:.0f} ms each')
time.sleep(1)
used = [memory(x) for x in names]
print(f'memory of a copy, of {copies}, by {"a cgroup" if group else "/proc/meminfo"}: {host[0] - host[1]:.1f} MiB, '
      f'and {host[1]:.1f} MiB cache of files; private by smaps {middle(used):.1f} MiB')
subprocess.check_call([guise, 'rm', '--force', *names], stdout=subprocess.DEVNULL)
subprocess.call([guise, 'run', image, '--cpus', cpus, '--warm', '--', 'true'])
warm = []
for _ in range(rounds):
    begun = time.time()
    subprocess.check_call([guise, 'run', image, '--cpus', cpus, '--warm', '--', 'true'])
    warm.append((time.time() - begun) * 1000)
print(f'run --warm -- true, {rounds} times: {middle(warm):.0f} ms (least {min(warm):.0f}, most {max(warm):.0f})')
if host[0] - host[1] > float(os.environ.get('MOST_MIB', 6 + 2 * (int(cpus) - 1))):
    sys.exit('a copy costs more memory than it may')
PY
status=$?
"$GUISE" fork forked -q >/dev/null
speed "the machine after a fork"
speed "and again"
exit $status
