/*
 * The file server: FUSE messages whose numbers and names are mostly such as a guest would use, on a real directory.
 * What must hold beside the sanitizers' rules: each message that wants a reply gets one, and a file next to the shared
 * directory stays as it is.  The housekeeper has no thread: his work is one of the steps.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "fixture.h"
#include "share/server.h"
#include "share/server_int.h"
#include "share/wire.h"
#include "tree.h"

#define STEPS_MAX 60u
#define KNOWN 8u
#define FILE_MAX (64u << 10)

struct target {
    struct server *server;
    char top[64], root[80], secret[80];
    uint8_t *slot;
    uint64_t nodes[KNOWN], handles[KNOWN], unique;
    unsigned n_nodes, n_handles, n_replies;
    uint32_t opcode;
};

static const uint16_t opcodes[] = {
    FUSE_LOOKUP,          FUSE_FORGET,       FUSE_GETATTR,     FUSE_SETATTR,     FUSE_READLINK,
    FUSE_SYMLINK,         FUSE_MKNOD,        FUSE_MKDIR,       FUSE_UNLINK,      FUSE_RMDIR,
    FUSE_RENAME,          FUSE_LINK,         FUSE_OPEN,        FUSE_READ,        FUSE_WRITE,
    FUSE_STATFS,          FUSE_RELEASE,      FUSE_FSYNC,       FUSE_SETXATTR,    FUSE_GETXATTR,
    FUSE_LISTXATTR,       FUSE_FLUSH,        FUSE_INIT,        FUSE_OPENDIR,     FUSE_READDIR,
    FUSE_RELEASEDIR,      FUSE_FSYNCDIR,     FUSE_GETLK,       FUSE_SETLK,       FUSE_SETLKW,
    FUSE_ACCESS,          FUSE_CREATE,       FUSE_INTERRUPT,   FUSE_REMOVEXATTR, FUSE_DESTROY,
    FUSE_FALLOCATE,       FUSE_BATCH_FORGET, FUSE_READDIRPLUS, FUSE_RENAME2,     FUSE_LSEEK,
    FUSE_COPY_FILE_RANGE, FUSE_SYNCFS,
};

static const char *const names[] = {
    "a", "b", "c", "..", ".", "", "../secret", "a/b", "user.x", "user.guise.owner", "security.capability", "d",
};

static void on_reply(void *opaque, uint32_t index, const void *head, size_t head_length, size_t rest_length)
{
    struct target *t = opaque;
    struct fuse_out_header out;
    const uint8_t *body = (const uint8_t *)head + sizeof out;

    assert_true(head_length >= sizeof out && head_length <= SHARE_INLINE && rest_length <= SHARE_DATA_MAX);
    memcpy(&out, head, sizeof out);
    assert_true(out.len == head_length + rest_length && out.error <= 0 && out.error > -1000);
    assert_true(!out.error || out.len == sizeof out);
    t->n_replies++;
    if (out.error)
        return;
    if (out.len >= sizeof out + sizeof(struct fuse_entry_out) &&
        (t->opcode == FUSE_LOOKUP || t->opcode == FUSE_MKDIR || t->opcode == FUSE_CREATE || t->opcode == FUSE_MKNOD ||
         t->opcode == FUSE_SYMLINK || t->opcode == FUSE_LINK)) {
        memcpy(&t->nodes[t->n_nodes++ % KNOWN], body, 8);
        body += sizeof(struct fuse_entry_out);
    }
    if (t->opcode == FUSE_OPEN || t->opcode == FUSE_OPENDIR || t->opcode == FUSE_CREATE)
        memcpy(&t->handles[t->n_handles++ % KNOWN], body, 8);
}

/* Instead of the server's (meson.build): nobody waits. */
int __wrap_housekeeper_start(struct server *s);
int __wrap_housekeeper_start(struct server *s)
{
    return -pthread_cond_init(&s->wake, NULL);
}

