#include "backends/share_int.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"

#define REPLY_HEAD sizeof(struct fuse_out_header)
#define GRACE_MS 1000
/* Most of what a server does that looks for requests takes less time than the guest takes to go to sleep and to wake up
 * again. */
#define ANSWER_NS 8000
#define ANSWER_LOOKS 1000u
#define VAIN_MAX 3u

/* --- words --------------------------------------------------------------------------------------------------- */

static bool has_dots(const char *path)
{
    for (const char *p = path; (p = strstr(p, "..")); p += 2)
        if ((p == path || p[-1] == '/') && (p[2] == 0 || p[2] == '/'))
            return true;
    return false;
}

static int take_word(struct share_words *w, const char *word, char *err, size_t n)
{
    if (strcmp(word, "ro") == 0)
        w->read_only = true;
    else if (strcmp(word, "mounts") == 0)
        w->mounts = true;
    else if (strcmp(word, "locks") == 0)
        w->locks = true;
    else if (word[0] == '/' && !w->path && !has_dots(word))
        w->path = word;
    else if (word[0] == '/')
        return error_set(err, n, -EINVAL, "'%s' is not one path in the guest without '..'", word);
    else
        return error_set(err, n, -EINVAL, "'%s' is not 'ro', 'mounts', 'locks' or an absolute path in the guest", word);
    return 0;
}

int share_parse(const char *spec, struct share_words *words, char *err, size_t n)
{
    char *rest, *word;
    int r = 0;

    *words = (struct share_words){0};
    if (strlen(spec) >= sizeof words->copy)
        return error_set(err, n, -EINVAL, "the name of the shared directory is too long");
    rest = strcpy(words->copy, spec);
    words->directory = strsep(&rest, ":");
    if (!words->directory[0])
        return error_set(err, n, -EINVAL, "a shared folder is DIR[:PATH][:ro], '%s' begins with no directory", spec);
    while (!r && (word = strsep(&rest, ":")))
        r = take_word(words, word, err, n);
    return r;
}

static int open_directory(const char *directory, char *err, size_t n)
{
    int fd = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);

    if (fd >= 0)
        return fd;
    if (errno == ENOTDIR)
        return error_set(err, n, -ENOTDIR, "%s is not a directory, and only directories can be shared", directory);
    return error_sys(err, n, -errno, "cannot share the directory %s", directory);
}

int share_check(const char *spec, char *err, size_t n)
{
    struct share_words words;
    int fd = share_parse(spec, &words, err, n);

    if (!fd)
        fd = open_directory(words.directory, err, n);
    if (fd < 0)
        return fd;
    close(fd);
    return 0;
}

void share_tag(char tag[SHARE_TAG_SIZE], unsigned i)
{
    snprintf(tag, SHARE_TAG_SIZE, "share%u", i);
}

/* --- the end of the server ----------------------------------------------------------------------------------- */

static void replied(struct share *s, struct share_call *call, const void *head, size_t head_length, const void *rest,
                    size_t rest_length)
{
    if (call->kind == SHARE_STATE)
        share_transfer_replied(s, head, head_length, rest, rest_length);
    else
        s->user->replied(s->opaque, call, head, head_length, rest, rest_length);
}

static void give_back(struct share *s, struct share_call *call)
{
    replied(s, call, NULL, 0, NULL, 0);
}

static void release_slot(struct share *s, struct share_call *call)
{
    if (call->slot != SHARE_NO_SLOT)
        s->free_slots[s->n_free_slots++] = call->slot;
    call->slot = SHARE_NO_SLOT;
}

/* What a call gets when nobody can answer it any more. */
static void fail(struct share *s, struct share_call *call)
{
    struct fuse_in_header in;
    struct fuse_out_header out = {.len = sizeof out, .error = -EIO};

    release_slot(s, call);
    memcpy(&in, call->packet.bytes, sizeof in);
    out.unique = in.unique;
    if (call->reply_max)
        replied(s, call, &out, sizeof out, NULL, 0);
    else
        give_back(s, call);
}

static struct share_call *take_waiting(struct share *s)
{
    struct share_call *list = s->waiting;

