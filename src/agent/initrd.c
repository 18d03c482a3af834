#include "agent/initrd.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/config.h"
#include "agent/cpio.h"
#include "base/error.h"

/* The program of src/guest/, put into this one by the build (src/guest/embed.S). */
extern const char guest_program[];
extern const uint64_t guest_program_size;

int agent_initrd_append(int fd, const struct guest_config *config, char *err, size_t n)
{
    struct cpio *c = malloc(sizeof(*c));
    char *text;
    size_t len;

    if (!c)
        return error_sys(err, n, -ENOMEM, "the guest's initramfs cannot be made");
    int r = guest_config_format(config, &text, &len, err, n);
    if (r)
        goto free_writer;
    cpio_begin(c, fd);
    cpio_directory(c, "dev", 0755);
    cpio_node(c, "dev/console", S_IFCHR | 0600, 5, 1); /* the kernel opens it as our stdin, stdout and stderr */
    cpio_directory(c, "guise", 0700);
    cpio_file(c, GUEST_INIT_PATH, 0755, guest_program, (size_t)guest_program_size);
    cpio_file(c, GUEST_CONFIG_PATH, 0600, text, len);
    r = cpio_end(c);
    if (r)
        error_sys(err, n, r, "the guest's initramfs cannot be written");
    free(text);
free_writer:
    free(c);
    return r;
}

/* Not file_write: the archive is made anew at each start, so it need not survive a crash of the host. */
int agent_initrd_write(const char *path, const struct guest_config *config, char *err, size_t n)
{
    char temporary[PATH_MAX];
    int len = snprintf(temporary, sizeof(temporary), "%s.new-%d", path, (int)getpid());

    if (len < 0 || (size_t)len >= sizeof(temporary))
        return error_set(err, n, -ENAMETOOLONG, "the path %.60s... is too long", path);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return error_sys(err, n, -errno, "cannot create %s", temporary);
    int r = agent_initrd_append(fd, config, err, n);
    if (close(fd) && !r)
        r = error_sys(err, n, -errno, "cannot write %s", temporary);
    if (!r && rename(temporary, path))
        r = error_sys(err, n, -errno, "cannot write %s", path);
    if (r)
        unlink(temporary);
    return r;
}
