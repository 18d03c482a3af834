/*
 * The process behind the networks `user` and `switch`: `guise helper-net KIND PATH|REACH`, which `guise help` does not
 * show.  backends/net/helped.c starts it with two sockets open: frames as descriptor 3 (net/wire.h), requests and news
 * as descriptor 4 (net/control.h).
 */
#pragma once

/* argv as main's, [0] being the command's name.  Returns the exit status. */
int net_helper_main(int argc, char **argv);
