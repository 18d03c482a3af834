/* The file server as a process: how it is started, what it can still do, what a link in the wrong place leads to. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "backends/share.h"
#include "base/error.h"
#include "host/loop.h"
#include "share/server.h"

struct request {
    struct share_call call;
    bool done;
    struct fuse_out_header header;
    uint8_t body[SHARE_INLINE];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct loop *loop;
static struct share *share;
static uint64_t unique;
static char top[64], root[80]; /* root is shared, top is not */

static bool fill(void *opaque, struct share_call *call, void *slot, size_t length)
{
    return true;
}

static void replied(void *opaque, struct share_call *call, const void *head, size_t head_length, const void *rest,
                    size_t rest_length)
{
    struct request *r = (struct request *)call;

    r->done = true;
    r->header = (struct fuse_out_header){.error = -1};
    if (head_length >= sizeof r->header) {
        memcpy(&r->header, head, sizeof r->header);
        memcpy(r->body, (const uint8_t *)head + sizeof r->header, head_length - sizeof r->header);
    }
}

static void idle(void *opaque)
{
    loop_stop(loop);
}

static const struct share_user user = {fill, replied, idle};

/* One request and its reply's error. */
static int ask(struct request *r, uint32_t opcode, uint64_t node, const void *arg, size_t length, const char *name,
               const char *second)
{
    struct fuse_in_header *in = (void *)r->call.packet.bytes;
    uint8_t *at = r->call.packet.bytes + sizeof *in;

    r->done = false;
    if (length)
        memcpy(at, arg, length);
    at += length;
    if (name)
        at = (uint8_t *)stpcpy((char *)at, name) + 1;
    if (second)
        at = (uint8_t *)stpcpy((char *)at, second) + 1;
    *in = (struct fuse_in_header){
        .len = (uint32_t)(at - r->call.packet.bytes), .opcode = opcode, .unique = ++unique, .nodeid = node};
    pthread_mutex_lock(&lock);
    share_submit(share, &r->call, in->len, SHARE_INLINE);
    pthread_mutex_unlock(&lock);
    while (!r->done)
        loop_run(loop);
    return r->header.error;
}

static int begin(const char *words)
{
    char spec[128], err[ERROR_SIZE];
    struct request r;
    const struct fuse_init_in init = {.major = 7, .minor = 38};

    snprintf(spec, sizeof spec, "%s%s", root, words);
    if (share_open(&share, spec, loop, err, sizeof err))
        return -1;
    share_set_user(share, &user, NULL);
    return ask(&r, FUSE_INIT, 0, &init, sizeof init, NULL, NULL);
}

static int setup(void **state)
{
    assert_int_equal(loop_create(&loop, &lock), 0);
    share = NULL;
    strcpy(top, "/var/tmp/guise-share-XXXXXX");
    if (!mkdtemp(top)) {
        strcpy(top, "/tmp/guise-share-XXXXXX");
        assert_non_null(mkdtemp(top));
    }
    snprintf(root, sizeof root, "%s/shared", top);
    assert_int_equal(mkdir(root, 0755), 0);
    return 0;
}

static int teardown(void **state)
{
    char command[192];

    pthread_mutex_lock(&lock);
    share_close(share);
    pthread_mutex_unlock(&lock);
    loop_destroy(loop);
    snprintf(command, sizeof command, "rm -rf %s", top);
    return system(command);
}

static void put(const char *directory, const char *name, const char *text)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static uint64_t lookup(uint64_t directory, const char *name)
{
    struct request r;
    int err = ask(&r, FUSE_LOOKUP, directory, NULL, 0, name, NULL);

    return err ? 0 : ((struct fuse_entry_out *)r.body)->nodeid;
}

/* The text of a file by open and read, or the error. */
static int text_of(uint64_t node, char *text, size_t size)
{
    const struct fuse_open_in open = {.flags = O_RDONLY};
    struct request r;
    int err = ask(&r, FUSE_OPEN, node, &open, sizeof open, NULL, NULL);

    if (err)
        return err;
    const struct fuse_read_in in = {.fh = ((struct fuse_open_out *)r.body)->fh, .size = (uint32_t)size - 1};
    const struct fuse_release_in release = {.fh = in.fh};
    err = ask(&r, FUSE_READ, node, &in, sizeof in, NULL, NULL);
    memcpy(text, r.body, r.header.len - sizeof r.header);
    text[r.header.len - sizeof r.header] = 0;
    struct request done;
    ask(&done, FUSE_RELEASE, node, &release, sizeof release, NULL, NULL);
    return err;
}

