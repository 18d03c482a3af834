#!/bin/busybox sh
# shellcheck shell=dash disable=SC2154 # udhcpc sets them
# What udhcpc calls with an offer in its environment.
case $1 in
bound | renew)
    ip addr flush dev "$interface"
    ip addr add "$ip/${mask:-24}" dev "$interface"
    ip route add default via "$router"
    for server in $dns; do echo "nameserver $server"; done >/etc/resolv.conf
    ;;
esac