static void keep_house(struct server *s, uint32_t seconds)
{
    pthread_mutex_lock(&s->lock);
    locks_retry(s);
    nodes_trim(s, seconds);
    pthread_mutex_unlock(&s->lock);
}

static void make_secret(struct target *t)
{
    int fd = open(t->secret, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0 && write(fd, "secret", 6) == 6);
    close(fd);
}

static void begin(struct target *t)
{
    const struct rlimit limit = {FILE_MAX, FILE_MAX};
    struct server_config config = {.reply = on_reply, .opaque = t, .descriptors = 200, .locks = true};
    char err[ERROR_SIZE];

    signal(SIGXFSZ, SIG_IGN);
    umask(0);
    strcpy(t->top, access("/dev/shm", W_OK) ? "/tmp/fuzz-share-XXXXXX" : "/dev/shm/fuzz-share-XXXXXX");
    assert_true(mkdtemp(t->top) != NULL);
    snprintf(t->root, sizeof t->root, "%s/root", t->top);
    snprintf(t->secret, sizeof t->secret, "%s/secret", t->top);
    make_secret(t);
    assert_true(mkdir(t->root, 0755) == 0);
    setrlimit(RLIMIT_FSIZE, &limit);
    config.root_fd = open(t->root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    t->slot = malloc(SHARE_SLOT_SIZE);
    assert_true(t->slot && server_create(&t->server, &config, err, sizeof err) == 0);
}

static uint64_t pick(struct fuzz_input *in, const uint64_t *known, unsigned n)
{
    uint8_t how = fuzz_u8(in);

    if (how == 255)
        return fuzz_u64(in);
    return n && how < 200 ? known[how % (n < KNOWN ? n : KNOWN)] : FUSE_ROOT_ID;
}

static size_t put_name(struct fuzz_input *in, uint8_t *to)
{
    uint8_t which = fuzz_u8(in);

    if (which >= 240) {
        size_t n = fuzz_u8(in);
        fuzz_bytes(in, to, n);
        return n;
    }
    const char *name = names[which % (sizeof names / sizeof *names)];
    memcpy(to, name, strlen(name) + 1);
    return strlen(name) + 1;
}

/* The operation's fixed part, with a handle or a second node where there is one; then names and some data. */
static size_t put_body(struct target *t, struct fuzz_input *in, uint32_t opcode, uint8_t *to)
{
    size_t n = fuzz_u8(in) % 104;

    fuzz_bytes(in, to, n < 24 ? n : 24);
    if (n > 24)
        memset(to + 24, 0, n - 24);
    if (opcode == FUSE_INIT) {
        const struct fuse_init_in init = {.major = 7, .minor = 38, .flags = fuzz_u32(in)};
        memcpy(to, &init, sizeof init);
        return sizeof init;
    }
    uint64_t special = opcode == FUSE_LINK || opcode == FUSE_RENAME || opcode == FUSE_RENAME2
                           ? pick(in, t->nodes, t->n_nodes)
                           : pick(in, t->handles, t->n_handles);
    size_t at = opcode == FUSE_SETATTR ? 8 : opcode == FUSE_GETATTR ? 8 : 0;
    bool fixed = opcode >= FUSE_READ || opcode == FUSE_LINK || opcode == FUSE_RENAME || opcode == FUSE_SETATTR;
    if (fixed && opcode != FUSE_CREATE && n >= at + 8)
        memcpy(to + at, &special, 8);
    for (unsigned names_left = fuzz_u8(in) % 3; names_left; names_left--)
        n += put_name(in, to + n);
    if (opcode == FUSE_WRITE && n >= sizeof(struct fuse_write_in)) {
        struct fuse_write_in *w = (void *)to;
        w->size = (uint32_t)(n - sizeof *w);
        w->offset %= FILE_MAX;
    }
    return n;
}

static void say_hello(struct target *t)
{
    static const struct fuse_init_in init = {.major = 7, .minor = 38, .flags = ~0u >> 1};
    struct {
        struct fuse_in_header h;
        struct fuse_init_in init;
    } hello = {.h = {.len = sizeof hello, .opcode = FUSE_INIT, .unique = 1}, .init = init};

    t->opcode = FUSE_INIT;
    server_call(t->server, &(struct server_message){.head = &hello, .head_length = sizeof hello, .reply_max = 4096});
}

/* The machine is saved, somebody changes what was saved, and it goes on with that. */
static void save_and_load(struct target *t, struct fuzz_input *in)
{
    uint8_t *bytes;
    size_t size;

    t->server->config.locks = false; /* with locks it cannot be saved */
    t->server->features &= session_features;
    int err = server_save(t->server, 1u << 20, &bytes, &size);
    t->server->config.locks = true;
    if (err)
        return;
    for (unsigned n = fuzz_u8(in) % 8; n; n--) {
        size_t at = fuzz_u16(in) % size;
        bytes[at] ^= fuzz_u8(in);
    }
    uint8_t cut = fuzz_u8(in);
    uint8_t *exact = malloc(size);
    memcpy(exact, bytes, size);
    free(bytes);
    if (server_load(t->server, exact, cut > 240 ? size * (cut - 240) / 16 : size))
        say_hello(t);
    free(exact);
}

static void step(struct target *t, struct fuzz_input *in)
{
    uint8_t buffer[1024] = {0}, pick_opcode = fuzz_u8(in);
    struct fuse_in_header h = {.unique = ++t->unique};

    if (pick_opcode == 252) {
        save_and_load(t, in);
        return;
    }

    if (pick_opcode == 251) {
        keep_house(t->server, fuzz_u8(in) & 1);
        return;
    }
    h.opcode = pick_opcode < 250 ? opcodes[pick_opcode % (sizeof opcodes / sizeof *opcodes)] : fuzz_u32(in);
    h.nodeid = pick(in, t->nodes, t->n_nodes);
    size_t n = sizeof h + put_body(t, in, h.opcode, buffer + sizeof h);
    uint8_t how = fuzz_u8(in);
    h.len = how == 255 ? fuzz_u32(in) : (uint32_t)n;
    h.uid = how & 1 ? 1000 : 0;
    h.gid = how & 2 ? 1000 : 0;
    memcpy(buffer, &h, sizeof h);
    if (how == 254)
        n = fuzz_u8(in);
    size_t head = n > SHARE_HEAD && h.opcode == FUSE_WRITE ? SHARE_HEAD : n;
    uint8_t *exact = malloc(head ? head : 1);
    memcpy(exact, buffer, head);
    memcpy(t->slot, buffer + head, n - head);
    struct server_message m = {.head = exact,
                               .head_length = head,
                               .rest = t->slot,
                               .rest_length = n - head,
                               .slot = how & 4 ? t->slot : NULL,
                               .reply_max = how & 8 ? 16 + fuzz_u16(in) : SHARE_INLINE};
    unsigned before = t->n_replies;
    t->opcode = n >= sizeof h ? h.opcode : 0;
    server_call(t->server, &m);
    free(exact);
    bool silent = h.opcode == FUSE_FORGET || h.opcode == FUSE_BATCH_FORGET || h.opcode == FUSE_INTERRUPT;
    assert_true(silent || h.opcode == FUSE_SETLKW || t->n_replies > before || n < sizeof h);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct target t;
    struct fuzz_input in = {data, size};
    struct stat st;

    if (!t.server)
        begin(&t);
    t.n_nodes = t.n_handles = 0;
    say_hello(&t);
    for (unsigned i = 0; i < STEPS_MAX && in.left; i++)
        step(&t, &in);
    server_reset(t.server);
    fuzz_empty_directory(AT_FDCWD, t.root, 0755);
    assert_true(stat(t.secret, &st) == 0 && st.st_size == 6 && st.st_nlink == 1 && st.st_mode == (S_IFREG | 0600));
    return 0;
}
