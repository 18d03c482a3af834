#!/bin/bash
# The command line: exit statuses, which stream says what, help, completion, manual pages.
set -u
top=$(dirname "$(dirname "$(dirname "$(readlink -f "$0")")")")
GUISE=${GUISE:-$top/build/guise}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

check() { # NAME CONDITION...
    local name=$1
    shift
    if "$@"; then
        echo "ok $name"
    else
        failures=$((failures + 1))
        echo "not ok $name status $status, stderr: $(head -n 3 "$work/err" | tr '\n' '|')"
    fi
}

run() { # ARGS...: sets status; $work/out, $work/err
    "$GUISE" "$@" >"$work/out" 2>"$work/err" </dev/null
    status=$?
}

says() { grep -qF -- "$1" "$work/err"; }                   # on stderr
prints() { grep -qF -- "$1" "$work/out"; }                 # on stdout
quiet_out() { [ ! -s "$work/out" ]; }
one_sentence() { [ "$(wc -l <"$work/err")" = 1 ] && grep -q '^guise: ' "$work/err"; }

# NAME SENTENCE ARGS...: refused with status 2, one sentence, nothing on stdout
refused() {
    # shellcheck disable=SC2034 # used by eval
    local name=$1 sentence=$2
    shift 2
    run "$@"
    check "$name" eval '[ $status = 2 ] && one_sentence && says "$sentence" && quiet_out'
}

run
check "no command is wrong usage" eval '[ $status = 2 ] && says "usage: guise COMMAND" && quiet_out'
refused "an unknown command is named" "there is no command 'walk'" walk
refused "an unknown option is named" "there is no option --speed" run --speed
refused "a kernel must be given" "--kernel" run
refused "memory needs a unit" "the size 512 has no unit: write 512M or 512G" run --kernel x --memory 512
refused "memory has a least value" "--memory" run --kernel x --memory 1K
refused "cpus must be a number" "--cpus: 'two' is not a whole number" run --kernel x --cpus two
refused "their most is not less" "--cpus: 1 is not between 2 and 64" run --kernel x --cpus 2,max=1
refused "cpus must not be zero" "--cpus: 0 is not between 1 and" run --kernel x --cpus 0
refused "an engine must exist" "--engine: 'warp' is not one of auto, soft, " run --kernel x --engine warp
refused "direct execution has its words" "--engine: 'soft,direct=maybe' is not one of auto, soft, " run --kernel x --engine soft,direct=maybe
refused "direct execution is the software engine's" "--engine: 'kvm,direct=on' is not one of auto, soft, " run --kernel x --engine kvm,direct=on
refused "a code cache has a least value" "--code-cache: 4K is not between 1M and 1024M" run --kernel x --code-cache 4K
refused "a timeout must not be zero" "--timeout" run --kernel x --timeout 0
refused "a serial line must lead somewhere" "'tape' is not one of stdio, null, file:PATH, log:PATH, socket:PATH" run --kernel x --serial tape
refused "a log item must exist" "--log: 'all' is not one of translate, exc, irq, device" run --kernel x --log all
refused "an option is not given twice" "--memory is given twice" run --kernel x --memory 1G --memory 2G
refused "a command goes behind --" "'true' is one word too many: a command goes behind --" run debian true
for option in --rm --detach --cwd "--env A=b" "--workdir /" "--user me" "--name x" --warm; do
    # shellcheck disable=SC2086 # an option and its value
    refused "$option needs an image" "${option%% *} needs an image" run --kernel x $option
done
refused "a command needs an image" "a command needs an image" run --kernel x -- true
refused "launch needs an image" "an image must be given" launch
refused "launch takes no command" "guise run\` takes a command" launch debian -- true
refused "what to wait for is one of four" "'godot' is not one of none, agent, boot, ssh" launch debian --wait=godot
refused "a root is a directory" "--root: /etc/passwd is not a directory" run --root /etc/passwd
refused "a key is a file" "--ssh-key: /nonexistent cannot be read" launch debian --ssh-key /nonexistent
refused "completion wants a shell" "name a shell: bash, zsh or fish" completion
refused "completion knows three shells" "name a shell: bash, zsh or fish" completion tcsh

