/*
 * The process behind disks of other formats: `guise helper-disk FORMAT PATH [ro]`, which `guise help` does not show. It
 * gives away what a disk server does not need and becomes qemu-nbd, with descriptor 3 as the socket that it listens on.
 */
#pragma once

/* argv as main's, [0] being the command's name.  Returns the exit status, if at all. */
int disk_helper_main(int argc, char **argv);
