/* Trees of files, and archives read into them: nothing gets out of the tree, and nothing grows without bound. */
#include "image_fixture.h"

#include "image/source.h"
#include "tar_fixture.h"

static struct tree t;

static int tree_setup(void **state)
{
    return store_setup(state) || tree_create(&t);
}

static int tree_teardown(void **state)
{
    tree_destroy(&t);
    return store_teardown(state);
}

static int put_file(const char *path)
{
    return tree_put(&t, path, tree_inode(&t, S_IFREG | 0644, 1, 2, 3), NULL);
}

static int put_directory(const char *path)
{
    return tree_put(&t, path, tree_inode(&t, S_IFDIR | 0700, 1, 2, 3), NULL);
}

static int put_symlink(const char *path, const char *target)
{
    struct tree_inode *inode = tree_inode(&t, S_IFLNK | 0777, 0, 0, 0);

    return tree_set_target(&t, inode, target) ? -EINVAL : tree_put(&t, path, inode, NULL);
}

static bool has(const char *path)
{
    return tree_find(&t, path, false) != NULL;
}

static void what_is_put_is_found(void **state)
{
    assert_int_equal(put_file("a/b/c"), 0);
    assert_true(has("a/b/c") && has("/a//b/./c") && has("a/b/../b/c"));
    assert_false(has("a/b/d") || has("a/b/c/d"));
    assert_int_equal(tree_find(&t, "a/b", false)->inode->mode, S_IFDIR | 0755);
}

static void nothing_is_above_the_root(void **state)
{
    assert_int_equal(put_file("../../../etc/passwd"), 0);
    assert_true(has("etc/passwd") && has("../../etc/passwd"));
    assert_int_equal(t.n_nodes, 3);
    assert_int_equal(put_file(".."), -EINVAL);
    assert_int_equal(put_file("a/.."), -EINVAL);
    assert_int_equal(put_file("/"), -EINVAL);
    assert_int_equal(put_file("."), -EINVAL);
}

static void symbolic_links_lead_inside(void **state)
{
    assert_int_equal(put_symlink("out", "/../../tmp"), 0);
    assert_int_equal(put_file("out/file"), 0);
    assert_true(has("tmp/file"));
    assert_int_equal(put_symlink("usr/lib64", "lib"), 0);
    assert_int_equal(put_file("usr/lib64/x"), 0);
    assert_true(has("usr/lib/x"));
    assert_ptr_equal(tree_find(&t, "usr/lib64", true), tree_find(&t, "usr/lib", false));
}

static void links_in_a_circle_end(void **state)
{
    assert_int_equal(put_symlink("a", "b"), 0);
    assert_int_equal(put_symlink("b", "a"), 0);
    assert_int_equal(put_file("a/file"), -ELOOP);
    assert_null(tree_find(&t, "a/x", true));
    assert_int_equal(put_symlink("self", "self/self"), 0);
    assert_int_equal(put_file("self/x"), -ELOOP);
}

static void a_file_is_no_directory(void **state)
{
    assert_int_equal(put_file("a"), 0);
    assert_int_equal(put_file("a/b"), -ENOTDIR);
    assert_int_equal(put_directory("a"), 0);
    assert_int_equal(put_file("a/b"), 0);
}

static void a_directory_over_a_directory_keeps_what_is_in_it(void **state)
{
    put_file("d/x");
    assert_int_equal(put_directory("d"), 0);
    assert_true(has("d/x"));
    assert_int_equal(tree_find(&t, "d", false)->inode->mode, S_IFDIR | 0700);
    assert_int_equal(put_file("d"), 0);
    assert_false(has("d/x"));
}

static void links_are_counted(void **state)
{
    struct tree_inode *inode = tree_inode(&t, S_IFREG | 0644, 0, 0, 0);

    tree_put(&t, "a", inode, NULL);
    tree_put(&t, "b", inode, NULL);
    tree_put(&t, "b", inode, NULL); /* over itself */
    assert_int_equal(inode->links, 2);
    tree_drop(&t, tree_find(&t, "a", false));
    assert_int_equal(inode->links, 1);
    put_file("b");
    assert_int_equal(inode->links, 0);
}

