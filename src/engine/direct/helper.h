/*
 * The process that makes the processes which guest code runs in (layout.h): started by a VM process before it enters
 * its sandbox, since that one could not make them afterwards.
 *
 * Descriptors: 3 a socket, where a byte N asks for a process that uses slot N, and is answered by one when the process
 * before it has ended; 4 the shared pages; 5 the guest's RAM.
 */
#pragma once

int direct_helper_main(int argc, char **argv);

/* stub.c */
extern const char direct_stub[], direct_stub_handler[], direct_stub_said[], direct_stub_parked[], direct_stub_fs_set[],
    direct_stub_gs_set[], direct_stub_returned[], direct_stub_start[], direct_stub_end[];
