#!/bin/bash
# A program that runs directly loses no store while its machine is saved, restored, copied and moved.
. "$(dirname "$(readlink -f "$0")")/lib.sh"
. "$here/machines.sh"

gcc -O2 -Wall -static -o "$work/tables" "$here/watch/tables.c" || { not_ok tables "no static C program"; finish; }
guise launch tiny --name vm >"$work/stdout" 2>"$work/stderr" || { not_ok launch "$(tail -n 1 "$work/stderr")" && finish; }
guise exec vm -- sh -c 'mkdir -p /dev/shm && mount -t tmpfs none /dev/shm'
guise cp "$work/tables" vm:/root/tables

done_by() { guise exec "$1" -- od -An -v -t u8 -N 8 /dev/shm/done | tr -d ' '; }
right() # NAME MACHINE: it goes on, and nothing is wrong
{
    local before after wrong
    before=$(done_by "$2")
    sleep 0.3
    after=$(done_by "$2")
    wrong=$(guise exec "$2" -- sh -c 'cat /dev/shm/wrong 2>/dev/null')
    if [ -z "$wrong" ] && [ "$after" -gt "$before" ] 2>/dev/null; then ok "$1"; else not_ok "$1" "${wrong:-$before pages, then $after}"; fi
}

begin() # PAGES
{
    guise exec vm -- sh -c "killall tables 2>/dev/null; rm -f /dev/shm/done; /root/tables $1 /dev/shm/done /dev/shm/wrong >/dev/null 2>&1 &"
    sleep 1
}

for pages in 200 6000; do
    begin $pages
    right "$pages pages" vm
    for i in 1 2 3; do
        guise snapshot vm "s$pages-$i" >/dev/null 2>"$work/stderr" || not_ok snapshot "$(tail -n 1 "$work/stderr")"
        sleep 0.2
    done
    right "$pages pages: it was saved three times" vm
    for i in 1 3; do
        status "restored" 0 guise restore vm "s$pages-$i"
        right "$pages pages: saved as they were at one moment ($i)" vm
    done
    guise snapshot rm vm "s$pages-1" "s$pages-2" "s$pages-3" >/dev/null 2>&1
    status "forked" 0 guise fork vm --name copy
    right "$pages pages: a copy goes on" copy
    right "$pages pages: and who was copied" vm
    guise rm --force copy >/dev/null
    name=vm
    for i in 1 2 3 4; do
        status "moved" 0 guise migrate $name moved-$i
        name=moved-$i
        sleep 0.2
    done
    right "$pages pages: it has moved four times" $name
    guise rename $name vm 2>/dev/null || guise migrate $name vm >/dev/null 2>&1
    right "$pages pages: and back" vm
done
finish
