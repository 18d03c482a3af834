# Regular expressions, hashes, formats, processes.
perl - <<'EOF'
use strict;
use warnings;
use Digest::SHA qw(sha512_hex);
use POSIX qw(floor strftime);
use Time::HiRes qw(ualarm usleep);
my %words;
$words{$_ % 977} .= chr(65 + $_ % 26) for 1 .. 30000;
print sha512_hex(join ",", map {"$_=$words{$_}"} sort { $a <=> $b } keys %words), "\n";
my $text = join " ", map { "word$_" } 1 .. 5000;
my $count = () = $text =~ /\bword\d*7\b/g;
(my $copy = $text) =~ s/(\d+)/<$1>/g;
print "$count ", length $copy, " ", unpack("%32C*", $copy), "\n";
print join(" ", map { sprintf "%.10g", $_ } sin 1, cos 2, exp 1.5, log 10, sqrt 2, atan2(1, 3), 2**0.5, 1e21 + 1), "\n";
print 9223372036854775807 + 1, " ", 18446744073709551615, " ", -7 % 3, " ", int(-3.7), " ", floor(-3.7), "\n";
print unpack("H*", pack("NnCdq>", 1, 2, 3, 1.5, -2)), "\n";
print strftime("%Y-%m-%d %H:%M:%S", gmtime 1700000000), "\n";
pipe my $r, my $w;
for my $i (1 .. 5) {
    my $pid = fork;
    if (!$pid) { syswrite $w, "$i\n"; exit 0 }
}
close $w;
1 while wait > 0;
print "children ", join(",", sort map { chomp; $_ } <$r>), "\n";
my $rung = 0;
$SIG{ALRM} = sub { $rung++ };
ualarm 20000;
usleep 100000 until $rung;
print "alarm $rung\n";
sub ackermann { my ($m, $n) = @_; return $m == 0 ? $n + 1 : $n == 0 ? ackermann($m - 1, 1) : ackermann($m - 1, ackermann($m, $n - 1)) }
no warnings 'recursion';
print ackermann(2, 30), "\n";
my @primes = grep { my $n = $_; $n > 1 && !grep { $n % $_ == 0 } 2 .. sqrt $n } 2 .. 3000;
print scalar @primes, " $primes[-1]\n";
eval { die { code => 7 } };
print "caught $@->{code}\n";
print `echo from a shell`, $? >> 8, "\n";
EOF