# The first line may say which engine was taken.
run run --kernel /nonexistent/vmlinuz
check "a kernel that is not there is one sentence" eval '[ $status = 1 ] && says "/nonexistent/vmlinuz" && says "No such file" && quiet_out'
run run --kernel "$0"
check "a kernel that is none is one sentence" eval '[ $status = 1 ] && says "$0" && quiet_out'
run run --kernel "$0" --serial socket:/nonexistent/console
check "a serial line that cannot be is one sentence" eval '[ $status = 1 ] && quiet_out'

for command in run image create start stop kill restart rm ls inspect info logs console exec shell cp ssh stats events config disk doctor completion help version; do
    run help $command
    check "help $command" eval '[ $status = 0 ] && prints "usage: guise $command" && [ ! -s "$work/err" ]'
    cp "$work/out" "$work/help"
    run $command --help
    check "$command --help is the same" eval '[ $status = 0 ] && cmp -s "$work/out" "$work/help"'
done
run --version
check "version" eval '[ $status = 0 ] && grep -Eqx "guise [0-9]+\.[0-9]+\.[0-9]+" "$work/out"'
"$GUISE" --version >/dev/full 2>"$work/err"
status=$?
check "a full disk under stdout is noticed" eval '[ $status = 1 ] && says "standard output"'

# Every option is in the manual page, and the manual has no option that is not there.  A page may serve several commands;
# what is the machine's is in the page of run.
options_of() { # COMMAND...
    local command
    # shellcheck disable=SC2086 # a command with its sub-command is two words
    for command; do "$GUISE" help $command; done | grep -o -- '--[a-z][a-z-]*' | sort -u | grep -vx -e --help
}
manual_of() { # PAGE
    sed -n '/^# OPTIONS/,/^# [A-NP-Z]/p' "$top/docs/man/guise-$1.1.scd" | grep '^\*' | grep -o -- '--[a-z-]*' | sort -u
}
manual_agrees() { # PAGE COMMAND...
    local page=$1
    shift
    options_of "$@" >"$work/options"
    manual_of "$page" >"$work/manual"
    [ "$page" = run ] || manual_of run >"$work/machine"
    status=0
    check "manual of $page has the options of $*" eval 'grep -vxF -f "$work/manual" -f "$work/machine" "$work/options" >"$work/err"; [ ! -s "$work/err" ]'
    check "manual of $page has no other" eval 'grep -vxFf "$work/options" "$work/manual" >"$work/err"; [ ! -s "$work/err" ]'
}
: >"$work/machine"
manual_agrees run run
manual_agrees create create
manual_agrees launch launch
manual_agrees start start stop kill restart rm
manual_agrees ls ls inspect info stats
manual_agrees logs logs console events
manual_agrees config config
manual_agrees exec exec shell
manual_agrees cp cp
manual_agrees ssh ssh
manual_agrees doctor doctor
manual_agrees image "image build" "image import" "image export" "image ls" "image info" "image tag" "image rm"

manual_agrees disk "disk create" "disk grow" "disk check" "disk copy"

# Images, as far as none has to be made.
export GUISE_DATA=$work/data GUISE_RUNTIME=$work/run
refused "image wants a command" "say what to do" image
refused "an unknown command of image is named, and the nearest" "'image biuld'; did you mean build?" image biuld
refused "image build wants a name" "more is needed" image build
refused "an image has a name of small letters" "'Bad' cannot be the name of an image" image build Bad
refused "a suite is a word" "'a b' cannot be a suite" image build x --suite "a b"
refused "packages are no options" "is not a list of packages" image build x --include "a,-b"
refused "a disk has a least size" "--size" image build x --size 1M
refused "a checksum has 64 digits" "'12' is no SHA-256" image import "$0" --sha256 12
refused "a text is no disk" "is no disk with a file system, no archive and no container image" image import "$0"
run image ls
check "image ls without images is empty" eval '[ $status = 0 ] && quiet_out'
run image ls --json
check "image ls --json is an array" eval '[ $status = 0 ] && prints "[]"'
for command in info rm; do
    run image $command none
    check "image $command of none is status 4" eval '[ $status = 4 ] && one_sentence && says "there is no image" && quiet_out'
done
run image import /nonexistent/disk
check "importing nothing is one sentence" eval '[ $status = 4 ] && one_sentence && says /nonexistent/disk'
check "nothing is left of what failed" eval '! ls "$work"/data/images | grep -q tmp'

