/*
 * A snapshot as one file that another host can go on from: its own file, with the disk's contents that are not the
 * image's beside those of memory.  The image itself is known by its digest and must be there, too.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/disk.h"
#include "backends/disk/overlay.h"
#include "base/error.h"
#include "base/file.h"
#include "base/path.h"
#include "host/loop.h"
#include "image/image.h"
#include "vm/copy.h"
#include "vm/layers.h"
#include "vm/prepare.h"
#include "vm/snapshot_store.h"

/* A disk that is open, and a loop that never runs. */
struct open_disk {
    pthread_mutex_t lock;
    struct loop *loop;
    struct disk *disk;
};

/* base: where the image is that it lies on, to be read only; NULL: where it was, to be written to. */
static int open_disk(struct open_disk *d, const char *path, const char *base, char *err, size_t n)
{
    char *quoted = disk_quote(path, "overlay"), *below = base ? disk_quote(base, NULL) : NULL, *words = NULL;

    *d = (struct open_disk){.lock = PTHREAD_MUTEX_INITIALIZER};
    int failed = !quoted || (base && !below) ||
                         asprintf(&words, "%s%s%s", quoted, base ? ",ro,base=" : "", base ? below : "") < 0
                     ? -ENOMEM
                     : 0;
    if (!failed)
        failed = loop_create(&d->loop, &d->lock);
    if (failed)
        error_sys(err, n, failed, "cannot open disk %s", path);
    else
        failed = disk_open(&d->disk, words, d->loop, err, n);
    free(quoted);
    free(below);
    free(words);
    return failed;
}

static int open_layer(struct open_disk *d, const struct registry *r, const char *name, const char *path, char *err,
                      size_t n)
{
    struct vm_record record;
    struct image_info image;
    int failed = registry_load(r, name, &record, err, n);

    if (failed)
        return failed;
    failed = image_find(record.image_digest, &image, err, n);
    record_free(&record);
    return failed ? failed : open_disk(d, path, image.disk, err, n);
}

static void close_disk(struct open_disk *d)
{
    disk_close(d->disk);
    if (d->loop)
        loop_destroy(d->loop);
}

static void done(struct disk_request *r) {}

static int transfer(struct disk *disk, enum disk_op op, uint64_t offset, void *bytes, uint64_t length)
{
    struct iovec iov = {bytes, length};
    struct disk_request r = {.op = op,
                             .offset = op == DISK_FLUSH ? 0 : offset,
                             .length = length,
                             .iov = &iov,
                             .n_iov = length ? 1 : 0,
                             .done = done,
                             .result = -EIO};

    disk_submit(disk, &r);
    disk_drain(disk);
    return r.result;
}

static uint32_t length_at(uint64_t bytes, uint64_t chunk)
{
    uint64_t left = bytes - (chunk << SNAPSHOT_CHUNK_SHIFT);

    return left < SNAPSHOT_CHUNK ? (uint32_t)left : SNAPSHOT_CHUNK;
}

/* --- out --------------------------------------------------------------------------------------------------------- */

/* Chunks that any layer above the image has something of. */
static int find_owned(const struct registry *r, const char *name, const char *layer, uint8_t *owned, uint64_t n_chunks,
                      char *err, size_t n)
{
    char path[PATH_MAX], sub[128], next[64];
    int failed = 0;

    snprintf(next, sizeof next, "%s", layer);
    for (unsigned i = 0; i < DISK_OVERLAYS_MAX && !failed; i++) {
        snprintf(sub, sizeof sub, "layers/%s", next);
        failed = registry_path(r, name, sub, path, err, n);
        if (!failed)
            failed = disk_overlay_owned(path, SNAPSHOT_CHUNK_SHIFT, owned, n_chunks, err, n);
        if (failed || !layer_below(path, next))
            break;
    }
    return failed;
}

