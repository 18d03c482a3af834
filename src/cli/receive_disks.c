/*
 * Disks that stay where they are, seen from who receives.  Whether a file here is the source's is proved by its lock
 * (backends/disk/disk_away.h).  A disk of the machine's own gets a second name, in its directory here, and so do its
 * layers: the source removes its own names in the end, and whoever of the two has the last one has the file.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "backends/disk.h"
#include "backends/disk/disk_away.h"
#include "base/error.h"
#include "base/path.h"
#include "cli/receive_int.h"
#include "vm/control.h"
#include "vm/layers.h"
#include "vm/prepare.h"

static const json_t *storage_of(const struct receiving *v)
{
    return json_object_get(v->hello, "storage");
}

static uint64_t gap_of(const struct receiving *v)
{
    uint64_t gap = number_of(storage_of(v), "gap");

    return gap > DISK_GAP_FIRST && gap < 2 * DISK_GAP_FIRST ? gap : 0;
}

/* --- files of the host -------------------------------------------------------------------------------------------- */

static int see(const struct receiving *v, const struct disk_spec *spec, char *err, size_t n)
{
    char path[PATH_MAX], why[ERROR_SIZE];
    int failed = spec->path[0] == '/'
                     ? path_format(path, sizeof path, err, n, "%s", spec->path)
                     : path_format(path, sizeof path, err, n, "%s/%s", v->record.directory, spec->path);

    if (failed)
        return failed;
    failed = !disk_spec_can_leave(spec) || !gap_of(v)
                 ? error_set(why, sizeof why, -ENOTSUP, "%s is not a file that a machine can leave to another host",
                             path)
                 : disk_sees(path, gap_of(v), why, sizeof why);
    return failed ? error_set(err, n, -ENOTSUP, "the destination does not have its disk: %s", why) : 0;
}

int receive_see_disks(struct receiving *v, char *err, size_t n)
{
    const struct option_list *disks = &v->record.settings.config.disks;
    int failed = 0;

    for (unsigned i = 0; i < disks->n && !failed; i++) {
        struct disk_spec spec;
        failed = disk_parse(disks->value[i], &spec, err, n);
        if (!failed && !spec.read_only)
            failed = see(v, &spec, err, n);
    }
    return failed;
}

/* --- the machine's own disk --------------------------------------------------------------------------------------- */

/* A name of the file itself, also where the old one is a symbolic link, which will be gone with the rest. */
static int name_too(const char *file, const char *name, char *err, size_t n)
{
    return linkat(AT_FDCWD, file, AT_FDCWD, name, AT_SYMLINK_FOLLOW)
               ? error_sys(err, n, -errno, "%s cannot be given a second name", file)
               : 0;
}

/* Its layers are known by their ids, in the headers of those that lie on them: they need no proof. */
static int link_layers(const struct receiving *v, const char *from, char *err, size_t n)
{
    const struct registry *r = &v->r->registry;
    const char *slash = strrchr(from, '/');
    char path[PATH_MAX], there[PATH_MAX], layer[LAYER_NAME_SIZE];
    int failed = registry_path(r, v->record.name, VM_DISK, path, err, n);
    bool first = true;

    while (!failed && layer_below(path, layer)) {
        failed = first ? layers_directory(r, v->record.name, path, err, n) : 0;
        first = false;
        if (!failed)
            failed = path_format(there, sizeof there, err, n, "%.*s/layers/%s", (int)(slash - from), from, layer);
        if (!failed)
            failed = layer_path(r, v->record.name, layer, path, err, n);
        if (!failed)
            failed = name_too(there, path, err, n);
    }
    return failed;
}

static void unlink_all(const struct receiving *v)
{
    const struct registry *r = &v->r->registry;
    char path[PATH_MAX], none[1];

    if (!registry_path(r, v->record.name, VM_DISK, path, none, sizeof none))
        unlink(path);
    layers_sweep(r, v->record.name); /* nobody stands on them now */
}

static int share_own(struct receiving *v, const char *from, char *err, size_t n)
{
    char path[PATH_MAX];
    int failed = from[0] == '/' && gap_of(v) ? disk_sees(from, gap_of(v), err, n)
                                             : error_set(err, n, -ESTALE, "the source does not say where it is");

    if (!failed)
        failed = registry_path(&v->r->registry, v->record.name, VM_DISK, path, err, n);
    if (!failed)
        failed = name_too(from, path, err, n);
    if (failed)
        return failed;
    failed = disk_sees(path, gap_of(v), err, n); /* the old name may have become another file's */
    if (!failed)
        failed = link_layers(v, from, err, n);
    if (failed)
        unlink_all(v);
    return failed;
}

int receive_own_disk(struct receiving *v, char *err, size_t n)
{
    bool must = json_is_true(json_object_get(storage_of(v), "must"));
    char why[ERROR_SIZE];

    if (!storage_of(v))
        return 0;
    v->own_stays = !share_own(v, text_of(storage_of(v), "own"), why, sizeof why);
    return v->own_stays || !must ? 0 : error_set(err, n, -ESTALE, "its disk cannot stay where it is: %s", why);
}

/* --- it runs ------------------------------------------------------------------------------------------------------ */

int receive_go(struct client *c, bool vouched, char *err, size_t n)
{
    json_t *status = NULL, *files;
    int fds[CONTROL_FDS_MAX];
    unsigned n_fds = 0;
    int failed = client_call(c, "incoming", json_pack("{s:s}", "action", "status"), &status, err, n);

    files = json_object_get(status, "files");
    for (size_t i = 0; i < json_array_size(files) && i < CONTROL_FDS_MAX && !failed; i++) {
        fds[n_fds] = disk_claim(json_string_value(json_array_get(files, i)), err, n);
        if (fds[n_fds] < 0)
            failed = fds[n_fds];
        else
            n_fds++;
    }
    json_decref(status);
    if (!failed)
        failed = client_call_fds(c, "incoming", json_pack("{s:s, s:b}", "action", "go", "vouched", (int)vouched), fds,
                                 n_fds, NULL, err, n);
    while (n_fds)
        close(fds[--n_fds]);
    return failed;
}
