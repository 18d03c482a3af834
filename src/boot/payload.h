/* A bzImage's payload (payload.c). */
#pragma once
#include <stddef.h>
#include <stdint.h>

struct memory;

#define PAYLOAD_MAX (512u << 20) /* unpacked; what KASLR has room for is 1 GiB */

struct payload {
    int fd;
    uint64_t offset, length; /* in the file */
};

/* How large it is unpacked, as it says itself; -ENOEXEC, -EFBIG, or -ENOTSUP: packed in a way that is not known here.
 */
int64_t payload_size(const struct payload *p);
/* Exactly `size` bytes to RAM at gpa.  0, or -errno: damaged, and there is anything in that RAM. */
int payload_unpack(const struct payload *p, struct memory *m, uint64_t gpa, size_t size);
