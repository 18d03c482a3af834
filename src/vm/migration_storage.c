/*
 * The disks of a machine that moves whose files stay where they are, as the destination sees them there: flushed before
 * the machine is given up, left when that is written down, and taken by who runs then (backends/disk/disk_away.h).
 */
#include "vm/migration_storage.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "backends/disk/disk_away.h"
#include "base/error.h"
#include "vm/life.h"
#include "vm/migration_int.h"
#include "vm/prepare.h"

/* --- the source --------------------------------------------------------------------------------------------------- */

/* Does disk i stay where it is?  Its own one may be copied instead. */
static bool stays(const struct moving *m, unsigned i)
{
    return !m->vm->disks[i]->read_only && (m->own_stays || m->vm->disks[i] != moving_own_disk(m->vm));
}

struct early_flush {
    struct disk_request request;
    struct moving *moving;
};

static void flushed_early(struct disk_request *r)
{
    struct early_flush *f = (struct early_flush *)r;
    struct moving *m = f->moving;

    free(f);
    if (!--m->flushing)
        moving_flushed(m);
}

/* What fails is met again by the last flush. */
void storage_flush_early(struct moving *m)
{
    for (unsigned i = 0; i < m->vm->n_disks; i++) {
        struct early_flush *f = stays(m, i) ? calloc(1, sizeof *f) : NULL;
        if (!f)
            continue;
        f->request = (struct disk_request){.op = DISK_FLUSH, .done = flushed_early};
        f->moving = m;
        m->flushing++;
        disk_submit(m->vm->disks[i], &f->request);
        disk_kick(m->vm->disks[i]);
    }
}

static void flushed(struct disk_request *r) {}

int storage_flush(struct moving *m)
{
    int err = 0;

    for (unsigned i = 0; i < m->vm->n_disks && !err; i++) {
        struct disk_request flush = {.op = DISK_FLUSH, .done = flushed, .result = -EIO};
        if (!stays(m, i))
            continue;
        disk_submit(m->vm->disks[i], &flush);
        disk_drain(m->vm->disks[i]);
        err = flush.result;
    }
    return err;
}

void storage_leave(struct moving *m)
{
    for (unsigned i = 0; i < m->vm->n_disks; i++)
        if (stays(m, i))
            disk_leave(m->vm->disks[i]);
}

int storage_return(struct moving *m)
{
    int err = 0;

    for (unsigned i = 0; i < m->vm->n_disks && !err; i++)
        if (stays(m, i))
            err = disk_return(m->vm->disks[i]);
    if (err)
        storage_leave(m);
    return err;
}

bool storage_is_shared(const struct moving *m)
{
    for (unsigned i = 0; i < m->vm->n_disks; i++)
        if (stays(m, i))
            return true;
    return false;
}

const char *storage_refused(const struct vm *vm, bool shared, char *why, size_t n)
{
    unsigned first = moving_own_disk(vm) != NULL, written = first;

    for (unsigned i = first; i < vm->n_disks; i++) {
        if (vm->disks[i]->read_only)
            continue;
        if (!shared || !disk_can_leave(vm->disks[i])) {
            error_set(why, n, 0,
                      !shared ? "it writes to disk %s, which is not its own and is not copied: that takes --storage "
                                "auto or shared, without --postcopy, and a destination that sees that file"
                              : "it writes to disk %s, which is not its own and stays where it is: of such disks only "
                                "files, raw or overlays, can be left to a destination, and disks that are ro",
                      vm->disks[i]->spec.path);
            return why;
        }
        if (++written > STORAGE_DISKS_MAX) {
            error_set(why, n, 0, "it has more than %u disks that would stay where they are", STORAGE_DISKS_MAX);
            return why;
        }
    }
    return NULL;
}

json_t *storage_show(const struct vm *vm, uint64_t gap)
{
    struct disk *own = moving_own_disk(vm);
    json_int_t others = 0;
    bool shown = false;

    for (unsigned i = 0; i < vm->n_disks; i++) {
        if (!disk_can_leave(vm->disks[i]))
            continue;
        bool can = !disk_show_lock(vm->disks[i], gap);
        if (vm->disks[i] == own)
            shown = can;
        else
            others++;
    }
    return json_pack("{s:I, s:I, s:s?}", "gap", (json_int_t)gap, "disks", others, "own", shown ? own->spec.path : NULL);
}

void storage_hide(const struct vm *vm)
{
    for (unsigned i = 0; i < vm->n_disks; i++)
        if (disk_can_leave(vm->disks[i]))
            disk_show_lock(vm->disks[i], 0);
}

/* --- the destination ---------------------------------------------------------------------------------------------- */

static bool is_away(const struct vm *vm, unsigned i)
{
    return vm->disks[i]->spec.away;
}

json_t *storage_wanted(const struct vm *vm)
{
    json_t *paths = json_array();

    for (unsigned i = 0; i < vm->n_disks; i++)
        if (is_away(vm, i))
            json_array_append_new(paths, json_string(vm->disks[i]->spec.path));
    return paths;
}

void storage_put_back(const struct vm *vm)
{
    for (unsigned i = 0; i < vm->n_disks; i++)
        if (is_away(vm, i) && !vm->disks[i]->away)
            disk_leave(vm->disks[i]);
}

void storage_note(struct incoming *in)
{
    for (unsigned i = 0; i < in->vm->n_disks; i++)
        if (is_away(in->vm, i))
            in->written[i] = disk_written(in->vm->disks[i]);
}

bool storage_is_noted(const struct incoming *in, char *why, size_t n)
{
    for (unsigned i = 0; i < in->vm->n_disks; i++) {
        struct timespec now = is_away(in->vm, i) ? disk_written(in->vm->disks[i]) : in->written[i];
        if (now.tv_sec == in->written[i].tv_sec && now.tv_nsec == in->written[i].tv_nsec)
            continue;
        error_set(why, n, 0,
                  "%s has been written to since: its source has gone on, and what was received is of no use; `guise rm "
                  "--force %s` removes it",
                  in->vm->disks[i]->spec.path, in->vm->config->life->record->name);
        return false;
    }
    return true;
}

int storage_take(const struct vm *vm, const int *fds, unsigned n_fds, char *why, size_t n)
{
    unsigned taken = 0;
    int err = 0;

    for (unsigned i = 0; i < vm->n_disks && !err; i++) {
        if (!is_away(vm, i))
            continue;
        err = taken < n_fds
                  ? disk_take(vm->disks[i], fds[taken], why, n)
                  : error_set(why, n, -EINVAL, "the descriptor of disk %s is missing", vm->disks[i]->spec.path);
        taken += !err;
    }
    if (!err && taken < n_fds)
        err = error_set(why, n, -EINVAL, "there are more descriptors than disks that are waited for");
    for (unsigned i = taken; i < n_fds; i++)
        close(fds[i]);
    if (err)
        storage_put_back(vm);
    return err;
}
