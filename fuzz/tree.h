/* Removes what an input has made in a directory, by few system calls: where there is nothing, by one. */
#pragma once
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* `mode` is what the directory has afterwards. */
static inline void fuzz_empty_directory(int at, const char *name, mode_t mode)
{
    struct stat st;
    _Alignas(struct dirent64) char entries[2048];
    ssize_t n;

    if (fstatat(at, name, &st, AT_SYMLINK_NOFOLLOW))
        abort();
    if ((st.st_mode & 07777) != mode)
        fchmodat(at, name, mode, 0);
    if (st.st_size == 0 && st.st_nlink == 2)
        return; /* so it is with tmpfs; elsewhere a directory always has a size */
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        abort();
    while ((n = getdents64(fd, entries, sizeof entries)) > 0)
        for (ssize_t i = 0; i < n; i += ((struct dirent64 *)(entries + i))->d_reclen) {
            const char *child = ((struct dirent64 *)(entries + i))->d_name;
            if (!strcmp(child, ".") || !strcmp(child, "..") || !unlinkat(fd, child, 0))
                continue;
            fuzz_empty_directory(fd, child, 0700);
            if (unlinkat(fd, child, AT_REMOVEDIR))
                abort();
        }
    close(fd);
}
