# The disk in pieces of 1 MiB, past the page cache
prepare() { :; }
work() { dd if=/bench/data of=/dev/null bs=1M iflag=direct 2>/dev/null; }
