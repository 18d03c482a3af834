/* What a guest knows of a shared folder, saved and loaded into another server: the same files, or ESTALE. */
#include "share_client.h"

#define MOST (1u << 20)
/* Of share/state.c: bytes of the header, of a file, and where what is in them. */
#define HEADER 40u
#define NODE 64u
#define ROOT_DEVICE 16u
#define PARENT 8u
#define DEVICE 16u
#define TYPE 52u
#define NAME_LENGTH 56u

static struct client c;
static uint8_t *bytes;
static size_t size;

static int setup(void **state)
{
    client_open(&c, (struct server_config){0});
    bytes = NULL;
    return 0;
}

static int teardown(void **state)
{
    client_close(&c);
    free(bytes);
    return 0;
}

static void save(void)
{
    free(bytes);
    assert_int_equal(server_save(c.server, MOST, &bytes, &size), 0);
}

/* The machine is another one from here on. */
static int load(void)
{
    server_destroy(c.server);
    client_serve(&c, (struct server_config){0});
    return server_load(c.server, bytes, size);
}

static int read_error(uint64_t node, uint64_t fh, const char *text)
{
    struct reply *r = client_read(&c, node, fh, 0, 100);

    if (!r->header.error) {
        assert_int_equal(r->length, strlen(text));
        assert_memory_equal(r->body, text, r->length);
    }
    return r->header.error;
}

static uint64_t open_directory(uint64_t node)
{
    const struct fuse_open_in in = {0};
    struct reply *r = client_ask(&c, FUSE_OPENDIR, node, &in, sizeof in, NULL, NULL);

    assert_int_equal(r->header.error, 0);
    return ((struct fuse_open_out *)r->body)->fh;
}

/* How many entries there are from `offset` on; *offset: of the next. */
static unsigned read_directory(uint64_t node, uint64_t fh, uint64_t *offset, uint32_t room)
{
    const struct fuse_read_in in = {.fh = fh, .offset = *offset, .size = room};
    struct reply *r = client_ask(&c, FUSE_READDIR, node, &in, sizeof in, NULL, NULL);
    unsigned n = 0;

    assert_int_equal(r->header.error, 0);
    for (size_t at = 0; at < r->length; n++) {
        const struct fuse_dirent *d = (void *)(r->body + at);
        *offset = d->off;
        at += FUSE_DIRENT_SIZE(d);
    }
    return n;
}

static void what_was_open_is_open_again(void **state)
{
    uint64_t fh = 0, append = 0;
    char text[64];

    assert_int_equal(mkdirat(c.fd, "d", 0755), 0);
    host_write(&c, "d/file", "contents");
    uint64_t d = client_node(&c, 1, "d"), file = client_node(&c, d, "file");
    assert_int_equal(client_open_file(&c, file, O_RDWR, &fh, NULL), 0);
    assert_int_equal(client_open_file(&c, file, O_WRONLY | O_DSYNC, &append, NULL), 0);
    save();
    assert_int_equal(load(), 0);
    assert_int_equal(read_error(file, fh, "contents"), 0);
    assert_int_equal(client_write(&c, file, fh, 0, "C", 1, 0, 0), 1);
    assert_int_equal(client_write(&c, file, append, 8, "!", 1, O_WRONLY, 0), 1);
    host_read(&c, "d/file", text, sizeof text);
    assert_string_equal(text, "Contents!");
    assert_int_equal(client_release(&c, file, fh), 0);
    assert_int_equal(client_release(&c, file, append), 0);
    assert_int_equal(client_release(&c, file, append), -EBADF);
    assert_int_equal(client_node(&c, d, "file"), file);
}

static void numbers_are_not_used_again(void **state)
{
    const struct fuse_forget_in once = {.nlookup = 1};
    struct fuse_entry_out entry;
    struct fuse_attr attr;
    uint64_t fh = 0, other = 0;

    assert_int_equal(client_create(&c, 1, "a", O_RDWR, 0644, &entry, &fh), 0);
    uint64_t gone = entry.nodeid, gone_fh = fh;
    assert_int_equal(client_release(&c, gone, fh), 0);
    client_send_raw(&c, FUSE_FORGET, gone, client_put(&c, 0, &once, sizeof once), 40 + sizeof once);
    assert_int_equal(client_create(&c, 1, "b", O_RDWR, 0644, &entry, &fh), 0);
    save();
    assert_int_equal(load(), 0);
    assert_int_equal(client_getattr(&c, gone, &attr), -ESTALE);
    assert_int_equal(client_getattr(&c, entry.nodeid, &attr), 0);
    assert_int_equal(client_create(&c, 1, "c", O_RDWR, 0644, &entry, &other), 0);
    assert_true(entry.nodeid != gone);
    assert_true(other != fh && other != gone_fh);
}

