/*
 * A disk whose file another process of the same machine writes to for a time: when a machine moves and its disk stays
 * where it is, on storage that both sides see.  At any time at most one of them has the lock that a writer has.
 *
 *      source      shows its lock    flushes, leaves, and returns if it comes to nothing
 *      destination sees that lock    opens as `away`, claims the file when it has been left, takes it
 *
 * That two processes, on two hosts as well, mean the same file when they say a path is proved by the lock itself: the
 * one who has it lets go of one byte of it, far behind any end, at a random place; the other one looks for exactly that
 * gap.  Nothing is written, names and numbers of files mean nothing, and it is certain besides that the lock which
 * keeps two writers apart is seen by both.
 *
 * But for disk_sees and disk_claim: the lock of the disk's loop held.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

struct disk;
struct disk_spec;
struct loop;

/* Places of gaps: bytes, in [FIRST, 2 FIRST). */
#define DISK_GAP_FIRST (UINT64_C(1) << 61)

/* Can another process have its file for a time?  Of one that is written to: a file of the host's, as a disk or an
 * overlay.  A block device cannot: its locks are not seen on another host. */
bool disk_can_leave(const struct disk *d);
/* The same, as far as it can be told by words. */
bool disk_spec_can_leave(const struct disk_spec *spec);
/* Its lock has a gap of a byte there, or (0) is whole again.  0/-errno: there are no locks here. */
int disk_show_lock(struct disk *d, uint64_t gap);
/* Gives up the lock of a disk that is at rest and flushed: it is away. */
void disk_leave(struct disk *d);
/* And back, when nobody has written to it since.  0, or -EBUSY: somebody has it; -errno. */
int disk_return(struct disk *d);

/* Is the file `path` the one whose lock has that gap?  -ESTALE: no; -errno with a sentence. */
int disk_sees(const char *path, uint64_t gap, char *err, size_t n);
/* As disk_open, of a file that another process writes to: it is away.  Its spec has the full path. */
int disk_open_away(struct disk **out, const char *words, struct loop *loop, char *err, size_t n);
/* Opens the file `path` and takes its lock, which somebody may be about to give up.  The descriptor, or -errno with a
 * sentence. */
int disk_claim(const char *path, char *err, size_t n);
/* When the file that it has open was last written to. */
struct timespec disk_written(const struct disk *d);
/* The descriptor of that becomes the disk's, which is there from then on: it must be the file that was opened.  0, or
 * -errno with a sentence, and fd is still the caller's. */
int disk_take(struct disk *d, int fd, char *err, size_t n);
