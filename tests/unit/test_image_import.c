/* Images made of directories, archives, disks and containers' images, by the whole way: what comes out can be read. */
#include "image_fixture.h"

#include <signal.h>
#include <sys/wait.h>

#include "base/openssl_library.h"
#include "image/extfs.h"
#include "image/import.h"
#include "image/inspect.h"
#include "image/make.h"
#include "image/rootfs.h"
#include "tar_fixture.h"

#define RELEASE "6.1.0-test"

/* The header of a kernel, which is all that anybody looks at. */
static void write_kernel(const char *path)
{
    static unsigned char image[8192];

    memcpy(image + 0x1fe, "\x55\xaa", 2);
    memcpy(image + 0x202, "HdrS", 4);
    image[0x236] = 1;
    image[0x20f] = 0x10;
    memcpy(image + 0x1200, RELEASE " (x)", sizeof RELEASE + 3);
    assert_int_equal(file_write(path, image, sizeof image, 0644, err, sizeof err), 0);
}

/* A root file system with a kernel, as a directory below top. */
static const char *make_root(const char *name)
{
    static char path[256];
    char kernel[400];

    snprintf(path, sizeof path, "%s/%s", top, name);
    shell("set -e; mkdir -p %s; cd %s; mkdir -p boot etc sbin usr/sbin lib/modules/" RELEASE "/kernel; "
          "printf 'ID=test\\nVERSION_ID=1\\nPRETTY_NAME=\"A test\"\\n' > etc/os-release; "
          "echo init > sbin/init; chmod 755 sbin/init; : > usr/sbin/sshd; "
          "echo 'kernel/virtio.ko:' > lib/modules/" RELEASE "/modules.dep; echo module > lib/modules/" RELEASE
          "/kernel/virtio.ko; printf 'kernel/nvme.ko\\nkernel/ext4.ko\\n' > lib/modules/" RELEASE "/modules.builtin; "
          "echo old > boot/vmlinuz-5.0; ln -s sbin/init link; ln sbin/init again; head -c 200000 /dev/urandom > large; "
          "truncate -s 5M sparse; echo end >> sparse",
          path, path);
    snprintf(kernel, sizeof kernel, "%s/boot/vmlinuz-" RELEASE, path);
    write_kernel(kernel);
    return path;
}

static int import(const char *source, const char *name, struct image_info *out)
{
    const struct image_import in = {.source = source, .name = name, .bytes = 0};

    return image_import(&in, NULL, out, err, sizeof err);
}

static void assert_imports(const char *source, const char *name, struct image_info *out)
{
    if (import(source, name, out))
        fail_msg("%s", err);
}

static bool same(struct extfs *f, const char *inside, const char *outside)
{
    char *one, *other;
    size_t n, m;
    assert_int_equal(extfs_read(f, inside, 16 << 20, &one, &n), 0);
    assert_int_equal(file_read(outside, 16 << 20, &other, &m, err, sizeof err), 0);
    bool equal = n == m && memcmp(one, other, n) == 0;
    free(one);
    free(other);
    return equal;
}

static bool nothing_is_left(void)
{
    char command[200];
    snprintf(command, sizeof command, "! ls %s/images | grep -q tmp-", top);
    return system(command) == 0;
}

static void a_directory_becomes_an_image(void **state)
{
    struct image_info info;
    const char *root = make_root("root");
    char path[300];

    assert_imports(root, "x", &info);
    assert_string_equal(info.name, "x");
    assert_string_equal(info.os_name, "A test");
    assert_string_equal(info.kernel_version, RELEASE);
    assert_string_equal(info.root_type, "ext4");
    assert_string_equal(info.init, "/sbin/init");
    assert_string_equal(info.architecture, "amd64");
    assert_int_equal(info.root_partition, 0);
    assert_true(info.has_sshd && !info.has_cloud_init && !info.needs_initrd);
    assert_non_null(strstr(info.command_line, "root=/dev/nvme0n1 rootfstype=ext4"));
    assert_int_equal(image_verify(&info, err, sizeof err), 0);
    assert_true(nothing_is_left());

    struct extfs *f = extfs_open(info.disk, 0, err, sizeof err);
    assert_non_null(f);
    snprintf(path, sizeof path, "%s/large", root);
    assert_true(same(f, "/large", path));
    snprintf(path, sizeof path, "%s/sparse", root);
    assert_true(same(f, "/sparse", path));
    snprintf(path, sizeof path, "%s/sbin/init", root);
    assert_true(same(f, "/link", path) && same(f, "/again", path));
    assert_true(extfs_is_directory(f, "/lost+found"));
    extfs_close(f);
    assert_true(info.used_bytes < 16 << 20); /* holes stay holes */
}

