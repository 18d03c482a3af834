#!/bin/bash
# Images for real: Debian is built (once a week, kept in the cache), looked at from outside and inside, booted by its own
# init; builds that are killed leave nothing; a container becomes a machine.
. "$(dirname "$(readlink -f "$0")")/lib.sh"
export GUISE_RUNTIME=$work/run
debian_image || { not_ok "guise image build" "$(tail -n 1 "$work/stderr")" && finish; }
ok "guise image build"
cleanup() {
    "$GUISE" rm --force image-test >/dev/null 2>&1
    rm -rf "$work"
}
trap cleanup EXIT

directory=$("$GUISE" image info debian --json | python3 -c 'import json, sys
i = json.load(sys.stdin)
assert i["os_id"] == "debian" and i["root_type"] == "ext4" and i["root_partition"] == 0, i
assert i["sshd"] and not i["needs_initrd"] and i["init"] == "/sbin/init" and "cloud" in i["kernel_version"], i
print(i["directory"])') && ok "it says what it is" || not_ok "it says what it is" "image info --json"
"$GUISE" image info debian --verify >/dev/null && ok "its digest is that of its content" || not_ok "its digest is that of its content" "--verify"
PATH=$PATH:/sbin e2fsck -fn "$directory/disk.raw" >"$work/log" 2>&1 && ok "its file system is clean" || not_ok "its file system is clean" "$(tail -n 1 "$work/log")"

# inside NAME COMMAND: a shell's word in a machine of the image; what it prints is empty if all is well
inside() {
    local name=$1 got
    shift
    got=$("$GUISE" run --rm debian --memory 1G --timeout 120 -- sh -c "$1" 2>&1 </dev/null) || got="status $? $got"
    if [ -z "$got" ]; then ok "$name"; else not_ok "$name" "$got"; fi
}
# shellcheck disable=SC2016
inside "owners, modes, links and names are as packaged" '
    [ "$(stat -c "%U:%G %a" /etc/shadow)" = "root:shadow 640" ] || stat /etc/shadow
    [ "$(stat -c %a /usr/bin/passwd)" = 4755 ] || stat /usr/bin/passwd
    [ "$(stat -c %a /tmp)" = 1777 ] || stat /tmp
    [ "$(readlink /bin)" = usr/bin ] || ls -l /
    ls /usr/share/ca-certificates/mozilla | grep -q "NetLock_Arany.*Főtanúsítvány.crt" || echo the name in UTF-8 is another
    dpkg --verify 2>/dev/null | grep -v -e /usr/share/doc -e /usr/share/man -e /usr/share/locale -e " c " || true
    [ -z "$(ls /etc/ssh/ssh_host_* 2>/dev/null)" ] || echo the image has host keys
    [ ! -s /etc/machine-id ] || echo the image has a machine-id'
inside "apt has its lists and a cache that holds" \
    'apt-cache -o Debug::pkgCacheGen=1 policy hello 2>&1 | grep -q "pkgcache.bin is valid" || apt-cache -o Debug::pkgCacheGen=1 policy hello 2>&1 | tail -n 3'

if "$GUISE" launch debian --name image-test --memory 1G --wait=boot >/dev/null 2>"$work/stderr" &&
    state=$("$GUISE" exec image-test -- systemctl is-system-running --wait 2>>"$work/stderr") && [ "$state" = running ]; then
    ok "systemd comes up, no unit has failed"
else
    not_ok "systemd comes up, no unit has failed" "$state $("$GUISE" exec image-test -- systemctl --failed --no-legend 2>&1 | head -n 3) $(tail -n 1 "$work/stderr")"
fi
"$GUISE" rm --force image-test >/dev/null 2>&1

# A container's image with one static program, which boots with Debian's kernel.
container() {
    local layer config manifest blobs=$work/oci/blobs/sha256
    package_one "$GUISE_CACHE/busybox-static" bookworm busybox-static || return 1
    mkdir -p "$work/layer/bin" "$blobs"
    cp "$(find "$GUISE_CACHE/busybox-static" -name busybox -type f -size +100k | head -n 1)" "$work/layer/bin/busybox"
    for name in sh cat id uname; do ln -s busybox "$work/layer/bin/$name"; done
    tar -C "$work/layer" -czf "$work/layer.tgz" .
    blob() { local sum; sum=$(sha256sum <"$1" | cut -c1-64) && cp "$1" "$blobs/$sum" && echo "{\"digest\": \"sha256:$sum\", \"size\": $(stat -c %s "$1")}"; }
    layer=$(blob "$work/layer.tgz")
    echo '{"config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]}}' >"$work/config"
    config=$(blob "$work/config")
    echo "{\"config\": $config, \"layers\": [$layer]}" >"$work/manifest"
    manifest=$(blob "$work/manifest")
    echo '{}' >"$work/oci/oci-layout"
    echo "{\"manifests\": [$manifest]}" >"$work/oci/index.json"
    "$GUISE" image import "$work/oci" --name image-test-container --replace >/dev/null 2>"$work/stderr"
}
if container && got=$("$GUISE" run --rm image-test-container --timeout 60 -- /bin/busybox id -u 2>"$work/stderr") && [ "$got" = 0 ]; then
    ok "a container's image is a machine"
else
    not_ok "a container's image is a machine" "$got $(tail -n 1 "$work/stderr")"
fi
"$GUISE" image rm image-test-container >/dev/null 2>&1

# A build that is killed in the middle, as root or as an ordinary user, leaves neither files nor processes nor mounts.
left() { # DATA USER
    find "$1/images" -maxdepth 1 -name 'tmp-*' 2>/dev/null
    find /var/tmp -maxdepth 1 -name 'guise-build-*' -user "$2" 2>/dev/null
    pgrep -u "$2" -f "mmdebstrap.*$1" 2>/dev/null
    grep "$1" /proc/self/mounts
}
killed() { # NAME SIGNAL DATA USER COMMAND...
    local name=$1 number=$2 data=$3 user=$4 pid
    shift 4
    mkdir -p "$data"
    "$@" 2>"$work/killed" &
    pid=$!
    for _ in $(seq 600); do
        grep -q "downloading packages" "$work/killed" && break
        sleep 0.1
    done
    sleep 3
    kill -"$number" $pid
    wait $pid 2>/dev/null
    for _ in $(seq 200); do
        [ -n "$(left "$data" "$user")" ] || break
        sleep 0.1
    done
    if [ -z "$(left "$data" "$user")" ] && ! grep -q "^guise: finishing" "$work/killed"; then ok "$name"; else not_ok "$name" "$(left "$data" "$user" | tr '\n' ' ') $(tail -n 1 "$work/killed")"; fi
}
build() { GUISE_DATA=$work/killed-data exec "$GUISE" image build killed; }
for number in TERM KILL; do
    killed "a build that gets SIG$number leaves nothing" $number "$work/killed-data" "$(id -u)" build
done

# An ordinary user with subordinate ids, as whom root can be without changing the system: in a mount namespace in which
# the lists of users are others.
as_user() { # COMMAND: a shell's words
    local home=$work/home
    mkdir -p "$home"
    for file in passwd group subuid subgid; do cp "/etc/$file" "$work/$file" 2>/dev/null || : >"$work/$file"; done
    echo "guise-test:x:64123:64123::$home:/bin/sh" >>"$work/passwd"
    echo "guise-test:x:64123:" >>"$work/group"
    echo "guise-test:6400000:65536" | tee -a "$work/subuid" >>"$work/subgid"
    cp "$GUISE" "$work/guise"
    chmod 755 "$work" "$work/guise"
    chown -R 64123:64123 "$home"
    # shellcheck disable=SC2016 # for the inner shell
    exec unshare --mount sh -c 'for file in passwd group subuid subgid; do
            [ -e /etc/$file ] || : >/etc/$file
            mount --bind "$1/$file" /etc/$file
        done
        exec setpriv --reuid 64123 --regid 64123 --clear-groups env -i PATH=/usr/bin:/bin HOME="$1/home" sh -c "$2"' sh "$work" "$1"
}
if [ "$(id -u)" = 0 ] && unshare --mount true 2>/dev/null; then
    if [ -n "${GUISE_SLOW:-}" ]; then
        if (as_user "$work/guise image build debian && $work/guise image info debian --verify") >"$work/log" 2>&1; then
            ok "an ordinary user builds"
        else
            not_ok "an ordinary user builds" "$(tail -n 1 "$work/log")"
        fi
    fi
    user_build() { as_user "exec $work/guise image build killed"; }
    killed "an ordinary user's build that gets SIGTERM leaves nothing" TERM "$work/home/.local/share/guise" 64123 user_build
fi
finish