    s->waiting = NULL;
    s->waiting_end = &s->waiting;
    return list;
}

static void server_gone(struct share *s)
{
    struct share_call *call, *next;

    close(s->mailbox.fd);
    s->mailbox.fd = -1;
    child_stop(&s->child, 0);
    if (s->directory)
        log_say("the file server of the shared folder %s has ended: the guest gets I/O errors from it until guise is "
                "started again",
                s->directory);
    for (uint32_t i = 0; i < SHARE_CALLS_MAX; i++)
        if ((call = s->in_flight[i])) {
            s->in_flight[i] = NULL;
            s->free_index[s->n_free_index++] = i;
            fail(s, call);
        }
    for (call = take_waiting(s); call; call = next) {
        next = call->next;
        fail(s, call);
    }
    s->user->idle(s->opaque);
}

/* --- sending ------------------------------------------------------------------------------------------------- */

static void *slot_at(struct share *s, uint32_t slot)
{
    return s->arena + (size_t)slot * SHARE_SLOT_SIZE;
}

enum sent { SENT, WAIT, DROP };

static bool needs_slot(const struct share_call *call)
{
    return call->slot == SHARE_NO_SLOT && (call->length > SHARE_INLINE || call->reply_max > SHARE_INLINE);
}

/* A slot, when the message or its reply is long, with the message's bulk in it. */
static enum sent prepare(struct share *s, struct share_call *call)
{
    if (!needs_slot(call))
        return SENT;
    if (!s->n_free_slots)
        return WAIT;
    call->slot = s->free_slots[--s->n_free_slots];
    if (call->kind == SHARE_STATE)
        share_transfer_fill(s, slot_at(s, call->slot), call->length - SHARE_HEAD);
    else if (call->length > SHARE_INLINE &&
             !s->user->fill(s->opaque, call, slot_at(s, call->slot), call->length - SHARE_HEAD))
        return DROP;
    return SENT;
}

static enum sent transmit(struct share *s, const void *packet, size_t size)
{
    const struct iovec piece = {(void *)(uintptr_t)packet, size};

    s->full = mailbox_send(&s->mailbox, &piece, 1) != 0;
    return s->full ? WAIT : SENT;
}

static enum sent send_call(struct share *s, struct share_call *call)
{
    size_t size = sizeof call->packet.head + (call->length > SHARE_INLINE ? SHARE_HEAD : call->length);
    enum sent r = prepare(s, call);

    if (r != SENT)
        return r;
    if (call->reply_max)
        call->index = s->free_index[s->n_free_index - 1];
    call->packet.head = (struct share_request_head){.kind = call->kind,
                                                    .index = call->index,
                                                    .session = s->session,
                                                    .length = call->length,
                                                    .reply_max = call->reply_max,
                                                    .slot = call->slot};
    r = transmit(s, &call->packet, size);
    if (r == SENT && call->reply_max) {
        s->n_free_index--;
        s->in_flight[call->index] = call;
    }
    return r;
}

/* Sends what can be sent.  A call that needs a slot does not hold up those that need none. */
static void send_waiting(struct share *s)
{
    struct share_call **p = &s->waiting, *call;

    while ((call = *p) && !s->full && s->mailbox.fd >= 0) {
        enum sent r = send_call(s, call);
        if (r == WAIT) {
            p = &call->next;
            continue;
        }
        *p = call->next;
        if (!*p)
            s->waiting_end = p;
        if (r == DROP)
            release_slot(s, call);
        if (r == DROP || !call->reply_max)
            give_back(s, call);
    }
}

static void submit(struct share *s, struct share_call *call, uint32_t kind, uint32_t length, uint32_t reply_max)
{
    bool first = !s->waiting;

    call->kind = kind;
    call->next = NULL;
    call->length = length;
    call->reply_max = reply_max;
    call->slot = SHARE_NO_SLOT;
    call->index = 0;
    if (s->mailbox.fd < 0 || (!reply_max && length > SHARE_INLINE)) {
        fail(s, call);
        return;
    }
    *s->waiting_end = call;
    s->waiting_end = &call->next;
    if (first || !needs_slot(call))
        send_waiting(s);
}

