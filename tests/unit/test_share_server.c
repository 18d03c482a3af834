/* The file server: every operation, by messages as a guest's kernel sends them. */
#include <dirent.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#include "share_client.h"

static struct client c;

static int setup(void **state)
{
    client_open(&c, (struct server_config){.locks = true});
    return 0;
}

static int setup_read_only(void **state)
{
    client_open(&c, (struct server_config){.read_only = true, .locks = true});
    return 0;
}

static int setup_without_locks(void **state)
{
    client_open(&c, (struct server_config){0});
    return 0;
}

static int setup_few_descriptors(void **state)
{
    client_open(&c, (struct server_config){.descriptors = 128});
    return 0;
}

static int teardown(void **state)
{
    client_close(&c);
    return 0;
}

/* --- the agreement ------------------------------------------------------------------------------------------- */

static void init_agrees_on_what_both_can(void **state)
{
    const struct fuse_init_in in = {
        .major = 7, .minor = 40, .max_readahead = 65536, .flags = FUSE_MAX_PAGES | FUSE_ASYNC_READ};
    struct reply *r = client_ask(&c, FUSE_INIT, 0, &in, sizeof in, NULL, NULL);
    const struct fuse_init_out *out = (void *)r->body;

    assert_int_equal(r->header.error, 0);
    assert_int_equal(out->major, 7);
    assert_int_equal(out->minor, 38);
    assert_int_equal(out->flags, FUSE_MAX_PAGES | FUSE_ASYNC_READ);
    assert_int_equal(out->max_write, 1 << 20);
    assert_int_equal(out->max_pages, 256);
    assert_int_equal(out->max_readahead, 65536);
}

static void init_of_another_version(void **state)
{
    assert_int_equal(client_init_version(&c, 7, 30, 0), -EPROTO);
    assert_int_equal(client_init_version(&c, 6, 38, 0), -EPROTO);
    assert_int_equal(client_init_version(&c, 8, 0, 0), 0); /* answered with ours alone */
}

static void nothing_works_before_init(void **state)
{
    struct fuse_attr attr;

    assert_int_equal(client_do(&c, FUSE_DESTROY, 0, NULL, 0, NULL, NULL), 0);
    assert_int_equal(client_getattr(&c, 1, &attr), -EIO);
    assert_int_equal(client_init_version(&c, 7, 38, 0), 0);
    assert_int_equal(client_getattr(&c, 1, &attr), 0);
}

/* --- names --------------------------------------------------------------------------------------------------- */

static void lookup_says_what_the_host_says(void **state)
{
    struct fuse_entry_out out;
    struct stat st;

    host_write(&c, "file", "hello");
    assert_int_equal(fstatat(c.fd, "file", &st, 0), 0);
    assert_int_equal(client_lookup(&c, 1, "file", &out), 0);
    assert_int_equal(out.attr.ino, st.st_ino);
    assert_int_equal(out.attr.size, 5);
    assert_int_equal(out.attr.mode, S_IFREG | 0644);
    assert_int_equal(out.attr.uid, 0);
    assert_int_equal(out.attr.gid, 0);
    assert_int_equal(out.attr.nlink, 1);
    assert_int_equal(out.attr.mtime, st.st_mtim.tv_sec);
    assert_int_equal(out.attr.mtimensec, st.st_mtim.tv_nsec);
    assert_int_equal(out.entry_valid, 1);
    assert_int_equal(client_node(&c, 1, "file"), out.nodeid); /* again: the same number */
    assert_int_equal(client_lookup(&c, 1, "none", &out), -ENOENT);
    assert_int_equal(client_lookup(&c, out.nodeid, "x", &out), -ENOTDIR);
}

static void dots_lead_up_to_the_root_and_no_further(void **state)
{
    mkdirat(c.fd, "a", 0755);
    mkdirat(c.fd, "a/b", 0755);
    uint64_t a = client_node(&c, 1, "a"), b = client_node(&c, a, "b");
    assert_int_equal(client_node(&c, b, ".."), a);
    assert_int_equal(client_node(&c, b, "."), b);
    assert_int_equal(client_node(&c, a, ".."), 1);
    assert_int_equal(client_node(&c, 1, ".."), 1);
}

static void makes_and_removes(void **state)
{
    const struct fuse_mkdir_in directory = {.mode = 0751};
    const struct fuse_mknod_in fifo = {.mode = S_IFIFO | 0640}, file = {.mode = S_IFREG | 0604};
    const struct fuse_mknod_in device = {.mode = S_IFCHR | 0666, .rdev = 0x103}, block = {.mode = S_IFBLK | 0666};
    struct stat st;

    assert_int_equal(client_do(&c, FUSE_MKDIR, 1, &directory, sizeof directory, "d", NULL), 0);
    assert_int_equal(fstatat(c.fd, "d", &st, 0), 0);
    assert_int_equal(st.st_mode, S_IFDIR | 0751);
    uint64_t d = client_node(&c, 1, "d");
    assert_int_equal(client_do(&c, FUSE_MKNOD, d, &fifo, sizeof fifo, "p", NULL), 0);
    assert_int_equal(client_do(&c, FUSE_MKNOD, d, &file, sizeof file, "f", NULL), 0);
    assert_int_equal(client_do(&c, FUSE_MKNOD, d, &file, sizeof file, "f", NULL), -EEXIST);
    assert_int_equal(client_do(&c, FUSE_MKNOD, d, &device, sizeof device, "null", NULL), -EPERM);
    assert_int_equal(client_do(&c, FUSE_MKNOD, d, &block, sizeof block, "disk", NULL), -EPERM);
    assert_int_equal(client_do(&c, FUSE_SYMLINK, d, NULL, 0, "s", "../../etc/passwd"), 0);
    assert_int_equal(fstatat(c.fd, "d/p", &st, 0), 0);
    assert_int_equal(st.st_mode, S_IFIFO | 0640);
    assert_int_equal(fstatat(c.fd, "d/f", &st, 0), 0);
    assert_int_equal(st.st_mode, S_IFREG | 0604);
    struct reply *r = client_ask(&c, FUSE_READLINK, client_node(&c, d, "s"), NULL, 0, NULL, NULL);
    assert_int_equal(r->length, strlen("../../etc/passwd"));
    assert_memory_equal(r->body, "../../etc/passwd", r->length);
    assert_int_equal(client_do(&c, FUSE_RMDIR, 1, NULL, 0, "d", NULL), -ENOTEMPTY);
    assert_int_equal(client_do(&c, FUSE_UNLINK, 1, NULL, 0, "d", NULL), -EISDIR);
    assert_int_equal(client_do(&c, FUSE_UNLINK, d, NULL, 0, "p", NULL), 0);
    assert_int_equal(client_do(&c, FUSE_UNLINK, d, NULL, 0, "f", NULL), 0);
    assert_int_equal(client_do(&c, FUSE_UNLINK, d, NULL, 0, "s", NULL), 0);
    assert_int_equal(client_do(&c, FUSE_RMDIR, 1, NULL, 0, "d", NULL), 0);
    assert_int_equal(fstatat(c.fd, "d", &st, 0), -1);
}

