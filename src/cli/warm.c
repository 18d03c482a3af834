#include "cli/warm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/protocol.h"
#include "base/error.h"
#include "base/path.h"
#include "cli/environment.h"
#include "cli/forking.h"
#include "cli/reach.h"
#include "cli/session.h"

#define PREFIX "warm-"
#define KEY_DIGITS 12

/* --- which one ---------------------------------------------------------------------------------------------------- */

/* FNV-1a, 64 bits. */
static uint64_t hash(uint64_t h, const void *bytes, size_t n)
{
    for (const uint8_t *p = bytes; n--; p++)
        h = (h ^ *p) * 0x100000001b3;
    return h;
}

/* What it is made with: all that was said but what is a copy's own. */
static struct run_arguments template_arguments(const struct run_arguments *a)
{
    struct run_arguments t = *a;

    t.settings.name = t.settings.hostname = NULL;
    t.settings.labels.n = 0;
    t.settings.config.publish.n = 0;
    t.settings.config.timeout_ms = 0;
    t.remove = t.detach = true;
    return t;
}

static int choose_name(const struct run_arguments *t, const char *digest, char name[NAME_SIZE], char *err, size_t n)
{
    struct vm_record record = {.mode = VM_MODE_COMMAND, .settings = t->settings};
    struct stat self = {0};
    char *text;

    if (!getcwd(record.directory, sizeof record.directory)) /* relative paths start there */
        return error_sys(err, n, -errno, "the current directory has no name");
    snprintf(record.image_digest, sizeof record.image_digest, "%s", digest);
    record.settings.image = NULL; /* a name of the image, which it has by chance */
    if (!(text = record_format(&record)))
        return error_set(err, n, -ENOMEM, "out of memory");
    uint64_t key = hash(0xcbf29ce484222325, text, strlen(text));
    free(text);
    stat("/proc/self/exe", &self);
    key = hash(key, &self.st_ino, sizeof self.st_ino);
    key = hash(key, &self.st_size, sizeof self.st_size);
    key = hash(key, &self.st_mtim, sizeof self.st_mtim);
    snprintf(name, NAME_SIZE, PREFIX "%0*llx", KEY_DIGITS, (unsigned long long)(key >> (64 - 4 * KEY_DIGITS)));
    return 0;
}

/* --- those that there are ---------------------------------------------------------------------------------------- */

static bool is_ours(const char *name)
{
    size_t n = strlen(PREFIX);

    return strncmp(name, PREFIX, n) == 0 && strspn(name + n, "0123456789abcdef") == KEY_DIGITS &&
           strlen(name) == n + KEY_DIGITS;
}

static void drop(const struct registry *r, const char *name)
{
    char none[1];
    int lock;

    life_cut_power_if_on(r, name);
    if (registry_lock(r, name, &lock, none, sizeof none) == 0)
        registry_remove(r, name, lock, none, sizeof none);
}

/* When a machine's record was last touched; each use does. */
static struct timespec last_use(const struct registry *r, const char *name)
{
    struct stat st = {0};
    char path[PATH_MAX], none[1];

    if (!registry_path(r, name, "vm.json", path, none, sizeof none))
        stat(path, &st);
    return st.st_mtim;
}

static void note_use(const struct registry *r, const char *name)
{
    char path[PATH_MAX], none[1];

    if (!registry_path(r, name, "vm.json", path, none, sizeof none))
        utimensat(AT_FDCWD, path, NULL, 0);
}

static bool is_before(struct timespec a, struct timespec b)
{
    return a.tv_sec != b.tv_sec ? a.tv_sec < b.tv_sec : a.tv_nsec < b.tv_nsec;
}

/* For one more. */
static void make_room(const struct registry *r)
{
    char(*names)[NAME_SIZE], none[1];
    int n = registry_names(r, &names, none, sizeof none);

    for (;;) {
        unsigned count = 0;
        int oldest = -1;
        for (int i = 0; i < n; i++) {
            if (!is_ours(names[i]))
                continue;
            count++;
            if (oldest < 0 || is_before(last_use(r, names[i]), last_use(r, names[oldest])))
                oldest = i;
        }
        if (count < WARM_MOST || oldest < 0)
            break;
        drop(r, names[oldest]);
        names[oldest][0] = 0;
    }
    if (n > 0)
        free(names);
}

/* One command at a time looks, and makes what is missing. */
static int take_lock(const struct registry *r, char *err, size_t n)
{
    char path[PATH_MAX];
    int failed = path_format(path, sizeof path, err, n, "%s/.warm-lock", r->vms);

    if (failed)
        return failed;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0 || flock(fd, LOCK_EX))
        return error_sys(err, n, -errno, "cannot lock %s", path);
    return fd;
}

static bool is_parked(const struct registry *r, const char *name)
{
    struct client c;
    char none[1];
    json_t *status = NULL;
    bool parked = false;

    if (client_open(&c, r, name, none, sizeof none) == 0 &&
        client_call(&c, "status", NULL, &status, none, sizeof none) == 0)
        parked = json_is_true(json_object_get(status, "parked"));
    json_decref(status);
    client_close(&c);
    return parked;
}

/* --- making one -------------------------------------------------------------------------------------------------- */

