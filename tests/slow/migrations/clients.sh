# shellcheck shell=bash
# The clients of migrations.sh, in a machine that stays where it is, of a server in one that moves.  Each is three functions:
#
#   NAME_image       what both machines boot
#   NAME_begin       starts server and client
#   NAME_wrong       prints what has gone wrong so far, or nothing
#   NAME_end         ends the client, looks at what it has seen, and prints it: with "wrong:" before if it is not as it should be
#
# on_server and on_client run a shell's words in the machines; those have the addresses $server and $client.

# --- tcp: one connection, every byte compared -------------------------------------------------------------------------
tcp_image() { echo tiny; }

tcp_begin()
{
    gcc -O2 -static -o talk "$slow/migrations/talk.c" || return 1
    for machine in server client; do "$GUISE" cp talk "$machine:/root/talk" || return 1; done
    on_server '/root/talk serve 7000 >/root/served 2>&1 &'
    sleep 0.5
    on_client "/root/talk call $server 7000 /root/enough >/root/called 2>&1 &"
}

tcp_wrong() { on_client 'cat /root/called'; }

tcp_end()
{
    local called
    on_client 'touch /root/enough'
    sleep 2
    called=$(on_client 'cat /root/called')
    case $called in
    *" blocks, "*) echo "$called" ;;
    *) echo "wrong: $called; $(on_server 'cat /root/served 2>&1')" ;;
    esac
}

# --- ssh: one session, whose command prints numbered lines and reads others -----------------------------------------------
ssh_image() { moving_image && echo moving; }

ssh_begin()
{
    local key
    on_server 'ssh-keygen -A >/dev/null; mkdir -p /run/sshd /root/.ssh; ss -ltn | grep -q ":22 " || /usr/sbin/sshd' || return 1
    on_client 'mkdir -p /root/.ssh; ssh-keygen -q -t ed25519 -N "" -f /root/.ssh/id_ed25519' || return 1
    key=$(on_client 'cat /root/.ssh/id_ed25519.pub')
    on_server "echo '$key' >>/root/.ssh/authorized_keys"
    # Down: a hundred lines at a time; up: a line for each hundred, of which the command at the server prints what it is.
    cat >count <<'SH'
n=1
while [ ! -e /root/enough ]; do
    seq $n $((n + 99))
    read -r line || exit 3
    echo "got $line"
    n=$((n + 100))
done
SH
    "$GUISE" cp count server:/root/count || return 1
    cat >answer <<'SH'
: >/root/lines
mkfifo /root/up
ssh -o StrictHostKeyChecking=accept-new root@$1 sh /root/count </root/up 2>/root/ssh-said | {
    exec 3>/root/up
    i=0
    while read -r line; do
        echo "$line" >>/root/lines
        case $line in *00) i=$((i + 1)); echo "line $i" >&3; sleep 0.05 ;; esac
    done
}
echo "${PIPESTATUS[0]}" >/root/ssh-status
SH
    "$GUISE" cp answer client:/root/answer || return 1
    on_client "bash /root/answer $server >/dev/null 2>&1 &"
    for _ in $(seq 50); do [ -n "$(on_client 'head -n 1 /root/lines')" ] && break || sleep 0.2; done
}

ssh_wrong() { on_client 'if [ -e /root/ssh-status ]; then echo "the session has ended: $(cat /root/ssh-said)"; fi'; }

ssh_end()
{
    local status
    on_server 'touch /root/enough'
    for _ in $(seq 50); do status=$(on_client 'cat /root/ssh-status 2>/dev/null') && [ -n "$status" ] && break || sleep 0.2; done
    [ "$status" = 0 ] || { echo "wrong: ssh's status is '$status': $(on_client 'cat /root/ssh-said')" && return; }
    # All numbers in order, with "got line K" behind each hundred, and nothing else.
    on_client 'awk "/^got line / { if (\$3 != ups + 1 || n != 100 * (ups + 1)) { print \"wrong: line \" NR \": \" \$0; exit } ups++; next }
        { if (\$0 != n + 1) { print \"wrong: line \" NR \": \" \$0; exit } n++ }
        END { printf \"%d lines down and %d up, each once and in order\n\", n, ups }" /root/lines'
}

# --- postgres: pgbench without a pause, then check sums, indexes and tables -------------------------------------------------
postgres_image() { moving_image && echo moving; }

pg=/usr/lib/postgresql/15/bin
as_postgres() { on_server "cd /; su postgres -c \"$1\""; }
ask_postgres() { as_postgres "psql -p 5433 -qAtX -d bench -c '$1'"; }

postgres_begin()
{
    on_server 'systemctl stop postgresql 2>/dev/null
        pg_createcluster -p 5433 15 checked -- --data-checksums >/dev/null &&
        echo "listen_addresses = '\''*'\''" >>/etc/postgresql/15/checked/postgresql.conf &&
        echo "host all all 10.99.0.0/24 trust" >>/etc/postgresql/15/checked/pg_hba.conf &&
        pg_ctlcluster 15 checked start' || return 1
    as_postgres 'createdb -p 5433 bench' || return 1
    on_client "pgbench -h $server -p 5433 -U postgres -i -s 3 bench >/root/init 2>&1 || { cat /root/init; exit 1; }" || return 1
    cat >pgbench-on <<'SH'
rm -f /root/enough /root/over
while [ ! -e /root/enough ]; do
    pgbench -n -h $1 -p 5433 -U postgres -c 4 -j 2 -T ${2:-20} bench >/root/report 2>/root/said || { { cat /root/said; echo "status $?"; } >>/root/wrong; break; }
    sed -n 's/^number of transactions actually processed: //p' /root/report >>/root/transactions
    sed -n 's/^number of failed transactions: //p' /root/report | grep -v '^0 ' >>/root/wrong
done
touch /root/over
SH
    "$GUISE" cp pgbench-on client:/root/pgbench-on || return 1
    on_client "bash /root/pgbench-on $server >/dev/null 2>&1 &"
}

postgres_wrong() { on_client 'cat /root/wrong 2>/dev/null'; }

postgres_end()
{
    local committed rows sums check index
    on_client 'touch /root/enough'
    for _ in $(seq 200); do on_client '[ -e /root/over ]' && break || sleep 0.5; done
    committed=$(on_client "awk '{ n += \$1 } END { print n }' /root/transactions")
    rows=$(ask_postgres 'select count(*) from pgbench_history')
    [ -n "$committed" ] && [ "$committed" = "$rows" ] || { echo "wrong: $committed transactions were committed, $rows are there" && return; }
    sums=$(ask_postgres 'select count(distinct s) from (select sum(abalance) s from pgbench_accounts union all select sum(tbalance) from pgbench_tellers
        union all select sum(bbalance) from pgbench_branches union all select coalesce(sum(delta), 0) from pgbench_history) x')
    [ "$sums" = 1 ] || { echo "wrong: the balances of accounts, tellers, branches and history do not agree ($sums)" && return; }
    index=$(as_postgres "$pg/pg_amcheck -p 5433 -d bench --install-missing --heapallindexed --parent-check 2>&1") ||
        { echo "wrong: pg_amcheck: $index" && return; }
    on_server 'pg_ctlcluster 15 checked stop' || { echo "wrong: the server does not stop" && return; }
    check=$(as_postgres "$pg/pg_checksums --check -D /var/lib/postgresql/15/checked 2>&1") || { echo "wrong: pg_checksums: $check" && return; }
    echo "$committed transactions, all there; balances agree, indexes are sound; $(echo "$check" | xargs)"
}
