/* What the two sides of translating ahead share: course_ahead.c, the thread, and course_take.c, the vCPU. */
#pragma once
#include "engine/soft/translate_int.h"

struct batch {
    uint32_t first, end; /* numbers of blocks */
    unsigned region;
    struct cache_region filled; /* up to its end */
    bool taken;
};

enum course_state { COURSE_IDLE, COURSE_RUNS, COURSE_ENDED }; /* the thread */

struct course {
    int fd;
    uint8_t *file; /* all of it; NULL: it has not been read */
    size_t size;
    uint64_t gpa, gva, image; /* the kernel's image, its bytes */
    const uint8_t *ram;       /* the host's, of the image */
    const struct engine *of;  /* the vCPU's */
    struct engine *aside;     /* the thread's */
    struct batch *batches;
    _Atomic uint32_t n_batches;
    _Atomic uint32_t *head; /* the index: by hash, numbers of blocks + 1 */
    uint32_t *next, *at;    /* by number: the next one of that hash; where it is in the file */
    _Atomic enum course_state state;
    _Atomic bool stop;
    uint8_t page[4096 + 64];
    /* the vCPU's: */
    uint32_t n_made; /* the thread's, too */
    uint32_t n_taken, n_refused, n_missed;
    bool is_old;
    uint64_t until_ns; /* so long a boot takes */
};

/* It is not to be there the next time: it will be noted again. */
void soft_course_discard(const struct course *c);
