#include "vm/snapshot_store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/disk/overlay.h"
#include "base/error.h"
#include "base/file.h"
#include "base/path.h"
#include "vm/client.h"
#include "vm/layers.h"
#include "vm/prepare.h"
#include "vm/tree.h"

#define STATE "state"
#define NEW ".new-"
#define LAYERS_MOST (DISK_OVERLAYS_MAX - 4) /* of one disk; the image's own may lie below */
#define PATIENCE_MS 5000                    /* another command is done before long */

/* --- looking --------------------------------------------------------------------------------------------------- */

json_t *snapshot_about(const struct snapshot_file *f, const char *name, char *err, size_t n)
{
    const struct section *s = sections_find(&f->sections, "about", "json");
    json_t *about = s ? json_loadb((const char *)s->bytes, s->size, JSON_REJECT_DUPLICATES, NULL) : NULL;

    if (!json_is_object(about) || json_integer_value(json_object_get(about, "schema_version")) < 1) {
        json_decref(about);
        error_set(err, n, 0, "%s does not say what it is of", name);
        return NULL;
    }
    return about;
}

static void take_text(const json_t *about, const char *key, char *out, size_t size)
{
    const char *text = json_string_value(json_object_get(about, key));

    if (text && strlen(text) < size)
        memcpy(out, text, strlen(text) + 1);
}

static uint64_t on_disk(const char *path)
{
    struct stat st;

    return stat(path, &st) ? 0 : (uint64_t)st.st_blocks * 512;
}

static void look_at(const struct registry *r, const char *name, struct snapshot_info *info, const char *path)
{
    struct snapshot_file f;
    char layer[PATH_MAX], none[1];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int failed = snapshot_open(&f, fd, "it", info->damage, sizeof info->damage);
    json_t *about = failed ? NULL : snapshot_about(&f, "it", info->damage, sizeof info->damage);

    if (about) {
        take_text(about, "created", info->created, sizeof info->created);
        take_text(about, "engine", info->engine, sizeof info->engine);
        take_text(about, "layer", info->layer, sizeof info->layer);
        info->memory_bytes = (uint64_t)json_integer_value(json_object_get(about, "memory_bytes"));
        info->cpus = (uint64_t)json_integer_value(json_object_get(about, "cpus"));
    }
    if (info->layer[0] && !layer_is_name(info->layer))
        info->layer[0] = 0;
    if (info->layer[0] && !layer_path(r, name, info->layer, layer, none, sizeof none)) {
        if (access(layer, R_OK))
            snprintf(info->damage, sizeof info->damage, "the layer of its disk is missing");
        info->disk_bytes = on_disk(layer);
    }
    info->file_bytes = on_disk(path);
    json_decref(about);
    snapshot_close(&f);
    if (fd >= 0)
        close(fd);
}

static int by_age(const void *a, const void *b)
{
    const struct snapshot_info *x = a, *y = b;
    int order = strcmp(x->created, y->created);

    return order ? order : strcmp(x->tag, y->tag);
}

int snapshot_list(const struct registry *r, const char *name, struct snapshot_info **list, char *err, size_t n)
{
    char path[PATH_MAX], file[NAME_SIZE + 32], none[1];
    int failed = registry_path(r, name, "snapshots", path, err, n), count = 0;
    DIR *dir = failed ? NULL : opendir(path);
    struct dirent *e;

    *list = NULL;
    if (!dir)
        return failed ? failed : errno == ENOENT ? 0 : error_sys(err, n, -errno, "cannot look into %s", path);
    while ((e = readdir(dir))) {
        if (name_check(e->d_name, none, sizeof none))
            continue;
        snprintf(file, sizeof file, "snapshots/%.63s/" STATE, e->d_name);
        if (registry_path(r, name, file, path, none, sizeof none) || access(path, F_OK))
            continue;
        struct snapshot_info *larger = realloc(*list, ((size_t)count + 1) * sizeof **list);
        if (!larger) {
            count = error_sys(err, n, -ENOMEM, "cannot list the snapshots");
            break;
        }
        *list = larger;
        larger[count] = (struct snapshot_info){.cpus = 0};
        memcpy(larger[count].tag, e->d_name, strlen(e->d_name) + 1);
        look_at(r, name, &larger[count++], path);
    }
    closedir(dir);
    if (count > 0)
        qsort(*list, (size_t)count, sizeof **list, by_age);
    return count;
}

