#!/bin/bash
# Virtual machines as things with names: created, used, stopped, killed, started again, removed.
. "$(dirname "$(readlink -f "$0")")/lib.sh"
. "$here/machines.sh"

# soon NAME COMMAND...: comes true within ten seconds
soon() {
    local name=$1
    shift
    for _ in $(seq 100); do
        if "$@" >/dev/null 2>&1; then ok "$name" && return; fi
        sleep 0.1
    done
    not_ok "$name" "not after ten seconds"
}
field() { # NAME KEY: of inspect
    guise inspect "$1" | python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$2"
}
is_state() { [ "$(field "$1" state)" = "$2" ]; }

# --- run IMAGE ----------------------------------------------------------------------------------------------------
status "a command that is not there" 127 guise run tiny --rm -- nonesuch
status=0
got=$(printf 'in\n' | guise run tiny --rm --cwd --env A=b -- sh -c 'cat; echo "$A $PWD" >&2; echo made >made; exit 7' 2>"$work/stderr") || status=$?
if [ "$status $got" = "7 in" ] && grep -qx "b $work" "$work/stderr" && [ "$(cat made)" = made ]; then
    ok "stdin, stdout, stderr, status, environment and this directory"
else
    not_ok "stdin, stdout, stderr, status, environment and this directory" "$status '$got' $(tail -n 1 "$work/stderr")"
fi
status "time that runs out" 6 guise run tiny --rm --timeout 3 -- sleep 100
is "throw-away ones are gone" "" ls "$GUISE_DATA/vms"

"$GUISE" run tiny --rm --name doomed -- sleep 100 2>"$work/stderr" &
soon "it is listed" is_state doomed running
kill -9 $!
soon "one whose command was killed ends, and is swept away" eval '! guise inspect doomed'
rm -f made

is "in the background" bg guise run tiny --detach --name bg -- sh -c 'echo one; sleep 1; echo two >&2; exit 7'
is "its output is followed to its end" "one
two" guise logs -f bg
soon "it has ended" is_state bg stopped
is "its status is kept" 7 field bg exit_status
if guise ls -a | grep -q '^bg .*stopped (7) '; then ok "and shown"; else not_ok "and shown" "$(guise ls -a)"; fi

# --- launch, and a life -------------------------------------------------------------------------------------------
is "launch prints the name" srv guise launch tiny --name srv --label role=test --publish 0:80
if guise ls | grep -Eq '^srv +running .* [1-9][0-9]*:80$'; then ok "ls has the port that was chosen"; else not_ok "ls has the port that was chosen" "$(guise ls)"; fi
is "its own init is the first process" init guise exec srv -- sh -c 'cat /proc/1/comm'
is "it has its name" srv guise exec srv -- hostname
status "a name is taken" 5 guise launch tiny --name srv
status "what runs is not removed" 5 guise rm srv
status "what runs is not started" 5 guise start srv
guise exec srv -- sh -c 'echo kept >/root/file; sync'
presses() { guise exec srv -- cut -c1-9 /sys/firmware/acpi/interrupts/ff_pwr_btn | tr -d ' '; }
guise exec srv -- modprobe button
before=$(presses)
python3 - "$GUISE_RUNTIME/srv.ctl" >"$work/stdout" 2>&1 <<'PY'
import json, socket, sys, time
def dial():
    s = socket.socket(socket.AF_UNIX)
    s.connect(sys.argv[1])
    return s
def ask(line):
    s = dial()
    s.sendall(line)
    return json.loads(s.makefile().readline())
crowd = []
for i in range(500):  # thousands are in the unit test
    s = dial()
    s.send(b'{"command": "sta')
    crowd.append(s)
assert ask(b'{"id": 5, "command": "status"}\n')["result"]["state"] == "running"
assert ask(b'{"command": "info"}\n')["result"]["configuration"]["options"]["label"] == ["role=test"]
assert ask(b'{"command": "connect", "arguments": {"port": 99}}\n')["error"]["code"] == "failed"
assert ask(b'{"command": "connect", "arguments": {"port": "x"}}\n')["error"]["code"] == "bad-request"
assert ask(b'\xff\xfe\n')["error"]["code"] == "bad-request"
stats = ask(b'{"command": "stats"}\n')["result"]
assert stats["cpu_user_us"] > 0 and stats["memory_rss_bytes"] > 1 << 20
assert stats["disk_read_bytes"] > 1 << 16 and stats["disks"][0]["reads"] > 0 and stats["disks"][0]["errors"] == 0
assert len(stats["nets"]) == 1
def publish(action, port=None):
    return ask(json.dumps({"command": "publish", "arguments": {"action": action, "port": port}}).encode() + b"\n")
