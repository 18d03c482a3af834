/* `guise image build`: mmdebstrap makes a tar archive, and that becomes the disk; nothing is unpacked on the host. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"
#include "image/inspect.h"
#include "image/recipe.h"
#include "image/rootfs.h"

#define WORDS_MAX 58
#define ROOT_TAR "root.tar"
#define LISTING_MAX (1u << 20)
#define LOG_MAX (16u << 20)

/* In the log, when the user's hook has failed. */
#define HOOK_FAILED "guise: status of the hook: "

/* The words of mmdebstrap's command line. */
struct command_line {
    const char *words[WORDS_MAX + 1];
    unsigned n;
    char tmpdir[IMAGE_PATH_SIZE + 16], include[4096], upload[4200], epoch[48], sources[RECIPE_SOURCES_MAX][512],
        mode[32], target[IMAGE_PATH_SIZE];
};

static void add(struct command_line *c, const char *word)
{
    if (c->n < WORDS_MAX)
        c->words[c->n++] = word;
}

/* ---- the log of mmdebstrap as progress ---- */

static const struct {
    const char *line, *stage;
} stages[] = {
    {"I: running apt-get update", "fetching package lists"},
    {"I: downloading packages", "downloading packages"},
    {"I: extracting archives", "unpacking the base system"},
    {"I: installing essential packages", "installing the base system"},
    {"I: installing remaining packages", "installing packages"},
    {"I: running --customize-hook", "configuring"},
    {"I: creating tarball", "packing"},
};

static unsigned count(const char *log, const char *line)
{
    size_t len = strlen(line);
    unsigned n = 0;

    for (const char *at = log; (at = strstr(at, line)); at += len)
        n++;
    return n;
}

/* "0 upgraded, 131 newly installed, ..." after `from`. */
static unsigned expected(const char *from)
{
    const char *at = strstr(from, " newly installed");
    unsigned n = 0;

    while (at && at > from && at[-1] >= '0' && at[-1] <= '9')
        at--;
    return at && sscanf(at, "%u", &n) == 1 ? n : 0;
}

static void watch(void *context, struct job *j, const char *log)
{
    for (size_t i = sizeof stages / sizeof stages[0]; i-- > 0;) {
        const char *at = strstr(log, stages[i].line);
        if (!at)
            continue;
        job_stage(j, stages[i].stage);
        unsigned total = expected(at), done = count(at, strstr(at, "\nSetting up ") ? "\nSetting up " : "\nGet:");
        job_progress(j, done, total);
        return;
    }
}

/* ---- the command line ---- */

/* As root everything happens in namespaces of its own: whatever ends it, nothing stays mounted or running. */
static void add_namespaces(struct job *j, struct command_line *c, const char *mode)
{
    static const char *const probe[] = {"unshare", "--mount", "--pid", "--fork", "--mount-proc", "true", NULL};
    static const char *const words[] = {"unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"};
    int status = 1;

    if (strcmp(mode, "root") != 0 || job_run(j, &(struct job_tool){.argv = probe, .status = &status}, NULL, 0) ||
        status)
        return;
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        add(c, words[i]);
}

static void add_options(struct command_line *c, const struct image_build *b, const char *mode)
{
    static const char *const fixed[] = {
        "--variant=minbase",
        "--format=tar",
        "--architectures=amd64",
        "--verbose",
        "--aptopt=Apt::Install-Recommends \"false\"",
        "--aptopt=Acquire::Languages \"none\"",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--dpkgopt=force-unsafe-io", /* what is half-made is thrown away; not for the image: recipe_finish */
        "--skip=cleanup/apt",
    };

    snprintf(c->mode, sizeof c->mode, "--mode=%s", mode);
    snprintf(c->include, sizeof c->include, "--include=%s%s%s", recipe_packages, b->include ? "," : "",
             b->include ? b->include : "");
    add(c, "mmdebstrap");
    add(c, c->mode);
    for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++)
        add(c, fixed[i]);
    add(c, c->include);
}

/* The user's is copied in by mmdebstrap itself, which may read what the new system's root may not. */
static void add_hooks(struct command_line *c, const struct image_build *b)
{
    add(c, recipe_customize);
    if (b->hook) {
        snprintf(c->upload, sizeof c->upload, "--customize-hook=upload '%s' /guise-hook", b->hook);
        add(c, c->upload);
        add(c, "--customize-hook=chmod 755 \"$1/guise-hook\"; chroot \"$1\" /guise-hook || "
               "{ status=$?; echo \"" HOOK_FAILED "$status\"; exit $status; }; rm \"$1/guise-hook\"");
    }
    add(c, recipe_finish);
}

/* The mirrors of the host's own sources, as apt tells them; NULL without apt.  The caller frees it. */
static char *host_mirrors(struct job *j)
{
    static const char *const argv[] = {
        "apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)", "Identifier: Packages", NULL};
    char path[IMAGE_PATH_SIZE], *text = NULL;
    int status = 1;

    if (!job_has_program("apt-get") || job_run(j, &(struct job_tool){.argv = argv, .status = &status}, NULL, 0) ||
        status)
        return NULL;
    job_path(j, "log", path);
    return file_read(path, LISTING_MAX, &text, NULL, NULL, 0) ? NULL : text;
}

/* Where the archive goes: as root by its name, because a descriptor of another mount namespace has one that means
 * nothing in a chroot; users of a user namespace cannot reach the name, but the descriptor. */