static int export_disk(const struct registry *r, const char *name, const char *layer, struct snapshot_writer *w,
                       char *err, size_t n)
{
    char path[PATH_MAX];
    uint8_t bytes[SNAPSHOT_CHUNK], *owned = NULL;
    struct open_disk d;
    uint64_t chunks = 0;
    int hold = layers_hold(r, name, err, n), failed = hold < 0 ? hold : layer_path(r, name, layer, path, err, n);

    if (failed || (failed = open_layer(&d, r, name, path, err, n))) {
        if (hold >= 0)
            close(hold);
        return failed;
    }
    chunks = (d.disk->size + SNAPSHOT_CHUNK - 1) >> SNAPSHOT_CHUNK_SHIFT;
    owned = calloc(chunks, 1);
    failed = owned ? find_owned(r, name, layer, owned, chunks, err, n) : error_set(err, n, -ENOMEM, "out of memory");
    if (!failed && (failed = snapshot_write_extent(w, SNAPSHOT_DISK, d.disk->size)))
        error_sys(err, n, failed, "the disk cannot be exported");
    for (uint64_t i = 0; i < chunks && !failed; i++) {
        uint32_t length = length_at(d.disk->size, i);
        if (!owned[i])
            continue;
        failed = transfer(d.disk, DISK_READ, i << SNAPSHOT_CHUNK_SHIFT, bytes, length);
        if (!failed)
            failed = snapshot_write_chunk(w, SNAPSHOT_DISK, i, bytes, length);
        if (failed)
            error_sys(err, n, failed, "the disk cannot be exported");
    }
    free(owned);
    close_disk(&d);
    close(hold);
    return failed;
}

/* Memory and sections as they are; `about` (or NULL) instead of what the file says about itself. */
static int copy_rest(struct snapshot_writer *w, const struct snapshot_file *f, const json_t *about, char *err, size_t n)
{
    struct sections s = {0};
    char *text = about ? json_dumps(about, JSON_INDENT(2)) : NULL;
    int failed = snapshot_write_extent(w, SNAPSHOT_MEMORY, f->extent[SNAPSHOT_MEMORY].bytes);

    for (uint64_t i = 0; i < f->extent[SNAPSHOT_MEMORY].n && !failed; i++)
        failed = snapshot_copy_chunk(w, SNAPSHOT_MEMORY, i, f);
    for (unsigned i = 0; i < f->sections.n; i++) {
        const struct section *x = &f->sections.all[i];
        bool is_about = text && strcmp(x->kind, "about") == 0;
        sections_add(&s, x->kind, x->name, x->version, is_about ? (const void *)text : x->bytes,
                     is_about ? strlen(text) : x->size);
    }
    failed = failed ? failed : s.failed;
    if (!failed)
        failed = snapshot_write_sections(w, &s);
    if (!failed)
        failed = snapshot_write_end(w);
    sections_free(&s);
    free(text);
    return failed == -EBADMSG ? error_set(err, n, failed, "the snapshot is damaged: a check sum in it is wrong")
           : failed           ? error_sys(err, n, failed, "the file cannot be written")
                              : 0;
}

/* Whoever brings it somewhere would get the folders of the host that it names. */
static int refuse_folders(const struct registry *r, const char *name, char *err, size_t n)
{
    struct vm_record record;
    int failed = registry_load(r, name, &record, err, n);

    if (failed)
        return failed;
    if (record.settings.config.shares.n || record.settings.root)
        failed = error_set(err, n, -ENOTSUP,
                           "%s has shared folders, which would stay behind: its snapshots are restored "
                           "where they were taken",
                           name);
    record_free(&record);
    return failed;
}

/* Where that can be had it has no name until it is whole, so that a command that is killed leaves nothing; else
 * `fresh`. The descriptor, or -errno. */
