#include "vm/copy.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backends/disk/overlay.h"
#include "base/error.h"
#include "base/path.h"
#include "vm/events.h"
#include "vm/layers.h"

#define NUMBERS_MOST 100000u

/* --- the record --------------------------------------------------------------------------------------------------- */

/* A card whose address was told has one of its own in the copy: the words without it, in place. */
static void forget_mac(char *word)
{
    char *mac = strstr(word, ",mac="), *end = mac ? strchr(mac + 1, ',') : NULL;

    if (mac)
        memmove(mac, end ? end : mac + strlen(mac), strlen(end ? end : mac + strlen(mac)) + 1);
}

static int fill(const struct vm_record *parent, const struct copy_words *words, struct vm_record *copy, char *err,
                size_t n)
{
    int failed = record_init(copy, &parent->settings, err, n);

    if (failed)
        return failed;
    memcpy(copy->image_digest, parent->image_digest, sizeof copy->image_digest);
    memcpy(copy->directory, parent->directory, sizeof copy->directory);
    copy->mode = parent->mode;
    copy->ephemeral = parent->ephemeral || words->ephemeral;
    copy->settings.hostname = words->hostname;
    copy->settings.config.publish = words->publish ? *words->publish : (struct option_list){.n = 0};
    for (unsigned i = 0; i < copy->settings.config.nets.n; i++)
        forget_mac((char *)copy->settings.config.nets.value[i]);
    return 0;
}

/* --- the disk ---------------------------------------------------------------------------------------------------- */

/* The layer and all below it. */
static int link_layers(const struct registry *r, const char *from, const char *to, const char *layer, char *err,
                       size_t n)
{
    char there[PATH_MAX], here[PATH_MAX], next[64];
    bool more = true;

    snprintf(next, sizeof next, "%s", layer);
    for (unsigned i = 0; more && i < DISK_OVERLAYS_MAX; i++) {
        int failed = layer_path(r, from, next, there, err, n);
        if (!failed)
            failed = layer_path(r, to, next, here, err, n);
        if (failed)
            return failed;
        if (link(there, here))
            return error_sys(err, n, -errno, "the disk's layer %s cannot be shared", there);
        more = layer_below(there, next);
    }
    return 0;
}

static int make_disk(const struct registry *r, const char *from, const char *to, const char *layer, char *err, size_t n)
{
    char path[PATH_MAX], disk[PATH_MAX];
    int failed = layers_directory(r, to, path, err, n);

    if (!failed)
        failed = link_layers(r, from, to, layer, err, n);
    if (!failed)
        failed = layer_path(r, to, layer, path, err, n);
    if (!failed)
        failed = registry_path(r, to, VM_DISK, disk, err, n);
    return failed ? failed : disk_overlay_stack_create(disk, path, err, n);
}

/* --- all of it --------------------------------------------------------------------------------------------------- */

void copy_note(const struct registry *r, const char *name, const char *parent)
{
    char path[PATH_MAX], none[1];
    struct event_log events;

    if (registry_path(r, name, "events.log", path, none, sizeof none) ||
        event_log_open(&events, path, name, none, sizeof none))
        return;
    free(event_log_add(&events, "created", json_pack("{s:s}", "copy_of", parent)));
    event_log_close(&events);
}

static bool is_taken(const struct registry *r, const char *name)
{
    char path[PATH_MAX], none[1];

    return !registry_path(r, name, ".", path, none, sizeof none) && access(path, F_OK) == 0;
}

static int create(const struct registry *r, struct copy_words *words, struct vm_record *copy, int *lock, char *err,
                  size_t n)
{
    char name[NAME_SIZE];

    copy->settings.name = words->name ? name : NULL;
    if (!words->name)
        return registry_create(r, copy, lock, err, n);
    for (;;) {
        int len = words->numbered ? snprintf(name, sizeof name, "%s-%u", words->name, words->number++)
                                  : snprintf(name, sizeof name, "%s", words->name);
        if (len >= (int)sizeof name)
            return error_set(err, n, -EINVAL, "the name %s is too long to be numbered", words->name);
        int failed = name_check(name, err, n);
        if (!failed)
            failed = words->numbered && is_taken(r, name) ? -EEXIST : registry_create(r, copy, lock, err, n);
        if (failed != -EEXIST || !words->numbered || words->number > NUMBERS_MOST) {
            copy->settings.name = copy->name;
            return failed;
        }
    }
}

int copy_begin(const struct registry *r, const struct vm_record *parent, struct copy_words *words,
               struct vm_record *copy, int *lock, char *err, size_t n)
{
    int failed = fill(parent, words, copy, err, n);

    return failed ? failed : create(r, words, copy, lock, err, n);
}

int copy_make(const struct registry *r, const struct vm_record *parent, const char *layer, struct copy_words *words,
              struct vm_record *copy, int *lock, char *err, size_t n)
{
    char none[1];
    int failed = copy_begin(r, parent, words, copy, lock, err, n);

    if (failed)
        return failed;
    if (layer[0] && (failed = make_disk(r, parent->name, copy->name, layer, err, n)))
        registry_remove(r, copy->name, *lock, none, sizeof none);
    else
        copy_note(r, copy->name, parent->name);
    return failed;
}