static pid_t server_pid(void)
{
    char path[64], text[32];
    int n = 0;

    snprintf(path, sizeof path, "/proc/self/task/%d/children", (int)getpid());
    int fd = open(path, O_RDONLY);
    if (fd >= 0) {
        n = (int)read(fd, text, sizeof text - 1);
        close(fd);
    }
    text[n > 0 ? n : 0] = 0;
    return atoi(text);
}

/* --- tests ------------------------------------------------------------------------------------------------------- */

static void it_serves(void **state)
{
    char text[64];

    put(root, "f", "hello");
    assert_int_equal(begin(""), 0);
    assert_int_equal(text_of(lookup(1, "f"), text, sizeof text), 0);
    assert_string_equal(text, "hello");
}

/* Each operation once, so that each system call is met behind the door that is shut. */
static void every_operation_is_still_possible(void **state)
{
    static const struct fuse_create_in create = {.flags = O_RDWR | O_CREAT, .mode = S_IFREG | 0644};
    static const struct fuse_mkdir_in mkdir_in = {.mode = 0755};
    static const struct fuse_mknod_in fifo = {.mode = S_IFIFO | 0600};
    static const struct fuse_open_in open_in = {.flags = O_RDONLY};
    static const struct fuse_access_in access_in = {.mask = R_OK};
    static const struct fuse_getxattr_in get = {.size = 100};
    static const uint64_t set[2] = {0}; /* of struct fuse_setxattr_in the first 8 bytes */
    struct fuse_setattr_in attr = {.valid = FATTR_MODE | FATTR_SIZE | FATTR_MTIME | FATTR_UID, .mode = 04600, .uid = 9};
    struct request r;

    assert_int_equal(begin(":locks"), 0);
    assert_int_equal(ask(&r, FUSE_CREATE, 1, &create, sizeof create, "f", NULL), 0);
    uint64_t f = ((struct fuse_entry_out *)r.body)->nodeid;
    uint64_t fh = ((struct fuse_open_out *)(r.body + sizeof(struct fuse_entry_out)))->fh;
    int owners = ask(&r, FUSE_SETATTR, f, &attr, sizeof attr, NULL, NULL);
    assert_true(owners == 0 || owners == -EPERM); /* without attributes */
    attr.valid = FATTR_SIZE | FATTR_FH;
    attr.fh = fh;
    assert_int_equal(ask(&r, FUSE_SETATTR, f, &attr, sizeof attr, NULL, NULL), 0);
    assert_int_equal(ask(&r, FUSE_MKDIR, 1, &mkdir_in, sizeof mkdir_in, "d", NULL), 0);
    uint64_t d = ((struct fuse_entry_out *)r.body)->nodeid;
    assert_int_equal(ask(&r, FUSE_MKNOD, 1, &fifo, sizeof fifo, "p", NULL), 0);
    assert_int_equal(ask(&r, FUSE_SYMLINK, 1, NULL, 0, "s", "f"), 0);
    assert_int_equal(ask(&r, FUSE_READLINK, ((struct fuse_entry_out *)r.body)->nodeid, NULL, 0, NULL, NULL), 0);
    const struct fuse_link_in link = {.oldnodeid = f};
    assert_int_equal(ask(&r, FUSE_LINK, 1, &link, sizeof link, "hard", NULL), 0);
    const struct fuse_rename_in rename_in = {.newdir = d};
    assert_int_equal(ask(&r, FUSE_RENAME, 1, &rename_in, sizeof rename_in, "hard", "h"), 0);
    const struct fuse_rename2_in rename2 = {.newdir = d, .flags = 1 /* RENAME_NOREPLACE */};
    assert_int_equal(ask(&r, FUSE_RENAME2, 1, &rename2, sizeof rename2, "s", "t"), 0);
    assert_int_equal(ask(&r, FUSE_UNLINK, d, NULL, 0, "h", NULL), 0);
    assert_int_equal(ask(&r, FUSE_RMDIR, 1, NULL, 0, "d", NULL), -ENOTEMPTY);
    const struct fuse_write_in write_in = {.fh = fh};
    assert_int_equal(ask(&r, FUSE_WRITE, f, &write_in, sizeof write_in, NULL, NULL), 0);
    const struct fuse_fallocate_in allocate = {.fh = fh, .length = 100};
    assert_int_equal(ask(&r, FUSE_FALLOCATE, f, &allocate, sizeof allocate, NULL, NULL), 0);
    const struct fuse_lseek_in seek = {.fh = fh, .whence = SEEK_DATA};
    ask(&r, FUSE_LSEEK, f, &seek, sizeof seek, NULL, NULL);
    const struct fuse_copy_file_range_in copy = {.fh_in = fh, .nodeid_out = f, .fh_out = fh, .off_out = 100, .len = 10};
    assert_int_equal(ask(&r, FUSE_COPY_FILE_RANGE, f, &copy, sizeof copy, NULL, NULL), 0);
    const struct fuse_fsync_in sync = {.fh = fh}, datasync = {.fh = fh, .fsync_flags = FUSE_FSYNC_FDATASYNC};
    assert_int_equal(ask(&r, FUSE_FSYNC, f, &sync, sizeof sync, NULL, NULL), 0);
    assert_int_equal(ask(&r, FUSE_FSYNC, f, &datasync, sizeof datasync, NULL, NULL), 0);
    assert_int_equal(ask(&r, FUSE_SYNCFS, 1, set, 8, NULL, NULL), 0);
    assert_int_equal(ask(&r, FUSE_STATFS, 1, NULL, 0, NULL, NULL), 0);
    assert_int_equal(ask(&r, FUSE_ACCESS, f, &access_in, sizeof access_in, NULL, NULL), 0);
    ask(&r, FUSE_SETXATTR, f, set, 8, "user.x", NULL);
    ask(&r, FUSE_GETXATTR, f, &get, sizeof get, "user.x", NULL);
    ask(&r, FUSE_LISTXATTR, f, &get, sizeof get, NULL, NULL);
    ask(&r, FUSE_REMOVEXATTR, f, NULL, 0, "user.x", NULL);
    struct fuse_lk_in lk = {.fh = fh, .owner = 1, .lk = {.end = 10, .type = F_WRLCK}};
    assert_int_equal(ask(&r, FUSE_SETLK, f, &lk, sizeof lk, NULL, NULL), 0);
    assert_int_equal(ask(&r, FUSE_GETLK, f, &lk, sizeof lk, NULL, NULL), 0);
    lk.lk_flags = FUSE_LK_FLOCK;
    assert_int_equal(ask(&r, FUSE_SETLKW, f, &lk, sizeof lk, NULL, NULL), 0);
    assert_int_equal(ask(&r, FUSE_OPENDIR, 1, &open_in, sizeof open_in, NULL, NULL), 0);
    const struct fuse_read_in read_in = {.fh = ((struct fuse_open_out *)r.body)->fh, .size = 4000};
    assert_int_equal(ask(&r, FUSE_READDIR, 1, &read_in, sizeof read_in, NULL, NULL), 0);
    assert_int_equal(ask(&r, FUSE_READDIRPLUS, 1, &read_in, sizeof read_in, NULL, NULL), 0);
    assert_int_equal(ask(&r, FUSE_STATFS, 1, NULL, 0, NULL, NULL), 0); /* it is still there */
}