static void a_directory_is_read_on(void **state)
{
    uint64_t at = 0;
    char name[32];

    assert_int_equal(mkdirat(c.fd, "d", 0755), 0);
    for (unsigned i = 0; i < 500; i++) {
        snprintf(name, sizeof name, "d/file-%u", i);
        host_write(&c, name, "");
    }
    uint64_t d = client_node(&c, 1, "d"), fh = open_directory(d);
    unsigned n = read_directory(d, fh, &at, 4000), more;
    assert_in_range(n, 10, 400);
    save();
    assert_int_equal(load(), 0);
    while ((more = read_directory(d, fh, &at, 4000)))
        n += more;
    assert_int_equal(n, 502);
}

static void what_is_another_file_is_stale(void **state)
{
    static const char *const names[] = {"kept", "changed", "removed", "replaced", "renamed", "unnamed"};
    uint64_t node[6], fh[6] = {0};
    struct fuse_attr attr;

    for (unsigned i = 0; i < 6; i++) {
        host_write(&c, names[i], names[i]);
        node[i] = client_node(&c, 1, names[i]);
        assert_int_equal(client_open_file(&c, node[i], O_RDONLY, &fh[i], NULL), 0);
    }
    assert_int_equal(unlinkat(c.fd, "unnamed", 0), 0); /* and open */
    save();
    host_write(&c, "changed", "since");
    assert_int_equal(unlinkat(c.fd, "removed", 0), 0);
    host_write(&c, "new", "another");
    assert_int_equal(renameat(c.fd, "new", c.fd, "replaced"), 0);
    assert_int_equal(renameat(c.fd, "renamed", c.fd, "elsewhere"), 0);
    assert_int_equal(load(), 0);
    assert_int_equal(read_error(node[0], fh[0], "kept"), 0);
    assert_int_equal(read_error(node[1], fh[1], "since"), 0); /* it is the same one */
    for (unsigned i = 2; i < 6; i++) {
        assert_int_equal(read_error(node[i], fh[i], ""), -ESTALE);
        assert_int_equal(client_getattr(&c, node[i], &attr), -ESTALE);
        assert_int_equal(client_release(&c, node[i], fh[i]), 0);
    }
    assert_int_equal(client_write(&c, node[3], fh[3], 0, "x", 1, 0, 0), -EBADF);
    assert_true(client_node(&c, 1, "replaced") != node[3]); /* which is how the guest goes on */
}

static void another_number_of_the_same_device(void **state)
{
    uint64_t device, fh = 0;

    host_write(&c, "file", "contents");
    uint64_t file = client_node(&c, 1, "file");
    assert_int_equal(client_open_file(&c, file, O_RDONLY, &fh, NULL), 0);
    save();
    memcpy(&device, bytes + ROOT_DEVICE, 8);
    assert_memory_equal(bytes + HEADER + DEVICE, &device, 8);
    device += 5;
    memcpy(bytes + ROOT_DEVICE, &device, 8);
    memcpy(bytes + HEADER + DEVICE, &device, 8);
    assert_int_equal(load(), 0);
    assert_int_equal(read_error(file, fh, "contents"), 0);
    device++;
    memcpy(bytes + HEADER + DEVICE, &device, 8); /* one that is elsewhere, though */
    assert_int_equal(load(), 0);
    assert_int_equal(read_error(file, fh, ""), -ESTALE);
}

static void a_link_in_the_way_leads_nowhere(void **state)
{
    struct fuse_attr attr;

    assert_int_equal(mkdirat(c.fd, "d", 0755), 0);
    host_write(&c, "d/file", "");
    uint64_t d = client_node(&c, 1, "d"), file = client_node(&c, d, "file");
    save();
    assert_int_equal(renameat(c.fd, "d", c.fd, "e"), 0);
    assert_int_equal(symlinkat("e", c.fd, "d"), 0);
    assert_int_equal(load(), 0);
    assert_int_equal(client_getattr(&c, file, &attr), -ESTALE);
    assert_int_equal(client_getattr(&c, d, &attr), -ESTALE);
}