static void renames_and_links(void **state)
{
    struct fuse_attr attr;
    char text[32];

    host_write(&c, "a", "aaa");
    host_write(&c, "b", "bb");
    mkdirat(c.fd, "d", 0755);
    uint64_t a = client_node(&c, 1, "a"), d = client_node(&c, 1, "d");
    const struct fuse_rename_in into = {.newdir = d};
    assert_int_equal(client_do(&c, FUSE_RENAME, 1, &into, sizeof into, "a", "x"), 0);
    assert_int_equal(client_getattr(&c, a, &attr), 0); /* the node went with its file */
    assert_int_equal(client_node(&c, d, "x"), a);
    struct fuse_rename2_in r2 = {.newdir = d, .flags = RENAME_NOREPLACE};
    assert_int_equal(client_do(&c, FUSE_RENAME2, 1, &r2, sizeof r2, "b", "x"), -EEXIST);
    r2.flags = RENAME_EXCHANGE;
    assert_int_equal(client_do(&c, FUSE_RENAME2, 1, &r2, sizeof r2, "b", "x"), 0);
    host_read(&c, "b", text, sizeof text);
    assert_string_equal(text, "aaa");
    r2.flags = RENAME_WHITEOUT;
    assert_int_equal(client_do(&c, FUSE_RENAME2, 1, &r2, sizeof r2, "b", "x"), -EINVAL);
    const struct fuse_link_in link = {.oldnodeid = a};
    assert_int_equal(client_do(&c, FUSE_LINK, d, &link, sizeof link, "hard", NULL), 0);
    assert_int_equal(client_getattr(&c, a, &attr), 0);
    assert_int_equal(attr.nlink, 2);
    assert_int_equal(client_node(&c, d, "hard"), a);
}

static void a_hard_link_of_a_symbolic_link_is_that(void **state)
{
    struct stat st;
    struct fuse_link_in link;

    assert_int_equal(symlinkat("/etc/passwd", c.fd, "s"), 0);
    link.oldnodeid = client_node(&c, 1, "s");
    assert_int_equal(client_do(&c, FUSE_LINK, 1, &link, sizeof link, "t", NULL), 0);
    assert_int_equal(fstatat(c.fd, "t", &st, AT_SYMLINK_NOFOLLOW), 0);
    assert_true(S_ISLNK(st.st_mode));
}

/* The host moves a into b, where b was in a: as the guest knows them each would be the other's parent. */
static void directories_that_change_places(void **state)
{
    struct fuse_attr attr;
    uint64_t a, b;

    mkdirat(c.fd, "a", 0755);
    mkdirat(c.fd, "a/b", 0755);
    a = client_node(&c, 1, "a");
    b = client_node(&c, a, "b");
    assert_int_equal(client_getattr(&c, b, &attr), 0); /* opens it */
    assert_int_equal(renameat(c.fd, "a/b", c.fd, "b"), 0);
    assert_int_equal(renameat(c.fd, "a", c.fd, "b/a"), 0);
    assert_int_equal(client_node(&c, b, "a"), a); /* b is open still */
    for (unsigned i = 0; i < 200; i++) {          /* and now it is not, in a server with few descriptors */
        char name[16];
        snprintf(name, sizeof name, "f%u", i);
        host_write(&c, name, "");
        assert_int_equal(client_getattr(&c, client_node(&c, 1, name), &attr), 0);
    }
    assert_int_equal(client_getattr(&c, a, &attr), -ESTALE);
    assert_int_equal(client_node(&c, 1, "b"), b);
    assert_int_equal(client_node(&c, b, "a"), a);
    assert_int_equal(client_getattr(&c, a, &attr), 0);
}

static void forgotten_numbers_are_dead(void **state)
{
    struct fuse_attr attr;
    struct fuse_forget_in forget = {.nlookup = 1};
    uint64_t node = 0;

    host_write(&c, "f", "");
    node = client_node(&c, 1, "f");
    client_node(&c, 1, "f");
    client_put(&c, 0, &forget, sizeof forget);
    client_send_raw(&c, FUSE_FORGET, node, sizeof forget, 40 + sizeof forget);
    assert_int_equal(client_getattr(&c, node, &attr), 0); /* told twice, forgotten once */
    struct {
        struct fuse_batch_forget_in in;
        struct fuse_forget_one one[2];
    } batch = {{.count = 2}, {{node, 1}, {1, 1}}};
    client_put(&c, 0, &batch, sizeof batch);
    client_send_raw(&c, FUSE_BATCH_FORGET, 0, sizeof batch, 40 + sizeof batch);
    assert_int_equal(client_getattr(&c, node, &attr), -ESTALE);
    assert_int_equal(client_getattr(&c, 1, &attr), 0); /* the root is never forgotten */
    uint64_t again = client_node(&c, 1, "f");
    assert_int_not_equal(again, node); /* the number is not used a second time */
    assert_int_equal(client_getattr(&c, node, &attr), -ESTALE);
}

/* --- attributes ---------------------------------------------------------------------------------------------- */

static void attributes_are_set_exactly(void **state)
{
    struct fuse_setattr_in in = {.valid = FATTR_MODE | FATTR_ATIME | FATTR_MTIME | FATTR_SIZE,
                                 .mode = 0640,
                                 .size = 3,
                                 .atime = 1000000001,
                                 .atimensec = 123456789,
                                 .mtime = 1000000002,
                                 .mtimensec = 987654321};
    struct fuse_attr attr;
    struct stat st;

    host_write(&c, "f", "hello");
    uint64_t node = client_node(&c, 1, "f");
    assert_int_equal(client_setattr(&c, node, &in, &attr), 0);
    assert_int_equal(fstatat(c.fd, "f", &st, 0), 0);
    assert_int_equal(st.st_mode & 07777, 0640);
    assert_int_equal(st.st_size, 3);
    assert_int_equal(st.st_atim.tv_sec, 1000000001);
    assert_int_equal(st.st_atim.tv_nsec, 123456789);
    assert_int_equal(st.st_mtim.tv_sec, 1000000002);
    assert_int_equal(st.st_mtim.tv_nsec, 987654321);
    assert_int_equal(attr.mtimensec, 987654321);
    assert_int_equal(attr.size, 3);
    in = (struct fuse_setattr_in){.valid = FATTR_MTIME | FATTR_MTIME_NOW};
    assert_int_equal(client_setattr(&c, node, &in, &attr), 0);
    assert_true(attr.mtime > 1000000002);
    in = (struct fuse_setattr_in){.valid = FATTR_MTIME, .mtimensec = 1000000000};
    assert_int_equal(client_setattr(&c, node, &in, &attr), -EINVAL);
    in = (struct fuse_setattr_in){.valid = FATTR_SIZE, .size = 1ull << 63};
    assert_int_equal(client_setattr(&c, node, &in, &attr), -EFBIG);
    in = (struct fuse_setattr_in){.valid = FATTR_SIZE, .size = 1};
    assert_int_equal(client_setattr(&c, 1, &in, &attr), -EISDIR);
}

static void times_of_a_link_are_its_own(void **state)
{
    struct fuse_setattr_in in = {.valid = FATTR_MTIME, .mtime = 42};
    struct stat st;

    host_write(&c, "f", "");
    assert_int_equal(symlinkat("f", c.fd, "s"), 0);
    assert_int_equal(client_setattr(&c, client_node(&c, 1, "s"), &in, NULL), 0);
    assert_int_equal(fstatat(c.fd, "s", &st, AT_SYMLINK_NOFOLLOW), 0);
    assert_int_equal(st.st_mtim.tv_sec, 42);
    assert_int_equal(fstatat(c.fd, "f", &st, 0), 0);
    assert_int_not_equal(st.st_mtim.tv_sec, 42);
}

