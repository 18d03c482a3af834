/* Trees of files on the host. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image/image_int.h"

#define DEPTH_MAX 256 /* descriptors open at once */

static int remove_at(int parent, const char *name, unsigned depth);

static int remove_content(int fd, unsigned depth)
{
    DIR *directory = fdopendir(fd);
    struct dirent *e;
    int failed = 0;

    if (!directory) {
        close(fd);
        return -errno;
    }
    while ((e = readdir(directory))) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        int now = remove_at(dirfd(directory), e->d_name, depth);
        failed = failed ? failed : now;
    }
    closedir(directory);
    return failed;
}

static int remove_at(int parent, const char *name, unsigned depth)
{
    if (unlinkat(parent, name, 0) == 0 || errno == ENOENT)
        return 0;
    if (errno != EISDIR && errno != EPERM)
        return -errno;
    if (depth == DEPTH_MAX)
        return -ELOOP;
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    fchmod(fd, 0700); /* a read-only directory does not let go of what is in it */
    int failed = remove_content(fd, depth + 1);
    if (unlinkat(parent, name, AT_REMOVEDIR) == 0 || errno == ENOENT)
        return 0;
    return failed ? failed : -errno;
}

int files_remove(const char *path)
{
    return remove_at(AT_FDCWD, path, 0);
}

uint64_t files_allocated(const char *path)
{
    struct stat st;

    return lstat(path, &st) ? 0 : (uint64_t)st.st_blocks * 512;
}