static void an_archive_becomes_an_image_with_its_owners(void **state)
{
    struct image_info info;
    const char *root = make_root("root");
    char command[2048], tar[128], out[4096] = "";

    snprintf(tar, sizeof tar, "%s/root.tar.zst", top);
    shell("cd %s && chmod 4711 sbin/init && tar --zstd -c --owner=1234:1234 --group=70000:70000 -f %s .", root, tar);
    assert_imports(tar, NULL, &info);
    snprintf(command, sizeof command, "PATH=$PATH:/sbin:/usr/sbin debugfs -R 'stat /sbin/init' %s 2>/dev/null",
             info.disk);
    FILE *in = popen(command, "r");
    out[fread(out, 1, sizeof out - 1, in)] = 0;
    pclose(in);
    assert_non_null(strstr(out, "User:  1234   Group: 70000"));
    assert_non_null(strstr(out, "Mode:  04711"));
    assert_non_null(strstr(out, "Links: 2"));
}

static void a_disk_becomes_an_image_and_is_not_changed(void **state)
{
    struct image_info info, found;
    char path[128], before[65], after[65];

    assert_imports(make_root("root"), "x", &info);
    snprintf(path, sizeof path, "%s/disk.img", top);
    shell("cp --sparse=always %s %s && chmod 644 %s", info.disk, path, path);
    int fd = open(path, O_RDONLY);
    assert_int_equal(digest_disk(fd, before), 0);
    assert_int_equal(image_ensure(path, NULL, &info, err, sizeof err), 0);
    assert_int_equal(digest_disk(fd, after), 0);
    assert_string_equal(before, after);
    /* The second time it is there. */
    assert_int_equal(image_ensure(path, NULL, &found, err, sizeof err), 0);
    assert_string_equal(found.digest, info.digest);
    assert_string_equal(found.created, info.created);
    close(fd);
}

static void a_disk_without_a_kernel_says_what_to_do(void **state)
{
    struct image_info info;
    const char *root = make_root("root");
    char path[300], kernel[300];

    /* On another kind of file system than the images, where there is one. */
    snprintf(kernel, sizeof kernel, "%s/guise-kernel.%d", access("/dev/shm", W_OK) ? top : "/dev/shm", getpid());
    write_kernel(kernel);
    snprintf(path, sizeof path, "%s/disk.img", top);
    shell("rm %s/boot/*; PATH=$PATH:/sbin:/usr/sbin mke2fs -q -t ext4 -d %s %s 32M && chmod 600 %s", root, root, path,
          path);
    assert_int_equal(import(path, NULL, &info), -ENOPKG);
    assert_non_null(strstr(err, "--kernel"));
    assert_true(nothing_is_left());
    const struct image_import in = {.source = path, .kernel = kernel, .append = "quiet=no", .name = "k"};
    int r = image_import(&in, NULL, &info, err, sizeof err);
    unlink(kernel);
    assert_int_equal(r, 0);
    assert_string_equal(info.kernel_version, RELEASE);
    assert_non_null(strstr(info.command_line, " quiet=no"));
}

static void a_root_of_another_file_system_says_what_to_do(void **state)
{
    struct image_info info;
    char path[128];

    snprintf(path, sizeof path, "%s/disk.img", top);
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    assert_int_equal(ftruncate(fd, 1 << 20), 0);
    assert_int_equal(pwrite(fd, "XFSB", 4, 0), 4);
    close(fd);
    assert_int_equal(import(path, NULL, &info), -ENOPKG);
    assert_non_null(strstr(err, "cannot look into its file system"));
    assert_non_null(strstr(err, "--kernel FILE"));
}

static void an_export_comes_back_as_the_same_image(void **state)
{
    struct image_info info, again;
    char path[128];
    bool deleted;

    assert_imports(make_root("root"), "x", &info);
    snprintf(path, sizeof path, "%s/x.tar.zst", top);
    assert_int_equal(image_export("x", path, NULL, err, sizeof err), 0);
    assert_int_equal(image_export("x", path, NULL, err, sizeof err), -EEXIST);
    assert_int_equal(image_remove("x", &deleted, err, sizeof err), 0);
    assert_imports(path, "y", &again);
    assert_string_equal(again.digest, info.digest);
    assert_int_equal(image_verify(&again, err, sizeof err), 0);
    /* One that is not whole is refused. */
    shell("cd %s && mkdir u && cd u && tar xf %s && rm kernel && tar -S -cf ../cut.tar metadata.json modules.cpio "
          "disk.raw",
          top, path);
    snprintf(path, sizeof path, "%s/cut.tar", top);
    assert_int_equal(import(path, NULL, &info), -EBADMSG);
    assert_true(nothing_is_left());
}