# Configuration files and the environment.
cat >"$work/good.toml" <<'TOML'
memory = "96M"
no-reboot = true
publish-nothing = 1
TOML
refused "a key that is no option" "good.toml, line 3: there is no option publish-nothing" config show --config "$work/good.toml"
sed -i '$d' "$work/good.toml"
printf '[create]\nlabel = ["a=b", "c=d"]\n[nonesuch]\n' >>"$work/good.toml"
echo 'x = 1' >>"$work/good.toml"
refused "a table that is no command" "line 6: [nonesuch] is not the name of a command" config show --config "$work/good.toml"
sed -i '5,$d' "$work/good.toml"
run config show --origin --config "$work/good.toml"
check "config show says who says what" eval '[ $status = 0 ] && prints "memory = \"96M\" # $work/good.toml" && prints "no-reboot = true #" && prints "cpus = 1 # unless told" && ! prints label'
run config show create --config "$work/good.toml"
check "a table is for one command" eval '[ $status = 0 ] && grep -qxF "label = [\"a=b\", \"c=d\"]" "$work/out"'
GUISE_MEMORY=64M GUISE_NO_REBOOT=false run config show --config "$work/good.toml"
check "the environment counts more than a file" eval '[ $status = 0 ] && grep -qx "memory = \"64M\"" "$work/out" && grep -qx "no-reboot = false" "$work/out"'
GUISE_MEMORY=64 run run --kernel x
check "a variable is named" eval '[ $status = 2 ] && says "GUISE_MEMORY: the size 64 has no unit"'
mkdir "$work/here" "$work/home"
mkdir -p "$work/home/.config/guise"
echo 'memory = "100M"' >"$work/here/guise.toml"
printf 'memory = "200M"\nappend = "quiet"\n' >"$work/home/.config/guise/guise.toml"
(cd "$work/here" && HOME=$work/home XDG_CONFIG_HOME='' "$GUISE" config show) >"$work/out" 2>"$work/err"
status=$?
check "the directory's file counts more than the user's" eval '[ $status = 0 ] && grep -qx "memory = \"100M\"" "$work/out" && grep -qx "append = \"quiet\"" "$work/out"'
refused "what a file says is checked" "memory: the size 5 has no unit" run --config <(echo 'memory = 5')
refused "show shows" "what can be shown" config hide

# The control socket's commands are in its document, and no others.
sed -n '/^const struct control_command vm_commands/,/^};/s/^    {"\([a-z]*\)".*/\1/p' "$top/src/vm/commands.c" | sort >"$work/options"
sed -n '/^## Commands/,/^## Events/s/^| `\([a-z]*\)` .*/\1/p' "$top/docs/CONTROL.md" | sort >"$work/manual"
status=0
check "docs/CONTROL.md has the commands" eval '[ -s "$work/options" ] && diff "$work/options" "$work/manual" >"$work/err"'
check "no file has a merge's marks in it" eval '! grep -rnE "^(<{7}|>{7}) " "$top/README.md" "$top/docs" "$top/src" "$top/tests" "$top/bench" "$top/scripts" >"$work/err"'

# Named virtual machines, as far as no guest has to run.
export GUISE_DATA=$work/data GUISE_RUNTIME=$work/run
refused "a create needs an image or a kernel" "or a kernel" create
refused "a name has small letters" "--name: 'Bad' is not a name" create --kernel x --name Bad
refused "a label is a pair" "--label: 'x' is not KEY=VALUE" create --kernel x --label x
for command in start stop kill restart rm inspect info logs console; do
    refused "$command wants a name" "the name of a virtual machine must be given" $command
done
run create --kernel /boot/vmlinuz --name alpha --memory 64M --label a=b
check "create prints the name" eval '[ $status = 0 ] && [ "$(cat "$work/out")" = alpha ]'
run create --kernel x --name alpha
check "a name is taken once" eval '[ $status = 5 ] && one_sentence && says "guise start alpha" && quiet_out'
run create --kernel x
check "a name is chosen" eval '[ $status = 0 ] && grep -Eqx "[a-z]+-[a-z]+" "$work/out"'
run rm "$(cat "$work/out")"
check "rm removes" eval '[ $status = 0 ] && [ ! -s "$work/out" ]'
for command in start stop kill restart rm inspect info logs console stats events; do
    run $command alhpa
    check "$command of one that is not there" eval '[ $status = 4 ] && one_sentence && says "did you mean alpha?" && quiet_out'
