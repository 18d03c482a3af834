/* The disk of a machine that runs, after a command that has died while it gave that a new layer. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "backends/disk/overlay.h"
#include "base/error.h"
#include "base/file.h"
#include "vm/client.h"
#include "vm/layers.h"
#include "vm/snapshot_store.h"

static bool is_overlay(const char *path, const char *id)
{
    char found[DISK_OVERLAY_ID_SIZE];

    return disk_overlay_id(path, found) == 0 && strcmp(found, id) == 0;
}

/* The file with that id, the disk's or that of a layer below it, becomes the disk's. */
static int take_back(const struct registry *r, const char *name, const char *id, char *err, size_t n)
{
    char disk[PATH_MAX], path[PATH_MAX], layer[LAYER_NAME_SIZE];
    int failed = registry_path(r, name, VM_DISK, disk, err, n);
    unsigned above = 0;

    memcpy(path, disk, sizeof path);
    for (; !failed && !is_overlay(path, id); above++) {
        if (above == DISK_OVERLAYS_MAX || !layer_below(path, layer)) /* whoever hands it a layer is told so */
            return 0;
        failed = layer_path(r, name, layer, path, err, n);
    }
    if (failed || !above)
        return failed;
    if (rename(path, disk))
        return error_sys(err, n, -errno, "cannot put %s in its place", path);
    if ((failed = file_sync_directory(disk)))
        return error_sys(err, n, failed, "cannot save %s", disk);
    layers_sweep(r, name);
    return 0;
}

/* While it is taking one it may be about to write to the new layer, or does. */
static bool is_at_it(const json_t *status)
{
    const char *state = json_string_value(json_object_get(status, "state"));

    return !state || strcmp(state, "flushing") == 0 || strcmp(state, "writing") == 0;
}

int layers_settle(const struct registry *r, const char *name, struct client *client, char *err, size_t n)
{
    json_t *status = NULL;
    char none[1];

    if (client)
        client_call(client, "snapshot", json_pack("{s:s}", "action", "status"), &status, none, sizeof none);
    const char *id = json_string_value(json_object_get(status, "disk"));
    int failed = id && !is_at_it(status) ? take_back(r, name, id, err, n) : 0;

    json_decref(status);
    return failed;
}
