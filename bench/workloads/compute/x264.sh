# x264 of some frames of 640 by 360, one thread
# packages: x264 perl
prepare()
{
    perl -e 'binmode STDOUT; my ($w, $h) = (640, 360);
        my $wave = join "", map { chr(128 + int(100 * sin($_ * $_ / 9000))) } 0 .. 2047;
        for my $f (0 .. 12 * $ENV{scale} - 1) {
            print substr($wave, (5 * $f + $_ * ($_ >> 5)) % 1300, $w) for 0 .. $h - 1;
            print substr($wave, $f % 1300 + $_, $w / 2) for 0 .. $h - 1;
        }' >in.yuv
    x264 --version
}
work() { x264 --quiet --no-progress --threads 1 --preset fast --input-res 640x360 --fps 25 -o out.264 in.yuv; }
