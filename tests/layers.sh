#!/bin/bash
# Dependencies between rooms point one way: every #include "room/..." of src/ must be in layers.txt.
#
#   tests/layers.sh [SRC [TABLE]]     exit status 1, and one line each, when there are wrong arrows
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
src=${1:-$here/../src}
table=${2:-$here/layers.txt}
cd "$src" || exit 2
find . -name '*.[chS]' -printf '%P\n' | sort | xargs grep -Hn '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' |
    awk -v table="$table" '
    BEGIN {
        while ((getline line < table) > 0) {
            sub(/#.*/, "", line)
            if (split(line, word, /[: \t]+/) < 1 || word[1] == "")
                continue
            known[word[1]] = 1
            for (i in word)
                allowed[word[1], word[i]] = 1
        }
    }
    {
        split($0, part, ":")
        file = part[1]
        room = file
        sub(/\/.*/, "", room)
        match($0, /"[^"]*"/)
        path = substr($0, RSTART + 1, RLENGTH - 2)
        to = path
        checked++
        if (!sub(/\/.*/, "", to)) {
            print file ":" part[2] ": \"" path "\": name the room, as in \"" room "/" path "\""
            wrong++
        } else if (!(room in known)) {
            print file ": the room " room " is not in layers.txt"
            wrong++
        } else if (!((room, to) in allowed)) {
            print file ":" part[2] ": \"" path "\": " room " may not include " to
            wrong++
        }
    }
    END {
        print checked + 0 " includes, " wrong + 0 " wrong"
        exit wrong > 0 || checked == 0
    }'
