#!/bin/bash
# The program inside the guest: as the first process, beside the system's own init, behind an initrd of the image's; and
# the commands that talk to it.
set -u
. "$(dirname "$0")/lib.sh"

kernel=$(kernel_image cloud) || { not_ok kernel "could not be fetched"; finish; }
modules=$(kernel_modules "$kernel" vsock_loopback vmw_vsock_virtio_transport virtio_net virtiofs overlay virtio_rng) ||
    { not_ok modules "missing"; finish; }
agent=$here/agent/agent.py
vm=$work/vm.vsock
export GUISE_DATA=$work/data GUISE_RUNTIME=$work/run

# A system of busybox and coreutils, whose init is busybox's.
tree=$work/tree
"$top/scripts/guest-image.sh" tree "$tree" coreutils >&2 || { not_ok image "no"; finish; }
rm "$tree/init"
mkdir -p "$tree"/etc/init.d "$tree"/mnt
# shellcheck disable=SC2016 # for the guest
printf '#!/bin/sh\nmount -t tmpfs tmpfs /run\nmkdir -p /dev/pts\nmount -t devpts devpts /dev/pts\ntouch /run/up\n' >"$tree/etc/init.d/rcS"
chmod 755 "$tree/etc/init.d/rcS"
printf '::sysinit:/etc/init.d/rcS\n::shutdown:/bin/sync\n' >"$tree/etc/inittab"
: >"$tree/etc/machine-id"
echo 'us:x:1000:1000::/home/us:/bin/sh' >>"$tree/etc/passwd"
printf 'us:x:1000:\nmore:x:77:us\n' >>"$tree/etc/group"
mkdir -p "$tree/home/us"

disk() { # OUT SIZE: the tree as a file system
    truncate -s "${2:-128M}" "$1" && mke2fs -q -F -t ext4 -E root_owner=0:0 -L root -d "$tree" "$1" ${3:+"$3"}
}

# initrd OUT LINE...: the program, its configuration and the modules, as guise itself puts them into a guest
initrd() {
    local out=$1 file
    shift
    printf '%s\n' "$@" >"$work/config"
    : >"$work/order"
    : >"$work/dep"
    for file in $modules; do
        echo "${file##*/}" >>"$work/order"
        tr '\0' '\n' <"$file" | sed -n 's/^depends=//p' | tr ',' '\n' |
            while read -r name; do [ -z "$name" ] || basename "$(find "${kernel%/boot/*}/lib/modules" -name "${name//_/[_-]}.ko")"; done |
            tr '\n' ' ' | sed "s/^/${file##*/}: /; s/ *\$//" >>"$work/dep"
        echo >>"$work/dep"
    done
    {
        printf 'dir /dev 755 0 0\nnod /dev/console 600 0 0 c 5 1\ndir /guise 755 0 0\ndir /guise/modules 755 0 0\n'
        printf 'file /guise/init %s 755 0 0\nfile /guise/config %s 600 0 0\n' "${GUISE%/*}/src/guest/guise-init" "$work/config"
        printf 'file /guise/modules/order %s 644 0 0\nfile /guise/modules/dep %s 644 0 0\n' "$work/order" "$work/dep"
        for file in $modules; do printf 'file /guise/modules/%s %s 644 0 0\n' "${file##*/}" "$file"; done
    } >"$work/initrd.list"
    [ -x "$work/mkcpio" ] || gcc -std=gnu17 -D_GNU_SOURCE -O2 -o "$work/mkcpio" "$here/mkcpio.c" || return 1
    "$work/mkcpio" "$work/initrd.list" >"$out"
}

