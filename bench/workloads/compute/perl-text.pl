# Text by perl: hashes, regular expressions, sorting
# packages: perl
use strict;
use warnings;
my ($x, $text, %count) = (1, '');
for (1 .. 60000) {
    $x = ($x * 1103515245 + 12345) % 2147483648;
    $text .= substr('abcdefghijklmnopqrstuvwxyz', $x % 20, 1 + $x / 64 % 6) . ($x % 11 ? ' ' : ".\n");
}
for my $pass (1 .. 8 * ($ENV{scale} || 1)) {
    $count{lc $1}++ while $text =~ /\b([a-z]+)\b/g;
    $text =~ s/([aeiou])([^aeiou\s]+)/$2$1/g;
}
my @most = (sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count)[0 .. 4];
print join(' ', map { "$_=$count{$_}" } @most), ' ', scalar(keys %count), "\n";
