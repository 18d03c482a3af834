#include "vm/tree.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define DEEPEST 16 /* a VM's directory has no deeper ones; a stranger's are not worth the stack */

static int remove_in(int parent, const char *name, int depth)
{
    struct dirent *e;
    int failed = 0;

    if (unlinkat(parent, name, 0) == 0 || errno == ENOENT)
        return 0;
    if (errno != EISDIR && errno != EPERM)
        return -errno;
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *dir = fd < 0 || depth == DEEPEST ? NULL : fdopendir(fd);
    if (!dir) {
        failed = fd < 0 ? -errno : -ELOOP;
        if (fd >= 0)
            close(fd);
        return failed;
    }
    while ((e = readdir(dir))) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        int r = remove_in(fd, e->d_name, depth + 1);
        failed = failed ? failed : r;
    }
    closedir(dir);
    if (unlinkat(parent, name, AT_REMOVEDIR) && errno != ENOENT && !failed)
        failed = -errno;
    return failed;
}

int tree_remove(const char *path)
{
    return remove_in(AT_FDCWD, path, 0);
}