static void names_have_a_length(void **state)
{
    char name[300], deep[4200] = "";

    memset(name, 'n', sizeof name);
    name[256] = 0;
    assert_int_equal(put_file(name), -EINVAL);
    name[255] = 0;
    assert_int_equal(put_file(name), 0);
    for (unsigned i = 0; i < 2090; i++)
        strcat(deep, "d/");
    assert_int_equal(put_file(deep), -EINVAL); /* too long */
    deep[2400] = 0;
    assert_int_equal(put_file(deep), -EINVAL); /* too deep */
}

static void what_a_layer_hides_is_gone_and_its_own_stays(void **state)
{
    put_file("d/old");
    put_file("d/sub/old");
    t.layer = 1;
    put_file("d/new");
    tree_hide_children(&t, tree_find(&t, "d", false));
    assert_true(has("d/new"));
    assert_false(has("d/old") || has("d/sub"));
    t.layer = 2;
    put_file("d/newest");
    tree_hide(&t, tree_find(&t, "d", false));
    assert_true(has("d/newest"));
    assert_false(has("d/new"));
    t.layer = 3;
    tree_hide(&t, tree_find(&t, "d", false));
    assert_false(has("d"));
}

static int count(struct tree_node *node, void *context)
{
    ++*(unsigned *)context;
    return 0;
}

static void a_walk_sees_all_once(void **state)
{
    unsigned n = 0;

    for (unsigned i = 0; i < 3000; i++) {
        char path[32];
        snprintf(path, sizeof path, "d%u/f%u", i % 50, i);
        assert_int_equal(put_file(path), 0);
    }
    tree_walk(t.root, count, &n);
    assert_int_equal(n, 1 + 50 + 3000);
    assert_int_equal(n, t.n_nodes);
    for (unsigned i = 0; i < 3000; i++) {
        char path[32];
        snprintf(path, sizeof path, "d%u/f%u", i % 50, i);
        assert_true(has(path));
    }
}

/* ---- archives ---- */

static struct source s;

static FILE *archive(const char *name)
{
    return fopen(below("%s", name), "w+");
}

static int scan(FILE *out, bool whiteouts)
{
    tar_finish(out);
    s = (struct source){.fd = fileno(out), .name = "x", .whiteouts = whiteouts};
    return source_scan(&s, &t, err, sizeof err);
}

static void done(FILE *out)
{
    source_free(&s);
    fclose(out);
}

static void an_archive_has_owners_modes_links_and_devices(void **state)
{
    FILE *out = archive("tar");

    TAR(out, TAR_DIRECTORY, "./etc/", .mode = 0711, .uid = 7, .gid = 8);
    TAR(out, TAR_FILE, "./etc/shadow", .data = "x", .mode = 04640, .gid = 42);
    TAR(out, TAR_HARDLINK, "etc/again", "./etc/shadow");
    TAR(out, TAR_SYMLINK, "bin", "usr/bin");
    TAR(out, TAR_CHAR, "dev/null", .mode = 0666, .major = 1, .minor = 3);
    assert_int_equal(scan(out, false), 0);
    assert_int_equal(tree_find(&t, "etc", false)->inode->uid, 7);
    struct tree_inode *shadow = tree_find(&t, "etc/shadow", false)->inode;
    assert_int_equal(shadow->mode, S_IFREG | 04640);
    assert_int_equal(shadow->gid, 42);
    assert_int_equal(shadow->mtime, 1700000000);
    assert_int_equal(shadow->links, 2);
    assert_ptr_equal(tree_find(&t, "etc/again", false)->inode, shadow);
    assert_string_equal(tree_find(&t, "bin", false)->inode->target, "usr/bin");
    assert_int_equal(tree_find(&t, "dev/null", false)->inode->minor, 3);
    done(out);
}

