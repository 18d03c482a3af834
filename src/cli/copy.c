/* `guise cp`: files and directories between this host and a VM that runs. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/client.h"
#include "agent/qga.h"
#include "agent/tree.h"
#include "base/error.h"
#include "base/log.h"
#include "cli/cli.h"
#include "cli/progress.h"
#include "cli/reach.h"
#include "cli/table.h"
#include "host/loop.h"

#define OPERANDS_MAX 100000

struct copy_arguments {
    bool archive, quiet;
    const char *user;
};

#define AT(field) offsetof(struct copy_arguments, field)
const struct option_spec cp_options[] = {
    {.name = "archive",
     .letter = 'a',
     .kind = OPTION_FLAG,
     .offset = AT(archive),
     .help = "keep owners, by number, set-user-id bits, attributes and hard links too"},
    {.name = "user",
     .letter = 'u',
     .kind = OPTION_STRING,
     .offset = AT(user),
     .value = "USER[:GROUP]",
     .help = "with whose rights in the guest (root's unless told)"},
    {.name = "quiet",
     .letter = 'q',
     .kind = OPTION_FLAG,
     .offset = AT(quiet),
     .help = "no progress, and nothing about what was left out"},
    {0},
};

struct copy {
    const struct copy_arguments *a;
    uint64_t left_out;
    struct progress progress;
    uint64_t done, shown_ns;
};

#define SHOW_NS 100000000u

/* "NAME:PATH": *name_len is how long the name is; "./a:b" and "/a:b" are this host's.  False: no name. */
static bool in_guest(const char *word, size_t *name_len)
{
    const char *colon = strrchr(word, ':');
    size_t slash = strcspn(word, "/");

    *name_len = strcspn(word, ":");
    if (!colon || *name_len == 0)
        return false;
    if (slash > *name_len)
        return true;
    /* The path of a socket, as reach_guest takes it, is told from a file's by its ending. */
    static const char *const endings[] = {".vsock:", ".qga:"};
    for (size_t i = 0; i < sizeof(endings) / sizeof(endings[0]); i++) {
        const char *end = strstr(word, endings[i]);
        if (end) {
            *name_len = (size_t)(end - word) + strlen(endings[i]) - 1;
            return true;
        }
    }
    return false;
}

static void on_note(void *opaque, const char *text)
{
    struct copy *c = opaque;

    c->left_out++;
    if (c->a->quiet)
        return;
    progress_end(&c->progress);
    log_say("left out: %s", text);
}

/* How much is to come nobody knows: how much has come, and how fast. */
static void on_progress(void *opaque, uint64_t bytes)
{
    struct copy *c = opaque;
    uint64_t now = clock_ns(), passed = now - c->progress.began_ns;
    char size[16], rate[16], text[64];

    c->done += bytes;
    if (now - c->shown_ns < SHOW_NS)
        return;
    c->shown_ns = now;
    snprintf(text, sizeof(text), "%s, %s/s", table_size(c->done, size, sizeof(size)),
             table_size((unsigned long long)((double)c->done * 1e9 / (double)passed), rate, sizeof(rate)));
    progress_stage(&c->progress, "copied", text);
}

/* Of a file into a directory of ours; where the other side is the guest's only it knows what is a directory. */
static int open_here(const char *from, const char *to, char *err, size_t n)
{
    struct tree_target t;
    char name[256];
    int r, fd = -1;

    tree_source_name(from, name, sizeof(name));
    r = tree_target_open(to, name, false, &t, err, n);
    if (r)
        return r;
    fd = openat(t.directory, t.name, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666);
    r = fd < 0 ? error_sys(err, n, -errno, "cannot write %s", to) : fd;
    tree_target_close(&t);
    return r;
}

