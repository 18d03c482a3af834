/* metadata.json and digests: what is written is read, and nothing that makes no sense is taken. */
#include "image_fixture.h"

static struct image_info sample(void)
{
    return (struct image_info){
        .name = "debian",
        .created = "2026-01-01T00:00:00Z",
        .source = "Debian bookworm",
        .architecture = "amd64",
        .command_line = "console=ttyS0 root=/dev/nvme0n1p2",
        .kernel_version = "6.1.0-50-cloud-amd64",
        .os_id = "debian",
        .root_partition = 2,
        .root_type = "ext4",
        .init = "/sbin/init",
        .has_sshd = true,
        .disk_bytes = 4ull << 30,
    };
}

static void what_is_written_is_read(void **state)
{
    struct image_info in = sample(), out;
    char *text = metadata_format(&in, NULL);

    assert_int_equal(metadata_parse(text, strlen(text), &out, err, sizeof err), 0);
    assert_memory_equal(&in, &out, sizeof in);
    free(text);
}

static void the_process_of_a_container_is_kept(void **state)
{
    struct image_info in = sample();
    struct image_process p;
    json_t *process = json_loads("{\"argv\": [\"nginx\", \"-g\"], \"env\": [\"A=1\"], \"directory\": \"/srv\"}", 0,
                                 NULL);
    char *text = metadata_format(&in, process);

    assert_int_equal(metadata_process(text, strlen(text), &p, err, sizeof err), 0);
    assert_string_equal(p.argv[1], "-g");
    assert_null(p.argv[2]);
    assert_string_equal(p.env[0], "A=1");
    assert_string_equal(p.directory, "/srv");
    assert_null(p.user);
    image_process_free(&p);
    json_decref(process);
    free(text);
}

/* The sample with one member set to a JSON value: is it taken? */
static int with(const char *object, const char *key, const char *value)
{
    struct image_info in = sample(), out;
    char *text = metadata_format(&in, NULL);
    json_t *whole = json_loads(text, 0, NULL);
    free(text);
    json_object_set_new(object ? json_object_get(whole, object) : whole, key, json_loads(value, JSON_DECODE_ANY, NULL));
    text = json_dumps(whole, 0);
    int failed = metadata_parse(text, strlen(text), &out, err, sizeof err);
    json_decref(whole);
    free(text);
    return failed;
}

static void what_makes_no_sense_is_refused(void **state)
{
    char longer[4200];

    assert_int_equal(with(NULL, "schema_version", "1"), 0);
    assert_int_equal(with(NULL, "schema_version", "2"), -EBADMSG);
    assert_non_null(strstr(err, "newer guise"));
    assert_int_equal(with(NULL, "schema_version", "\"1\""), -EBADMSG);
    assert_int_equal(with(NULL, "disk_bytes", "-1"), -EBADMSG);
    assert_int_equal(with(NULL, "disk_bytes", "1e3"), -EBADMSG);
    assert_int_equal(with(NULL, "name", "\"../x\""), -EBADMSG);
    assert_int_equal(with(NULL, "source", "\"a\\u001b[2Jb\""), -EBADMSG);
    assert_int_equal(with(NULL, "source", "\"a\\u009b2Jb\""), -EBADMSG);
    assert_int_equal(with(NULL, "source", "\"a\\u00a0b\""), 0);
    assert_int_equal(with(NULL, "architecture", "[]"), -EBADMSG);
    assert_int_equal(with("boot", "root_partition", "129"), -EBADMSG);
    assert_int_equal(with("boot", "root_partition", "\"1\""), -EBADMSG);
    assert_int_equal(with("boot", "init", "\"sbin/init\""), -EBADMSG);
    assert_int_equal(with("boot", "needs_initrd", "1"), -EBADMSG);
    assert_int_equal(with("boot", "command_line", "\"a\\nb\""), -EBADMSG);
    snprintf(longer, sizeof longer, "\"%04000d\"", 0);
    assert_int_equal(with("boot", "command_line", longer), -EBADMSG);
    assert_int_equal(with("boot", "root_type", "\"ext4 init=/x\""), -EBADMSG);
}

static void what_is_no_document_is_refused(void **state)
{
    static const char *const texts[] = {"", "[]", "{", "null", "{\"a\": 1, \"a\": 2}", "\xff\xfe"};
    struct image_info out;

    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        assert_int_equal(metadata_parse(texts[i], strlen(texts[i]), &out, err, sizeof err), -EBADMSG);
    char deep[8000];
    memset(deep, '[', sizeof deep);
    assert_int_equal(metadata_parse(deep, sizeof deep, &out, err, sizeof err), -EBADMSG);
}

static int open_disk(const char *name)
{
    return open(below("%s", name), O_RDWR | O_CREAT | O_TRUNC, 0600);
}

static void the_digest_of_a_disk_is_the_same_sparse_or_not(void **state)
{
    char sparse[65], full[65], other[65];
    static char zeros[300000];
    int fd = open_disk("sparse");

    assert_int_equal(ftruncate(fd, sizeof zeros), 0);
    assert_int_equal(pwrite(fd, "data", 4, 200000), 4);
    assert_int_equal(digest_disk(fd, sparse), 0);
    close(fd);
    fd = open_disk("full");
    assert_int_equal(write(fd, zeros, sizeof zeros), sizeof zeros);
    assert_int_equal(pwrite(fd, "data", 4, 200000), 4);
    assert_int_equal(digest_disk(fd, full), 0);
    assert_string_equal(sparse, full);
    /* The same bytes at another place are another disk. */
    assert_int_equal(pwrite(fd, "\0\0\0\0", 4, 200000), 4);
    assert_int_equal(pwrite(fd, "data", 4, 200000 - 65536), 4);
    assert_int_equal(digest_disk(fd, other), 0);
    assert_string_not_equal(sparse, other);
    close(fd);
}

static void the_digest_of_a_file_is_sha256(void **state)
{
    char hex[65];
    int fd = open_disk("abc");

    assert_int_equal(write(fd, "abc", 3), 3);
    assert_int_equal(digest_file(fd, hex), 0);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STORE_TEST(what_is_written_is_read),
        STORE_TEST(the_process_of_a_container_is_kept),
        STORE_TEST(what_makes_no_sense_is_refused),
        STORE_TEST(what_is_no_document_is_refused),
        STORE_TEST(the_digest_of_a_disk_is_the_same_sparse_or_not),
        STORE_TEST(the_digest_of_a_file_is_sha256),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