static void it_has_given_up_its_power(void **state)
{
    char path[64], line[256];
    unsigned long long capabilities = ~0ull;
    int no_new_privs = 0, seccomp = 0;

    assert_int_equal(begin(":ro"), 0);
    if (!server_pid())
        skip(); /* the kernel does not list children */
    snprintf(path, sizeof path, "/proc/%d/status", (int)server_pid());
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        sscanf(line, "CapEff: %llx", &capabilities);
        sscanf(line, "NoNewPrivs: %d", &no_new_privs);
        sscanf(line, "Seccomp: %d", &seccomp);
    }
    fclose(f);
    assert_int_equal(no_new_privs, 1);
    assert_int_equal(capabilities & ~(1ull << 2), 0); /* at most CAP_DAC_READ_SEARCH */
}

static void links_lead_nowhere(void **state)
{
    struct request r;
    char path[256], text[64];
    static const char *const targets[] = {"/etc/passwd", "../secret", "../../../../../../etc/passwd",
                                          "/proc/self/root/etc/passwd"};

    put(top, "secret", "secret");
    assert_int_equal(begin(""), 0);
    for (unsigned i = 0; i < sizeof targets / sizeof *targets; i++) {
        snprintf(path, sizeof path, "%s/link", root);
        assert_int_equal(symlink(targets[i], path), 0);
        uint64_t node = lookup(1, "link");
        assert_int_equal(text_of(node, text, sizeof text), -ELOOP);
        assert_int_equal(ask(&r, FUSE_LOOKUP, node, NULL, 0, "passwd", NULL), -ENOTDIR);
        assert_int_equal(ask(&r, FUSE_READLINK, node, NULL, 0, NULL, NULL), 0); /* text is all it is */
        assert_memory_equal(r.body, targets[i], strlen(targets[i]));
        unlink(path);
    }
    assert_int_equal(lookup(1, ".."), 1);
}

