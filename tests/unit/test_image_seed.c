/* The seed disk for cloud-init, read back by mtools and checked by fsck.vfat where they are. */
#include "image_fixture.h"

#include "image/seed.h"

static char disk[128];

static int write_seed(const struct seed *s)
{
    snprintf(disk, sizeof disk, "%s/seed.img", top);
    int fd = open(disk, O_RDWR | O_CREAT | O_TRUNC, 0600), failed = seed_write(fd, s, err, sizeof err);
    close(fd);
    return failed;
}

/* The output of a shell command, at most 4 KiB. */
static const char *output(const char *format, ...)
{
    static char text[4096];
    char command[1024];
    va_list args;

    va_start(args, format);
    vsnprintf(command, sizeof command, format, args);
    va_end(args);
    FILE *in = popen(command, "r");
    text[fread(text, 1, sizeof text - 1, in)] = 0;
    pclose(in);
    return text;
}

static bool have(const char *program)
{
    return *output("command -v %s", program);
}

static void mtools_reads_what_was_written(void **state)
{
    static const char *const keys[] = {"ssh-ed25519 AAAA \"me\" \\ here"};
    struct seed s = {
        .instance = "iid-1", .hostname = "demo", .network_config = "version: 2\n", .keys = keys, .n_keys = 1};

    if (!have("mtype"))
        skip();
    assert_int_equal(write_seed(&s), 0);
    assert_string_equal(output("mtype -i %s ::meta-data", disk),
                        "instance-id: \"iid-1\"\nlocal-hostname: \"demo\"\npublic-keys:\n"
                        "  - \"ssh-ed25519 AAAA \\\"me\\\" \\\\ here\"\n");
    assert_string_equal(output("mtype -i %s ::network-config", disk), "version: 2\n");
    assert_string_equal(output("mtype -i %s ::user-data", disk), "#cloud-config\n{}\n");
    assert_non_null(strstr(output("mtype -i %s ::vendor-data", disk), "#cloud-config\n"));
    assert_non_null(strstr(output("mlabel -i %s -s ::", disk), "CIDATA"));
    assert_string_equal(output("mdir -b -i %s ::", disk),
                        "::/user-data\n::/meta-data\n::/vendor-data\n::/network-config\n");
}

static void the_file_system_is_clean(void **state)
{
    static char large[SEED_TEXT_MAX];
    struct seed s = {.instance = "i", .user_data = large};

    if (!have("fsck.vfat"))
        skip();
    memset(large, 'x', sizeof large - 1);
    assert_int_equal(write_seed(&s), 0);
    assert_null(strstr(output("fsck.vfat -n -v %s; echo status $?", disk), "status 1"));
    assert_non_null(strstr(output("fsck.vfat -n %s; echo status $?", disk), "status 0"));
}

static void blkid_says_what_cloud_init_looks_for(void **state)
{
    struct seed s = {.instance = "i"};

    assert_int_equal(write_seed(&s), 0);
    assert_string_equal(output("PATH=$PATH:/sbin:/usr/sbin blkid -p -s LABEL -s TYPE -o value %s", disk),
                        "CIDATA\nvfat\n");
}

static void a_text_of_ones_own_is_taken_as_it_is(void **state)
{
    struct seed s = {.instance = "i", .user_data = "#!/bin/sh\necho hello\n", .meta_data = "instance-id: mine\n"};

    if (!have("mtype"))
        skip();
    assert_int_equal(write_seed(&s), 0);
    assert_string_equal(output("mtype -i %s ::user-data", disk), s.user_data);
    assert_string_equal(output("mtype -i %s ::meta-data", disk), s.meta_data);
}

static void the_text_is_yaml(void **state)
{
    static const char *const keys[] = {"ssh-ed25519 A a: [b] #c", "ssh-rsa B \"q\""};
    struct seed s = {.instance = "iid: x", .hostname = "h", .keys = keys, .n_keys = 2};
    char *meta = seed_meta_data(&s);

    put(below("meta"), meta);
    free(meta);
    if (!*output("python3 -c 'import yaml' 2>/dev/null && echo yes"))
        skip();
    assert_string_equal(output("python3 -c \"import yaml; d = yaml.safe_load(open('%s/meta')); print(d['public-keys'], "
                               "d['instance-id'])\"",
                               top),
                        "['ssh-ed25519 A a: [b] #c', 'ssh-rsa B \"q\"'] iid: x\n");
}

static void what_cannot_be_is_refused(void **state)
{
    static const char *const keys[] = {"two\nlines"};
    static char longer[SEED_TEXT_MAX + 2];
    struct seed s = {.instance = "i", .keys = keys, .n_keys = 1};

    assert_int_equal(write_seed(&s), -EINVAL);
    s.n_keys = SEED_KEYS_MAX + 1;
    assert_int_equal(write_seed(&s), -EINVAL);
    s = (struct seed){.instance = "i", .hostname = "a b"};
    assert_int_equal(write_seed(&s), -EINVAL);
    s = (struct seed){.instance = ""};
    assert_int_equal(write_seed(&s), -EINVAL);
    memset(longer, 'x', sizeof longer - 1);
    s = (struct seed){.instance = "i", .user_data = longer};
    assert_int_equal(write_seed(&s), -EFBIG);
}

static void what_does_not_fit_is_refused(void **state)
{
    static char large[SEED_BYTES];
    struct seed_file files[20];
    int fd = open(below("fat"), O_RDWR | O_CREAT | O_TRUNC, 0600);

    files[0] = (struct seed_file){"a", large, sizeof large - 20 * 512};
    files[1] = (struct seed_file){"b", large, 4 * 512};
    assert_int_equal(fat_write(fd, "X          ", files, 1, err, sizeof err), 0);
    assert_int_equal(fat_write(fd, "X          ", files, 2, err, sizeof err), -EFBIG);
    files[0].len = sizeof large;
    assert_int_equal(fat_write(fd, "X          ", files, 1, err, sizeof err), -EFBIG);
    for (unsigned i = 0; i < 20; i++)
        files[i] = (struct seed_file){"a-name-of-thirty-nine-characters-xxxxxx", "", 0};
    assert_int_equal(fat_write(fd, "X          ", files, 20, err, sizeof err), -EINVAL);
    assert_int_equal(fat_write(fd, "X          ", files, 15, err, sizeof err), 0);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STORE_TEST(mtools_reads_what_was_written),
        STORE_TEST(the_file_system_is_clean),
        STORE_TEST(blkid_says_what_cloud_init_looks_for),
        STORE_TEST(a_text_of_ones_own_is_taken_as_it_is),
        STORE_TEST(the_text_is_yaml),
        STORE_TEST(what_cannot_be_is_refused),
        STORE_TEST(what_does_not_fit_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