static void an_archive_of_parts_that_lie_is_refused(void **state)
{
    struct image_info info;
    char path[128];

    snprintf(path, sizeof path, "%s/lie.tar", top);
    FILE *out = fopen(path, "w");
    TAR(out, TAR_FILE, "metadata.json", .data = "{\"schema_version\": 1, \"disk_bytes\": 5}");
    TAR(out, TAR_FILE, "kernel", .data = "x");
    TAR(out, TAR_FILE, "modules.cpio", .data = "x");
    TAR(out, TAR_FILE, "disk.raw", .data = "x");
    TAR(out, TAR_FILE, "../../escaped", .data = "x");
    tar_finish(out);
    fclose(out);
    assert_int_equal(import(path, NULL, &info), -EBADMSG);
    assert_false(exists(below("escaped")) || exists(below("images/escaped")));
    assert_true(nothing_is_left());
}

static void a_name_that_is_taken_is_not_taken_away_unasked(void **state)
{
    struct image_info info;
    const char *root = make_root("root");

    assert_imports(root, "x", &info);
    assert_int_equal(import(root, "x", &info), -EEXIST);
    const struct image_import in = {.source = root, .name = "x", .replace = true};
    assert_int_equal(image_import(&in, NULL, &info, err, sizeof err), 0);
}