static void access_is_checked_as_the_host_does(void **state)
{
    struct fuse_access_in in = {.mask = R_OK | W_OK};

    host_write(&c, "f", "");
    assert_int_equal(client_do(&c, FUSE_ACCESS, client_node(&c, 1, "f"), &in, sizeof in, NULL, NULL), 0);
    in.mask = X_OK;
    assert_int_equal(client_do(&c, FUSE_ACCESS, client_node(&c, 1, "f"), &in, sizeof in, NULL, NULL), -EACCES);
    in.mask = 64;
    assert_int_equal(client_do(&c, FUSE_ACCESS, client_node(&c, 1, "f"), &in, sizeof in, NULL, NULL), -EINVAL);
}

static void statfs_and_syncfs(void **state)
{
    const struct fuse_syncfs_in in = {0};
    struct reply *r = client_ask(&c, FUSE_STATFS, 1, NULL, 0, NULL, NULL);

    assert_int_equal(r->length, sizeof(struct fuse_statfs_out));
    assert_int_equal(((struct fuse_statfs_out *)r->body)->st.namelen, 255);
    assert_int_equal(client_do(&c, FUSE_SYNCFS, 1, &in, sizeof in, NULL, NULL), 0);
}

/* --- data ---------------------------------------------------------------------------------------------------- */

static void writes_and_reads_small_and_large(void **state)
{
    static uint8_t data[SHARE_DATA_MAX];
    static const size_t sizes[] = {1, 100, 4016, 4017, 4096, 5000, 65536, sizeof data};
    struct fuse_entry_out entry;
    uint64_t fh = 0;

    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i * 2654435761u >> 11);
    assert_int_equal(client_create(&c, 1, "f", O_RDWR, 0644, &entry, &fh), 0);
    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        assert_int_equal(client_write(&c, entry.nodeid, fh, 10 * i, data, sizes[i], 0, 0), (int)sizes[i]);
        struct reply *r = client_read(&c, entry.nodeid, fh, 10 * i, (uint32_t)sizes[i]);
        assert_int_equal(r->length, sizes[i]);
        assert_memory_equal(r->body, data, sizes[i]);
    }
    struct reply *r = client_read(&c, entry.nodeid, fh, 70 + sizeof data - 5, 1 << 20); /* the file's end */
    assert_int_equal(r->length, 5);
    assert_int_equal(client_read(&c, entry.nodeid, fh, 1ull << 40, 4096)->length, 0);
    assert_int_equal(client_read(&c, entry.nodeid, fh, UINT64_MAX, 4096)->header.error, -EINVAL);
    assert_int_equal(client_write(&c, entry.nodeid, fh, UINT64_MAX, data, 1, 0, 0), -EINVAL);
    assert_int_equal(client_release(&c, entry.nodeid, fh), 0);
    assert_int_equal(client_read(&c, entry.nodeid, fh, 0, 1)->header.error, -EBADF);
}

static void appending_is_at_the_end_whatever_the_guest_thinks(void **state)
{
    struct fuse_entry_out entry;
    uint64_t fh = 0;
    char text[32];

    assert_int_equal(client_create(&c, 1, "log", O_WRONLY | O_APPEND, 0644, &entry, &fh), 0);
    assert_int_equal(client_write(&c, entry.nodeid, fh, 0, "one", 3, O_APPEND, 0), 3);
    int host = openat(c.fd, "log", O_WRONLY | O_APPEND);
    assert_int_equal(write(host, "two", 3), 3);
    close(host);
    assert_int_equal(client_write(&c, entry.nodeid, fh, 3, "three", 5, O_APPEND, 0), 5);
    host_read(&c, "log", text, sizeof text);
    assert_string_equal(text, "onetwothree");
    /* but a page of a mapping goes where it belongs */
    assert_int_equal(client_write(&c, entry.nodeid, fh, 0, "ONE", 3, O_APPEND, FUSE_WRITE_CACHE), 3);
    host_read(&c, "log", text, sizeof text);
    assert_string_equal(text, "ONEtwothree");
}

static void create_opens_what_is_there(void **state)
{
    struct fuse_entry_out entry;
    uint64_t fh = 0;
    struct stat st;

    host_write(&c, "f", "hello");
    assert_int_equal(client_create(&c, 1, "f", O_RDWR | O_EXCL, 0644, &entry, &fh), -EEXIST);
    assert_int_equal(client_create(&c, 1, "f", O_RDWR, 0600, &entry, &fh), 0);
    assert_memory_equal(client_read(&c, entry.nodeid, fh, 0, 5)->body, "hello", 5);
    assert_int_equal(client_release(&c, entry.nodeid, fh), 0);
    assert_int_equal(client_create(&c, 1, "f", O_RDWR | O_TRUNC, 0600, &entry, &fh), 0);
    assert_int_equal(entry.attr.size, 0);
    assert_int_equal(fstatat(c.fd, "f", &st, 0), 0);
    assert_int_equal(st.st_size, 0);
    assert_int_equal(st.st_mode & 0777, 0644);
}

static void a_handle_allows_what_it_was_opened_for(void **state)
{
    const struct fuse_fallocate_in allocate = {.length = 10};
    uint64_t fh = 0, node = 0;

    host_write(&c, "f", "hello");
    node = client_node(&c, 1, "f");
    assert_int_equal(client_open_file(&c, node, O_RDONLY, &fh, NULL), 0);
    assert_int_equal(client_write(&c, node, fh, 0, "x", 1, 0, 0), -EBADF);
    assert_int_equal(client_do(&c, FUSE_FALLOCATE, node, &allocate, sizeof allocate, NULL, NULL), -EBADF);
    assert_int_equal(client_release(&c, node, fh), 0);
    assert_int_equal(client_open_file(&c, node, O_WRONLY, &fh, NULL), 0);
    assert_int_equal(client_read(&c, node, fh, 0, 1)->header.error, -EBADF);
}

static void an_open_file_survives_its_name(void **state)
{
    struct fuse_entry_out entry;
    struct fuse_attr attr;
    struct fuse_setattr_in in = {.valid = FATTR_SIZE | FATTR_FH | FATTR_MODE, .size = 2, .mode = 0600};
    uint64_t fh = 0;

    assert_int_equal(client_create(&c, 1, "f", O_RDWR, 0644, &entry, &fh), 0);
    assert_int_equal(client_write(&c, entry.nodeid, fh, 0, "hello", 5, 0, 0), 5);
    assert_int_equal(client_do(&c, FUSE_UNLINK, 1, NULL, 0, "f", NULL), 0);
    assert_int_equal(client_getattr(&c, entry.nodeid, &attr), 0);
    assert_int_equal(attr.nlink, 0);
    assert_memory_equal(client_read(&c, entry.nodeid, fh, 0, 5)->body, "hello", 5);
    in.fh = fh;
    assert_int_equal(client_setattr(&c, entry.nodeid, &in, &attr), 0);
    assert_int_equal(attr.size, 2);
    assert_int_equal(client_release(&c, entry.nodeid, fh), 0);
}

