"""The host's side of share.sh's locks.  Usage: share-host.py DIRECTORY; prints ok and not ok lines."""
import fcntl
import os
import sys
import time

os.chdir(sys.argv[1])
failures = 0


def check(name, condition, why=""):
    global failures
    failures += not condition
    print(f"ok {name}" if condition else f"not ok {name} {why}", flush=True)


def wait_for(name):
    for _ in range(3000):
        if os.path.exists(name):
            return True
        time.sleep(0.02)
    return False


def touch(name):
    with open(name, "w"):
        pass


def try_lock(f):
    try:
        fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


check("the-guest-locks", wait_for("guest-has-it"))
with open("shared-lock", "r+") as f:
    check("the-guest's-lock-holds-here", not try_lock(f))
    touch("host-saw-it")
    check("the-guest-lets-go", wait_for("guest-let-go") and try_lock(f))
    touch("host-has-it")
    wait_for("guest-waits")
    time.sleep(0.5)
    touch("host-let-go")
    fcntl.lockf(f, fcntl.LOCK_UN)
sys.exit(failures > 0)