void share_submit(struct share *s, struct share_call *call, uint32_t length, uint32_t reply_max)
{
    submit(s, call, SHARE_FUSE, length, reply_max);
}

void share_submit_state(struct share *s, struct share_call *call, uint32_t length, uint32_t reply_max)
{
    submit(s, call, SHARE_STATE, length, reply_max);
}

void share_reset(struct share *s)
{
    struct share_request_head head = {.kind = SHARE_RESET, .session = ++s->session};
    struct share_call *call, *next;

    for (call = take_waiting(s); call; call = next) {
        next = call->next;
        release_slot(s, call);
        give_back(s, call);
    }
    if (s->mailbox.fd >= 0) /* if there is no room for it, the next message brings the new session */
        transmit(s, &head, sizeof head);
}

/* --- receiving ----------------------------------------------------------------------------------------------- */

struct reply_packet {
    struct share_reply_head head;
    uint8_t bytes[SHARE_INLINE];
};

/* The server is not trusted: its reply has to be one to this call, and of a length that fits. */
static bool is_reply_to(const struct share_call *call, const struct reply_packet *p, size_t here)
{
    struct fuse_in_header in;
    struct fuse_out_header out;
    uint32_t length = p->head.length;
    bool split = here == SHARE_REPLY_HEAD && call->slot != SHARE_NO_SLOT;

    if (here < sizeof out || length < here || length > call->reply_max || length - here > (split ? SHARE_SLOT_SIZE : 0))
        return false;
    memcpy(&in, call->packet.bytes, sizeof in);
    memcpy(&out, p->bytes, sizeof out);
    return out.len == length && out.unique == in.unique;
}

static void on_reply(struct share *s, const struct reply_packet *p, size_t got)
{
    if (got < sizeof p->head || p->head.index >= SHARE_CALLS_MAX || !s->in_flight[p->head.index])
        return;
    struct share_call *call = s->in_flight[p->head.index];
    size_t here = got - sizeof p->head;
    s->in_flight[p->head.index] = NULL;
    s->free_index[s->n_free_index++] = p->head.index;
    if (!is_reply_to(call, p, here)) {
        fail(s, call);
        return;
    }
    uint32_t slot = call->slot;
    call->slot = SHARE_NO_SLOT;
    replied(s, call, p->bytes, here, slot == SHARE_NO_SLOT ? NULL : slot_at(s, slot), p->head.length - here);
    if (slot != SHARE_NO_SLOT)
        s->free_slots[s->n_free_slots++] = slot;
}

void share_take_mail(struct share *s)
{
    struct reply_packet p;
    ssize_t got = 0;

    /* Not more in one go than there can be calls: a server that sends without end would keep the bus lock. */
    for (unsigned n = 0; n < SHARE_CALLS_MAX && (got = mailbox_receive(&s->mailbox, &p, sizeof p)) >= 0; n++)
        on_reply(s, &p, (size_t)got);
    if (got == -EPROTO) { /* the event loop sees the end then; a vCPU's thread could not end the process */
        shutdown(s->mailbox.fd, SHUT_RDWR);
        return;
    }
    s->full = false;
    send_waiting(s);
    s->user->idle(s->opaque);
}

/* On the event loop's thread, or a vCPU's that looks for replies; `gone` on the former only. */
static void on_mail(void *opaque, bool gone)
{
    struct share *s = opaque;

    if (s->mailbox.fd < 0)
        return;
    if (gone)
        server_gone(s);
    else
        share_take_mail(s);
}

void share_await(struct share *s)
{
    if (s->n_free_index == SHARE_CALLS_MAX || !mailbox_is_watched(&s->mailbox))
        return;
    if (s->skips) {
        s->skips--;
        return;
    }
    uint64_t end = clock_ns() + ANSWER_NS;
    for (unsigned i = 0; i < ANSWER_LOOKS && !mailbox_ready(&s->mailbox) && clock_ns() < end; i++)
        __builtin_ia32_pause();
    bool there = mailbox_ready(&s->mailbox);
    s->vain = there ? 0 : s->vain < VAIN_MAX ? 2 * s->vain + 1 : VAIN_MAX;
    s->skips = s->vain;
    if (there)
        on_mail(s, false);
}

