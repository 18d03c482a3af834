#include "memory/faults.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "memory/template.h"
#include "memory/watch.h"

#define PAGE 4096u
#define LOOK_MS 20 /* how long an end may take to be seen */

#define NEEDED (1ull << _UFFDIO_COPY | 1ull << _UFFDIO_ZEROPAGE | 1ull << _UFFDIO_WAKE)

static void close_it(struct memory *m)
{
    if (m->faults >= 0)
        close(m->faults);
    m->faults = -1;
}

int memory_faults_open(struct memory *m)
{
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM};

    m->faults = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (m->faults < 0)
        return -errno;
    if (ioctl(m->faults, UFFDIO_API, &api)) {
        int err = -errno;
        close_it(m);
        return err;
    }
    return 0;
}

/* --- both parts of RAM ------------------------------------------------------------------------------------------- */

static struct uffdio_range part(const struct memory *m, unsigned i)
{
    return (struct uffdio_range){.start = (uintptr_t)m->base + (i ? MEMORY_HOLE_END : 0),
                                 .len = i ? m->high_size : m->low_size};
}

/* A large page would bring with it what is absent around it, as zeroes. */
static void allow_large(const struct memory *m, bool allowed)
{
    for (unsigned i = 0; i < 2; i++)
        if (part(m, i).len)
            (void)madvise((void *)(uintptr_t)part(m, i).start, part(m, i).len,
                          allowed ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
}

static void unregister_all(struct memory *m)
{
    for (unsigned i = 0; i < 2; i++) {
        struct uffdio_range range = part(m, i);
        if (range.len)
            (void)ioctl(m->faults, UFFDIO_UNREGISTER, &range); /* whoever waits goes on */
    }
    allow_large(m, true);
    close_it(m);
}

static int register_all(struct memory *m)
{
    int err = 0;

    for (unsigned i = 0; i < 2 && !err; i++) {
        struct uffdio_register r = {.range = part(m, i), .mode = UFFDIO_REGISTER_MODE_MISSING};
        if (r.range.len && ioctl(m->faults, UFFDIO_REGISTER, &r))
            err = -errno;
        else if (r.range.len && (r.ioctls & NEEDED) != NEEDED)
            err = -ENOTSUP;
    }
    return err;
}

int memory_faults_begin(struct memory *m)
{
    if (m->faults < 0)
        return -EBADF;
    allow_large(m, false);
    /* A page that is there is not missing, even if it is not what is to come. */
    for (uint64_t at = 0; (at = memory_next_data(m, at)) < m->size; at = (at | (WATCH_CHUNK - 1)) + 1)
        memory_load_chunk(m, at >> WATCH_SHIFT, NULL);
    int err = register_all(m);
    if (err)
        unregister_all(m);
    atomic_store(&m->faults_begun, !err);
    return err;
}

/* --- answers ------------------------------------------------------------------------------------------------------ */

static void wake(const struct memory *m, uint64_t start, uint64_t length)
{
    struct uffdio_range range = {.start = start, .len = length};

    (void)ioctl(m->faults, UFFDIO_WAKE, &range);
}

/* A page that is there already is woken for. */
int memory_faults_put(struct memory *m, void *to, const void *bytes, uint64_t length)
{
    for (uint64_t done = 0; done < length;) {
        struct uffdio_copy copy = {.dst = (uintptr_t)to + done, .src = (uintptr_t)bytes + done, .len = length - done};
        if (ioctl(m->faults, UFFDIO_COPY, &copy) == 0)
            return 0;
        if (copy.copy > 0) {
            done += (uint64_t)copy.copy;
        } else if (copy.copy == -EEXIST) {
            wake(m, copy.dst, PAGE);
            done += PAGE;
        } else if (copy.copy != -EAGAIN) {
            return -errno;
        }
    }
    return 0;
}

/* What is not to come is zeroes. */
static void zero(const struct memory *m, uint64_t page)
{
    struct uffdio_zeropage z = {.range = {.start = page, .len = PAGE}};

    while (ioctl(m->faults, UFFDIO_ZEROPAGE, &z) && z.zeropage == -EAGAIN)
        ;
    if (z.zeropage == -EEXIST)
        wake(m, page, PAGE);
}

static void answer(struct memory *m, uint64_t address)
{
    const uint64_t gpa = address - (uintptr_t)m->base;

    if (!memory_load_chunk(m, memory_offset(m, gpa) >> WATCH_SHIFT, NULL))
        zero(m, address & -(uint64_t)PAGE);
}

void memory_faults_serve(struct memory *m)
{
    struct pollfd p = {.fd = m->faults, .events = POLLIN};
    struct uffd_msg message;

    while (!atomic_load(&m->faults_ended)) {
        if (poll(&p, 1, LOOK_MS) > 0 && read(m->faults, &message, sizeof message) == sizeof message &&
            message.event == UFFD_EVENT_PAGEFAULT)
            answer(m, message.arg.pagefault.address);
    }
    unregister_all(m);
    atomic_store(&m->faults_begun, false);
}

void memory_faults_end(struct memory *m)
{
    atomic_store(&m->faults_ended, true);
}
