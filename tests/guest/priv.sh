#!/bin/bash
# Bare-metal programs that check the privileged architecture: priv/*.c, each one a machine of its own.
#
#   tests/guest/priv.sh [NAME...]        NAME: a file of priv/ without .c; all unless told
#
# A program prints ok and not ok lines itself, then END.  The files triple-*.c must make guise end
# with status 1, "crashed", after they have printed "before".
set -u
. "$(dirname "$0")/lib.sh"

names=("$@")
[ $# -gt 0 ] || for file in "$here"/priv/*.c; do
    name=$(basename "$file" .c)
    [ "$name" = lib ] || names+=("$name")
done

# -mgeneral-regs-only: the compiler must not use the very registers that are tested.
build()
{
    local assembly=$here/priv/$1.S
    [ -e "$assembly" ] || assembly=
    # shellcheck disable=SC2086 # nothing, or a path of ours
    gcc -std=gnu17 -Wall -Wextra -Wshadow -Werror -O1 -ffreestanding -fno-pic -no-pie -mno-red-zone \
        -mgeneral-regs-only -fno-stack-protector -fcf-protection=none -fno-asynchronous-unwind-tables \
        -fno-omit-frame-pointer -nostdlib -static \
        -Wl,--build-id=none,-z,noexecstack,-T,"$here/priv/link.ld",--no-warn-rwx-segments \
        -o "$work/$1.elf" "$here/priv/start.S" "$here/priv/lib.c" "$here/priv/$1.c" $assembly
}

for name in "${names[@]}"; do
    if ! build "$name"; then
        not_ok "priv-$name" "does not compile"
        continue
    fi
    guest "$work/$name.elf" "" "" "${SECONDS_LIMIT:-60}" --memory 256M >"$work/console"
    status=$?
    case $name in
    triple-*)
        if [ $status = 1 ] && grep -q '^before$' "$work/console"; then
            ok "priv-$name"
        else
            not_ok "priv-$name" "exit status $status instead of 1; $(head -n 1 "$work/console")"
        fi
        continue
        ;;
    esac
    sed -n "s/^\(ok\|not ok\) /\1 priv-$name-/p" "$work/console"
    failures=$((failures + $(grep -c '^not ok ' "$work/console")))
    if ! grep -q '^END$' "$work/console"; then
        not_ok "priv-$name" "did not reach its end: $(why $status); last line: $(tail -n 1 "$work/console")"
    elif [ $status != 0 ]; then
        not_ok "priv-$name" "$(why $status)"
    fi
done
finish