/* A directory that the guest has looked at is a link the next moment. */
static void a_directory_that_becomes_a_link(void **state)
{
    const struct fuse_create_in create = {.flags = O_RDWR | O_CREAT, .mode = S_IFREG | 0644};
    struct request r;
    char path[300], away[256], text[64];
    uint64_t node;
    struct stat st;

    put(top, "secret", "secret");
    snprintf(path, sizeof path, "%s/d", root);
    snprintf(away, sizeof away, "%s/away", root);
    assert_int_equal(mkdir(path, 0755), 0);
    assert_int_equal(begin(""), 0);
    node = lookup(1, "d");
    assert_int_equal(lookup(node, "x"), 0); /* it is open now */
    assert_int_equal(rename(path, away), 0);
    assert_int_equal(symlink("..", path), 0);
    assert_int_equal(ask(&r, FUSE_LOOKUP, node, NULL, 0, "secret", NULL), -ENOENT); /* what it was, not what it is */
    assert_int_equal(ask(&r, FUSE_CREATE, node, &create, sizeof create, "new", NULL), 0);
    snprintf(path, sizeof path, "%s/new", away);
    assert_int_equal(stat(path, &st), 0);
    assert_int_not_equal(text_of(lookup(1, "d"), text, sizeof text), 0);
}

struct race {
    _Atomic bool stop;
    unsigned rounds;
};

/* As fast as it can: file, link to the secret, directory, link to the directory above. */
static void *swap(void *opaque)
{
    struct race *race = opaque;
    char name[256], a[256], b[256];

    snprintf(name, sizeof name, "%s/x", root);
    snprintf(a, sizeof a, "%s/.a", root);
    snprintf(b, sizeof b, "%s/.b", root);
    while (!race->stop) {
        FILE *f = fopen(a, "w");
        if (f) {
            fputs("public", f);
            fclose(f);
        }
        (void)!rename(a, name);
        (void)!symlink("../secret", b);
        (void)!rename(b, name);
        (void)!unlink(name);
        (void)!mkdir(name, 0777);
        (void)!rmdir(name);
        (void)!symlink("..", name);
        (void)!unlink(name);
        race->rounds++;
    }
    return NULL;
}

static void nothing_escapes_while_links_change(void **state)
{
    static const struct fuse_create_in create = {.flags = O_RDWR | O_CREAT | O_TRUNC, .mode = S_IFREG | 0644};
    static const struct fuse_setattr_in set = {.valid = FATTR_MODE | FATTR_SIZE, .mode = 0777, .size = 0};
    static const struct fuse_setattr_in times = {.valid = FATTR_MTIME, .mtime = 1};
    static const struct fuse_mkdir_in mkdir_in = {.mode = 0777};
    struct race race = {0};
    char text[64], secret[256];
    pthread_t thread;
    struct request r;
    struct stat before, st;

    put(top, "secret", "secret");
    snprintf(secret, sizeof secret, "%s/secret", top);
    assert_int_equal(chmod(secret, 0600), 0);
    assert_int_equal(stat(secret, &before), 0);
    assert_int_equal(begin(""), 0);
    assert_int_equal(pthread_create(&thread, NULL, swap, &race), 0);
    for (unsigned i = 0; i < 1500; i++) {
        uint64_t node = lookup(1, "x");
        if (node && text_of(node, text, sizeof text) == 0)
            assert_true(!text[0] || !strcmp(text, "public"));
        if (node) {
            ask(&r, FUSE_SETATTR, node, &set, sizeof set, NULL, NULL);
            ask(&r, FUSE_SETATTR, node, &times, sizeof times, NULL, NULL);
            assert_true(ask(&r, FUSE_LOOKUP, node, NULL, 0, "secret", NULL) < 0);
            ask(&r, FUSE_MKDIR, node, &mkdir_in, sizeof mkdir_in, "made", NULL);
            ask(&r, FUSE_RMDIR, node, NULL, 0, "made", NULL);
            if (ask(&r, FUSE_CREATE, node, &create, sizeof create, "inner", NULL) == 0)
                ask(&r, FUSE_UNLINK, node, NULL, 0, "inner", NULL);
        }
        ask(&r, FUSE_CREATE, 1, &create, sizeof create, "x", NULL);
    }
    race.stop = true;
    pthread_join(thread, NULL);
    assert_true(race.rounds > 10);
    assert_int_equal(stat(secret, &st), 0);
    assert_int_equal(st.st_size, before.st_size);
    assert_int_equal(st.st_mode, before.st_mode);
    assert_int_equal(st.st_mtim.tv_sec, before.st_mtim.tv_sec);
    DIR *d = opendir(top); /* nothing has been made there */
    for (struct dirent *e; (e = readdir(d));)
        assert_true(e->d_name[0] == '.' || !strcmp(e->d_name, "secret") || !strcmp(e->d_name, "shared"));
    closedir(d);
}