/* By QEMU's guest agent: one file, as root. */
static int copy_by_qga(int fd, const char *guest_path, const char *here, bool out, char *err, size_t n)
{
    char name[256], whole[PATH_MAX];
    struct qga q;
    struct stat st;
    int file, r = qga_open(&q, fd, err, n);

    if (r)
        return r;
    tree_source_name(here, name, sizeof(name));
    if (!out && guest_path[0] && guest_path[strlen(guest_path) - 1] == '/') {
        snprintf(whole, sizeof(whole), "%.3800s%s", guest_path, name);
        guest_path = whole;
    }
    if (strcmp(here, "-") == 0)
        file = out ? dup(STDOUT_FILENO) : dup(STDIN_FILENO);
    else if (out)
        file = open_here(guest_path, here, err, n);
    else
        file = open(here, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        r = out && strcmp(here, "-") != 0 ? file : error_sys(err, n, -errno, "cannot copy %s", here);
    else if (!out && (fstat(file, &st) || S_ISDIR(st.st_mode)))
        r = error_set(err, n, -ENOTSUP, "QEMU's guest agent copies files only, and %s is a directory", here);
    else
        r = out ? qga_read_file(&q, guest_path, file, err, n) : qga_write_file(&q, file, guest_path, err, n);
    if (file >= 0)
        close(file);
    qga_close(&q);
    return r;
}

static int copy_one(struct copy *c, const char *from, const char *to, char *err, size_t n)
{
    const struct tree_watch watch = {.note = on_note, .progress = on_progress, .opaque = c};
    struct agent_copy options = {.user = c->a->user, .owners = c->a->archive, .stream = -1, .watch = &watch};
    size_t from_len, to_len;
    bool from_guest = in_guest(from, &from_len), to_guest = in_guest(to, &to_len);
    char vm[256];

    if (from_guest == to_guest)
        return error_set(err, n, -EINVAL,
                         from_guest ? "%s and %s are both in a guest: copy by way of this host"
                                    : "neither %s nor %s is in a guest: write NAME:PATH",
                         from, to);
    snprintf(vm, sizeof(vm), "%.*s", (int)(from_guest ? from_len : to_len), from_guest ? from : to);
    int fd = reach_guest(vm, AGENT_PORT, err, n), qga = fd < 0 ? reach_qga(vm) : -1, r;
    if (qga >= 0) {
        r = from_guest ? copy_by_qga(qga, from + from_len + 1, to, true, err, n)
                       : copy_by_qga(qga, to + to_len + 1, from, false, err, n);
        close(qga);
        return r;
    }
    if (fd < 0)
        return fd;
    if (from_guest) {
        options.stream = strcmp(to, "-") == 0 ? STDOUT_FILENO : -1;
        r = agent_get(fd, from + from_len + 1, to, &options, err, n);
    } else {
        options.stream = strcmp(from, "-") == 0 ? STDIN_FILENO : -1;
        r = agent_put(fd, from, to + to_len + 1, &options, err, n);
    }
    close(fd);
    return r;
}

int cp_main(const struct command *self, int argc, char **argv)
{
    struct copy_arguments a = {0};
    struct copy c = {.a = &a};
    char err[ERROR_SIZE];
    int status, operands = cli_parse(self, argc, argv, &a, OPERANDS_MAX, &status);

    if (operands < 0)
        return status;
    if (operands < 2)
        return cli_usage_error(self, "a source and a destination must be given");
    /* Several go into a directory, which must be there. */
    char *to = argv[operands];
    if (operands > 2 && asprintf(&to, "%s/.", argv[operands]) < 0)
        return STATUS_FAILED;
    progress_begin(&c.progress, false, a.quiet || strcmp(to, "-") == 0);
    int failed = 0;
    for (int i = 1; i < operands && !failed; i++)
        failed = copy_one(&c, argv[i], to, err, sizeof(err));
    progress_end(&c.progress);
    if (failed)
        return cli_failed(failed, err);
    return c.left_out ? STATUS_FAILED : STATUS_OK;
}