/* A command that does nothing, twice: what every command needs has run then, and its translation is taken along to
 * copies (engine/soft/carry.c).  An image without that command does without. */
static void rehearse(const char *name)
{
    static const char *const argv[] = {"true", NULL};
    static const struct option_list none;
    char **environment = environment_make(&none, false), err[ERROR_SIZE];
    const struct session_options o = {.argv = argv, .environment = (const char *const *)environment};

    for (unsigned i = 0; i < 2; i++) {
        int fd = reach_guest(name, AGENT_PORT, err, sizeof err);
        if (fd < 0)
            break;
        session_run(fd, &o);
        close(fd);
    }
    environment_free(environment);
}

/* A copy of one that has just booted: what that has translated for the boot is of no use any more.  Both depend on this
 * command until the copy is parked, so that one that is killed leaves neither.  STATUS_OK and the copy's connection; or
 * what to exit with. */
static int make_template(const struct registry *r, const struct run_arguments *t, const char *name,
                         struct client *client)
{
    static const struct option_list none;
    struct copy_words words = {.name = name, .ephemeral = true, .publish = &none};
    struct forking f = {.registry = r, .client.fd = -1, .layer = {.lock = -1, .state = -1, .top = -1}};
    struct forked c = {.lock = -1};
    struct bring b;
    char err[ERROR_SIZE];
    int status = bring_create(&b, t, VM_MODE_COMMAND, true);

    if (status == STATUS_OK)
        status = bring_start(&b, true);
    if (status == STATUS_OK)
        status = bring_wait_agent(&b);
    if (status != STATUS_OK)
        return status;
    progress_end(&b.progress);
    f.parent = b.record;
    int failed = forking_begin(&f, err, sizeof err);
    if (!failed)
        failed = forking_copy(&f, &c, &words, true, err, sizeof err);
    if (!failed)
        failed = forking_wait(&f, &c, err, sizeof err);
    if (failed)
        forking_take_away(&f, &c);
    else
        rehearse(name);
    forking_end(&f);
    bring_end(&b);
    *client = c.client;
    return failed ? cli_failed(failed, err) : STATUS_OK;
}

/* The one that there is, or a new one: taken apart.  Says why not. */
static int take_template(struct forking *f, const struct run_arguments *t, const char *name)
{
    struct client client = {.fd = -1};
    char err[ERROR_SIZE];
    int lock = take_lock(f->registry, err, sizeof err), failed = lock < 0 ? lock : 0, status = STATUS_OK;

    if (!failed && !is_parked(f->registry, name)) {
        if (registry_exists(f->registry, name, NULL, 0) == 0)
            drop(f->registry, name); /* of a command that died while it made it */
        make_room(f->registry);
        status = make_template(f->registry, t, name, &client);
    }
    if (!failed && status == STATUS_OK)
        failed = registry_load(f->registry, name, &f->parent, err, sizeof err);
    if (!failed && status == STATUS_OK) {
        note_use(f->registry, name);
        failed = forking_begin(f, err, sizeof err);
    }
    client_close(&client);
    if (lock >= 0)
        close(lock);
    return failed ? cli_failed(failed, err) : status;
}

/* --- a copy ------------------------------------------------------------------------------------------------------ */

static int run_copy(struct forking *f, struct bring *b, const struct run_arguments *a)
{
    struct copy_words words = {.name = a->settings.name,
                               .hostname = a->settings.hostname,
                               .ephemeral = true,
                               .publish = &a->settings.config.publish};
    struct forked c = {.lock = -1};
    char err[ERROR_SIZE];
    int failed = forking_copy(f, &c, &words, !a->detach, err, sizeof err);

    if (!failed)
        failed = forking_wait(f, &c, err, sizeof err);
    if (failed) {
        forking_take_away(f, &c);
        return cli_failed(failed, err);
    }
    b->record = c.record;
    b->record.texts = f->parent.texts; /* which it lives in */
    b->start.client = c.client;
    return STATUS_OK;
}

int warm_start(const struct command *self, struct bring *b, const struct run_arguments *a)
{
    struct run_arguments t = template_arguments(a);
    struct forking f = {
        .registry = &b->registry, .park = true, .client.fd = -1, .layer = {.lock = -1, .state = -1, .top = -1}};
    struct image_info info;
    char err[ERROR_SIZE], name[NAME_SIZE];
    int hold = -1;

    if (a->settings.root || a->settings.config.shares.n)
        return cli_usage_error(self, "--warm: a machine with shared folders (--share, --cwd, --root) cannot be copied");
    *b = (struct bring){.lock = -1};
    progress_begin(&b->progress, a->verbose, a->quiet);
    int failed = registry_open(&b->registry, err, sizeof err);
    if (!failed)
        failed = bring_find_image(b, a->settings.image, &info, &hold, err, sizeof err);
    if (!failed)
        failed = choose_name(&t, info.digest, name, err, sizeof err);
    progress_end(&b->progress);
    int status = failed ? cli_failed(failed, err) : take_template(&f, &t, name);
    if (status == STATUS_OK)
        status = run_copy(&f, b, a);
    forking_end(&f);
    if (hold >= 0)
        close(hold);
    return status;
}
