#!/bin/bash
# Shared folders with Linux's virtio-fs: both directions, owners, many files, much data, locks, mappings, read-only, a
# server that dies.
set -u
. "$(dirname "$0")/lib.sh"

kernel=$(kernel_image cloud) || { not_ok kernel "could not be fetched"; finish; }
gcc -std=gnu17 -O2 -static -o "$work/share" "$here/devices/share.c" || { not_ok build "no static C program"; finish; }
modules=$(kernel_modules "$kernel" virtiofs) || { not_ok modules "missing"; finish; }
initrd=$work/share.cpio
# shellcheck disable=SC2046,SC2086 # one word a module
image "$initrd" --add "$work/share:bin/share:755" $(module_additions $modules) || { not_ok image "no"; finish; }

# Not on tmpfs, which has no extended attributes before Linux 6.6.
folder=$(mktemp -d /var/tmp/guise-share.XXXXXX)
trap 'rm -rf "$work" "$folder"' EXIT
mkdir "$folder/rw" "$folder/ro"
owner=$(id -u)
if [ "$owner" = 0 ]; then
    owner=1234
    chmod 755 "$folder"
    chown $owner "$folder/rw"
fi

same() { [ "$2" = "$3" ] && ok "$1" || not_ok "$1" "'$2', not '$3'"; }
run() # COMMAND OPTIONS...: in a guest with the folders at /mnt and /ro
{
    local command=$1
    shift
    "$top/scripts/run-guest.sh" --kernel "$kernel" --image "$initrd" "$(module_commands $modules) mkdir -p /mnt /ro &&
        mount -t virtiofs share0 /mnt && mount -t virtiofs share1 /ro && cd /mnt && { $command
        }" -- --share "$folder/rw${words:-}" --share "$folder/ro:/ro:ro" --timeout 110 "$@" >"$work/out" 2>"$work/stderr" </dev/null
    local status=$?
    tr -d '\r' <"$work/out" | grep -aE '^(ok|not ok) '
    failures=$((failures + $(grep -ac '^not ok ' "$work/out")))
    [ $status = 0 ] || not_ok "the-guest" "status $status: $(tail -n 1 "$work/out") $(tail -n 1 "$work/stderr")"
}
told() { tr -d '\r' <"$work/out" | sed -n "s/^$1 //p" | head -n 1; }

# --- what the host has, in the guest; and the other way round
echo "from the host" >"$folder/rw/hosts"
chmod 640 "$folder/rw/hosts"
touch -d @1111111111.123456789 "$folder/rw/hosts"
[ "$(id -u)" != 0 ] || chown $owner "$folder/rw/hosts"
echo "look" >"$folder/ro/file"
dd if=/dev/urandom of="$folder/rw/big" bs=1M count=48 status=none
mkdir "$folder/rw/many"
(cd "$folder/rw/many" && seq -f 'file-%g' 10000 | xargs touch)
run 'stat -c "text $(cat hosts) %u %a %Y" hosts; echo "big $(sha256sum <big)"; echo "many $(ls many | sha256sum)"
    echo "from the guest" >guests; chmod 604 guests; touch -d @1222222222 guests; cp big copy; mkdir back
    cd back && seq 1 2000 | sed s/^/f-/ | xargs touch; cd ..; echo x >ro-no 2>/dev/null
    for try in "echo x >/ro/new" "rm /ro/file" "mkdir /ro/d" "echo x >>/ro/file" "chmod 600 /ro/file" "touch /ro/file"; do
        sh -c "$try" 2>/dev/null && echo "not ok read-only \"$try\"" || echo "ok read-only $try"
    done; echo "rofile $(cat /ro/file)"; sync'
same text "$(told text)" "from the host 0 640 1111111111"
same "48-MiB-to-the-guest" "$(told big)" "$(sha256sum <"$folder/rw/big")"
same "10000-names-to-the-guest" "$(told many)" "$(LC_ALL=C ls "$folder/rw/many" | sha256sum)"
same "what-the-guest-made" "$(cat "$folder/rw/guests") $(stat -c '%u %a %Y' "$folder/rw/guests")" \
    "from the guest $owner 604 1222222222"
same "48-MiB-from-the-guest" "$(sha256sum <"$folder/rw/copy")" "$(sha256sum <"$folder/rw/big")"
same "2000-files-from-the-guest" "$(find "$folder/rw/back" -type f -user $owner | wc -l)" 2000
same "the-read-only-one" "$(told rofile) $(ls "$folder/ro")" "look file"
rm -rf "$folder"/rw/*

# --- a file system
mkdir "$folder/rw/s"
[ "$(id -u)" != 0 ] || chown $owner "$folder/rw/s"
run 'share semantics /mnt/s; share tree /mnt 10000; share model /mnt 600 '"${SEED:-$RANDOM}"
same "files-of-the-model" "$(told model | cut -d ' ' -f 1)" "$(stat -c %s "$folder/rw/model")"
same "the-host-sees-the-users-files" "$(find "$folder/rw" ! -user $owner ! -path "$folder/rw" | wc -l)" 0
same "no-set-id-program-here" "$(find "$folder/rw" -type f -perm /6000 | wc -l)" 0
same "all-of-the-tree" "$(find "$folder/rw/tree" -type f | wc -l)" 10000
rm -rf "$folder"/rw/*

# --- locks with the host's programs
timeout 100 python3 "$here/devices/share-host.py" "$folder/rw" >"$work/locks" 2>&1 &
host=$!
words=:locks run 'share semantics /mnt; share lock /mnt'
wait $host
failures=$((failures + $? ))
cat "$work/locks"

# --- the file server dies: errors, and the machine goes on
"$top/scripts/run-guest.sh" --kernel "$kernel" --image "$initrd" "$(module_commands $modules) mkdir -p /mnt &&
    mount -t virtiofs share0 /mnt && cd /mnt && echo up >up; while ls >/dev/null 2>&1; do sleep 0.1; done
    ls 2>&1 | grep -qi 'i[/n].*o.* error' && echo eio; echo alive" -- --share "$folder/rw" --timeout 60 >"$work/out" 2>"$work/stderr" &
guest=$!
for _ in $(seq 300); do [ ! -e "$folder/rw/up" ] || break; sleep 0.1; done
for process in $(pgrep -f '^guise helper-share'); do # of the VM that was told of this folder
    parent=$(ps -o ppid= -p "$process" | tr -d ' ')
    tr '\0' '\n' 2>/dev/null <"/proc/${parent:-0}/cmdline" | grep -qxF "$folder/rw" && kill -9 "$process"
done
wait $guest
same "its-death-is-an-io-error" "$(tr -d '\r' <"$work/out" | tr '\n' ' ')" "eio alive "
grep -q "the file server of the shared folder $folder/rw has ended" "$work/stderr" && ok "and-is-said" ||
    not_ok "and-is-said" "$(tail -n 1 "$work/stderr")"
finish