static void what_the_host_replaces_is_stale(void **state)
{
    struct fuse_attr attr;
    uint64_t fh = 0, node = 0;

    for (unsigned i = 0; i < 200; i++) { /* so that the node's descriptor is not cached any more */
        char name[16];
        snprintf(name, sizeof name, "f%u", i);
        host_write(&c, name, "");
        if (i)
            client_node(&c, 1, name);
        else
            node = client_node(&c, 1, name);
    }
    assert_int_equal(client_getattr(&c, node, &attr), 0);
    for (unsigned i = 1; i < 200; i++) {
        char name[16];
        snprintf(name, sizeof name, "f%u", i);
        assert_int_equal(client_getattr(&c, client_node(&c, 1, name), &(struct fuse_attr){0}), 0);
    }
    host_write(&c, "new", "new");
    assert_int_equal(renameat(c.fd, "new", c.fd, "f0"), 0);
    assert_int_equal(client_getattr(&c, node, &attr), -ESTALE);
    assert_int_equal(client_open_file(&c, node, O_RDONLY, &fh, NULL), -ESTALE);
    assert_int_not_equal(client_node(&c, 1, "f0"), node);
    assert_int_equal(unlinkat(c.fd, "f0", 0), 0);
    assert_int_equal(client_getattr(&c, node, &attr), -ESTALE);
}

static void cached_pages_are_kept_while_nothing_changed(void **state)
{
    struct timespec old[2] = {{.tv_sec = 1000}, {.tv_sec = 1000}};
    uint32_t flags = 0;
    uint64_t fh = 0, node = 0;

    host_write(&c, "f", "hello");
    node = client_node(&c, 1, "f");
    assert_int_equal(client_open_file(&c, node, O_RDONLY, &fh, &flags), 0);
    assert_int_equal(flags & FOPEN_KEEP_CACHE, 0); /* never seen before */
    assert_int_equal(client_open_file(&c, node, O_RDONLY, &fh, &flags), 0);
    assert_int_equal(flags & FOPEN_KEEP_CACHE, 0); /* changed a moment ago: perhaps once more since */
    sleep(3);
    assert_int_equal(client_open_file(&c, node, O_RDONLY, &fh, &flags), 0);
    assert_int_equal(client_open_file(&c, node, O_RDONLY, &fh, &flags), 0);
    assert_int_equal(flags & FOPEN_KEEP_CACHE, FOPEN_KEEP_CACHE);
    assert_int_equal(utimensat(c.fd, "f", old, 0), 0);
    assert_int_equal(client_open_file(&c, node, O_RDONLY, &fh, &flags), 0);
    assert_int_equal(flags & FOPEN_KEEP_CACHE, 0);
}

static void allocates_seeks_and_copies(void **state)
{
    struct fuse_entry_out f, g;
    struct fuse_fallocate_in allocate = {.length = 1 << 20};
    struct fuse_lseek_in seek = {.whence = SEEK_DATA};
    struct fuse_attr attr;
    uint64_t fh, gh;

    assert_int_equal(client_create(&c, 1, "f", O_RDWR, 0644, &f, &fh), 0);
    assert_int_equal(client_create(&c, 1, "g", O_RDWR, 0644, &g, &gh), 0);
    assert_int_equal(client_write(&c, f.nodeid, fh, 1 << 20, "end", 3, 0, 0), 3);
    seek.fh = fh;
    struct reply *r = client_ask(&c, FUSE_LSEEK, f.nodeid, &seek, sizeof seek, NULL, NULL);
    assert_int_equal(r->header.error, 0);
    assert_true(((struct fuse_lseek_out *)r->body)->offset <= 1 << 20);
    seek.offset = 2 << 20;
    assert_int_equal(client_do(&c, FUSE_LSEEK, f.nodeid, &seek, sizeof seek, NULL, NULL), -ENXIO);
    seek.whence = SEEK_CUR;
    assert_int_equal(client_do(&c, FUSE_LSEEK, f.nodeid, &seek, sizeof seek, NULL, NULL), -EINVAL);
    allocate.fh = gh;
    assert_int_equal(client_do(&c, FUSE_FALLOCATE, g.nodeid, &allocate, sizeof allocate, NULL, NULL), 0);
    assert_int_equal(client_getattr(&c, g.nodeid, &attr), 0);
    assert_int_equal(attr.size, 1 << 20);
    allocate.mode = FALLOC_FL_COLLAPSE_RANGE;
    assert_int_equal(client_do(&c, FUSE_FALLOCATE, g.nodeid, &allocate, sizeof allocate, NULL, NULL), -EOPNOTSUPP);
    struct fuse_copy_file_range_in copy = {
        .fh_in = fh, .off_in = 1 << 20, .nodeid_out = g.nodeid, .fh_out = gh, .off_out = 7, .len = 100};
    r = client_ask(&c, FUSE_COPY_FILE_RANGE, f.nodeid, &copy, sizeof copy, NULL, NULL);
    assert_int_equal(r->header.error, 0);
    assert_int_equal(((struct fuse_write_out *)r->body)->size, 3);
    assert_memory_equal(client_read(&c, g.nodeid, gh, 7, 3)->body, "end", 3);
    const struct fuse_fsync_in sync = {.fh = gh}, data = {.fh = gh, .fsync_flags = FUSE_FSYNC_FDATASYNC};
    assert_int_equal(client_do(&c, FUSE_FSYNC, g.nodeid, &sync, sizeof sync, NULL, NULL), 0);
    assert_int_equal(client_do(&c, FUSE_FSYNC, g.nodeid, &data, sizeof data, NULL, NULL), 0);
}

static void nothing_but_files_is_opened(void **state)
{
    uint64_t fh = 0;

    assert_int_equal(mkfifoat(c.fd, "fifo", 0666), 0);
    assert_int_equal(symlinkat("/dev/null", c.fd, "link"), 0);
    assert_int_equal(client_open_file(&c, client_node(&c, 1, "fifo"), O_RDONLY, &fh, NULL),
                     -ENXIO); /* and no waiting */
    assert_int_equal(client_open_file(&c, client_node(&c, 1, "link"), O_RDONLY, &fh, NULL), -ELOOP);
    assert_int_equal(client_open_file(&c, 1, O_RDONLY, &fh, NULL), -EISDIR);
    if (geteuid() == 0 && mknodat(c.fd, "null", S_IFCHR | 0666, makedev(1, 3)) == 0)
        assert_int_equal(client_open_file(&c, client_node(&c, 1, "null"), O_RDWR, &fh, NULL), -ENXIO);
}

/* --- directories --------------------------------------------------------------------------------------------- */

static unsigned list(uint64_t node, uint32_t opcode, uint32_t size, unsigned *with_node)
{
    const struct fuse_open_in open = {.flags = O_RDONLY};
    struct reply *r = client_ask(&c, FUSE_OPENDIR, node, &open, sizeof open, NULL, NULL);
    assert_int_equal(r->header.error, 0);
    struct fuse_read_in in = {.fh = ((struct fuse_open_out *)r->body)->fh, .size = size};
    unsigned n = 0;

    for (;;) {
        r = client_ask(&c, opcode, node, &in, sizeof in, NULL, NULL);
        assert_int_equal(r->header.error, 0);
        assert_true(r->length <= size);
        if (!r->length)
            break;
        for (size_t at = 0; at < r->length;) {
            const struct fuse_direntplus *plus = (void *)(r->body + at);
            const struct fuse_dirent *d = opcode == FUSE_READDIR ? (void *)(r->body + at) : &plus->dirent;
            assert_true(d->namelen > 0 && d->namelen <= 255 && d->ino);
            if (opcode == FUSE_READDIRPLUS && plus->entry_out.nodeid) {
                assert_int_equal(plus->entry_out.attr.ino, d->ino);
                (*with_node)++;
            }
            in.offset = d->off;
            at += opcode == FUSE_READDIR ? FUSE_DIRENT_SIZE(d) : FUSE_DIRENTPLUS_SIZE(plus);
            n++;
        }
    }
    const struct fuse_release_in release = {.fh = in.fh};
    const struct fuse_fsync_in sync = {.fh = in.fh};
    assert_int_equal(client_do(&c, FUSE_FSYNCDIR, node, &sync, sizeof sync, NULL, NULL), 0);
    assert_int_equal(client_do(&c, FUSE_RELEASEDIR, node, &release, sizeof release, NULL, NULL), 0);
    return n;
}

