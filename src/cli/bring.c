#include "cli/bring.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backends/disk.h"
#include "backends/disk/overlay.h"
#include "base/error.h"
#include "base/log.h"
#include "cli/image_progress.h"
#include "vm/events.h"
#include "vm/prepare.h"

#define DEFAULT_IMAGE "debian"
#define SHUT_DOWN_MS 15000

/* --- creation ------------------------------------------------------------------------------------------------- */

/* The image, which is held by *hold until a vm.json names it. */
int bring_find_image(struct bring *b, const char *word, struct image_info *info, int *hold, char *err, size_t n)
{
    struct image_show show;

    progress_stage(&b->progress, "image", word);
    int failed = image_find(word, info, err, n);
    if (failed == -ENOENT) { /* it has to be made, which is shown in its own way */
        progress_end(&b->progress);
        image_show_begin(&show, false);
        failed = image_ensure(word, &show.report, info, err, n);
        image_show_end(&show);
    }
    if (!failed && b->record.settings.cloud_init && !info->has_cloud_init)
        failed = error_set(err, n, -ENOTSUP,
                           "--cloud-init: the image %s has no cloud-init; build one with --include cloud-init", word);
    if (failed)
        return failed;
    *hold = image_hold(info, err, n);
    return *hold < 0 ? *hold : 0;
}

/* The machine's own disk: what it writes, over the image's, which all share. */
static int make_disk(struct bring *b, const struct image_info *info, char *err, size_t n)
{
    char path[PATH_MAX], *base = disk_quote(info->disk, "raw");
    uint64_t size = b->record.settings.disk_bytes;

    progress_stage(&b->progress, "disk", NULL);
    int failed = base ? registry_path(&b->registry, b->record.name, VM_DISK, path, err, n)
                      : error_set(err, n, -ENOMEM, "out of memory");
    if (!failed)
        failed = disk_overlay_create(path, base, size > info->disk_bytes ? size : 0, err, n);
    free(base);
    return failed;
}

static void log_creation(const struct bring *b)
{
    char path[PATH_MAX], none[1];
    struct event_log events;

    if (registry_path(&b->registry, b->record.name, "events.log", path, none, sizeof none) ||
        event_log_open(&events, path, b->record.name, none, sizeof none))
        return;
    free(event_log_add(&events, "created", NULL));
    event_log_close(&events);
}

/* Everything after the record: on failure nothing is left of it. */
static int furnish(struct bring *b, const struct image_info *info, char *err, size_t n)
{
    char none[1];
    int failed = record_has_disk(&b->record) ? make_disk(b, info, err, n) : 0;

    if (failed)
        registry_remove(&b->registry, b->record.name, b->lock, none, sizeof none);
    else
        log_creation(b);
    return failed;
}

static int create(struct bring *b, const struct run_arguments *a, enum vm_mode mode, bool ephemeral, char *err,
                  size_t n)
{
    struct image_info info = {.digest = ""};
    int hold = -1;
    int failed = record_init(&b->record, &a->settings, err, n);

    b->record.mode = mode;
    b->record.ephemeral = ephemeral;
    if (!failed && mode != VM_MODE_KERNEL) {
        if (!b->record.settings.image)
            b->record.settings.image = DEFAULT_IMAGE;
        failed = bring_find_image(b, b->record.settings.image, &info, &hold, err, n);
        snprintf(b->record.image_digest, sizeof b->record.image_digest, "%s", info.digest);
    }
    if (!failed)
        failed = registry_create(&b->registry, &b->record, &b->lock, err, n);
    if (!failed)
        failed = furnish(b, &info, err, n);
    if (hold >= 0)
        close(hold);
    return failed;
}

int bring_create(struct bring *b, const struct run_arguments *a, enum vm_mode mode, bool ephemeral)
{
    char err[ERROR_SIZE];
    int failed;

    *b = (struct bring){.lock = -1};
    progress_begin(&b->progress, a->verbose, a->quiet);
    failed = registry_open(&b->registry, err, sizeof err);
    if (!failed)
        failed = create(b, a, mode, ephemeral, err, sizeof err);
    if (!failed)
        return STATUS_OK;
    progress_end(&b->progress);
    return cli_failed(failed, err);
}

void bring_leave(struct bring *b)
{
    progress_end(&b->progress);
    close(b->lock);
    b->lock = -1;
}

/* --- the run ------------------------------------------------------------------------------------------------------ */

/* Takes a throw-away one away, its process having ended. */
static void throw_away(const struct bring *b)
{
    char none[1];
    int lock;

    if (b->record.ephemeral && registry_lock(&b->registry, b->record.name, &lock, none, sizeof none) == 0)
        registry_remove(&b->registry, b->record.name, lock, none, sizeof none);
}

int bring_start(struct bring *b, bool attached)
{
    b->start = (struct life_start){.registry = &b->registry, .record = &b->record, .progress = &b->progress};
    int status = life_begin(&b->start, b->lock, attached);
    b->lock = -1;
    if (status != STATUS_OK)
        throw_away(b);
    return status;
}

int bring_wait_agent(struct bring *b)
{
    int status = life_wait_ready(&b->start, READY_MS);

    if (status != STATUS_OK) {
        life_cut_power_if_on(&b->registry, b->record.name);
        throw_away(b);
    }
    return status;
}

void bring_end(struct bring *b)
{
    char none[1];
    const char *mode = b->record.ephemeral ? "force" : "auto";

    client_call(&b->start.client, "stop", json_pack("{s:s}", "mode", mode), NULL, none, sizeof none);
    if (process_wait(&b->registry, b->record.name, SHUT_DOWN_MS))
        life_cut_power_if_on(&b->registry, b->record.name);
    client_close(&b->start.client);
    throw_away(b);
}