int snapshot_find(const struct registry *r, const char *name, const char *tag, char out_tag[NAME_SIZE],
                  char path[PATH_MAX], char *err, size_t n)
{
    struct snapshot_info *list = NULL;
    char file[NAME_SIZE + 32];
    int failed = tag ? name_check(tag, err, n) : 0, count = 0;

    if (!failed && !tag && (count = snapshot_list(r, name, &list, err, n)) < 0)
        failed = count;
    if (!failed && !tag && !count)
        failed = error_set(err, n, -ENOENT, "%s has no snapshots; `guise snapshot %s` takes one", name, name);
    if (!failed) {
        snprintf(out_tag, NAME_SIZE, "%s", tag ? tag : list[count - 1].tag);
        snprintf(file, sizeof file, "snapshots/%.63s/" STATE, out_tag);
        failed = registry_path(r, name, file, path, err, n);
    }
    free(list);
    if (!failed && access(path, F_OK))
        failed = error_set(err, n, -ENOENT,
                           "%s has no snapshot '%s'; `guise snapshot ls %s` shows those that there are", name, out_tag,
                           name);
    return failed;
}

/* --- making ------------------------------------------------------------------------------------------------------ */

/* One command at a time makes and removes. */
static int take_lock(const struct registry *r, const char *name, char *err, size_t n)
{
    char path[PATH_MAX];
    int failed = registry_path(r, name, "snapshots", path, err, n);

    if (!failed)
        failed = path_make(path, 0700, err, n);
    if (!failed)
        failed = registry_path(r, name, "snapshots/lock", path, err, n);
    if (failed)
        return failed;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return error_sys(err, n, -errno, "cannot open %s", path);
    for (int waited = 0; flock(fd, LOCK_EX | LOCK_NB); waited += 5) {
        if (waited >= PATIENCE_MS) {
            close(fd);
            return error_set(err, n, -EBUSY, "another command is at work with the snapshots of %s", name);
        }
        usleep(5000);
    }
    return fd;
}

/* What was left by commands that died: the lock says that nobody is at it. */
static void sweep_new(const struct registry *r, const char *name)
{
    char path[PATH_MAX], sub[320], none[1];
    struct dirent *e;
    DIR *dir = registry_path(r, name, "snapshots", path, none, sizeof none) ? NULL : opendir(path);

    while (dir && (e = readdir(dir))) {
        snprintf(sub, sizeof sub, "snapshots/%s", e->d_name);
        if (strncmp(e->d_name, NEW, strlen(NEW)) == 0 && !registry_path(r, name, sub, path, none, sizeof none))
            tree_remove(path);
    }
    if (dir)
        closedir(dir);
}

static int choose_tag(const struct registry *r, const char *name, struct snapshot_making *m, char *err, size_t n)
{
    char sub[NAME_SIZE + 32];
    int failed = 0;

    for (unsigned i = 1; !failed; i++) {
        if (!m->tag[0] || i > 1)
            snprintf(m->tag, sizeof m->tag, "snap-%u", i);
        snprintf(sub, sizeof sub, "snapshots/%.63s", m->tag);
        failed = registry_path(r, name, sub, m->final, err, n);
        if (!failed && access(m->final, F_OK))
            break;
    }
    snprintf(sub, sizeof sub, "snapshots/" NEW "%.50s", m->tag);
    return failed ? failed : registry_path(r, name, sub, m->directory, err, n);
}

static int choose_layer(const struct registry *r, const char *name, struct snapshot_making *m, char *err, size_t n)
{
    int failed = layer_new(r, name, m->layer, m->layer_path, err, n);

    return failed ? failed : registry_path(r, name, VM_DISK, m->disk, err, n);
}

/* The disk's file gets a second name, and its own goes to a new overlay on that. */
static int add_layer(struct snapshot_making *m, char *err, size_t n)
{
    char fresh[PATH_MAX];
    int failed = path_format(fresh, sizeof fresh, err, n, "%s.new", m->disk);

    if (failed)
        return failed;
    unlink(fresh); /* of one that died */
    if (link(m->disk, m->layer_path))
        return error_sys(err, n, -errno, "cannot make %s", m->layer_path);
    failed = disk_overlay_stack_create(fresh, m->layer_path, err, n);
    if (!failed && (m->top = disk_overlay_stack_open(fresh, err, n)) < 0)
        failed = m->top;
    if (!failed && rename(fresh, m->disk))
        failed = error_sys(err, n, -errno, "cannot put %s in its place", fresh);
    if (!failed && (failed = file_sync_directory(m->disk)))
        error_sys(err, n, failed, "cannot save %s", m->disk);
    if (failed) {
        unlink(fresh);
        unlink(m->layer_path);
    }
    return failed;
}

