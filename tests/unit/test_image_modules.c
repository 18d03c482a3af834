/* Which kernel modules go into a guest, and in which order; what a build asks mmdebstrap for. */
#include "image_fixture.h"

#include "image/modules.h"

static const char dep[] = "kernel/drivers/virtio/virtio_ring.ko:\n"
                          "kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko\n"
                          "kernel/drivers/net/virtio_net.ko.xz: kernel/net/net_failover.ko.xz kernel/net/failover.ko "
                          "kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko\n"
                          "kernel/net/net_failover.ko.xz: kernel/net/failover.ko\n"
                          "kernel/net/failover.ko:\n"
                          "kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio.ko "
                          "kernel/drivers/virtio/virtio_ring.ko\n"
                          "kernel/fs/xfs/xfs.ko: kernel/lib/libcrc32c.ko\n"
                          "kernel/lib/libcrc32c.ko:\n"
                          "kernel/arch/x86/crypto/crc32c-intel.ko:\n"
                          "kernel/crypto/crc32c_generic.ko:\n";
static const char builtin[] = "kernel/fs/ext4/ext4.ko\nkernel/drivers/nvme/host/nvme.ko\n";
static const char softdep[] = "# comment\nsoftdep libcrc32c pre: crc32c\nsoftdep other post: virtio_net\n";
static const char alias[] = "alias crc32c crc32c_generic\nalias crc32c crc32c_intel\nalias fs-xfs xfs\n";

/* The names of the order, with commas. */
static const char *order(const struct modules *m)
{
    static char text[4096];
    const char *path;

    text[0] = 0;
    for (unsigned i = 0; (path = modules_path(m, i)); i++) {
        size_t len = strcspn(path, ":\n");
        while (len && memchr(path, '/', len)) {
            len--;
            path++;
        }
        sprintf(text + strlen(text), "%s%.*s", i ? "," : "", (int)len, path);
    }
    return text;
}

static void what_a_module_needs_comes_before_it_once(void **state)
{
    struct modules m;

    assert_int_equal(modules_parse(&m, dep, builtin, softdep, alias), 0);
    assert_true(modules_want(&m, "virtio-net"));
    assert_true(modules_want(&m, "virtio_blk"));
    assert_string_equal(order(&m),
                        "virtio_ring.ko,virtio.ko,failover.ko,net_failover.ko.xz,virtio_net.ko.xz,virtio_blk.ko");
    modules_free(&m);
}

static void what_is_built_in_is_there_and_not_loaded(void **state)
{
    struct modules m;

    assert_int_equal(modules_parse(&m, dep, builtin, softdep, alias), 0);
    assert_true(modules_want(&m, "ext4"));
    assert_false(modules_want(&m, "btrfs"));
    assert_string_equal(order(&m), "");
    modules_free(&m);
}

static void soft_dependencies_are_followed_by_alias(void **state)
{
    struct modules m;

    assert_int_equal(modules_parse(&m, dep, builtin, softdep, alias), 0);
    assert_true(modules_want(&m, "xfs"));
    assert_string_equal(order(&m), "crc32c_generic.ko,crc32c-intel.ko,libcrc32c.ko,xfs.ko");
    modules_free(&m);
}

static void a_root_that_cannot_be_reached_is_told(void **state)
{
    struct modules m;

    assert_int_equal(modules_parse(&m, dep, builtin, softdep, alias), 0);
    assert_true(modules_want_all(&m, "ext3"));
    modules_free(&m);
    assert_int_equal(modules_parse(&m, dep, builtin, softdep, alias), 0);
    assert_false(modules_want_all(&m, "btrfs"));
    modules_free(&m);
    assert_int_equal(modules_parse(&m, dep, NULL, NULL, NULL), 0); /* no nvme, but virtio_blk */
    assert_true(modules_want_all(&m, "xfs"));
    modules_free(&m);
}

static void circles_end(void **state)
{
    struct modules m;

    assert_int_equal(modules_parse(&m, "a.ko: b.ko\nb.ko: a.ko\n", NULL, "softdep a pre: b x\nsoftdep b pre: a\n",
                                   "alias x a\nalias x x\n"),
                     0);
    assert_true(modules_want(&m, "a"));
    assert_int_equal(m.n_order, 2);
    modules_free(&m);
}

static void lines_that_are_none_are_left_out(void **state)
{
    struct modules m;

    assert_int_equal(modules_parse(&m, "\n:\nnothing\n../../x y.ko:\nk/.ko:\nk/a b.ko: c\nk/ok.ko:::\nlast.ko",
                                   "\n\n/\n", "softdep", "alias\nalias x\n"),
                     0);
    assert_true(modules_want(&m, "ok"));
    assert_true(modules_want(&m, "last"));
    assert_false(modules_want(&m, "nothing") || modules_want(&m, "") || modules_want(&m, "a b"));
    assert_int_equal(m.n_order, 2);
    modules_free(&m);
    assert_int_equal(modules_parse(&m, "", NULL, NULL, NULL), 0);
    assert_false(modules_want_all(&m, "ext4"));
    modules_free(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_a_module_needs_comes_before_it_once),
        cmocka_unit_test(what_is_built_in_is_there_and_not_loaded),
        cmocka_unit_test(soft_dependencies_are_followed_by_alias),
        cmocka_unit_test(a_root_that_cannot_be_reached_is_told),
        cmocka_unit_test(circles_end),
        cmocka_unit_test(lines_that_are_none_are_left_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