# start INITRD OPTION...: a machine in the background, until its agent has said something: that is in $work/hello
start() {
    local initrd=$1 listener
    shift
    rm -f "$vm"* "$work/serial"
    timeout 100 python3 "$agent" hello "$vm" >"$work/hello" 2>"$work/hello.err" &
    listener=$!
    # a guest that cannot start says so once, and may be quicker than Python
    while [ ! -S "${vm}_1024" ] && kill -0 $listener 2>/dev/null; do sleep 0.05; done
    # shellcheck disable=SC2086 # GUEST_OPTIONS is a list of words
    "$GUISE" run --kernel "$kernel" --initrd "$initrd" --append "console=ttyS0 quiet panic=-1 rdinit=/guise/init" \
        --vsock "$vm" --serial "file:$work/serial" --timeout 400 --no-reboot $GUEST_OPTIONS "$@" </dev/null 2>"$work/stderr" &
    guest=$!
    wait $listener
}
ended() { # the machine's exit status
    wait "$guest"
}
in_guest() { "$GUISE" exec "$vm" -- "$@" </dev/null; }
guest_shell() { in_guest sh -c "$1"; }

check() { # NAME CONDITION...
    local name=$1
    shift
    if "$@"; then
        ok "$name"
    else
        not_ok "$name" "$(tail -n 3 "$work/serial" 2>/dev/null | tr '\r\n' ' |') $(tail -n 1 "$work/stderr" 2>/dev/null)"
    fi
}
same() { # WANTED COMMAND...: what the command prints
    local wanted=$1 found
    shift
    found=$("$@" 2>&1)
    [ "$found" = "$wanted" ] || { echo "wanted '$wanted', found '$found'" && return 1; }
}

# A program that tries to be root by asking the agent from inside.
cat >"$work/loopback.c" <<'X'
#include <stdio.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>
#include <unistd.h>
int main(void)
{
    struct sockaddr_vm a = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_LOCAL, .svm_port = 1024};
    static const char info[8] = {0, 0, 0, 0, 5};
    char answer[8];
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&a, sizeof(a))) {
        perror("connect");
        return 1;
    }
    if (write(fd, info, 8) == 8 && read(fd, answer, 8) == 8)
        puts("served");
    else
        puts("refused");
    return 0;
}
X
gcc -O2 -static -o "$work/loopback" "$work/loopback.c" || { not_ok loopback "no static C program"; finish; }

# --- a system that gives itself no address: it takes 40 seconds to notice, so it goes beside the others ------------
disk "$work/disk3" || { not_ok disk "mke2fs failed"; finish; }
initrd "$work/lonely" mode=boot root=/dev/nvme0n1 address=10.0.2.15/24 gateway=10.0.2.2 dns=10.0.2.3
vm=$work/lonely.vsock
start "$work/lonely" --disk "$work/disk3" --net user
lonely=$guest
has_address() { "$GUISE" exec "$work/lonely.vsock" -- ip addr show dev eth0 </dev/null 2>/dev/null | grep -q 10.0.2.15; }
check "a system's network is its own affair" eval '! has_address'
vm=$work/vm.vsock

# --- commands: our program is the first process -----------------------------------------------------------------
disk "$work/disk" 192M 128M || { not_ok disk "mke2fs failed"; finish; }
mkdir "$work/shared"
echo shared >"$work/shared/file"
initrd "$work/command" mode=command root=/dev/nvme0n1 root_options=rw,noatime root_grow=yes hostname=one \
    address=10.0.2.15/24 gateway=10.0.2.2 dns=10.0.2.3 'share=rw share0 /mnt/a folder' 'share=ro share0 /srv'
start "$work/command" --disk "$work/disk" --net user --share "$work/shared"
check "it announces itself" grep -qx "mode command" "$work/hello"
check "the status comes out" eval 'guest_shell "exit 7"; [ $? = 7 ]'
check "the first process is ours" same "/guise/init" guest_shell 'tr "\0" "\n" </proc/1/cmdline'
check "name and address" same "one one 10.0.2.15 10.0.2.3" guest_shell \
    'echo $(hostname) $(sed -n "s/^127.0.1.1.//p" /etc/hosts) $(ip addr show dev eth0 | sed -n "s,.*inet \(10[0-9.]*\)/24.*,\1,p") $(cut -d" " -f2 /etc/resolv.conf)'