done
for command in stop kill console; do
    run $command alpha
    check "$command of one that does not run" eval '[ $status = 5 ] && one_sentence && says "guise start alpha" && quiet_out'
done
run ls
check "ls lists those that run" eval '[ $status = 0 ] && ! prints alpha && prints NAME'
run ls -a
check "ls -a lists all" eval '[ $status = 0 ] && grep -Eq "^alpha +created +vmlinuz +64M +- +- +1 " "$work/out"'
run ps --all
check "ps is ls" eval '[ $status = 0 ] && prints alpha'
run ls -a --json
check "ls --json is an array" python3 -c '
import json, sys
a, = json.load(open(sys.argv[1]))
assert a["schema_version"] == 1 and a["name"] == "alpha" and a["state"] == "created" and a["pid"] is None
assert a["memory_bytes"] == 64 << 20 and a["cpus"] == 1 and a["options"]["label"] == ["a=b"] and a["created"].endswith("Z")
' "$work/out"
cp "$work/out" "$work/list"
run inspect alpha
check "inspect prints the same" python3 -c '
import json, sys
assert [json.load(open(sys.argv[1]))] == json.load(open(sys.argv[2]))' "$work/out" "$work/list"
run info alpha
check "info is for people" eval '[ $status = 0 ] && grep -Eqx "state +created" "$work/out" && prints "--memory 64M"'
run events alpha --json
check "events tells of the creation" eval '[ $status = 0 ] && [ "$(wc -l <"$work/out")" = 1 ] && prints "\"event\":\"created\""'
run start alpha
check "a start that fails says why" eval '[ $status = 1 ] && says "/boot/vmlinuz" && says "alpha could not be started" && quiet_out'
run events alpha
check "events tells of the failure" eval '[ $status = 0 ] && grep -q "failed" "$work/out"'
run ls -a
check "one that failed is stopped" eval 'grep -Eq "^alpha +stopped" "$work/out"'
echo '{"schema_version": 9}' >"$GUISE_DATA/vms/alpha/vm.json"
run start alpha
check "the file of a newer guise is refused" eval '[ $status != 0 ] && one_sentence && says "newer"'
run rm alpha
check "what cannot be read can be removed" eval '[ $status = 0 ] && [ ! -e "$GUISE_DATA/vms/alpha" ]'
run run no-such-image -- true
check "an image that is not there" eval '[ $status = 4 ] && one_sentence && says no-such-image && quiet_out'
run strat
check "a mistyped command" eval '[ $status = 2 ] && says "did you mean start?"'

run doctor
check "doctor says whether it can" eval 'case $status in 0) prints "can run here" ;; 7) prints "cannot run here" ;; *) false ;; esac'
run doctor --json
check "doctor --json is JSON" python3 -c '
import json, sys
d = json.load(open(sys.argv[1]))
assert d["schema_version"] == 1 and isinstance(d["can_run"], bool)
ids = [c["id"] for c in d["checks"]]
assert len(ids) == len(set(ids)) and {"cpu_base", "code_cache", "memory", "engine_kvm", "engine_soft"} <= set(ids)
for c in d["checks"]:
    assert c["level"] in ("ok", "limited", "missing") and c["found"]
    assert c["level"] == "ok" or c["why"] and c["fix"]
    assert c["id"] != "cpu_fsgsbase" or c["level"] != "missing" and not c["required"] # nothing needs it
' "$work/out"

