#!/bin/bash
# An image with cloud-init is told who its machines are: user data, network, keys, name. Building it takes minutes, so this is
# for GUISE_SLOW=1.
. "$(dirname "$(readlink -f "$0")")/lib.sh"
if [ -z "${GUISE_SLOW:-}" ]; then
    echo "takes minutes: GUISE_SLOW=1"
    exit 77
fi
export GUISE_RUNTIME=$work/run GUISE_DATA=$GUISE_CACHE/data
cleanup() {
    "$GUISE" rm --force cloud-init-test >/dev/null 2>&1
    rm -rf "$work"
}
trap cleanup EXIT
"$GUISE" image info cloud-init-test >/dev/null 2>&1 ||
    "$GUISE" image build cloud-init-test --include cloud-init >/dev/null 2>"$work/stderr" || { not_ok "guise image build" "$(tail -n 1 "$work/stderr")" && finish; }

mkdir "$work/seed"
cat >"$work/seed/user-data" <<'EOF'
#cloud-config
users:
  - default
  - name: ada
write_files:
  - path: /etc/motd
    content: "hello\n"
EOF
cat >"$work/seed/network-config" <<'EOF'
version: 2
ethernets:
  one:
    match: {macaddress: "52:54:00:12:34:77"}
    addresses: [10.0.2.77/24]
    routes: [{to: default, via: 10.0.2.2}]
    nameservers: {addresses: [10.0.2.3]}
EOF
ssh-keygen -q -t ed25519 -N '' -f "$work/id"
in_guest() { "$GUISE" exec cloud-init-test -- sh -c "$1" </dev/null 2>&1; }
is() { # NAME EXPECTED COMMAND
    local got
    got=$(in_guest "$3")
    if [ "$got" = "$2" ]; then ok "$1"; else not_ok "$1" "'$got' instead of '$2'"; fi
}
"$GUISE" launch cloud-init-test --name cloud-init-test --hostname known --ssh-key "$work/id.pub" --cloud-init "$work/seed" \
    --net user,mac=52:54:00:12:34:77 --memory 768M >/dev/null 2>"$work/stderr" || { not_ok launch "$(tail -n 1 "$work/stderr")" && finish; }
is "cloud-init is done" "status: done" "cloud-init status --wait | tr -d . | grep ."
is "without complaints" "" "grep -o 'WARNING.*' /var/log/cloud-init.log"
is "the seed is the datasource" "DataSourceNoCloud [seed=/dev/vda][dsmode=net]" "sed -n 's/.*\"datasource\": \"\\(.*\\)\",/\\1/p' /run/cloud-init/result.json"
is "the name" known hostname
is "user data" "ada hello" "echo \$(id -un ada) \$(cat /etc/motd)"
is "the network" "10.0.2.77/24" "ip -4 -o addr show scope global | sed 's/.*inet \\([^ ]*\\).*/\\1/'"
is "keys beside users of one's own" 2 "grep -c ssh-ed25519 /root/.ssh/authorized_keys"
if [ "$("$GUISE" ssh cloud-init-test -- echo in 2>"$work/stderr" </dev/null)" = in ]; then ok "ssh"; else not_ok "ssh" "$(tail -n 1 "$work/stderr")"; fi
if "$GUISE" stop cloud-init-test --timeout 90 2>"$work/stderr"; then ok "it shuts down"; else not_ok "it shuts down" "$(tail -n 1 "$work/stderr")"; fi
finish
