/* The server as a whole: its beginning and end, the agreement with the guest's kernel, the file system's own numbers.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/error.h"
#include "share/server_int.h"
#include "share/wire.h"

#define DESCRIPTORS_KEPT 64u /* for the process itself */
#define CACHED_MAX 1024u
#define LEAST_MINOR 31u

/* What we can, of what the guest's kernel offers.  No splicing (there is no /dev/fuse here); no write-back cache: the
 * guest would think it knows sizes and times better than the host, which writes to these files too. */
#define FEATURES                                                                                                       \
    (FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC | FUSE_EXPORT_SUPPORT | FUSE_BIG_WRITES | FUSE_AUTO_INVAL_DATA |            \
     FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO | FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS | FUSE_HANDLE_KILLPRIV_V2 |   \
     FUSE_MAX_PAGES | FUSE_CACHE_SYMLINKS)
#define LOCK_FEATURES (FUSE_POSIX_LOCKS | FUSE_FLOCK_LOCKS)
const uint64_t session_features = FEATURES, session_lock_features = LOCK_FEATURES;

void session_forget(struct server *s)
{
    locks_cancel(s, NULL, -ECANCELED);
    handles_clear(s);
    nodes_clear(s);
    s->minor = 0;
    s->features = 0;
}

void server_reset(struct server *s)
{
    pthread_mutex_lock(&s->lock);
    session_forget(s);
    pthread_mutex_unlock(&s->lock);
}

static void budget(struct server *s)
{
    struct rlimit limit;
    uint32_t n = s->config.descriptors;

    if (!n && getrlimit(RLIMIT_NOFILE, &limit) == 0)
        n = limit.rlim_cur < 1u << 20 ? (uint32_t)limit.rlim_cur : 1u << 20;
    if (n < 2 * DESCRIPTORS_KEPT)
        n = 2 * DESCRIPTORS_KEPT;
    n -= DESCRIPTORS_KEPT;
    s->cached_max = n / 4 < CACHED_MAX ? n / 4 : CACHED_MAX;
    s->handles_max = n - s->cached_max;
}

int server_create(struct server **out, const struct server_config *config, char *err, size_t n)
{
    struct server *s = calloc(1, sizeof *s);

    if (!s)
        return error_sys(err, n, -ENOMEM, "cannot start the file server");
    s->config = *config;
    s->uid = geteuid();
    s->gid = getegid();
    s->all_powerful = s->uid == 0;
    budget(s);
    pthread_mutex_init(&s->lock, NULL);
    int r = access("/proc/self/fd", X_OK) ? -errno : 0;
    if (r) {
        error_sys(err, n, r, "a shared folder needs /proc");
        goto fail;
    }
    if ((r = nodes_create(s))) {
        error_sys(err, n, r, "cannot look at the shared directory");
        goto fail;
    }
    if ((r = housekeeper_start(s))) {
        error_sys(err, n, r, "cannot start the file server's thread");
        goto fail;
    }
    *out = s;
    return 0;
fail:
    s->config.root_fd = -1; /* stays the caller's */
    nodes_destroy(s);
    free(s);
    return r;
}

void server_destroy(struct server *s)
{
    if (!s)
        return;
    housekeeper_stop(s);
    session_forget(s);
    nodes_destroy(s);
    id_free(&s->handles);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

/* --- operations ---------------------------------------------------------------------------------------------- */

int op_init(struct call *c)
{
    const struct fuse_init_in *in = c->arg;
    struct fuse_init_out out = {.major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION};

    if (in->major > FUSE_KERNEL_VERSION) /* the guest asks again with ours */
        return call_body(c, &out, sizeof out);
    if (in->major < FUSE_KERNEL_VERSION || in->minor < LEAST_MINOR)
        return -EPROTO;
    session_forget(c->s);
    c->s->minor = in->minor < FUSE_KERNEL_MINOR_VERSION ? in->minor : FUSE_KERNEL_MINOR_VERSION;
    c->s->features = in->flags & (FEATURES | (c->s->config.locks ? LOCK_FEATURES : 0));
    out.minor = c->s->minor;
    out.max_readahead = in->max_readahead;
    out.flags = (uint32_t)c->s->features;
    out.max_background = 2 * SHARE_SLOTS;
    out.congestion_threshold = 2 * SHARE_SLOTS * 3 / 4;
    out.max_write = SHARE_DATA_MAX;
    out.time_gran = 1;
    out.max_pages = in->flags & FUSE_MAX_PAGES ? SHARE_DATA_MAX / 4096 : 0;
    return call_body(c, &out, sizeof out);
}

int op_destroy(struct call *c)
{
    session_forget(c->s);
    return 0;
}

int op_statfs(struct call *c)
{
    struct fuse_statfs_out out = {0};
    struct statvfs st;

    if (fstatvfs(c->s->root->fd, &st))
        return -errno;
    out.st = (struct fuse_kstatfs){.blocks = st.f_blocks,
                                   .bfree = st.f_bfree,
                                   .bavail = st.f_bavail,
                                   .files = st.f_files,
                                   .ffree = st.f_ffree,
                                   .bsize = (uint32_t)st.f_bsize,
                                   .namelen = (uint32_t)st.f_namemax,
                                   .frsize = (uint32_t)st.f_frsize};
    return call_body(c, &out, sizeof out);
}

int op_syncfs(struct call *c)
{
    char path[PROC_PATH_SIZE];

    proc_path(path, c->s->root->fd);
    int fd = sys(open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (fd < 0)
        return fd;
    call_unlock(c);
    int r = sys(syncfs(fd));
    call_lock(c);
    close(fd);
    return r;
}