static void what_is_not_saved(void **state)
{
    for (unsigned i = 0; i < 100; i++) {
        char name[32];
        snprintf(name, sizeof name, "file-%u", i);
        host_write(&c, name, "");
        client_node(&c, 1, name);
    }
    assert_int_equal(server_save(c.server, 1000, &bytes, &size), -E2BIG);
    server_destroy(c.server);
    client_serve(&c, (struct server_config){.locks = true});
    assert_int_equal(server_save(c.server, MOST, &bytes, &size), -ENOTSUP);
    bytes = NULL;
}

/* d/e/file, of which d is the first and e the second that is saved. */
static void make_three(void)
{
    uint64_t fh = 0;

    assert_int_equal(mkdirat(c.fd, "d", 0755), 0);
    assert_int_equal(mkdirat(c.fd, "d/e", 0755), 0);
    host_write(&c, "d/e/file", "");
    uint64_t d = client_node(&c, 1, "d"), e = client_node(&c, d, "e"), file = client_node(&c, e, "file");
    assert_int_equal(client_open_file(&c, file, O_RDWR, &fh, NULL), 0);
    save();
}

static void nonsense(size_t at, uint64_t value, size_t length)
{
    uint8_t before[8];
    struct fuse_attr attr;

    memcpy(before, bytes + at, length);
    memcpy(bytes + at, &value, length);
    assert_int_equal(load(), -EBADMSG);
    assert_int_equal(client_getattr(&c, 1, &attr), -EIO); /* nothing is known, and there was no INIT */
    memcpy(bytes + at, before, length);
}

static void what_makes_no_sense_is_refused(void **state)
{
    uint64_t d, e;

    make_three();
    const size_t first = HEADER, second = first + NODE + 8, file = second + NODE + 8;
    memcpy(&d, bytes + first, 8);
    memcpy(&e, bytes + second, 8);
    nonsense(first + PARENT, e, 8);           /* a ring */
    nonsense(first + PARENT, d, 8);           /* in itself */
    nonsense(first + PARENT, 0, 8);           /* nowhere, with a name */
    nonsense(first + PARENT, 12345, 8);       /* in nobody */
    nonsense(first, e, 8);                    /* twice */
    nonsense(first, 1, 8);                    /* the shared directory */
    nonsense(first, UINT64_MAX, 8);           /* too many */
    nonsense(second + TYPE, S_IFREG, 4);      /* a file that has files */
    nonsense(second + TYPE, 0, 4);            /* nothing at all */
    nonsense(second + NAME_LENGTH, 60000, 2); /* longer than there is */
    nonsense(second + NAME_LENGTH, 0, 2);     /* without a name */
    nonsense(second + NODE, '.', 1);          /* a name that leads elsewhere, */
    nonsense(second + NODE, '/', 1);
    nonsense(second + NODE, 0, 1);
    nonsense(file + TYPE, S_IFDIR, 4); /* an open directory that is a file */
    nonsense(HEADER - 4, 2, 4);        /* more open ones than there are */
    nonsense(HEADER - 8, 4, 4);
    nonsense(size - 8, UINT32_MAX, 4); /* flags */
    for (size_t all = size; size; size--)
        if (size < all)
            assert_int_equal(load(), -EBADMSG);
    bytes[0]++;
    size = HEADER;
    assert_int_equal(load(), -ENOTSUP);
}

/* Whatever it is, the server answers afterwards, and the host's files are what they were. */
static void noise_is_harmless(void **state)
{
    uint64_t seed = 88172645463325252ull;
    struct fuse_attr attr;
    struct stat st;

    make_three();
    uint8_t *good = malloc(size);
    memcpy(good, bytes, size);
    for (unsigned i = 0; i < 2000; i++) {
        memcpy(bytes, good, size);
        for (unsigned k = 0; k < 1 + i % 3; k++) {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            bytes[seed % size] ^= (uint8_t)(1u << (seed >> 32) % 8);
        }
        int err = server_load(c.server, bytes, size);
        if (!err)
            for (uint64_t id = 1; id < 6; id++)
                client_getattr(&c, id, &attr);
        server_reset(c.server);
    }
    free(good);
    assert_int_equal(fstatat(c.fd, "d/e/file", &st, 0), 0);
    assert_int_equal(st.st_size, 0);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(what_was_open_is_open_again),
        T(numbers_are_not_used_again),
        T(a_directory_is_read_on),
        T(what_is_another_file_is_stale),
        T(another_number_of_the_same_device),
        T(a_link_in_the_way_leads_nowhere),
        T(what_is_not_saved),
        T(what_makes_no_sense_is_refused),
        T(noise_is_harmless),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
