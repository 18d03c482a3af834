# The guest's side of ports.sh, for busybox's shell.
for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" != data ] || data=/dev/${port##*/}
done
echo "on the console" >/dev/hvc0
exec 3<>"$data"
echo "from the guest" >&3
read -r line <&3
echo "got $line" >&3
dd if=/dev/urandom of=/tmp/block bs=1M count=8 2>/dev/null
cat /tmp/block >&3
sha256sum </tmp/block >&3
dd bs=4096 count=1024 iflag=fullblock <&3 2>/dev/null | sha256sum >&3
until read -r line <&3; do sleep 0.1; done # no client for a moment: the end of the file
echo "got $line" >&3
sleep 0.2