static void directories_are_listed_whole(void **state)
{
    unsigned with_node = 0, many = 500;
    char name[32];

    for (unsigned i = 0; i < many; i++) {
        snprintf(name, sizeof name, "a-file-number-%u", i);
        host_write(&c, name, "");
    }
    assert_int_equal(list(1, FUSE_READDIR, 4096, NULL), many + 2);
    assert_int_equal(list(1, FUSE_READDIR, 65536, NULL), many + 2);
    assert_int_equal(list(1, FUSE_READDIRPLUS, 4096, &with_node), many + 2);
    assert_int_equal(with_node, many);
    assert_int_equal(list(1, FUSE_READDIRPLUS, 1 << 20, &with_node), many + 2);
}

static void a_directory_can_be_read_again_from_any_place(void **state)
{
    const struct fuse_open_in open = {.flags = O_RDONLY};
    uint64_t offsets[12], fh;
    char names[12][8];
    unsigned n = 0;

    for (unsigned i = 0; i < 10; i++) {
        char name[8];
        snprintf(name, sizeof name, "f%u", i);
        host_write(&c, name, "");
    }
    fh = ((struct fuse_open_out *)client_ask(&c, FUSE_OPENDIR, 1, &open, sizeof open, NULL, NULL)->body)->fh;
    struct fuse_read_in in = {.fh = fh, .size = 4096};
    struct reply *r = client_ask(&c, FUSE_READDIR, 1, &in, sizeof in, NULL, NULL);
    for (size_t at = 0; at < r->length; n++) {
        const struct fuse_dirent *d = (void *)(r->body + at);
        offsets[n] = d->off;
        snprintf(names[n], sizeof names[n], "%.*s", (int)d->namelen, d->name);
        at += FUSE_DIRENT_SIZE(d);
    }
    assert_int_equal(n, 12);
    for (unsigned i = n - 1; i > 0; i--) {
        in.offset = offsets[i - 1];
        r = client_ask(&c, FUSE_READDIR, 1, &in, sizeof in, NULL, NULL);
        assert_memory_equal(((struct fuse_dirent *)r->body)->name, names[i], strlen(names[i]));
    }
    in.offset = UINT64_MAX;
    assert_int_equal(client_ask(&c, FUSE_READDIR, 1, &in, sizeof in, NULL, NULL)->header.error, -EINVAL);
}

/* --- extended attributes ------------------------------------------------------------------------------------- */

static int set_attribute(uint64_t node, const char *name, const char *value, uint32_t flags)
{
    const struct fuse_setxattr_in in = {.size = (uint32_t)strlen(value), .flags = flags};
    size_t n = client_put(&c, 0, &in, FUSE_COMPAT_SETXATTR_IN_SIZE);

    n = client_put(&c, n, name, strlen(name) + 1);
    n = client_put(&c, n, value, strlen(value));
    return client_wait(&c, client_send_raw(&c, FUSE_SETXATTR, node, n, (uint32_t)(40 + n)))->header.error;
}

static void attributes_of_users_are_passed_through(void **state)
{
    struct fuse_getxattr_in in = {.size = 100};
    char value[16];
    uint64_t node = 0;

    host_write(&c, "f", "");
    node = client_node(&c, 1, "f");
    int r = set_attribute(node, "user.note", "hello", 0);
    if (r == -EOPNOTSUPP)
        skip(); /* the file system has none */
    assert_int_equal(r, 0);
    char path[128];
    snprintf(path, sizeof path, "%s/f", c.root);
    assert_int_equal(getxattr(path, "user.note", value, sizeof value), 5);
    assert_int_equal(set_attribute(node, "user.note", "x", XATTR_CREATE), -EEXIST);
    assert_int_equal(set_attribute(node, "security.capability", "x", 0), -EOPNOTSUPP);
    assert_int_equal(set_attribute(node, "system.posix_acl_access", "x", 0), -EOPNOTSUPP);
    assert_int_equal(set_attribute(node, "trusted.overlay.opaque", "y", 0), -EOPNOTSUPP);
    assert_int_equal(set_attribute(node, "user.guise.owner", "1:1", 0), -EPERM);
    struct reply *reply = client_ask(&c, FUSE_GETXATTR, node, &in, sizeof in, "user.note", NULL);
    assert_int_equal(reply->length, 5);
    assert_memory_equal(reply->body, "hello", 5);
    in.size = 3;
    assert_int_equal(client_do(&c, FUSE_GETXATTR, node, &in, sizeof in, "user.note", NULL), -ERANGE);
    in.size = 0;
    reply = client_ask(&c, FUSE_GETXATTR, node, &in, sizeof in, "user.note", NULL);
    assert_int_equal(((struct fuse_getxattr_out *)reply->body)->size, 5);
    in.size = 100;
    assert_int_equal(client_do(&c, FUSE_GETXATTR, node, &in, sizeof in, "user.none", NULL), -ENODATA);
    assert_int_equal(client_do(&c, FUSE_GETXATTR, node, &in, sizeof in, "security.capability", NULL), -EOPNOTSUPP);
    assert_int_equal(setxattr(path, "user.guise.owner", "5:6", 3, 0), 0);
    reply = client_ask(&c, FUSE_LISTXATTR, node, &in, sizeof in, NULL, NULL);
    assert_int_equal(reply->length, sizeof "user.note");
    assert_memory_equal(reply->body, "user.note", sizeof "user.note");
    assert_int_equal(client_do(&c, FUSE_GETXATTR, node, &in, sizeof in, "user.guise.owner", NULL), -ENODATA);
    assert_int_equal(client_do(&c, FUSE_REMOVEXATTR, node, NULL, 0, "user.guise.owner", NULL), -EPERM);
    assert_int_equal(client_do(&c, FUSE_REMOVEXATTR, node, NULL, 0, "user.note", NULL), 0);
    assert_int_equal(getxattr(path, "user.note", value, sizeof value), -1);
}

/* --- locks
 * ----------------------------------------------------------------------------------------------------------------------
 */

static uint32_t send_lock(uint32_t opcode, uint64_t node, uint64_t fh, uint64_t owner, uint32_t type, uint32_t flags)
{
    const struct fuse_lk_in in = {
        .fh = fh, .owner = owner, .lk = {.end = INT64_MAX, .type = type, .pid = 7}, .lk_flags = flags};

    client_put(&c, 0, &in, sizeof in);
    return client_send_raw(&c, opcode, node, sizeof in, 40 + sizeof in);
}

static int lock(uint32_t opcode, uint64_t node, uint64_t fh, uint64_t owner, uint32_t type, uint32_t flags)
{
    return client_wait(&c, send_lock(opcode, node, fh, owner, type, flags))->header.error;
}