static void an_archive_cannot_leave_the_tree(void **state)
{
    FILE *out = archive("tar");

    TAR(out, TAR_FILE, "../../../../tmp/guise-escaped", .data = "x");
    TAR(out, TAR_SYMLINK, "link", "/");
    TAR(out, TAR_FILE, "link/../../guise-escaped", .data = "x");
    TAR(out, TAR_FILE, "/absolute", .data = "x");
    assert_int_equal(scan(out, false), 0);
    assert_true(has("tmp/guise-escaped") && has("guise-escaped") && has("absolute"));
    assert_false(exists("/tmp/guise-escaped") || exists("/guise-escaped"));
    done(out);
}

static void a_link_to_nothing_is_refused(void **state)
{
    static const char *const targets[] = {"none", "/etc/passwd", "directory", "../../../etc/passwd"};

    for (unsigned i = 0; i < 4; i++) {
        FILE *out = archive("tar");
        TAR(out, TAR_DIRECTORY, "directory/");
        TAR(out, TAR_HARDLINK, "x", targets[i]);
        assert_int_equal(scan(out, false), -EBADMSG);
        assert_non_null(strstr(err, "link"));
        done(out);
    }
}

static void a_file_in_the_way_is_refused(void **state)
{
    FILE *out = archive("tar");

    TAR(out, TAR_FILE, "a", .data = "x");
    TAR(out, TAR_FILE, "a/b", .data = "x");
    assert_int_equal(scan(out, false), -EBADMSG);
    assert_non_null(strstr(err, "a/b"));
    done(out);
}

static void an_archive_that_is_cut_short_is_refused(void **state)
{
    FILE *out = archive("tar");

    TAR(out, TAR_FILE, "a", .data = "x", .size = 100000);
    assert_int_equal(scan(out, false), -EBADMSG);
    done(out);
    out = archive("none");
    fputs("this is no archive, however long it is\n", out);
    assert_int_equal(scan(out, false), -EBADMSG);
    done(out);
}

static void whiteouts_remove_what_lower_layers_have(void **state)
{
    FILE *lower = archive("lower"), *upper = archive("upper");

    TAR(lower, TAR_FILE, "etc/a", .data = "1");
    TAR(lower, TAR_FILE, "etc/b", .data = "1");
    TAR(lower, TAR_FILE, "opt/x/y", .data = "1");
    assert_int_equal(scan(lower, true), 0);
    done(lower);
    t.layer = 1;
    TAR(upper, TAR_FILE, "etc/.wh.a");
    TAR(upper, TAR_FILE, "etc/.wh.none");
    TAR(upper, TAR_FILE, "etc/.wh...");
    TAR(upper, TAR_FILE, "nowhere/.wh.x");
    TAR(upper, TAR_FILE, "opt/.wh..wh..opq");
    TAR(upper, TAR_FILE, "opt/z", .data = "2");
    assert_int_equal(scan(upper, true), 0);
    assert_true(has("etc/b") && has("opt/z"));
    assert_false(has("etc/a") || has("opt/x") || has("etc/.wh.a") || has("nowhere"));
    done(upper);
}

/* A sink that keeps all it gets, with the inode's size before it. */
static char got[4096];

static int sink_begin(void *context, struct tree_inode *inode)
{
    sprintf(got + strlen(got), "[%d:", (int)inode->size);
    return 0;
}

static int sink_data(void *context, const void *data, size_t len, uint64_t offset)
{
    sprintf(got + strlen(got), "%.*s@%d", (int)len, (const char *)data, (int)offset);
    return 0;
}

static int sink_end(void *context)
{
    strcat(got, "]");
    return 0;
}

static const struct sink sink = {sink_begin, sink_data, sink_end, NULL};