static int open_state(struct snapshot_making *m, char *err, size_t n)
{
    char path[PATH_MAX];
    int failed = path_format(path, sizeof path, err, n, "%s/" STATE, m->directory);

    if (failed)
        return failed;
    if (mkdir(m->directory, 0700))
        return error_sys(err, n, -errno, "cannot make %s", m->directory);
    m->state = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    return m->state < 0 ? error_sys(err, n, -errno, "cannot make %s", path) : 0;
}

bool snapshot_is_layered(const struct snapshot_making *m, struct client *client)
{
    json_t *status = NULL;
    char none[1];

    client_call(client, "snapshot", json_pack("{s:s}", "action", "status"), &status, none, sizeof none);
    const char *layer = json_string_value(json_object_get(status, "layer"));
    bool layered = !status ||
                   (layer && strcmp(layer, m->layer) == 0 && json_is_true(json_object_get(status, "layered")));

    json_decref(status);
    return layered;
}

/* A machine on its way elsewhere refuses it, too; but then the destination might find the disk under the wrong name. */
static int refuse_moving(struct client *client, const char *name, char *err, size_t n)
{
    json_t *status = NULL;
    char none[1];

    if (client)
        client_call(client, "migrate", json_pack("{s:s}", "action", "status"), &status, none, sizeof none);
    const char *state = json_string_value(json_object_get(status, "state"));
    bool moves = state && strcmp(state, "none") != 0 && strcmp(state, "ended") != 0;
    json_decref(status);
    return moves ? error_set(err, n, -EBUSY,
                             "%s is on its way to another process: try again when it is there, or stays", name)
                 : 0;
}

/* If it has one.  Too many layers become fewer before; as long as there are not far too many it may go on with them. */
static int layer_disk(const struct registry *r, const struct vm_record *record, struct client *client,
                      struct snapshot_making *m, char *err, size_t n)
{
    char why[ERROR_SIZE] = "all of them are needed";

    if (!record_has_disk(record))
        return 0;
    int failed = refuse_moving(client, record->name, err, n);
    if (!failed)
        failed = layers_settle(r, record->name, client, err, n);
    if (failed)
        return failed;
    (void)layers_merge(r, record->name, LAYERS_FEW, client, why, sizeof why);
    if (layers_count(r, record->name) >= LAYERS_MOST)
        return error_set(err, n, -E2BIG, "the disk of %s consists of %u layers, and more would be slow: %.400s",
                         record->name, LAYERS_MOST, why);
    failed = choose_layer(r, record->name, m, err, n);
    return failed ? failed : add_layer(m, err, n);
}

int snapshot_make(const struct registry *r, const struct vm_record *record, struct client *client, const char *tag,
                  struct snapshot_making *m, char *err, size_t n)
{
    bool told = tag && *tag;
    int failed = told ? name_check(tag, err, n) : 0;

    *m = (struct snapshot_making){.lock = -1, .state = -1, .top = -1};
    if (!failed && (m->lock = take_lock(r, record->name, err, n)) < 0)
        failed = m->lock;
    if (failed)
        return failed;
    sweep_new(r, record->name);
    snprintf(m->tag, sizeof m->tag, "%s", told ? tag : "");
    failed = choose_tag(r, record->name, m, err, n);
    if (!failed && told && strcmp(m->tag, tag) != 0)
        failed = error_set(err, n, -EEXIST, "%s has a snapshot '%s' already; `guise snapshot rm %s %s` removes it",
                           record->name, tag, record->name, tag);
    if (!failed)
        failed = open_state(m, err, n);
    if (!failed)
        failed = layer_disk(r, record, client, m, err, n);
    if (failed)
        snapshot_make_abort(m, true);
    return failed;
}

static void let_go(struct snapshot_making *m)
{
    const int fds[] = {m->state, m->top, m->lock};

    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    m->state = m->top = m->lock = -1;
}

int snapshot_make_commit(struct snapshot_making *m, char *err, size_t n)
{
    char path[PATH_MAX];
    int failed = path_format(path, sizeof path, err, n, "%s/" STATE, m->directory);

    if (!failed && (failed = file_sync_directory(path)))
        error_sys(err, n, failed, "cannot save %s", path);
    if (!failed && rename(m->directory, m->final))
        failed = error_sys(err, n, -errno, "cannot make %s", m->final);
    if (!failed && (failed = file_sync_directory(m->final)))
        error_sys(err, n, failed, "cannot save %s", m->final);
    let_go(m);
    return failed;
}