static void locks_are_the_hosts(void **state)
{
    struct flock fl = {.l_type = F_WRLCK};
    struct fuse_entry_out f;
    uint64_t fh = 0;

    assert_int_equal(client_create(&c, 1, "f", O_RDWR, 0644, &f, &fh), 0);
    assert_int_equal(lock(FUSE_SETLK, f.nodeid, fh, 1, F_WRLCK, 0), 0);
    assert_int_equal(lock(FUSE_SETLK, f.nodeid, fh, 2, F_WRLCK, 0), -EAGAIN);
    int host = openat(c.fd, "f", O_RDWR | O_CLOEXEC);
    assert_int_equal(fcntl(host, F_OFD_SETLK, &fl), -1); /* the host sees it */
    const struct fuse_lk_in ask = {.fh = fh, .owner = 2, .lk = {.end = INT64_MAX, .type = F_WRLCK}};
    struct reply *r = client_ask(&c, FUSE_GETLK, f.nodeid, &ask, sizeof ask, NULL, NULL);
    assert_int_equal(((struct fuse_lk_out *)r->body)->lk.type, F_WRLCK);
    assert_int_equal(((struct fuse_lk_out *)r->body)->lk.pid, 7);
    const struct fuse_flush_in flush = {.fh = fh, .lock_owner = 1};
    assert_int_equal(client_do(&c, FUSE_FLUSH, f.nodeid, &flush, sizeof flush, NULL, NULL), 0);
    assert_int_equal(fcntl(host, F_OFD_SETLK, &fl), 0); /* close(2) in the guest let it go */
    assert_int_equal(lock(FUSE_SETLK, f.nodeid, fh, 2, F_RDLCK, 0), -EAGAIN);
    close(host);
    assert_int_equal(lock(FUSE_SETLK, f.nodeid, fh, 2, F_RDLCK, 0), 0);
    assert_int_equal(lock(FUSE_SETLK, f.nodeid, fh, 2, 99, 0), -EINVAL);
}

static void a_share_without_locks_leaves_them_to_the_guest(void **state)
{
    const struct fuse_init_in in = {.major = 7, .minor = 38, .flags = FUSE_POSIX_LOCKS | FUSE_FLOCK_LOCKS};
    struct fuse_entry_out f;
    uint64_t fh = 0;

    struct reply *r = client_ask(&c, FUSE_INIT, 0, &in, sizeof in, NULL, NULL);
    assert_int_equal(((struct fuse_init_out *)r->body)->flags, 0);
    assert_int_equal(client_create(&c, 1, "f", O_RDWR, 0644, &f, &fh), 0);
    assert_int_equal(lock(FUSE_SETLK, f.nodeid, fh, 1, F_WRLCK, 0), -ENOSYS);
    assert_int_equal(lock(FUSE_SETLKW, f.nodeid, fh, 1, F_WRLCK, FUSE_LK_FLOCK), -ENOSYS);
    const struct fuse_flush_in flush = {.fh = fh};
    assert_int_equal(client_do(&c, FUSE_FLUSH, f.nodeid, &flush, sizeof flush, NULL, NULL), -ENOSYS);
}

static void a_waiting_lock_comes_when_it_is_free(void **state)
{
    struct flock fl = {.l_type = F_WRLCK};
    struct fuse_entry_out f;
    uint64_t fh = 0;

    assert_int_equal(client_create(&c, 1, "f", O_RDWR, 0644, &f, &fh), 0);
    assert_int_equal(lock(FUSE_SETLK, f.nodeid, fh, 1, F_WRLCK, 0), 0);
    uint32_t waiting = send_lock(FUSE_SETLKW, f.nodeid, fh, 2, F_WRLCK, 0);
    usleep(60000);
    assert_false(client_has_reply(&c, waiting));
    assert_int_equal(lock(FUSE_SETLK, f.nodeid, fh, 1, F_UNLCK, 0), 0);
    assert_int_equal(client_wait(&c, waiting)->header.error, 0);
    assert_int_equal(lock(FUSE_SETLK, f.nodeid, fh, 2, F_UNLCK, 0), 0);
    /* one that the host has */
    int host = openat(c.fd, "f", O_RDWR | O_CLOEXEC);
    assert_int_equal(fcntl(host, F_OFD_SETLK, &fl), 0);
    waiting = send_lock(FUSE_SETLKW, f.nodeid, fh, 2, F_WRLCK, 0);
    usleep(60000);
    assert_false(client_has_reply(&c, waiting));
    close(host);
    assert_int_equal(client_wait(&c, waiting)->header.error, 0);
}

static void a_waiting_lock_can_be_interrupted(void **state)
{
    struct fuse_interrupt_in interrupt;
    struct fuse_entry_out f;
    uint64_t fh = 0;

    assert_int_equal(client_create(&c, 1, "f", O_RDWR, 0644, &f, &fh), 0);
    assert_int_equal(lock(FUSE_SETLK, f.nodeid, fh, 1, F_WRLCK, 0), 0);
    uint32_t waiting = send_lock(FUSE_SETLKW, f.nodeid, fh, 2, F_WRLCK, 0);
    interrupt.unique = c.unique + 1; /* nobody's */
    client_put(&c, 0, &interrupt, sizeof interrupt);
    client_send_raw(&c, FUSE_INTERRUPT, 0, sizeof interrupt, 40 + sizeof interrupt);
    assert_false(client_has_reply(&c, waiting));
    interrupt.unique = c.unique - 1;
    client_put(&c, 0, &interrupt, sizeof interrupt);
    client_send_raw(&c, FUSE_INTERRUPT, 0, sizeof interrupt, 40 + sizeof interrupt);
    assert_int_equal(client_wait(&c, waiting)->header.error, -EINTR);
    /* and ends with its file, and with the session */
    waiting = send_lock(FUSE_SETLKW, f.nodeid, fh, 2, F_WRLCK, 0);
    assert_int_equal(client_release(&c, f.nodeid, fh), 0);
    assert_int_equal(client_wait(&c, waiting)->header.error, -EINTR);
}

static void a_reset_answers_what_waits_and_forgets_all(void **state)
{
    struct fuse_entry_out f;
    struct fuse_attr attr;
    uint64_t fh = 0;

    assert_int_equal(client_create(&c, 1, "f", O_RDWR, 0644, &f, &fh), 0);
    assert_int_equal(lock(FUSE_SETLK, f.nodeid, fh, 1, F_WRLCK, 0), 0);
    uint32_t waiting = send_lock(FUSE_SETLKW, f.nodeid, fh, 2, F_WRLCK, 0);
    server_reset(c.server);
    assert_int_equal(client_wait(&c, waiting)->header.error, -ECANCELED);
    assert_int_equal(client_init_version(&c, 7, 38, 0), 0);
    assert_int_equal(client_getattr(&c, f.nodeid, &attr), -ESTALE);
    assert_int_equal(client_read(&c, 1, fh, 0, 1)->header.error, -EBADF);
}

static void flock_belongs_to_the_open_file(void **state)
{
    struct fuse_entry_out f;
    uint64_t one = 0, two = 0;

    assert_int_equal(client_create(&c, 1, "f", O_RDWR, 0644, &f, &one), 0);
    assert_int_equal(client_open_file(&c, f.nodeid, O_RDWR, &two, NULL), 0);
    assert_int_equal(lock(FUSE_SETLK, f.nodeid, one, 1, F_WRLCK, FUSE_LK_FLOCK), 0);
    assert_int_equal(lock(FUSE_SETLK, f.nodeid, two, 1, F_RDLCK, FUSE_LK_FLOCK), -EAGAIN);
    int host = openat(c.fd, "f", O_RDWR | O_CLOEXEC);
    assert_int_equal(flock(host, LOCK_EX | LOCK_NB), -1);
    uint32_t waiting = send_lock(FUSE_SETLKW, f.nodeid, two, 1, F_WRLCK, FUSE_LK_FLOCK);
    assert_int_equal(client_release(&c, f.nodeid, one), 0);
    assert_int_equal(client_wait(&c, waiting)->header.error, 0);
    assert_int_equal(lock(FUSE_SETLK, f.nodeid, two, 1, 99, FUSE_LK_FLOCK), -EINVAL);
    close(host);
}

