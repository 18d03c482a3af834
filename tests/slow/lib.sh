# shellcheck shell=bash
# What the slow suites share: they are not part of tests/run.sh, but run by themselves, or by make.  Sourced after lib.sh of
# tests/guest.
# shellcheck disable=SC2034 # by those who source this
slow=$top/tests/slow

kernel_source() # prints the directory of Debian's linux-source-6.1, unpacked
{
    local package=$GUISE_CACHE/linux-source-6.1 directory=$GUISE_CACHE/torture/source
    package_one "$package" bookworm linux-source-6.1 >&2 || return 1
    if [ ! -e "$directory.done" ]; then
        say "unpacking the kernel's source"
        rm -rf "$directory" && mkdir -p "$directory" &&
            tar -C "$directory" --strip-components=1 -xf "$package"/usr/src/linux-source-6.1.tar.xz && touch "$directory.done" || return 1
    fi
    echo "$directory"
}

keep_log() # FILE NAME
{
    mkdir -p "$GUISE_CACHE/logs" && cp "$1" "$GUISE_CACHE/logs/$2.log"
}