# Completion: bash's is tried, the others are at least syntax that their shell takes, if it is here.
run completion bash
complete_bash() { # WORDS...: what bash offers for the last one
    bash -c '. "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _guise; echo "${COMPREPLY[*]}"' _ "$work/out" "$@"
}
check "bash completes commands" eval '[ "$(complete_bash guise do)" = doctor ]'
check "bash completes options" eval '[ "$(complete_bash guise run --ke)" = --kernel ]'
check "bash completes words" eval '[ "$(complete_bash guise run --engine k)" = kvm ]'
"$GUISE" create --kernel x --name zeta >/dev/null
check "bash completes names" eval '[ "$(PATH=$(dirname "$GUISE"):$PATH complete_bash guise start z)" = zeta ]'
check "bash completes sub-commands" eval '[ "$(complete_bash guise image i)" = "import info" ]'
check "bash completes options of sub-commands" eval '[ "$(complete_bash guise image build --su)" = --suite ]'
check "bash completes words of sub-commands" eval '[ "$(complete_bash guise image build x --suite t)" = trixie ]'
check "bash completes files" eval '[ "$(complete_bash guise run --kernel /etc/host)" = "$(compgen -f /etc/host | tr "\n" " " | sed "s/ $//")" ]'
for shell in zsh fish; do
    run completion $shell
    check "completion for $shell" eval '[ $status = 0 ] && grep -q -- kernel "$work/out"'
    if command -v $shell >/dev/null; then
        check "$shell takes its syntax" $shell -n "$work/out"
    fi
done
# Disks.
cd "$work" || exit 1
truncate -s 1M base.img
refused "a disk begins with its path" "begins with its path" run --kernel x --disk ,ro
refused "a disk's words are known" "'rw' is not a word for a disk" run --kernel x --disk base.img,rw
refused "a disk's format is known" "there is no disk format 'zip': choose one of raw, overlay" run --kernel x --disk base.img,format=zip
refused "a new disk needs a base or a size" "needs a base or a size" disk create a.overlay
refused "disk grow wants a size" "more is needed" disk grow a.overlay
run disk create a.overlay --base base.img --size 2M
check "disk create" eval '[ $status = 0 ] && quiet_out && [ ! -s "$work/err" ] && [ -s a.overlay ]'
run disk create a.overlay --base base.img
check "disk create does not overwrite" eval '[ $status = 5 ] && one_sentence && says "File exists"'
run disk create b.overlay --base none.img
check "a base must be there" eval '[ $status = 4 ] && one_sentence && says none.img && [ ! -e b.overlay ]'
run disk grow a.overlay 3M
check "disk grow" eval '[ $status = 0 ] && quiet_out'
run disk grow a.overlay 1M
check "a disk does not shrink" eval '[ $status = 2 ] && one_sentence && says "can only grow"'
run disk check a.overlay
check "disk check" eval '[ $status = 0 ] && prints "3145728 bytes" && prints "$work/base.img" && prints "0 of 768 granules"'
run disk check a.overlay --json
check "disk check --json" python3 -c 'import json, sys; d = json.load(open(sys.argv[1])); assert d["sound"] and d["disk_bytes"] == 3 << 20' "$work/out"
run disk copy a.overlay copy.img
check "disk copy" eval '[ $status = 0 ] && [ "$(stat -c %s copy.img)" = 3145728 ] && [ "$(stat -c %b copy.img)" = 0 ]'
printf x | dd of=a.overlay bs=1 seek=8200 conv=notrunc 2>/dev/null
run disk check a.overlay
check "disk check finds damage" eval '[ $status = 1 ] && one_sentence && says "1 map sectors have a wrong check sum"'
run disk check base.img
check "disk check of something else" eval '[ $status = 1 ] && one_sentence && says "is no overlay"'
# Networks.
refused "a network's kind is known" "'bridge' is not one of none, user, tap:NAME, switch:PATH, vde:PATH" run --kernel x --net bridge
refused "a network's keys are known" "'speed=1' is not one of mac=" run --kernel x --net user,speed=1
refused "a published port has two sides" "a published port is [IP:]HOST:GUEST[/udp]" run --kernel x --publish 80
refused "publish wants a machine" "name a virtual machine" publish
refused "unpublish wants ports" "name a virtual machine, and the ports" unpublish x
refused "cpus wants a machine" "name a virtual machine" cpus
refused "and a number" "'many' is not a whole number" cpus x many
refused "what becomes of disks is known" "auto, copy, shared" migrate x y --storage moved
refused "disks do not stay by post-copy" "--storage shared cannot be had with it" migrate x y --storage shared --postcopy
refused "a map is of full paths" "two full paths" receive unix:/nowhere/x --map a=b
refused "a disk's base is an overlay's" "so it has no base" run --kernel x --disk a.img,base=b.img
run publish nobody 80:80
check "publish wants one that is there" eval '[ $status = 4 ] && one_sentence'
exit $((failures > 0))
