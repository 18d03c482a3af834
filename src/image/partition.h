/*
 * What is where on a disk: partition tables and the signatures of file systems.  All of it is read from a disk that may
 * be a stranger's: nothing here trusts a number before it was compared with the disk's size.
 */
#pragma once
#include <stdint.h>

#define PARTITIONS_MAX 128
#define SECTOR 512u

struct partition {
    unsigned number; /* as Linux counts them: /dev/...pN; 0: the whole disk */
    uint64_t start, bytes;
    char type[16]; /* of the file system: "ext4", "xfs", ...; "" if it is not known */
};

/*
 * Reads at most 64 sectors and a table: GPT (UEFI specification, 5.3), or MBR with logical partitions.  Returns how
 * many partitions there are; one with number 0 if the disk has no table but a file system at its start; 0 for nothing
 * known; or -errno when it cannot be read.
 */
int partitions_read(int fd, uint64_t disk_bytes, struct partition out[PARTITIONS_MAX]);

/* The type of the file system in [start, start + bytes) of the disk into type[16]. */
void partition_probe(int fd, uint64_t start, uint64_t bytes, char type[16]);