static int open_nameless(const char *path, const char *fresh, bool *named)
{
    char directory[PATH_MAX];
    const char *slash = strrchr(path, '/');

    snprintf(directory, sizeof directory, "%.*s", slash ? (int)(slash - path) + 1 : 1, slash ? path : ".");
    int fd = open(directory, O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
    *named = fd < 0;
    fd = fd < 0 ? open(fresh, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) : fd;
    return fd < 0 ? -errno : fd;
}

/* It is whole: it gets its name, by way of that of `fresh`, in one step. */
static int put_in_place(int fd, const char *fresh, bool named, const char *path, char *err, size_t n)
{
    char self[32];
    int failed = 0;

    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    if ((!named && linkat(AT_FDCWD, self, AT_FDCWD, fresh, AT_SYMLINK_FOLLOW)) || rename(fresh, path))
        return error_sys(err, n, -errno, "cannot make %s", path);
    if ((failed = file_sync_directory(path)))
        error_sys(err, n, failed, "cannot save %s", path);
    return failed;
}

int snapshot_export(const struct registry *r, const char *name, const char *tag, const char *path, char *err, size_t n)
{
    char state[PATH_MAX], out_tag[NAME_SIZE], fresh[PATH_MAX];
    struct snapshot_writer *w = NULL;
    struct snapshot_file f;
    int failed = refuse_folders(r, name, err, n);

    if (!failed)
        failed = snapshot_find(r, name, tag, out_tag, state, err, n);

    if (!failed)
        failed = path_format(fresh, sizeof fresh, err, n, "%s.new-%d", path, (int)getpid());
    if (failed)
        return failed;
    bool named;
    int in = open(state, O_RDONLY | O_CLOEXEC), out = open_nameless(path, fresh, &named);
    failed = snapshot_open(&f, in, state, err, n);
    if (!failed && (out < 0 || snapshot_writer_create(&w, out)))
        failed = error_sys(err, n, out < 0 ? out : -ENOMEM, "cannot make %s", path);
    json_t *about = failed ? NULL : snapshot_about(&f, state, err, n);
    const char *layer = json_string_value(json_object_get(about, "layer"));
    failed = failed ? failed : about ? 0 : -EBADMSG;
    if (!failed && layer)
        failed = export_disk(r, name, layer, w, err, n);
    if (!failed)
        failed = copy_rest(w, &f, NULL, err, n);
    if (!failed)
        failed = put_in_place(out, fresh, named, path, err, n);
    if (failed)
        unlink(fresh);
    json_decref(about);
    snapshot_writer_destroy(w);
    snapshot_close(&f);
    if (in >= 0)
        close(in);
    if (out >= 0)
        close(out);
    return failed;
}

/* --- in ---------------------------------------------------------------------------------------------------------- */

static int fill_disk(const struct snapshot_file *f, struct disk *disk)
{
    uint8_t bytes[SNAPSHOT_CHUNK];
    int failed = 0;

    for (uint64_t i = 0; i < f->extent[SNAPSHOT_DISK].n && !failed; i++) {
        int kept = snapshot_read_chunk(f, SNAPSHOT_DISK, i, bytes);
        if (kept < 0)
            failed = kept;
        if (kept > 0)
            failed = transfer(disk, DISK_WRITE, i << SNAPSHOT_CHUNK_SHIFT, bytes, length_at(disk->size, i));
    }
    return failed ? failed : transfer(disk, DISK_FLUSH, 0, NULL, 0);
}

/* The layer that its disk was: an overlay on the image here. */
static int import_layer(const struct snapshot_file *f, const char *path, const struct image_info *image, char *err,
                        size_t n)
{
    uint64_t bytes = f->extent[SNAPSHOT_DISK].bytes;
    char *base = disk_quote(image->disk, "raw");
    struct open_disk d;
    int failed = base ? disk_overlay_create(path, base, bytes, err, n) : error_set(err, n, -ENOMEM, "out of memory");

    free(base);
    if (failed || (failed = open_disk(&d, path, NULL, err, n)))
        return failed;
    failed = fill_disk(f, d.disk);
    close_disk(&d);
    return failed ? error_sys(err, n, failed, "its disk cannot be written") : 0;
}

static int import_state(const struct snapshot_file *f, const char *directory, const json_t *about, char *err, size_t n)
{
    char path[PATH_MAX];
    struct snapshot_writer *w;
    int failed = path_make(directory, 0700, err, n);

    if (!failed)
        failed = path_format(path, sizeof path, err, n, "%s/state", directory);
    if (failed)
        return failed;
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    failed = fd < 0 ? -errno : snapshot_writer_create(&w, fd);
    if (failed) {
        error_sys(err, n, failed, "cannot make %s", path);
    } else {
        failed = copy_rest(w, f, about, err, n);
        snapshot_writer_destroy(w);
    }
    if (fd >= 0)
        close(fd);
    return failed ? failed : file_sync_directory(path);
}

/* Everything below the machine's directory, which exists. */
static int import_all(const struct registry *r, const struct vm_record *record, const struct snapshot_file *f,
                      json_t *about, const char *tag, char *err, size_t n)
{
    char path[PATH_MAX], sub[NAME_SIZE + 32], layer[LAYER_NAME_SIZE] = "";
    struct image_info image;
    int failed = 0;

    json_object_set_new(about, "name", json_string(record->name));
    if (record_has_disk(record)) {
        failed = image_find(record->image_digest, &image, err, n);
        if (!failed)
            failed = layer_new(r, record->name, layer, path, err, n);
        if (!failed)
            failed = import_layer(f, path, &image, err, n);
        json_object_set_new(about, "layer", json_string(layer));
    }
    snprintf(sub, sizeof sub, "snapshots/%.63s", tag);
    if (!failed)
        failed = registry_path(r, record->name, sub, path, err, n);
    if (!failed)
        failed = import_state(f, path, about, err, n);
    if (!failed && record_has_disk(record))
        failed = snapshot_disk_back(r, record->name, layer, err, n);
    return failed;
}

/* The machine that it is of, by its own words. */
static int take_record(const json_t *about, const char *file, struct vm_record *record, char *err, size_t n)
{
    char *text = json_dumps(json_object_get(about, "machine"), JSON_COMPACT), why[ERROR_SIZE] = "it says nothing";
    int failed = text ? record_parse(record, text, strlen(text), why, sizeof why) : -EBADMSG;

    free(text);
    if (failed)
        return error_set(err, n, failed, "%s does not say what machine it is of: %s", file, why);
    if (!record->settings.config.shares.n && !record->settings.root)
        return 0;
    record_free(record);
    return error_set(err, n, -ENOTSUP,
                     "%s is of a machine with shared folders, which it would give to whoever has made it: such a "
                     "snapshot is restored where it was taken",
                     file);
}

/* The machine as which it goes on here: the same, or a copy, which its guest is to be told when it begins. */
static int create_machine(const struct registry *r, json_t *about, const char *name, struct copy_words *copy,
                          struct vm_record *record, int *lock, char *err, size_t n)
{
    struct vm_record parent = *record;

    if (!copy) {
        record->settings.name = name ? name : record->settings.name;
        return registry_create(r, record, lock, err, n);
    }
    copy->numbered = !copy->name;
    copy->name = copy->name ? copy->name : parent.name;
    copy->number = 1;
    int failed = copy_begin(r, &parent, copy, record, lock, err, n);
    record->texts = parent.texts; /* in which it lives */
    if (failed)
        return failed;
    copy_note(r, record->name, parent.name);
    char *text = record_format(record);
    json_object_set_new(about, "machine", text ? json_loads(text, 0, NULL) : NULL);
    json_object_set_new(about, "copy", json_true());
    free(text);
    return 0;
}

int snapshot_import(const struct registry *r, const char *file, const char *name, struct copy_words *copy,
                    struct vm_record *record, char tag[NAME_SIZE], int *lock, char *err, size_t n)
{
    struct snapshot_file f;
    char none[1];
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    int failed = fd < 0 ? error_sys(err, n, -errno, "cannot open %s", file) : snapshot_open(&f, fd, file, err, n);
    json_t *about = failed ? NULL : snapshot_about(&f, file, err, n);

    *lock = -1;
    failed = failed ? failed : about ? take_record(about, file, record, err, n) : -EBADMSG;
    if (!failed) {
        const char *said = json_string_value(json_object_get(about, "tag"));
        snprintf(tag, NAME_SIZE, "%s", said && !name_check(said, none, sizeof none) ? said : "imported");
        record->ephemeral = false;
        if (record_has_disk(record) && !f.extent[SNAPSHOT_DISK].bytes)
            failed = error_set(err, n, -EINVAL, "%s has no disk in it: `guise snapshot export` makes one that has",
                               file);
        if (!failed)
            failed = create_machine(r, about, name, copy, record, lock, err, n);
        if (!failed && (failed = import_all(r, record, &f, about, tag, err, n))) {
            registry_remove(r, record->name, *lock, none, sizeof none);
            *lock = -1;
        }
        if (failed)
            record_free(record);
    }
    json_decref(about);
    if (fd >= 0) {
        snapshot_close(&f);
        close(fd);
    }
    return failed;
}