/* --- owners
 * ----------------------------------------------------------------------------------------------------------------------
 */

static void owners_of_the_guest_are_kept_beside(void **state)
{
    struct fuse_setattr_in in = {.valid = FATTR_UID | FATTR_GID, .uid = 33, .gid = 34};
    struct fuse_attr attr;
    char path[128], value[32] = "";
    struct stat before, after;
    uint64_t node = 0;

    host_write(&c, "f", "");
    snprintf(path, sizeof path, "%s/f", c.root);
    assert_int_equal(stat(path, &before), 0);
    node = client_node(&c, 1, "f");
    int r = client_setattr(&c, node, &in, &attr);
    if (r == -EPERM)
        skip(); /* no attributes here */
    assert_int_equal(r, 0);
    assert_int_equal(attr.uid, 33);
    assert_int_equal(attr.gid, 34);
    assert_int_equal(stat(path, &after), 0);
    assert_int_equal(after.st_uid, before.st_uid);
    assert_int_equal(after.st_gid, before.st_gid);
    assert_int_equal(getxattr(path, "user.guise.owner", value, sizeof value - 1), 5);
    assert_string_equal(value, "33:34");
    /* a set-user-id program of the guest is none of the host's */
    in = (struct fuse_setattr_in){.valid = FATTR_MODE, .mode = 06755};
    assert_int_equal(client_setattr(&c, node, &in, &attr), 0);
    assert_int_equal(attr.mode, S_IFREG | 06755);
    assert_int_equal(stat(path, &after), 0);
    assert_int_equal(after.st_mode, S_IFREG | 0755);
    /* writing by an unprivileged program takes the bits, as everywhere */
    uint64_t fh = 0;
    assert_int_equal(client_open_file(&c, node, O_RDWR, &fh, NULL), 0);
    assert_int_equal(client_write(&c, node, fh, 0, "x", 1, 0, FUSE_WRITE_KILL_SUIDGID), 1);
    assert_int_equal(client_getattr(&c, node, &attr), 0);
    assert_int_equal(attr.mode, S_IFREG | 0755);
    assert_int_equal(attr.uid, 33);
    /* back to root: nothing is left behind */
    in = (struct fuse_setattr_in){.valid = FATTR_UID | FATTR_GID};
    assert_int_equal(client_setattr(&c, node, &in, &attr), 0);
    assert_int_equal(attr.uid, 0);
    assert_int_equal(getxattr(path, "user.guise.owner", value, sizeof value - 1), -1);
}

static void what_users_of_the_guest_make_is_theirs(void **state)
{
    const struct fuse_mkdir_in directory = {.mode = 0755};
    struct fuse_setattr_in sgid = {.valid = FATTR_MODE | FATTR_GID, .mode = 02775, .gid = 50};
    struct fuse_entry_out f;
    struct stat st;
    uint64_t fh = 0;

    c.uid = 1000;
    c.gid = 100;
    assert_int_equal(client_create(&c, 1, "f", O_RDWR, 0644, &f, &fh), 0);
    if (f.attr.uid == 0)
        skip(); /* no attributes here */
    assert_int_equal(f.attr.uid, 1000);
    assert_int_equal(f.attr.gid, 100);
    assert_int_equal(fstatat(c.fd, "f", &st, 0), 0);
    assert_int_equal(st.st_uid, geteuid());
    assert_int_equal(client_do(&c, FUSE_MKDIR, 1, &directory, sizeof directory, "d", NULL), 0);
    assert_int_equal(client_lookup(&c, 1, "d", &f), 0);
    assert_int_equal(f.attr.uid, 1000);
    c.uid = c.gid = 0;
    assert_int_equal(client_setattr(&c, f.nodeid, &sgid, NULL), 0);
    c.uid = 1000;
    c.gid = 100;
    assert_int_equal(client_create(&c, f.nodeid, "g", O_RDWR, 0644, &f, &fh), 0);
    assert_int_equal(f.attr.gid, 50); /* the directory's group is inherited */
    assert_int_equal(f.attr.uid, 1000);
}

static void an_attribute_of_rubbish_counts_as_none(void **state)
{
    static const char *const rubbish[] = {
        "", "x", "1", "1:", "1:2:3:4", "-1:2", "4294967295:0", "1:2 ", "1:2:", "99999999999:1", "1:2:9", "0x1:0"};
    struct fuse_entry_out f;
    char path[128];

    host_write(&c, "f", "");
    snprintf(path, sizeof path, "%s/f", c.root);
    for (unsigned i = 0; i < sizeof rubbish / sizeof *rubbish; i++) {
        if (setxattr(path, "user.guise.owner", rubbish[i], strlen(rubbish[i]), 0))
            skip();
        assert_int_equal(client_lookup(&c, 1, "f", &f), 0);
        assert_int_equal(f.attr.uid + f.attr.gid, 0);
    }
}

/* --- read-only
 * -----------------------------------------------------------------------------------------------------------------------
 */

static void a_read_only_share_refuses_every_change(void **state)
{
    const uint8_t zeros[128] = {0};
    static const struct {
        uint32_t opcode;
        size_t size;
        bool name, second;
    } changes[] = {
        {FUSE_SETATTR, sizeof(struct fuse_setattr_in), false, false},
        {FUSE_SYMLINK, 0, true, true},
        {FUSE_MKNOD, sizeof(struct fuse_mknod_in), true, false},
        {FUSE_MKDIR, sizeof(struct fuse_mkdir_in), true, false},
        {FUSE_UNLINK, 0, true, false},
        {FUSE_RMDIR, 0, true, false},
        {FUSE_RENAME, sizeof(struct fuse_rename_in), true, true},
        {FUSE_RENAME2, sizeof(struct fuse_rename2_in), true, true},
        {FUSE_LINK, sizeof(struct fuse_link_in), true, false},
        {FUSE_WRITE, sizeof(struct fuse_write_in), false, false},
        {FUSE_SETXATTR, FUSE_COMPAT_SETXATTR_IN_SIZE, true, false},
        {FUSE_REMOVEXATTR, 0, true, false},
        {FUSE_CREATE, sizeof(struct fuse_create_in), true, false},
        {FUSE_FALLOCATE, sizeof(struct fuse_fallocate_in), false, false},
        {FUSE_COPY_FILE_RANGE, sizeof(struct fuse_copy_file_range_in), false, false},
    };
    uint64_t fh = 0, node = 0;

    host_write(&c, "f", "hello");
    for (unsigned i = 0; i < sizeof changes / sizeof *changes; i++)
        assert_int_equal(client_do(&c, changes[i].opcode, 1, zeros, changes[i].size, changes[i].name ? "f" : NULL,
                                   changes[i].second ? "g" : NULL),
                         -EROFS);
    node = client_node(&c, 1, "f");
    assert_int_equal(client_open_file(&c, node, O_RDWR, &fh, NULL), -EROFS);
    assert_int_equal(client_open_file(&c, node, O_WRONLY, &fh, NULL), -EROFS);
    assert_int_equal(client_open_file(&c, node, O_RDONLY | O_TRUNC, &fh, NULL), -EROFS);
    assert_int_equal(client_open_file(&c, node, O_RDONLY, &fh, NULL), 0);
    assert_int_equal(client_read(&c, node, fh, 0, 100)->length, 5);
    assert_int_equal(lock(FUSE_SETLK, node, fh, 1, F_RDLCK, 0), 0);
    assert_int_equal(lock(FUSE_SETLK, node, fh, 1, F_WRLCK, 0), -EBADF);
    const struct fuse_access_in in = {.mask = W_OK};
    assert_int_equal(client_do(&c, FUSE_ACCESS, node, &in, sizeof in, NULL, NULL), -EROFS);
    struct reply *r = client_ask(&c, FUSE_LOOKUP, 1, NULL, 0, "none", NULL);
    assert_int_equal(r->header.error, 0); /* "there is none", to be remembered */
    assert_int_equal(((struct fuse_entry_out *)r->body)->nodeid, 0);
}

