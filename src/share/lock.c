/*
 * Locks that the host's programs and other guests see, for a share with `locks`.  Without, the guest's kernel keeps its
 * locks to itself, which is the usual way: Linux's virtio-fs cannot interrupt a request, so that a process that waits
 * for one of ours cannot be killed, and closing a file takes a request more.
 *
 * A POSIX lock belongs to a process of the guest, its `owner`.  Here each owner has a descriptor of its own for the
 * file, whose open-file-description locks are the owner's locks: closing it drops them all at once.  flock(2) locks
 * belong to the open file, which is the handle's descriptor as it is.
 *
 * Nobody waits inside a system call.  A lock that somebody has is tried again whenever one of ours ends, and 40 times a
 * second because of those that are not ours.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

#include "share/server_int.h"

#define WAITS_MAX 1024u
#define RETRY_NS 25000000l
#define TRIM_S 5u

struct lock_owner {
    struct lock_owner *next;
    uint64_t owner;
    uint32_t pid;
    int fd;
};

static struct lock_owner *find_owner(struct node *node, uint64_t owner)
{
    struct lock_owner *o = node->lock_owners;

    while (o && o->owner != owner)
        o = o->next;
    return o;
}

static int open_for_locks(struct server *s, struct handle *h)
{
    char path[PROC_PATH_SIZE];

    proc_path(path, h->fd);
    int fd = s->config.read_only ? -EACCES : sys(open(path, O_RDWR | O_CLOEXEC));
    return fd == -EACCES || fd == -EPERM || fd == -EROFS ? sys(open(path, O_RDONLY | O_CLOEXEC)) : fd;
}

static int get_owner(struct server *s, struct handle *h, const struct fuse_lk_in *in, struct lock_owner **out)
{
    struct lock_owner *o = find_owner(h->node, in->owner);

    if (!o) {
        if (s->n_open >= s->handles_max || !(o = calloc(1, sizeof *o)))
            return -ENOLCK;
        int fd = open_for_locks(s, h);
        if (fd < 0) {
            free(o);
            return fd;
        }
        s->n_open++;
        *o = (struct lock_owner){.next = h->node->lock_owners, .owner = in->owner, .fd = fd};
        h->node->lock_owners = o;
    }
    o->pid = in->lk.pid;
    *out = o;
    return 0;
}

static void drop_owner(struct server *s, struct lock_owner **o)
{
    struct lock_owner *gone = *o;

    *o = gone->next;
    close(gone->fd);
    s->n_open--;
    free(gone);
}

void locks_drop_owner(struct server *s, struct node *node, uint64_t owner)
{
    struct lock_owner **o = &node->lock_owners;

    while (*o && (*o)->owner != owner)
        o = &(*o)->next;
    if (!*o)
        return;
    drop_owner(s, o);
    locks_retry(s);
}

void locks_drop_node(struct server *s, struct node *node)
{
    while (node->lock_owners)
        drop_owner(s, &node->lock_owners);
}

static int range_of(const struct fuse_file_lock *lk, struct flock *fl)
{
    if (lk->start > INT64_MAX || lk->end > INT64_MAX || lk->end < lk->start)
        return -EINVAL;
    if (lk->type != F_RDLCK && lk->type != F_WRLCK && lk->type != F_UNLCK)
        return -EINVAL;
    *fl = (struct flock){.l_type = (short)lk->type, .l_whence = SEEK_SET, .l_start = (off_t)lk->start};
    fl->l_len = lk->end == INT64_MAX ? 0 : (off_t)(lk->end - lk->start + 1);
    return 0;
}

static int try_flock(struct handle *h, uint32_t type)
{
    int how = type == F_RDLCK ? LOCK_SH : type == F_WRLCK ? LOCK_EX : type == F_UNLCK ? LOCK_UN : -1;

    return how < 0 ? -EINVAL : sys(flock(h->fd, how | LOCK_NB));
}

/* One attempt.  -EAGAIN: somebody else has it. */
static int try_lock(struct server *s, struct handle *h, const struct fuse_lk_in *in)
{
    struct lock_owner *o;
    struct flock fl;

    if (in->lk_flags & FUSE_LK_FLOCK)
        return try_flock(h, in->lk.type);
    int err = range_of(&in->lk, &fl);
    if (err)
        return err;
    if (in->lk.type == F_UNLCK && !find_owner(h->node, in->owner))
        return 0;
    err = get_owner(s, h, in, &o);
    if (!err)
        err = sys(fcntl(o->fd, F_OFD_SETLK, &fl));
    return err == -EACCES ? -EAGAIN : err;
}

/* --- those that wait ----------------------------------------------------------------------------------------- */

static void finish_wait(struct server *s, struct lock_wait **w, int error)
{
    struct lock_wait *done = *w;

    *w = done->next;
    s->n_waits--;
    reply_error(s, done->index, done->unique, error);
    handle_drop(s, done->handle);
    free(done);
}

