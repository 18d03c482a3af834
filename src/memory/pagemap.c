#include "memory/pagemap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE_SHIFT 12
#define PRESENT (1ull << 63)
#define SWAPPED (1ull << 62)
#define OF_FILE (1ull << 61) /* or of memory that is shared: not anonymous */

/* Whoever opens it as root would be shown where in the host's memory pages are, which is no business of a process that
 * a guest may have taken over: so without that capability, for the moment. */
int pagemap_open(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct had[_LINUX_CAPABILITY_U32S_3], less[_LINUX_CAPABILITY_U32S_3];

    if (syscall(SYS_capget, &header, had))
        return -errno;
    for (unsigned i = 0; i < _LINUX_CAPABILITY_U32S_3; i++)
        less[i] = had[i];
    less[CAP_TO_INDEX(CAP_SYS_ADMIN)].effective &= ~CAP_TO_MASK(CAP_SYS_ADMIN);
    if (syscall(SYS_capset, &header, less))
        return -errno;
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    int err = fd < 0 ? -errno : 0;
    if (syscall(SYS_capset, &header, had) && !err) {
        err = -errno;
        close(fd);
    }
    return err ? err : fd;
}

bool pagemap_is_written(struct pagemap *p, const void *address)
{
    const uint64_t page = (uintptr_t)address >> PAGE_SHIFT;

    if (page - p->first >= p->n) {
        ssize_t got = pread(p->fd, p->entries, sizeof p->entries, (off_t)(page * sizeof *p->entries));
        p->first = page;
        p->n = got < 0 ? 0 : (uint64_t)got / sizeof *p->entries;
    }
    if (!p->n)
        return true;
    const uint64_t entry = p->entries[page - p->first];
    return entry & (PRESENT | SWAPPED) && !(entry & OF_FILE);
}