static void contents_are_those_of_the_last_of_a_name(void **state)
{
    FILE *out = archive("tar");

    TAR(out, TAR_FILE, "a", .data = "first");
    TAR(out, TAR_FILE, "b", .data = "b");
    TAR(out, TAR_FILE, "a", .data = "second");
    TAR(out, TAR_FILE, "empty");
    assert_int_equal(scan(out, false), 0);
    got[0] = 0;
    assert_int_equal(source_fill(&s, &sink, err, sizeof err), 0);
    assert_string_equal(got, "[1:b@0][6:second@0]");
    done(out);
}

static void a_directory_of_the_host_is_read(void **state)
{
    char path[128], file[160];

    snprintf(path, sizeof path, "%s/tree", top);
    snprintf(file, sizeof file, "%s/sub/file", path);
    mkdir(path, 0700);
    mkdir(below("tree/sub"), 0711);
    put(file, "content");
    assert_int_equal(link(file, below("tree/again")), 0);
    assert_int_equal(symlink("/etc/passwd", below("tree/link")), 0);
    s = (struct source){.fd = open(path, O_RDONLY), .directory = true, .name = path};
    assert_int_equal(source_scan(&s, &t, err, sizeof err), 0);
    assert_int_equal(t.root->inode->mode, S_IFDIR | 0755);
    assert_int_equal(tree_find(&t, "sub", false)->inode->mode, S_IFDIR | 0711);
    assert_int_equal(tree_find(&t, "sub/file", false)->inode->links, 2);
    assert_string_equal(tree_find(&t, "link", false)->inode->target, "/etc/passwd");
    assert_int_equal(tree_find(&t, "sub/file", false)->inode->uid, 0);
    got[0] = 0;
    assert_int_equal(source_fill(&s, &sink, err, sizeof err), 0);
    assert_string_equal(got, "[7:content@0]");
    close(s.fd);
    source_free(&s);
}

static void a_compressed_file_has_a_greatest_size(void **state)
{
    char path[128], command[300], *packed, *data;
    size_t packed_len, len;

    snprintf(path, sizeof path, "%s/packed", top);
    for (unsigned i = 0; i < 3; i++) {
        static const char *const tools[] = {"gzip", "xz", "zstd -q"};
        snprintf(command, sizeof command, "head -c 1000000 /dev/zero | %s -c > %s", tools[i], path);
        assert_int_equal(system(command), 0);
        assert_int_equal(file_read(path, 1 << 20, &packed, &packed_len, err, sizeof err), 0);
        assert_int_equal(archive_unpack(packed, packed_len, 999999, &data, &len), -EFBIG);
        assert_int_equal(archive_unpack(packed, packed_len, 1000000, &data, &len), 0);
        assert_int_equal(len, 1000000);
        free(data);
        assert_int_equal(archive_unpack(packed, packed_len / 2, 1000000, &data, &len), -EBADMSG);
        free(packed);
    }
    assert_int_equal(archive_unpack("plain", 5, 100, &data, &len), 0);
    assert_memory_equal(data, "plain", 5);
    free(data);
}

#define T(name) cmocka_unit_test_setup_teardown(name, tree_setup, tree_teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(what_is_put_is_found),
        T(nothing_is_above_the_root),
        T(symbolic_links_lead_inside),
        T(links_in_a_circle_end),
        T(a_file_is_no_directory),
        T(a_directory_over_a_directory_keeps_what_is_in_it),
        T(links_are_counted),
        T(names_have_a_length),
        T(what_a_layer_hides_is_gone_and_its_own_stays),
        T(a_walk_sees_all_once),
        T(an_archive_has_owners_modes_links_and_devices),
        T(an_archive_cannot_leave_the_tree),
        T(a_link_to_nothing_is_refused),
        T(a_file_in_the_way_is_refused),
        T(an_archive_that_is_cut_short_is_refused),
        T(whiteouts_remove_what_lower_layers_have),
        T(contents_are_those_of_the_last_of_a_name),
        T(a_directory_of_the_host_is_read),
        T(a_compressed_file_has_a_greatest_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
