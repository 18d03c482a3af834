# 32-bit programs: i386 busybox (static), and bash, perl, coreutils and awk on the i386 libc.
cat >/i386/tmp/script <<'EOF'
printf '%s\n' $((2 ** 40)) $((0x7fffffffffffffff % 1000003))
seq 1 3000 | sha256sum
seq 1 3000 | awk '{ s += sqrt($1); t += sin($1) * exp(-$1 / 1000) } END { printf "%.12g %.12g\n", s, t }'
perl -e 'print length(pack "P", "x"), " ", 2 ** 31 * 3, " ", sprintf("%.12g", atan2(1, 3)), "\n"; my %h = map { $_ => $_ * $_ } 1 .. 3000; my $s = 0; $s += $h{$_} for keys %h; print "$s\n"; print join(" ", map { fork // die; 1 } ()), scalar(localtime 0), "\n"'
perl -e 'my $n = 0; for (1 .. 20) { my $p = fork; exit $_ if defined $p && !$p; waitpid $p, 0; $n += $? >> 8 } print "forks $n\n"; $SIG{ALRM} = sub { print "alarm\n" }; alarm 1; select undef, undef, undef, 3; kill 11, $$'
echo "status $?"
head -c 300000 /dev/zero | md5sum
for i in 1 2 3 4 5 6; do (exit $i) & done; wait; ls -l /bin/bash | cut -c1-10
bash -c 'x=; for ((i = 0; i < 5000; i++)); do x+=$((i % 10)); done; echo ${#x} ${x:100:10}'
EOF
chroot /i386 /bin/bash /tmp/script
for applet in "seq 1 5" "factor 99999989" "uname -s" "sha512sum /tmp/script" "ash -c 'i=0; while [ \$i -lt 9999 ]; do i=\$((i+1)); done; echo \$i'"; do
    eval chroot /i386 /bin/busybox $applet
done