static void a_checksum_is_compared(void **state)
{
    struct image_info info;
    char path[128], hex[65];

    snprintf(path, sizeof path, "%s/file", top);
    put(path, "abc");
    memset(hex, '0', 64);
    hex[64] = 0;
    const struct image_import in = {.source = path, .sha256 = hex};
    assert_int_equal(image_import(&in, NULL, &info, err, sizeof err), -EBADMSG);
    assert_non_null(strstr(err, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"));
}

static void what_does_not_fit_is_told(void **state)
{
    struct image_info info;
    const char *root = make_root("root");

    shell("head -c 70M /dev/zero | tr '\\0' x > %s/more", root);
    const struct image_import in = {.source = root, .bytes = 64 << 20};
    int failed = image_import(&in, NULL, &info, err, sizeof err);
    if (failed != -ENOSPC)
        fail_msg("%d %s", failed, err);
    assert_non_null(strstr(err, "--size"));
    assert_true(nothing_is_left());
}

/* ---- containers' images ---- */

/* Adds a blob to the layout: its digest and size as a descriptor into out[200]. */
static void add_blob(const char *layout, const char *data, size_t len, char out[200])
{
    unsigned char sum[32];
    char hex[65], path[400];

    assert_int_equal(openssl_load(err, sizeof err), 0);
    openssl.EVP_Digest(data, len, sum, NULL, openssl.EVP_sha256(), NULL);
    for (unsigned i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", sum[i]);
    snprintf(path, sizeof path, "%s/blobs/sha256/%s", layout, hex);
    assert_int_equal(file_write(path, data, len, 0600, err, sizeof err), 0);
    snprintf(out, 200, "{\"mediaType\": \"x\", \"digest\": \"sha256:%s\", \"size\": %zu}", hex, len);
}

static void add_layer(const char *layout, FILE *tar, char out[200])
{
    char *data = malloc(1 << 20);

    tar_finish(tar);
    rewind(tar);
    size_t len = fread(data, 1, 1 << 20, tar);
    add_blob(layout, data, len, out);
    free(data);
    fclose(tar);
}

/* A layout with two layers and a configuration; the path below top. */
static const char *make_layout(void)
{
    static char layout[200];
    char index[300], lower[200], upper[200], config[200], manifest[200], text[1200];
    static const char config_text[] =
        "{\"config\": {\"Entrypoint\": [\"/bin/app\"], \"Cmd\": [\"-x\"], \"Env\": [\"A=b\", 7],"
        "\"WorkingDir\": \"/srv\", \"User\": \"www\"}}";
    FILE *one = tmpfile(), *two = tmpfile();

    snprintf(layout, sizeof layout, "%s/layout", top);
    shell("mkdir -p %s/blobs/sha256; echo '{}' > %s/oci-layout", layout, layout);
    TAR(one, TAR_FILE, "bin/app", .data = "old", .mode = 0755);
    TAR(one, TAR_FILE, "etc/os-release", .data = "ID=container\n");
    TAR(one, TAR_FILE, "etc/gone", .data = "x");
    add_layer(layout, one, lower);
    TAR(two, TAR_FILE, "bin/app", .data = "newer", .mode = 0755);
    TAR(two, TAR_FILE, "etc/.wh.gone");
    add_layer(layout, two, upper);
    add_blob(layout, config_text, strlen(config_text), config);
    snprintf(text, sizeof text, "{\"config\": %s, \"layers\": [%s, %s]}", config, lower, upper);
    add_blob(layout, text, strlen(text), manifest);
    snprintf(text, sizeof text,
             "{\"manifests\": [{\"digest\": \"sha256:%064d\", \"platform\": {\"os\": \"linux\", \"architecture\": "
             "\"arm64\"}}, %s]}",
             0, manifest);
    snprintf(index, sizeof index, "%s/index.json", layout);
    put(index, text);
    return layout;
}

/* The image whose kernel is taken by those that have none. */
static void make_default(void)
{
    struct image_info info;

    assert_imports(make_root("default"), "debian", &info);
}

static void check_container(const struct image_info *info)
{
    struct image_process p;
    char *text;

    assert_string_equal(info->os_id, "container");
    assert_string_equal(info->kernel_version, RELEASE);
    struct extfs *f = extfs_open(info->disk, 0, err, sizeof err);
    assert_int_equal(extfs_read(f, "/bin/app", 100, &text, NULL), 0);
    assert_string_equal(text, "newer");
    free(text);
    assert_false(extfs_has(f, "/etc/gone") || extfs_has(f, "/etc/.wh.gone"));
    extfs_close(f);
    assert_int_equal(image_process(info, &p, err, sizeof err), 0);
    assert_string_equal(p.argv[0], "/bin/app");
    assert_string_equal(p.argv[1], "-x");
    assert_string_equal(p.env[0], "A=b");
    assert_null(p.env[1]);
    assert_string_equal(p.directory, "/srv");
    assert_string_equal(p.user, "www");
    image_process_free(&p);
}

static void a_container_becomes_an_image(void **state)
{
    struct image_info info;
    char tar[128];

    make_default();
    assert_imports(make_layout(), "c", &info);
    check_container(&info);
    snprintf(tar, sizeof tar, "%s/c.tar", top);
    shell("tar -C %s -cf %s .", make_layout(), tar);
    assert_imports(tar, "d", &info);
    check_container(&info);
    assert_true(nothing_is_left());
}

static void a_blob_with_another_content_is_refused(void **state)
{
    struct image_info info;

    make_default();
    shell("for f in %s/blobs/sha256/*; do echo x >> $f; done", make_layout());
    assert_int_equal(import(below("layout"), "c", &info), -EBADMSG);
    assert_non_null(strstr(err, "damaged"));
}

static void documents_that_make_no_sense_are_refused(void **state)
{
    static const char *const indexes[] = {
        "",
        "[]",
        "{\"manifests\": {}}",
        "{\"manifests\": []}",
        "{\"manifests\": [{\"digest\": \"sha256:../../../../etc/passwd\"}]}",
        "{\"manifests\": [{\"digest\": 7}]}",
        "{\"manifests\": [{}]}",
        "{\"config\": {}, \"layers\": []}",
        "{\"config\": \"x\", \"layers\": 7}",
    };
    struct oci *o = malloc(sizeof *o);
    char path[300];

    snprintf(path, sizeof path, "%s/index.json", make_layout());
    for (size_t i = 0; i < sizeof indexes / sizeof indexes[0]; i++) {
        put(path, indexes[i]);
        assert_int_equal(oci_open(o, below("layout"), err, sizeof err), -EBADMSG);
    }
    unlink(path);
    assert_int_equal(symlink("/etc/passwd", path), 0);
    assert_true(oci_open(o, below("layout"), err, sizeof err) < 0);
    free(o);
}

static void a_layout_in_an_archive_brings_nothing_else(void **state)
{
    char tar[128], directory[128];

    snprintf(tar, sizeof tar, "%s/c.tar", top);
    snprintf(directory, sizeof directory, "%s/out/oci", top);
    FILE *out = fopen(tar, "w");
    TAR(out, TAR_FILE, "../evil", .data = "x");
    TAR(out, TAR_SYMLINK, "index.json", "/etc/passwd");
    TAR(out, TAR_SYMLINK, "blobs/sha256", "/tmp");
    TAR(out, TAR_FILE, "blobs/sha256/../../../evil", .data = "x");
    TAR(out, TAR_FILE, "blobs/sha256/0123", .data = "x");
    TAR(out, TAR_FILE, "oci-layout", .data = "{}");
    tar_finish(out);
    fclose(out);
    assert_int_equal(oci_unpack(tar, directory, err, sizeof err), 0);
    assert_true(exists(below("out/oci/oci-layout")));
    assert_false(exists(below("evil")) || exists(below("out/evil")) || exists(below("out/oci/index.json")) ||
                 exists(below("out/oci/blobs/sha256/0123")));
}

/* ---- being ended ---- */

static int work_for_ever(struct job *j, void *context, char *error, size_t n)
{
    const char *const argv[] = {"sh", "-c", "echo half > \"$0\"; sleep 60", context, NULL};

    job_stage(j, "working");
    return job_run(j, &(struct job_tool){.argv = argv, .grace_ms = 1000}, error, n);
}

static void stop_parent(void *context, const char *stage, uint64_t done, uint64_t total)
{
    kill(getpid(), *(int *)context);
}

/* By a signal to it, while a tool of its runs. */
static void work_that_is_ended_leaves_nothing(void **state)
{
    static int signals[] = {SIGINT, SIGTERM, SIGHUP};
    int status;

    for (size_t i = 0; i < 3; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            const struct image_progress progress = {stop_parent, &signals[i]};
            struct image_info info;
            job_make("x", work_for_ever, (void *)(uintptr_t)below("half"), &progress, &info, err, sizeof err);
            _exit(0);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == signals[i]);
        assert_true(nothing_is_left());
    }
}

/* By what it cannot see coming: its child, and that one's tool, end by themselves and clean up. */
static void work_whose_parent_is_killed_leaves_nothing(void **state)
{
    static int number = SIGKILL;
    int status;

    pid_t pid = fork();
    if (pid == 0) {
        const struct image_progress progress = {stop_parent, &number};
        struct image_info info;
        job_make("x", work_for_ever, (void *)(uintptr_t)below("half"), &progress, &info, err, sizeof err);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    for (unsigned i = 0; i < 500 && !nothing_is_left(); i++)
        usleep(20000);
    assert_true(nothing_is_left());
}

static int crash(struct job *j, void *context, char *error, size_t n)
{
    abort();
}

static void a_crash_while_it_works_is_an_error(void **state)
{
    struct image_info info;

    assert_int_equal(job_make(NULL, crash, NULL, NULL, &info, err, sizeof err), -EIO);
    assert_non_null(strstr(err, "signal 6"));
    assert_true(nothing_is_left());
}

static void report(void *context, const char *stage, uint64_t done, uint64_t total)
{
    char *all = context;
    if (!strstr(all, stage))
        snprintf(all + strlen(all), 500 - strlen(all), "%s;", stage);
}

static void stages_are_reported(void **state)
{
    char all[500] = "";
    const struct image_progress progress = {report, all};
    const struct image_import in = {.source = make_root("root")};
    struct image_info info;

    assert_int_equal(image_import(&in, &progress, &info, err, sizeof err), 0);
    assert_string_equal(all, "writing the disk;reading the kernel and its modules;finishing;");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STORE_TEST(a_directory_becomes_an_image),
        STORE_TEST(an_archive_becomes_an_image_with_its_owners),
        STORE_TEST(a_disk_becomes_an_image_and_is_not_changed),
        STORE_TEST(a_disk_without_a_kernel_says_what_to_do),
        STORE_TEST(a_root_of_another_file_system_says_what_to_do),
        STORE_TEST(an_export_comes_back_as_the_same_image),
        STORE_TEST(an_archive_of_parts_that_lie_is_refused),
        STORE_TEST(a_name_that_is_taken_is_not_taken_away_unasked),
        STORE_TEST(a_checksum_is_compared),
        STORE_TEST(what_does_not_fit_is_told),
        STORE_TEST(a_container_becomes_an_image),
        STORE_TEST(a_blob_with_another_content_is_refused),
        STORE_TEST(documents_that_make_no_sense_are_refused),
        STORE_TEST(a_layout_in_an_archive_brings_nothing_else),
        STORE_TEST(work_that_is_ended_leaves_nothing),
        STORE_TEST(work_whose_parent_is_killed_leaves_nothing),
        STORE_TEST(a_crash_while_it_works_is_an_error),
        STORE_TEST(stages_are_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