check "the way out" same "default via 10.0.2.2 dev eth0" guest_shell 'echo $(ip route | grep default)'
check "the usual mounts" same "" guest_shell \
    'for m in / /proc /sys /dev /dev/pts /dev/shm /run /sys/fs/cgroup; do grep -q " $m " /proc/mounts || echo $m; done'
check "the root's options" guest_shell 'grep -q "^/dev/nvme0n1 / ext4 rw,noatime" /proc/mounts'
check "the root has grown" guest_shell 'for i in $(seq 50); do [ $(stat -fc %b /) -gt 150000 ] && exit 0; sleep 0.1; done; exit 1'
check "the initramfs is gone" same "" guest_shell 'ls -d /guise /root/guise 2>/dev/null'
check "a share in both directions" eval 'same "shared" guest_shell "cat \"/mnt/a folder/file\"; echo back >\"/mnt/a folder/back\"" && [ "$(cat "$work/shared/back")" = back ]'
check "a share that is read-only" same "Read-only file system" guest_shell 'touch /srv/x 2>&1 | sed "s/.*: //"'
check "a user with groups" same "1000 1000 77 1000 /home/us us" eval \
    '"$GUISE" exec "$vm" --user us -- sh -c "echo \$(id -u) \$(id -g) \$(id -G | tr \" \" \"\n\" | sort -n | tr \"\n\" \" \") \$PWD \$USER" </dev/null'
check "orphans are reaped" same "0" guest_shell \
    '(sh -c "sleep 0.1 & exit" &) ; sleep 0.5; grep -l "^State:.Z" /proc/[0-9]*/status 2>/dev/null | wc -l'
head -c 20000000 /dev/urandom >"$work/random"
check "much data both ways" eval '"$GUISE" exec -i "$vm" -- cat <"$work/random" | cmp - "$work/random"'
check "a terminal" eval '[ "$("$GUISE" exec -t "$vm" -- sh -c "test -t 1 && echo tty" </dev/null | tr -d "\r")" = tty ]'
mkdir "$work/copied"
check "a tree in and out" eval '"$GUISE" cp "$tree/etc" "$vm:/tmp" && "$GUISE" cp "$vm:/tmp/etc" "$work/copied" && diff -r "$tree/etc" "$work/copied/etc"'
check "no program of the guest is served" eval '"$GUISE" cp "$work/loopback" "$vm:/loopback" && same "refused" in_guest /loopback'
check "facts" eval 'python3 "$agent" info "$vm" | grep -qx "hostname=one"'
check "another identity" eval 'python3 "$agent" identity "$vm" two 1000000000 && same "two 2001-09-09" guest_shell "echo \$(hostname) \$(date +%F)"'
many() { # each its own status
    local i pids=()
    for i in $(seq 12); do guest_shell "sleep 0.2; exit $i" & pids[i]=$!; done
    for i in $(seq 12); do
        wait "${pids[i]}"
        [ $? = "$i" ] || return 1
    done
}
check "many sessions at once" many
guest_shell 'echo written >/written; (trap "" TERM; sleep 60) & :'
python3 "$agent" power "$vm" off || not_ok "it is asked to end" "no"
check "it powers off" ended
check "the file system is clean" eval 'e2fsck -fn "$work/disk" >"$work/fsck" 2>&1 && [ "$(debugfs -R "cat /written" "$work/disk" 2>/dev/null)" = written ] && dumpe2fs -h "$work/disk" 2>/dev/null | grep -qx "Filesystem state: *clean"'

# --- a directory of this host as the root, in memory what is written ----------------------------------------------
initrd "$work/directory" mode=command root=virtiofs:share0 root_overlay=yes
start "$work/directory" --share "$tree:/:ro"
check "a directory as the root" guest_shell 'test -x /bin/busybox && echo x >/etc/new && cat /etc/new && grep -q " /tmp tmpfs " /proc/mounts'
check "it stays as it was" eval '[ ! -e "$tree/etc/new" ]'
guest_shell 'kill -USR2 1' 2>/dev/null
check "it powers off like busybox" ended