void snapshot_make_abort(struct snapshot_making *m, bool layered)
{
    if (m->directory[0] && m->state >= 0)
        tree_remove(m->directory);
    if (m->top >= 0 && !layered)
        (void)rename(m->layer_path, m->disk); /* it has both names, or the one: the disk is what it was */
    let_go(m);
}

int snapshot_make_layer(const struct registry *r, const struct vm_record *record, struct client *client,
                        struct snapshot_making *m, char *err, size_t n)
{
    *m = (struct snapshot_making){.lock = -1, .state = -1, .top = -1};
    m->lock = take_lock(r, record->name, err, n);
    if (m->lock < 0)
        return m->lock;
    int failed = layer_disk(r, record, client, m, err, n);
    if (failed)
        let_go(m);
    return failed;
}

void snapshot_make_layer_end(struct snapshot_making *m, bool layered)
{
    if (m->top >= 0 && !layered)
        (void)rename(m->layer_path, m->disk);
    let_go(m);
}

/* --- going back, removing ---------------------------------------------------------------------------------------- */

static int put_back(const struct registry *r, const char *name, const char *layer, char *err, size_t n)
{
    char disk[PATH_MAX], fresh[PATH_MAX], base[PATH_MAX];
    int failed = layer_is_name(layer) ? registry_path(r, name, VM_DISK, disk, err, n)
                                      : error_set(err, n, -EINVAL, "'%s' is not the name of a layer", layer);

    if (!failed)
        failed = path_format(fresh, sizeof fresh, err, n, "%s.new", disk);
    if (!failed)
        failed = layer_path(r, name, layer, base, err, n);
    if (failed)
        return failed;
    unlink(fresh);
    failed = disk_overlay_stack_create(fresh, base, err, n);
    if (!failed && rename(fresh, disk))
        failed = error_sys(err, n, -errno, "cannot put %s in its place", fresh);
    if (!failed && (failed = file_sync_directory(disk)))
        error_sys(err, n, failed, "cannot save %s", disk);
    if (failed)
        unlink(fresh);
    else
        layers_sweep(r, name);
    return failed;
}

int snapshot_disk_back(const struct registry *r, const char *name, const char *layer, char *err, size_t n)
{
    int lock = take_lock(r, name, err, n);

    if (lock < 0)
        return lock;
    int failed = put_back(r, name, layer, err, n);
    close(lock);
    return failed;
}

/* First out of the way, in one step: half a snapshot is none. */
int snapshot_remove(const struct registry *r, const char *name, const char *tag, char *err, size_t n)
{
    char path[PATH_MAX], gone[PATH_MAX], out[NAME_SIZE];
    int failed = snapshot_find(r, name, tag, out, path, err, n), lock = -1;

    if (failed)
        return failed;
    if ((lock = take_lock(r, name, err, n)) < 0)
        failed = lock;
    *strrchr(path, '/') = 0;
    if (!failed)
        failed = path_format(gone, sizeof gone, err, n, "%.*s/" NEW "gone", (int)(strrchr(path, '/') - path), path);
    if (!failed) {
        tree_remove(gone);
        if (rename(path, gone))
            failed = error_sys(err, n, -errno, "cannot remove %s", path);
    }
    if (!failed && (failed = tree_remove(gone)))
        error_sys(err, n, failed, "cannot remove %s", gone);
    if (!failed)
        layers_sweep(r, name);
    if (lock >= 0)
        close(lock);
    return failed;
}

int snapshot_merge_layers(const struct registry *r, const char *name, bool stopped, unsigned few, char *err, size_t n)
{
    struct client client = {.fd = -1};
    int machine = -1, lock = layers_count(r, name) > few ? take_lock(r, name, err, n) : -1;

    if (lock < 0)
        return layers_count(r, name) > few ? lock : 0;
    bool runs = !stopped && client_open(&client, r, name, err, n) == 0;
    int failed = stopped || runs ? 0 : registry_lock(r, name, &machine, err, n);
    if (!failed)
        failed = layers_settle(r, name, runs ? &client : NULL, err, n);
    if (!failed)
        failed = layers_merge(r, name, few, runs ? &client : NULL, err, n);
    client_close(&client);
    if (machine >= 0)
        close(machine);
    close(lock);
    return failed;
}
