# The applets of a statically linked busybox.
cd /tmp && b=/usr/bin/busybox
for i in $($b seq 1 300); do echo "$i $((i * i)) $((i % 7))"; done >numbers
$b sha256sum numbers
$b sort -k 3n -k 1nr numbers | $b md5sum
$b awk '{ s[$3] += $2; x += sin($1) } END { for (k in s) print k, s[k]; printf "%.9f\n", x }' numbers | $b sort
for tool in gzip bzip2 xz; do $b $tool -c numbers 2>/dev/null | $b $tool -dc | $b cksum; done
$b tar -cf numbers.tar numbers && $b tar -tf numbers.tar
$b sed -n 's/^\([0-9]*\)0 \(.*\)$/\2 \1/p' numbers | $b tail -n 3
{ $b ash -c 'i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; echo $i; false; echo $?; kill -9 $$'; } 2>/dev/null
echo "status $?"
$b dc -e '2 k 7 3 / p' ; echo '2^100; sqrt(50)' | $b bc 2>/dev/null
$b find /usr/bin -name 'bus*' -type f; $b factor 1234567890123456789; $b crc32 numbers
$b od -An -tx1 -N 32 numbers; $b hexdump -C -n 32 numbers; $b base64 numbers | $b sha1sum; $b sha3sum numbers
$b dd if=/dev/zero bs=64k count=32 2>/dev/null | $b sha512sum
