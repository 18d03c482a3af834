/* Bytes both ways between two places, each direction with an end of its own: what a tunnel is, at either side. */
#pragma once

/*
 * From `in` to `peer` and from `peer` to `out` (which may both be one socket) until both have ended, or one is broken.
 * `peer` is a socket.  None of them is made non-blocking, since they may be shared; no direction waits for the other.
 * `until_peer`: the end of what comes from the peer is enough.
 */
void relay(int in, int out, int peer, int until_peer);
