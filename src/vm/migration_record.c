#include "vm/migration_record.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"
#include "base/path.h"

#define FILE_NAME "migration"
#define BYTES_MAX 4096

bool migration_is_id(const char *text)
{
    return text && strlen(text) == 32 && strspn(text, "0123456789abcdef") == 32;
}

/* DATA/migrations/ID; the directory is made. */
static int received_path(const struct registry *r, const char *id, char path[PATH_MAX], char *err, size_t n)
{
    int failed = path_format(path, PATH_MAX, err, n, "%s/../migrations", r->vms);

    if (!failed)
        failed = path_make(path, 0700, err, n);
    return failed ? failed : path_format(path, PATH_MAX, err, n, "%s/../migrations/%s", r->vms, id);
}

/* --- reading ------------------------------------------------------------------------------------------------------ */

static int take_text(const json_t *all, const char *key, char *out, size_t size)
{
    const char *text = json_string_value(json_object_get(all, key));

    if (!text || strlen(text) >= size)
        return -EBADMSG;
    memcpy(out, text, strlen(text) + 1);
    return 0;
}

static int parse(const char *text, size_t len, struct migration_record *m)
{
    json_t *all = len ? json_loadb(text + 1, len - 1, JSON_REJECT_DUPLICATES, NULL) : NULL;
    const char *role = json_string_value(json_object_get(all, "role"));
    int failed = role ? 0 : -EBADMSG;

    *m = (struct migration_record){.partly = len && text[0] == 'p'};
    m->decided = m->partly || (len && text[0] == 'd');
    m->destination = role && strcmp(role, "destination") == 0;
    if (!failed)
        failed = take_text(all, "id", m->id, sizeof m->id);
    if (!failed)
        failed = take_text(all, "name", m->name, sizeof m->name);
    if (!failed)
        failed = take_text(all, "peer", m->peer, sizeof m->peer);
    if (!failed && !migration_is_id(m->id))
        failed = -EBADMSG;
    json_decref(all);
    return failed;
}

static int read_path(const char *path, struct migration_record *m, char *err, size_t n)
{
    char *text;
    size_t len;
    int failed = file_read(path, BYTES_MAX, &text, &len, err, n);

    if (failed)
        return failed;
    failed = parse(text, len, m);
    free(text);
    return failed ? error_set(err, n, failed, "%s, which says where a migration stands, is damaged", path) : 0;
}

int migration_record_read(const struct registry *r, const char *name, struct migration_record *m, char *err, size_t n)
{
    char path[PATH_MAX];
    int failed = registry_path(r, name, FILE_NAME, path, err, n);

    return failed ? failed : read_path(path, m, err, n);
}

int migration_record_find(const struct registry *r, const char *id, struct migration_record *m, char *err, size_t n)
{
    char path[PATH_MAX];
    int failed = received_path(r, id, path, err, n);

    return failed ? failed : read_path(path, m, err, n);
}

/* --- writing ------------------------------------------------------------------------------------------------------ */

int migration_record_open(const struct registry *r, const char *name, char *err, size_t n)
{
    char path[PATH_MAX];
    int failed = registry_path(r, name, FILE_NAME, path, err, n);

    if (failed)
        return failed;
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    return fd < 0 ? error_sys(err, n, -errno, "cannot open %s", path) : fd;
}

static int decide(int fd, const char *byte)
{
    if (pwrite(fd, byte, 1, 0) != 1)
        return errno ? -errno : -EIO;
    return fdatasync(fd) ? -errno : 0;
}

int migration_decide(int fd, bool decided)
{
    return decide(fd, decided ? "d" : "w");
}

int migration_decide_partly(int fd)
{
    return decide(fd, "p");
}

int migration_record_make(const struct registry *r, const struct migration_record *m, char *err, size_t n)
{
    char path[PATH_MAX], received[PATH_MAX];
    json_t *all = json_pack("{s:s, s:s, s:s, s:s}", "id", m->id, "role", m->destination ? "destination" : "source",
                            "name", m->name, "peer", m->peer);
    char *json = all ? json_dumps(all, JSON_COMPACT) : NULL, text[BYTES_MAX];
    int failed = registry_path(r, m->name, FILE_NAME, path, err, n);

    snprintf(text, sizeof text, "w%s\n", json ? json : "");
    if (!failed)
        failed = json ? file_write(path, text, strlen(text), 0600, err, n)
                      : error_set(err, n, -ENOMEM, "out of memory");
    free(json);
    json_decref(all);
    if (!failed && m->destination)
        failed = received_path(r, m->id, received, err, n);
    if (!failed && m->destination && (link(path, received) || (failed = file_sync_directory(received))))
        failed = error_sys(err, n, failed ? failed : -errno, "cannot make %s", received);
    return failed ? failed : migration_record_open(r, m->name, err, n);
}

int migration_record_remove(const struct registry *r, const char *name, char *err, size_t n)
{
    char path[PATH_MAX];
    int failed = registry_path(r, name, FILE_NAME, path, err, n);

    if (failed)
        return failed;
    if (unlink(path) && errno != ENOENT)
        return error_sys(err, n, -errno, "cannot remove %s", path);
    failed = file_sync_directory(path);
    return failed ? error_sys(err, n, failed, "cannot save that %s is removed", path) : 0;
}

void migration_record_forget(const struct registry *r, const char *id)
{
    struct migration_record m;
    char path[PATH_MAX], none[1];

    if (!received_path(r, id, path, none, sizeof none) && !read_path(path, &m, none, sizeof none) && !m.decided &&
        !unlink(path))
        file_sync_directory(path);
}

int migration_may_start(const struct registry *r, const char *name, char *err, size_t n)
{
    struct migration_record m;
    int failed = migration_record_read(r, name, &m, err, n);

    if (failed)
        return failed == -ENOENT ? 0 : failed;
    if (m.destination && !m.decided)
        return error_set(err, n, -EBUSY,
                         "%s was never received as a whole, and is no machine: `guise rm %s` removes what there is",
                         name, name);
    if (m.destination && m.partly)
        return error_set(err, n, -EBUSY,
                         "the process of %s died before all of its memory was here: `guise migrate --resume` where it "
                         "came from tells more; if it is not to go on there, `guise migrate --here %s` lets it be "
                         "started, from its disk",
                         name, name);
    if (!m.destination && m.decided)
        return error_set(err, n, -EBUSY,
                         "%s has moved to %s: `guise migrate --resume %s` asks whether it runs there, and if not takes "
                         "it back",
                         name, m.peer, name);
    return migration_record_remove(r, name, err, n);
}
