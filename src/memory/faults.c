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

static int open_one(bool partly)
{
    struct uffdio_api api = {.api = UFFD_API,
                             .features = UFFD_FEATURE_MISSING_SHMEM | (partly ? UFFD_FEATURE_MINOR_SHMEM : 0)};
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

    if (fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0)
        return fd;
    int err = -errno;
    if (fd >= 0)
        close(fd);
    return err;
}

bool memory_faults_are_possible(bool partly)
{
    int fd = open_one(partly);

    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

int memory_faults_open(struct memory *m, bool partly)
{
    int fd = open_one(partly);

    m->faults = fd < 0 ? -1 : fd;
    m->faults_partly = partly;
    return fd < 0 ? fd : 0;
}

void memory_faults_close(struct memory *m)
{
    if (m->faults >= 0)
        close(m->faults);
    m->faults = -1;
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
    memory_faults_close(m);
}

static int register_part(struct memory *m, unsigned i)
{
    const bool partly = m->faults_partly;
    const uint64_t needed = NEEDED | (partly ? 1ull << _UFFDIO_CONTINUE : 0);
    struct uffdio_register r = {.range = part(m, i),
                                .mode = UFFDIO_REGISTER_MODE_MISSING | (partly ? UFFDIO_REGISTER_MODE_MINOR : 0)};

    if (!r.range.len)
        return 0;
    if (ioctl(m->faults, UFFDIO_REGISTER, &r))
        return -errno;
    if ((r.ioctls & needed) != needed)
        return -ENOTSUP;
    /* What is there is asked for, too: nothing is seen any more, and nothing given up. */
    return partly && madvise((void *)(uintptr_t)r.range.start, r.range.len, MADV_DONTNEED) ? -errno : 0;
}

static int register_all(struct memory *m)
{
    int err = register_part(m, 0);

    return err ? err : register_part(m, 1);
}

int memory_faults_begin(struct memory *m)
{
    if (m->faults < 0)
        return -EBADF;
    allow_large(m, false);
    /* A page that is there is not missing, even if it is not what is to come. */
    for (uint64_t at = m->faults_partly ? m->size : 0; (at = memory_next_data(m, at)) < m->size;
         at = (at | (WATCH_CHUNK - 1)) + 1)
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

static void zero(const struct memory *m, uint64_t page)
{
    struct uffdio_zeropage z = {.range = {.start = page, .len = PAGE}};

    while (ioctl(m->faults, UFFDIO_ZEROPAGE, &z) && z.zeropage == -EAGAIN)
        ;
    if (z.zeropage == -EEXIST)
        wake(m, page, PAGE);
}

/* false: it is not there. */
static bool show_page(const struct memory *m, uint64_t page)
{
    struct uffdio_continue c = {.range = {.start = page, .len = PAGE}};

    while (ioctl(m->faults, UFFDIO_CONTINUE, &c) && c.mapped == -EAGAIN)
        ;
    if (c.mapped == -EEXIST)
        wake(m, page, PAGE);
    return c.mapped != -EFAULT;
}

void memory_faults_show(struct memory *m, const void *from, uint64_t length)
{
    for (uint64_t page = (uintptr_t)from, end = page + length; page < end; page += PAGE)
        if (!m->faults_partly || !show_page(m, page))
            zero(m, page);
}

static void answer(struct memory *m, uint64_t address)
{
    const uint64_t gpa = address - (uintptr_t)m->base;

    if (!memory_want_chunk(m, memory_offset(m, gpa) >> WATCH_SHIFT))
        memory_faults_show(m, (void *)(uintptr_t)(address & -(uint64_t)PAGE), PAGE);
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
