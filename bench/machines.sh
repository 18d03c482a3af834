# shellcheck shell=bash
# The machines that guise is held against, each with the same kernel, memory and one CPU, unless told.  Sourced after lib.sh.
#
# Peers: guise guise-warm (another boot of a kernel that guise has booted before; in boot.sh `guise` is as for the first
# time) qemu12 qemu-backports (the machine type behind it, -microvm or -q35; q35 unless told) uml.

uml_root=$GUISE_CACHE/sets/uml

qemu_root() # PEER: prints the directory of its QEMU, unpacked with its own libraries
{
    case $1 in
    qemu12*) echo "$GUISE_CACHE/qemu-bookworm" ;;
    *) echo "$GUISE_CACHE/qemu-backports" ;;
    esac
}

machines_fetch() # what the peers are made of
{
    local peer
    for peer in $peers; do
        case $peer in
        qemu12*) packages_extract "$(qemu_root "$peer")" bookworm qemu-system-x86 ;;
        qemu-backports*) packages_extract "$(qemu_root "$peer")" bookworm-backports qemu-system-x86 ;;
        uml) packages_extract "$uml_root" bookworm user-mode-linux && compile "$bench/uml-ptrace.c" "$out/uml-ptrace.so" -shared -fPIC ;;
        esac || return 1
    done
}

# machine_run PEER SECONDS MEBIBYTES KERNEL [--initrd FILE] [--disk FILE] [--append WORDS] [--cpus N]: one boot; watch's lines.  The
# disk is the root, which nobody writes to.
machine_run()
{
    local peer=$1 limit=$2 memory=$3 kernel=$4 initrd='' disk='' cpus=1 course=on append="quiet panic=-1 mitigations=auto"
    shift 4
    while [ $# -gt 0 ]; do
        case $1 in
        --initrd) initrd=$2 ;;
        --disk) disk=$2 append="$append ro init=/bench/init" ;;
        --append) append="$append $2" ;;
        --cpus) cpus=$2 ;; # of guise
        --course) course=$2 ;; # of guise, too
        esac
        shift 2
    done
    case $peer in
    guise | guise-warm) machine_guise ;;
    uml) machine_uml ;;
    qemu*) machine_qemu "$(qemu_root "$peer")" ;;
    esac
}

# machine_native SECONDS MEBIBYTES TREE: bench/init of that root, natively, with as much memory and as many CPUs as a guest
# has: node and java go by what there is.
machine_native()
{
    local limit=$1 memory=$2 tree=$3 user='' group cpu
    group=$(native_group "$memory") || group=
    cpu=$(taskset -cp $$ | sed 's/.*: //; s/[-,].*//')
    [ "$(id -u)" = 0 ] || user=--map-root-user
    sed "s/^MemTotal:.*/MemTotal: $((memory << 10)) kB/" /proc/meminfo >"$out/meminfo"
    (
        [ -z "$group" ] || echo "$BASHPID" >"$group/cgroup.procs" || exit 1
        # shellcheck disable=SC2086
        exec "$out/watch" -t "$limit" taskset -c "$cpu" unshare --mount --cgroup $user sh -c '
            mount --rbind /proc "$1/proc" && mount --bind "$2" "$1/proc/meminfo" && mount --rbind /dev "$1/dev" &&
                mount -t tmpfs -o mode=1777 tmp "$1/tmp" && mount -t tmpfs sys "$1/sys" && mkdir -p "$1$4" || exit
            [ -z "$4" ] || mount -t "$3" ${5:+-o "$5"} none "$1$4" || exit
            exec chroot "$1" /bench/init' sh "$tree" "$out/meminfo" $(native_group_type) "${group%/*}" \
            "$([ "$(native_group_type)" = cgroup ] && echo memory)"
    )
    [ -z "$group" ] || rmdir "$group"
}

native_group_type()
{
    [ -e /sys/fs/cgroup/cgroup.controllers ] && echo cgroup2 || echo cgroup
}

native_group() # MEBIBYTES: prints the directory of a new control group with so much memory; fails where we may not have one
{
    local group=/sys/fs/cgroup/memory/guise-bench.$$ file=memory.limit_in_bytes
    [ "$(native_group_type)" = cgroup ] || group=/sys/fs/cgroup/guise-bench.$$ file=memory.max
    { mkdir "$group" && echo $(($1 << 20)) >"$group/$file"; } 2>/dev/null && echo "$group" && return
    say "no control group with $1 MiB can be made here: some of what runs natively has all of the host's memory"
    rmdir "$group" 2>/dev/null
    return 1
}

machine_guise()
{
    "$out/watch" -t "$limit" -i 20 -m "$memory" "$GUISE" run --engine soft --kernel "$kernel" ${initrd:+--initrd "$initrd"} \
        ${disk:+--disk "$disk,ro"} --append "console=ttyS0 $append${disk:+ root=/dev/nvme0n1}" --memory "${memory}M" --cpus "$cpus" \
        --course "$course" --no-reboot --timeout "$limit" --serial stdio </dev/null
}

machine_qemu() # ROOT
{
    local root=$1 machine=q35 loader
    with_libraries "$root"
    [[ $peer != *-microvm ]] || machine=microvm
    QEMU_MODULE_DIR=$root/usr/lib/x86_64-linux-gnu/qemu "$out/watch" -t "$limit" -i 20 -m "$memory" "${loader[@]}" \
        "$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" \
        -M $machine -accel tcg,thread=single -cpu max -smp 1 -m "$memory" -nodefaults -no-user-config -display none \
        -serial stdio -no-reboot -kernel "$kernel" ${initrd:+-initrd "$initrd"} \
        ${disk:+-drive "file=$disk,format=raw,if=none,id=disk,snapshot=on" -device nvme,drive=disk,serial=bench} \
        -append "console=ttyS0 $append${disk:+ root=/dev/nvme0n1}" </dev/null
}

# Its kernel is its own, as packaged; its memory is a file in TMPDIR.  uml-ptrace.c says what the library is for.
machine_uml()
{
    TMPDIR=/dev/shm "$out/watch" -t "$limit" -i 20 -m "$memory" env LD_PRELOAD="$out/uml-ptrace.so" "$uml_root/usr/bin/linux.uml" \
        "mem=${memory}M" ${initrd:+"initrd=$initrd"} \
        ${disk:+"ubd0r=$disk" root=/dev/ubda} con=null con0=null,fd:1 ${append/panic=-1/} </dev/null
}