static void what_is_made_belongs_to_the_directorys_owner(void **state)
{
    const struct fuse_create_in create = {.flags = O_RDWR | O_CREAT, .mode = S_IFREG | 0644};
    struct request r;
    char path[256];
    struct stat st;

    if (geteuid() != 0)
        skip();
    assert_int_equal(chmod(top, 0755), 0);
    assert_int_equal(chown(root, 4321, 4322), 0);
    put(root, "roots", "");
    assert_int_equal(begin(""), 0);
    assert_int_equal(ask(&r, FUSE_CREATE, 1, &create, sizeof create, "f", NULL), 0);
    const struct fuse_attr *attr = &((struct fuse_entry_out *)r.body)->attr;
    assert_int_equal(attr->uid, 0);
    assert_int_equal(attr->gid, 0);
    snprintf(path, sizeof path, "%s/f", root);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_uid, 4321);
    assert_int_equal(st.st_gid, 4322);
    /* the real root's files are not the guest's */
    const struct fuse_setattr_in set = {.valid = FATTR_MODE, .mode = 0666};
    assert_int_equal(ask(&r, FUSE_SETATTR, lookup(1, "roots"), &set, sizeof set, NULL, NULL), -EPERM);
}

static void other_mounts_are_empty_directories(void **state)
{
    const struct fuse_mkdir_in in = {.mode = 0777};
    struct request r;

    strcpy(root, "/");
    assert_int_equal(begin(":ro"), 0);
    uint64_t proc = lookup(1, "proc");
    assert_int_not_equal(proc, 0);
    assert_int_equal(lookup(proc, "self"), 0);
    assert_int_equal(ask(&r, FUSE_MKDIR, proc, &in, sizeof in, "x", NULL), -EROFS);
    assert_int_not_equal(lookup(1, "etc"), 0);
}

static void other_mounts_are_there_when_asked_for(void **state)
{
    strcpy(root, "/");
    assert_int_equal(begin(":ro:mounts"), 0);
    assert_int_not_equal(lookup(lookup(1, "proc"), "version"), 0);
}

static void its_death_is_an_io_error(void **state)
{
    struct request r;
    pid_t pid;

    assert_int_equal(begin(""), 0);
    if (!(pid = server_pid()))
        skip();
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(ask(&r, FUSE_LOOKUP, 1, NULL, 0, "x", NULL), -EIO);
    assert_int_equal(ask(&r, FUSE_LOOKUP, 1, NULL, 0, "x", NULL), -EIO);
}

static void it_ends_with_its_folder(void **state)
{
    pid_t pid;

    assert_int_equal(begin(""), 0);
    pid = server_pid();
    pthread_mutex_lock(&lock);
    share_close(share);
    share = NULL;
    pthread_mutex_unlock(&lock);
    if (!pid)
        skip();
    assert_int_equal(kill(pid, 0), -1);
}

static void what_cannot_be_shared(void **state)
{
    char err[ERROR_SIZE];

    put(top, "file", "");
    strcat(root, "/none");
    assert_int_equal(share_open(&share, root, loop, err, sizeof err), -ENOENT);
    assert_non_null(strstr(err, "cannot share the directory"));
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        T(it_serves),
        T(every_operation_is_still_possible),
        T(it_has_given_up_its_power),
        T(links_lead_nowhere),
        T(a_directory_that_becomes_a_link),
        T(nothing_escapes_while_links_change),
        T(what_is_made_belongs_to_the_directorys_owner),
        T(other_mounts_are_empty_directories),
        T(other_mounts_are_there_when_asked_for),
        T(its_death_is_an_io_error),
        T(it_ends_with_its_folder),
        T(what_cannot_be_shared),
    };

    if (argc > 1 && strcmp(argv[1], "helper-share") == 0) /* started by share_open, which takes us for guise */
        return share_helper_main(argc - 1, argv + 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