void locks_retry(struct server *s)
{
    struct lock_wait **w = &s->waits;

    while (*w) {
        int r = try_lock(s, (*w)->handle, &(*w)->lk);
        if (r == -EAGAIN)
            w = &(*w)->next;
        else
            finish_wait(s, w, r);
    }
}

void locks_cancel(struct server *s, const struct handle *h, int error)
{
    struct lock_wait **w = &s->waits;

    while (*w) {
        if (!h || (*w)->handle == h)
            finish_wait(s, w, error);
        else
            w = &(*w)->next;
    }
}

static int wait_for_lock(struct call *c, struct handle *h, const struct fuse_lk_in *in)
{
    struct lock_wait **end = &c->s->waits, *w = c->s->n_waits < WAITS_MAX ? malloc(sizeof *w) : NULL;

    if (!w)
        return -ENOLCK;
    *w = (struct lock_wait){.index = c->index, .unique = c->in.unique, .handle = h, .lk = *in};
    handle_hold(h);
    while (*end) /* who came first is tried first */
        end = &(*end)->next;
    *end = w;
    c->s->n_waits++;
    pthread_cond_signal(&c->s->wake);
    return CALL_LATER;
}

static void *keep_house(void *opaque)
{
    struct server *s = opaque;
    struct timespec until;

    pthread_mutex_lock(&s->lock);
    while (!s->ending) {
        clock_gettime(CLOCK_MONOTONIC, &until);
        if (s->waits) {
            until.tv_sec += (until.tv_nsec + RETRY_NS) / 1000000000;
            until.tv_nsec = (until.tv_nsec + RETRY_NS) % 1000000000;
        } else {
            until.tv_sec += TRIM_S;
        }
        if (s->waits || s->cached)
            pthread_cond_timedwait(&s->wake, &s->lock, &until);
        else
            pthread_cond_wait(&s->wake, &s->lock);
        locks_retry(s);
        nodes_trim(s, TRIM_S);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

int housekeeper_start(struct server *s)
{
    pthread_condattr_t monotonic;

    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&s->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    int err = pthread_create(&s->housekeeper, NULL, keep_house, s);
    s->has_housekeeper = !err;
    return -err;
}

void housekeeper_stop(struct server *s)
{
    pthread_mutex_lock(&s->lock);
    s->ending = true;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
    if (s->has_housekeeper)
        pthread_join(s->housekeeper, NULL);
    pthread_cond_destroy(&s->wake);
}

/* --- operations ---------------------------------------------------------------------------------------------- */

/* Who has it, as far as it is one of this guest's own. */
static uint32_t holder(struct node *node, uint64_t asking)
{
    uint32_t pid = 0, others = 0;

    for (struct lock_owner *o = node->lock_owners; o; o = o->next)
        if (o->owner != asking) {
            pid = o->pid;
            others++;
        }
    return others == 1 ? pid : 0;
}

int op_getlk(struct call *c)
{
    const struct fuse_lk_in *in = c->arg;
    struct handle *h = handle_find(c->s, in->fh, c->node, false);
    struct fuse_lk_out out = {.lk.type = F_UNLCK};
    struct lock_owner *o;
    struct flock fl;

    if (handle_check(h))
        return handle_check(h);
    int err = range_of(&in->lk, &fl);
    if (!err)
        err = get_owner(c->s, h, in, &o);
    if (!err)
        err = sys(fcntl(o->fd, F_OFD_GETLK, &fl));
    if (err)
        return err;
    if (fl.l_type != F_UNLCK) {
        out.lk.type = (uint32_t)fl.l_type;
        out.lk.start = (uint64_t)fl.l_start;
        out.lk.end = fl.l_len ? (uint64_t)(fl.l_start + fl.l_len - 1) : INT64_MAX;
        out.lk.pid = fl.l_pid > 0 ? (uint32_t)fl.l_pid : holder(c->node, in->owner);
    }
    return call_body(c, &out, sizeof out);
}

static int set_lock(struct call *c, bool wait)
{
    const struct fuse_lk_in *in = c->arg;
    struct handle *h = handle_find(c->s, in->fh, c->node, false);

    if (handle_check(h))
        return handle_check(h);
    int r = try_lock(c->s, h, in);
    if (r == -EAGAIN && wait)
        return wait_for_lock(c, h, in);
    if (r == 0 && in->lk.type != F_WRLCK) /* something was let go, perhaps by asking for less */
        locks_retry(c->s);
    return r;
}

int op_setlk(struct call *c)
{
    return set_lock(c, false);
}

int op_setlkw(struct call *c)
{
    return set_lock(c, true);
}

int op_interrupt(struct call *c)
{
    const struct fuse_interrupt_in *in = c->arg;
    struct lock_wait **w = &c->s->waits;

    while (*w && (*w)->unique != in->unique)
        w = &(*w)->next;
    if (*w)
        finish_wait(c->s, w, -EINTR);
    return CALL_SILENT;
}