/* --- beginning and end --------------------------------------------------------------------------------------- */

static int map_arena(struct share *s)
{
    s->arena = mmap(NULL, SHARE_ARENA_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, s->arena_fd, 0);
    if (s->arena != MAP_FAILED)
        return 0;
    s->arena = NULL;
    return -errno;
}

int share_adopt(struct share **out, int fd, int arena, struct loop *loop)
{
    struct share *s = calloc(1, sizeof *s);

    if (!s)
        return -ENOMEM;
    *s = (struct share){.child.pidfd = -1, .loop = loop, .arena_fd = arena, .waiting_end = &s->waiting};
    for (uint32_t i = 0; i < SHARE_SLOTS; i++)
        s->free_slots[s->n_free_slots++] = SHARE_SLOTS - 1 - i;
    for (uint32_t i = 0; i < SHARE_CALLS_MAX; i++)
        s->free_index[s->n_free_index++] = SHARE_CALLS_MAX - 1 - i;
    int r = map_arena(s);
    if (r) {
        free(s);
        return r;
    }
    mailbox_init(&s->mailbox, s->arena + SHARE_MAILBOX, fd, 0);
    s->watch = (struct loop_mailbox){.mailbox = &s->mailbox, .fn = on_mail, .opaque = s};
    *out = s;
    return 0;
}

/* Sealed: a server that makes it shorter would kill us with SIGBUS. */
static int make_arena(void)
{
    int fd = memfd_create("guise-share", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0)
        return -errno;
    if (ftruncate(fd, SHARE_ARENA_SIZE) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) {
        int r = -errno;
        close(fd);
        return r;
    }
    return fd;
}

static int start_server(struct share *s, const struct share_words *w, int fd, char *err, size_t n)
{
    const char *argv[6] = {NULL, "helper-share"};
    unsigned argc = 2;
    int directory = open_directory(w->directory, err, n);

    if (directory < 0)
        return directory;
    if (w->read_only)
        argv[argc++] = "--read-only";
    if (w->mounts)
        argv[argc++] = "--cross-mounts";
    if (w->locks)
        argv[argc++] = "--locks";
    int r = child_start(&s->child, argv, (int[]){fd, s->arena_fd, directory}, 3, err, n);
    close(directory);
    return r;
}

int share_open(struct share **out, const char *spec, struct loop *loop, char *err, size_t n)
{
    struct share_words w;
    struct share *s = NULL;
    int pair[2], r = share_parse(spec, &w, err, n);

    if (r)
        return r;
    int arena = make_arena();
    if (arena < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
        r = error_sys(err, n, arena < 0 ? arena : -errno, "cannot set up the shared folder %s", w.directory);
        if (arena >= 0)
            close(arena);
        return r;
    }
    r = share_adopt(&s, pair[0], arena, loop);
    if (r) {
        close(pair[0]);
        close(arena);
        error_sys(err, n, r, "cannot set up the shared folder %s", w.directory);
    } else {
        s->directory = strdup(w.directory);
        r = start_server(s, &w, pair[1], err, n);
    }
    close(pair[1]);
    if (r) {
        share_close(s);
        return r;
    }
    *out = s;
    return 0;
}

void share_set_user(struct share *s, const struct share_user *user, void *opaque)
{
    s->user = user;
    s->opaque = opaque;
    loop_mailbox_add(s->loop, &s->watch);
}

void share_close(struct share *s)
{
    if (!s)
        return;
    if (s->user)
        loop_mailbox_del(s->loop, &s->watch);
    if (s->mailbox.fd >= 0)
        close(s->mailbox.fd);
    child_stop(&s->child, GRACE_MS);
    if (s->arena)
        munmap(s->arena, SHARE_ARENA_SIZE);
    close(s->arena_fd);
    free(s->directory);
    free(s);
}