static void add_target(struct job *j, struct command_line *c, const char *mode)
{
    if (strcmp(mode, "root") == 0)
        job_path(j, ROOT_TAR, c->target);
    else
        snprintf(c->target, sizeof c->target, "/proc/self/fd/4");
    add(c, c->target);
}

static void add_sources(struct job *j, struct command_line *c, const struct image_build *b)
{
    char *mirrors = b->mirror ? NULL : host_mirrors(j);

    unsigned n = recipe_sources(b->suite, b->mirror, mirrors, c->sources);
    for (unsigned i = 0; i < n; i++)
        add(c, c->sources[i]);
    free(mirrors);
}

/* ---- the work ---- */

/* If it was the user's hook that failed: its status, and the last thing that it said. */
static void explain_hook(struct job *j, const struct image_build *b, char *err, size_t n)
{
    char path[IMAGE_PATH_SIZE], *log, *at, *line;
    int status = 0;

    job_path(j, "log", path);
    if (!b->hook || file_read(path, LOG_MAX, &log, NULL, NULL, 0))
        return;
    at = strstr(log, "\n" HOOK_FAILED);
    if (at && sscanf(at + sizeof "\n" HOOK_FAILED - 1, "%d", &status) == 1) {
        *at = 0;
        for (char *c = log; *c; c++)
            if ((unsigned char)*c < 0x20 && *c != '\n')
                *c = ' ';
        line = strrchr(log, '\n');
        error_set(err, n, -EIO, "the hook %s ended with status %d; the last line before that is: %.300s", b->hook,
                  status, line ? line + 1 : log);
    }
    free(log);
}

static int run_mmdebstrap(struct job *j, const struct image_build *b, int tar, char *err, size_t n)
{
    struct command_line *c = calloc(1, sizeof *c);
    char scratch[IMAGE_PATH_SIZE];
    const char *mode = recipe_mode(err, n);
    int failed = !mode ? -EPERM : c ? store_scratch(j->draft, scratch, err, n) : -ENOMEM;

    if (failed) {
        free(c);
        return failed;
    }
    snprintf(c->tmpdir, sizeof c->tmpdir, "TMPDIR=%s", scratch);
    add(c, "env");
    add(c, "INITRD=No"); /* Debian's hook that makes an initramfs: guise has its own, and it takes half as long as all
                            else */
    add(c, c->tmpdir);
    snprintf(c->epoch, sizeof c->epoch, "SOURCE_DATE_EPOCH=%lld", (long long)time(NULL));
    add(c, c->epoch);
    add(c, "LC_ALL=C.UTF-8");
    add(c, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    add_namespaces(j, c, mode);
    add_options(c, b, mode);
    add_hooks(c, b);
    add(c, b->suite);
    add_target(j, c, mode);
    add_sources(j, c, b);
    failed = job_run(j,
                     &(struct job_tool){.argv = c->words,
                                        .name = "mmdebstrap",
                                        .fds = &tar,
                                        .n_fds = 1,
                                        .grace_ms = strcmp(mode, "root") == 0 ? 0 : 10000,
                                        .watch = watch},
                     err, n);
    if (failed == -EIO)
        explain_hook(j, b, err, n);
    free(c);
    store_scratch_remove(j->draft);
    return failed;
}

static int build(struct job *j, void *context, char *err, size_t n)
{
    const struct image_build *b = context;
    char tar[IMAGE_PATH_SIZE], disk[IMAGE_PATH_SIZE], source[128];

    job_stage(j, "preparing");
    job_path(j, ROOT_TAR, tar);
    job_path(j, "disk.raw", disk);
    int fd = open(tar, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return error_sys(err, n, -errno, "cannot make %s", tar);
    int failed = run_mmdebstrap(j, b, fd, err, n);
    struct source s = {.fd = fd, .name = "that mmdebstrap made"};
    if (!failed) {
        job_stage(j, "writing the disk");
        failed = rootfs_make(j, disk, b->bytes ? b->bytes : 4ull << 30, &s, 1, err, n);
    }
    source_free(&s);
    close(fd);
    unlink(tar);
    snprintf(source, sizeof source, "Debian %s by mmdebstrap", b->suite);
    const struct inspect in = {.name = b->name, .source = source};
    if (!failed)
        failed = inspect_disk(j, &in, err, n);
    return failed;
}

int image_build(const struct image_build *b, const struct image_progress *progress, struct image_info *out, char *err,
                size_t n)
{
    char hook[PATH_MAX];
    const struct recipe *known = recipe_find(b->name);
    struct image_build whole = *b;
    char why[ERROR_SIZE];
    bool waited;
    int failed = recipe_check(b, err, n);

    if (failed)
        return failed;
    if (!job_has_program("mmdebstrap"))
        return error_set(err, n, -ENOENT, "mmdebstrap is missing: install the package mmdebstrap");
    if (b->hook && (!realpath(b->hook, hook) || strchr(hook, '\'')))
        return error_set(err, n, -EINVAL, "the hook %s cannot be used: its path has a quote in it", b->hook);
    whole.hook = b->hook ? hook : NULL;
    if (!whole.suite)
        whole.suite = known ? known->suite : DEFAULT_SUITE;
    int lock = store_lock_name(b->name, &waited, err, n);
    if (lock < 0)
        return lock;
    if (!b->replace && image_find(b->name, out, why, sizeof why) != -ENOENT)
        failed = error_set(err, n, -EEXIST, "there is an image '%s' already: remove it first, or take another name",
                           b->name);
    else
        failed = job_make(b->name, build, &whole, progress, out, err, n);
    close(lock);
    return failed;
}