# --- boot: the system's own init -----------------------------------------------------------------------------------
disk "$work/disk2" || { not_ok disk "mke2fs failed"; finish; }
initrd "$work/boot" mode=boot root=LABEL=root hostname=three instance=a first_boot=yes user=us 'key=ssh-ed25519 AAAA a b' console=no
start "$work/boot" --disk "$work/disk2"
check "it announces itself beside another init" grep -qx "mode boot" "$work/hello"
check "the first process is the system's" guest_shell 'readlink /proc/1/exe | grep -qx /usr/bin/busybox'
check "the agent is marked for systemd to spare" same "@guise/init" guest_shell 'tr "\0" "\n" </proc/$(cut -d" " -f4 </proc/$PPID/stat)/cmdline'
check "it is spared when memory is short, what it starts is not" same "-1000 0 524288" guest_shell \
    'echo $(cat /proc/$PPID/oom_score_adj /proc/self/oom_score_adj) $(ulimit -Hn)'
check "name and keys" same "three 600 1000 ssh-ed25519 AAAA a b" guest_shell \
    'echo $(cat /etc/hostname) $(stat -c "%a %u" /home/us/.ssh/authorized_keys) $(cat /home/us/.ssh/authorized_keys)'
id=$(guest_shell 'cat /etc/machine-id')
check "a machine id" grep -Eqx '[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}' <<<"$id"
python3 "$agent" power "$vm" off || not_ok "init is asked to end" "no"
check "init powers off" ended
initrd "$work/boot" mode=boot root=SERIAL=mine hostname=three instance=b first_boot=yes user=us 'key=ssh-ed25519 AAAA a b'
start "$work/boot" --disk "$work/disk,ro" --disk "$work/disk2,serial=mine"
check "another instance is another machine" eval '[ "$(guest_shell "cat /etc/machine-id")" != "$id" ]'
check "a key is there once" same 1 guest_shell 'grep -c AAAA /home/us/.ssh/authorized_keys'
python3 "$agent" power "$vm" reboot
check "init reboots" ended

# --- behind the image's own initrd ----------------------------------------------------------------------------------
mkdir -p "$work/own/bin" "$work/own/real" "$work/own/proc" "$work/own/dev" "$work/own/sys"
cp "$tree/usr/bin/busybox" "$work/own/bin/busybox"
cat >"$work/own/init" <<'X'
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc && /bin/busybox mount -t devtmpfs dev /dev || exit 1
while [ ! -e /dev/nvme0n1 ]; do /bin/busybox sleep 0.05; done
/bin/busybox sleep 1
/bin/busybox mount -t ext4 /dev/nvme0n1 /real && /bin/busybox umount /proc && /bin/busybox mount -o move /dev /real/dev
/bin/busybox mount -t proc proc /real/proc
exec /bin/busybox switch_root /real /sbin/init
X
chmod 755 "$work/own/init"
pack_trees "$work/own" >"$work/own.cpio"
initrd "$work/behind" mode=boot initrd_init=yes
start "$work/behind" --initrd "$work/own.cpio" --disk "$work/disk2"
check "it follows into the root before it announces itself" same three guest_shell "cat /etc/hostname"
python3 "$agent" power "$vm" off
check "and powers off" ended

# --- the lonely one ----------------------------------------------------------------------------------------------------
check "but one without an address gets one" eval 'for _ in $(seq 90); do has_address && break; sleep 1; done; has_address'
python3 "$agent" power "$work/lonely.vsock" off
wait "$lonely"

# --- what cannot be ---------------------------------------------------------------------------------------------------
initrd "$work/wrong" mode=command root=/dev/nvme0n1 root_type=xfs
start "$work/wrong" --disk "$work/disk2"
check "a failure is told" grep -q "message the root file system /dev/nvme0n1 cannot be mounted as xfs" "$work/hello"
check "and ends the machine" ended
finish