port = publish("add", "0:80")["result"]
assert port["host_port"] > 0 and port["guest_port"] == 80 and port["host_ip"] == "127.0.0.1"
assert publish("list")["result"]["ports"][1:] == [port]
word = "%d:80" % port["host_port"]
assert publish("add", word)["error"]["code"] == "wrong-state"
assert publish("remove", word)["result"] == port
assert publish("remove", word)["error"]["code"] == "not-found"
assert publish("add", "x")["error"]["code"] == publish("move")["error"]["code"] == "bad-request"
assert ask(b'{"command": "balloon", "arguments": {"bytes": 67108864}}\n')["result"]["target_bytes"] == 64 << 20
for i in range(100):
    balloon = ask(b'{"command": "stats"}\n')["result"]["balloon"]
    if balloon["actual_bytes"] == 64 << 20 and balloon["guest"]:
        break
    time.sleep(0.1)
assert balloon["target_bytes"] == balloon["actual_bytes"] == 64 << 20, balloon
assert 0 < balloon["guest"]["free_bytes"] < balloon["guest"]["total_bytes"] <= 512 << 20, balloon
assert ask(b'{"command": "balloon", "arguments": {"bytes": 536870912}}\n')["error"]["code"] == "bad-request"
assert ask(b'{"command": "balloon", "arguments": {"bytes": 0}}\n')["result"]["target_bytes"] == 0
assert "init runs" in ask(b'{"command": "log"}\n')["result"]["serial"]
assert len(ask(b'{"command": "log", "arguments": {"bytes": 5}}\n')["result"]["serial"]) == 5
assert ask(b'{"command": "stop", "arguments": {"mode": "acpi"}}\n')["result"]["mode"] == "acpi"
print("good")
PY
if grep -qx good "$work/stdout"; then ok "the control socket answers in a crowd"; else not_ok "the control socket answers in a crowd" "$(tail -n 1 "$work/stdout")"; fi
is "the power button is pressed" "$((before + 1))" presses
status "stop shuts it down" 0 guise stop srv
is "it is stopped" stopped field srv state
status "it is started again" 0 guise start srv
is "its disk is its own" kept guise exec srv -- cat /root/file
if guise logs srv | tr -d '\r' | grep -q 'init runs'; then ok "its serial port is logged"; else not_ok "its serial port is logged" "$(guise logs srv | wc -c) bytes"; fi

kill -STOP "$(field srv pid)"
begun=$(date +%s%N)
if guise ls | grep -q '^srv  *running' && [ $((($(date +%s%N) - begun) / 1000000)) -lt 1200 ]; then
    ok "ls waits for one that hangs once"
else
    not_ok "ls waits for one that hangs once" "$((($(date +%s%N) - begun) / 1000000)) ms"
fi
kill -CONT "$(field srv pid)"

kill -9 "$(field srv pid)"
soon "one that was killed has crashed" is_state srv crashed
status "and does not answer" 125 guise exec srv -- true
status "and starts again" 0 guise start srv
is "with what it had flushed" kept guise exec srv -- cat /root/file
if guise events srv | grep -q 'crashed.*died'; then ok "and the event tells"; else not_ok "and the event tells" "$(guise events srv | tail -n 3)"; fi
"$GUISE" events srv --follow --json >"$work/followed" &
follower=$!
status "kill cuts the power" 0 guise kill srv
soon "events are followed" grep -q switched-off "$work/followed"
kill $follower
seqs=$(grep -o '"seq":[0-9]*' "$work/followed" | cut -d: -f2 | tr '\n' ' ')
if [ "$seqs" = "$(seq -s ' ' "$(wc -l <"$work/followed")") " ]; then ok "events are numbered without a gap"; else not_ok "events are numbered without a gap" "$seqs"; fi
status "an image in use is kept" 5 guise image rm tiny
status "rm removes it" 0 guise rm srv bg
is "nothing is left" "" sh -c 'ls "$GUISE_DATA/vms" "$GUISE_RUNTIME" | grep -v :'

# --- what cannot start ------------------------------------------------------------------------------------------------
status "a guest that does not come up" 125 guise run tiny --rm --append "root=/dev/nowhere" --kernel "$0" -- true
is "leaves nothing" "" ls "$GUISE_DATA/vms"
finish