/* --- limits
 * --------------------------------------------------------------------------------------------------------------------------------
 */

static void thousands_of_files_with_few_descriptors(void **state)
{
    enum { DIRECTORIES = 50, FILES = 60 };
    static uint64_t node[DIRECTORIES][FILES];
    struct fuse_attr attr;
    char name[32];

    for (unsigned d = 0; d < DIRECTORIES; d++) {
        snprintf(name, sizeof name, "d%u", d);
        mkdirat(c.fd, name, 0755);
        uint64_t parent = client_node(&c, 1, name);
        for (unsigned f = 0; f < FILES; f++) {
            snprintf(name, sizeof name, "d%u/f%u", d, f);
            host_write(&c, name, name);
            snprintf(name, sizeof name, "f%u", f);
            node[d][f] = client_node(&c, parent, name);
        }
    }
    for (unsigned i = 0; i < 3000; i++) {
        unsigned d = i * 7 % DIRECTORIES, f = i * 11 % FILES;
        assert_int_equal(client_getattr(&c, node[d][f], &attr), 0);
        assert_int_equal(attr.size, snprintf(name, sizeof name, "d%u/f%u", d, f));
    }
}

static void too_many_open_files_are_an_error(void **state)
{
    uint64_t node, fh[200];
    unsigned n = 0;
    int r;

    host_write(&c, "f", "");
    node = client_node(&c, 1, "f");
    while (n < 200 && !(r = client_open_file(&c, node, O_RDONLY, &fh[n], NULL)))
        n++;
    assert_in_range(n, 20, 128);
    assert_int_equal(r, -EMFILE);
    assert_int_equal(client_release(&c, node, fh[0]), 0);
    assert_int_equal(client_open_file(&c, node, O_RDONLY, &fh[0], NULL), 0);
}

static void a_path_may_be_very_deep(void **state)
{
    enum { DEPTH = 800 };
    const struct fuse_mkdir_in in = {.mode = 0755};
    struct fuse_attr attr;
    uint64_t node = 1, deep[DEPTH];

    for (unsigned i = 0; i < DEPTH; i++) {
        assert_int_equal(client_do(&c, FUSE_MKDIR, node, &in, sizeof in, "d", NULL), 0);
        deep[i] = node = client_node(&c, node, "d");
    }
    assert_int_equal(client_getattr(&c, deep[DEPTH - 1], &attr), 0);
    for (unsigned i = 0; i < DEPTH; i += 37)
        assert_int_equal(client_getattr(&c, deep[i], &attr), 0);
    assert_int_equal(client_getattr(&c, deep[DEPTH - 1], &attr), 0);
    for (unsigned i = DEPTH - 1; i > 0; i--)
        assert_int_equal(client_do(&c, FUSE_RMDIR, deep[i - 1], NULL, 0, "d", NULL), 0);
}

/* Both directories of a renaming are open at once, however few descriptors there are. */
static void a_file_moves_far_down(void **state)
{
    enum { DEPTH = 40, OTHERS = 20 };
    const struct fuse_mkdir_in in = {.mode = 0755};
    uint64_t node = 1, others[OTHERS];
    struct fuse_attr attr;
    char name[32], text[32];

    for (unsigned i = 0; i < DEPTH; i++) {
        assert_int_equal(client_do(&c, FUSE_MKDIR, node, &in, sizeof in, "d", NULL), 0);
        node = client_node(&c, node, "d");
    }
    for (unsigned i = 0; i < OTHERS; i++) {
        snprintf(name, sizeof name, "other%u", i);
        mkdirat(c.fd, name, 0755);
        others[i] = client_node(&c, 1, name);
    }
    host_write(&c, "other0/f", "mine");
    const struct fuse_rename_in far = {.newdir = node};
    for (unsigned round = 0; round < 2; round++) {
        for (unsigned i = 0; i < OTHERS; i++) /* the way down is closed */
            assert_int_equal(client_getattr(&c, others[i], &attr), 0);
        if (round == 0) {
            assert_int_equal(client_do(&c, FUSE_RENAME, others[0], &far, sizeof far, "f", "g"), 0);
        } else {
            const struct fuse_link_in link = {.oldnodeid = client_node(&c, node, "g")};
            for (unsigned i = 0; i < OTHERS; i++)
                assert_int_equal(client_getattr(&c, others[i], &attr), 0);
            assert_int_equal(client_do(&c, FUSE_LINK, others[0], &link, sizeof link, "back", NULL), 0);
        }
    }
    host_read(&c, "other0/back", text, sizeof text);
    assert_string_equal(text, "mine");
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define WITH(name, how) cmocka_unit_test_setup_teardown(name, how, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(init_agrees_on_what_both_can),
        T(init_of_another_version),
        T(nothing_works_before_init),
        T(lookup_says_what_the_host_says),
        T(dots_lead_up_to_the_root_and_no_further),
        T(makes_and_removes),
        T(renames_and_links),
        T(a_hard_link_of_a_symbolic_link_is_that),
        WITH(directories_that_change_places, setup_few_descriptors),
        T(forgotten_numbers_are_dead),
        T(attributes_are_set_exactly),
        T(times_of_a_link_are_its_own),
        T(access_is_checked_as_the_host_does),
        T(statfs_and_syncfs),
        T(writes_and_reads_small_and_large),
        T(appending_is_at_the_end_whatever_the_guest_thinks),
        T(create_opens_what_is_there),
        T(a_handle_allows_what_it_was_opened_for),
        T(an_open_file_survives_its_name),
        WITH(what_the_host_replaces_is_stale, setup_few_descriptors),
        T(cached_pages_are_kept_while_nothing_changed),
        T(allocates_seeks_and_copies),
        T(nothing_but_files_is_opened),
        T(directories_are_listed_whole),
        T(a_directory_can_be_read_again_from_any_place),
        T(attributes_of_users_are_passed_through),
        T(locks_are_the_hosts),
        WITH(a_share_without_locks_leaves_them_to_the_guest, setup_without_locks),
        T(a_waiting_lock_comes_when_it_is_free),
        T(a_waiting_lock_can_be_interrupted),
        T(a_reset_answers_what_waits_and_forgets_all),
        T(flock_belongs_to_the_open_file),
        T(owners_of_the_guest_are_kept_beside),
        T(what_users_of_the_guest_make_is_theirs),
        T(an_attribute_of_rubbish_counts_as_none),
        WITH(a_read_only_share_refuses_every_change, setup_read_only),
        WITH(thousands_of_files_with_few_descriptors, setup_few_descriptors),
        WITH(too_many_open_files_are_an_error, setup_few_descriptors),
        WITH(a_path_may_be_very_deep, setup_few_descriptors),
        WITH(a_file_moves_far_down, setup_few_descriptors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
