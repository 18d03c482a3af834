/*
 * Disks that stay where they are, seen from the source's command.  The source's process shows that it has their locks
 * (backends/disk/disk_away.h), the destination says whether it sees that.
 */
#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "backends/disk/disk_away.h"
#include "base/error.h"
#include "cli/migrate_int.h"
#include "vm/prepare.h"

const struct option_word migrate_storage_words[] = {{"auto", 0}, {"copy", 0}, {"shared", 0}, {0}};

static int choose_gap(uint64_t *gap, char *err, size_t n)
{
    if (getrandom(gap, sizeof *gap, 0) != sizeof *gap)
        return error_sys(err, n, -errno, "there is no randomness for a number");
    *gap = DISK_GAP_FIRST | (*gap & (DISK_GAP_FIRST - 1));
    return 0;
}

/* What the source's process says of its files. */
static int take_files(struct migrate *m, json_t *storage, char *err, size_t n)
{
    const char *own = json_string_value(json_object_get(storage, "own"));
    bool must = strcmp(m->a->storage, "shared") == 0;

    m->others_stay = json_integer_value(json_object_get(storage, "disks")) > 0;
    m->needs_storage |= m->others_stay || must;
    json_object_set_new(storage, "must", json_boolean(must));
    if (must && m->has_own && !own)
        return error_set(err, n, -EBUSY,
                         "%s stays here: the file system of its disk has no locks, by which a destination could tell "
                         "that it sees the same file",
                         m->record.name);
    if (own && (strlen(own) >= sizeof m->own_path || stat(own, &m->own_file)))
        return error_sys(err, n, -errno, "cannot look at %s", own);
    memcpy(m->own_path, own ? own : "", own ? strlen(own) + 1 : 1);
    return 0;
}

int migrate_storage_describe(struct migrate *m, json_t **about, char *err, size_t n)
{
    uint64_t gap = 0;
    int failed = 0;

    m->has_own = record_has_disk(&m->record);
    m->needs_storage = m->record.settings.config.shares.n != 0;
    m->shares = strcmp(m->a->storage, "copy") != 0 && !m->a->postcopy;
    if (m->shares)
        failed = choose_gap(&gap, err, n);
    if (!failed)
        failed = client_call(&m->source, "migrate",
                             json_pack("{s:s, s:b, s:I, s:b}", "action", "describe", "shared", (int)m->shares, "gap",
                                       (json_int_t)gap, "folders", (int)(m->a->folders || m->receiver > 0)),
                             about, err, n);
    if (!failed && m->shares)
        failed = take_files(m, json_object_get(*about, "storage"), err, n);
    return failed;
}

int migrate_storage_same(const struct migrate *m, char *err, size_t n)
{
    struct stat now;

    if (!m->own_stays ||
        (!stat(m->own_path, &now) && now.st_dev == m->own_file.st_dev && now.st_ino == m->own_file.st_ino))
        return 0;
    return error_set(err, n, -EBUSY, "%s stays here: its disk got a new layer at this very moment; try again",
                     m->record.name);
}

const char *migrate_storage_how(const struct migrate *m)
{
    return m->own_stays || (m->others_stay && !m->has_own) ? "shared"
           : m->has_own                                    ? m->others_stay ? "partly" : "copied"
                                                           : "none";
}
