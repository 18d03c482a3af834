#include "vm/snapshot_store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/disk/overlay.h"
#include "base/error.h"
#include "base/file.h"
#include "base/path.h"
#include "vm/tree.h"

#define STATE "state"
#define NEW ".new-"
#define LAYERS_MAX 256u
#define LAYERS_MOST (DISK_OVERLAYS_MAX - 4) /* of one disk; the image's own may lie below */
#define SUFFIX ".overlay"

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

/* A name of ours: nothing else is looked for among the layers. */
static bool is_layer(const char *file)
{
    size_t n = strspn(file, "0123456789abcdef");

    return n && n < 40 && strcmp(file + n, SUFFIX) == 0;
}

static uint64_t on_disk(const char *path)
{
    struct stat st;

    return stat(path, &st) ? 0 : (uint64_t)st.st_blocks * 512;
}

static void look_at(const struct registry *r, const char *name, struct snapshot_info *info, const char *path)
{
    struct snapshot_file f;
    char layer[PATH_MAX], file[128], none[1];
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
    if (info->layer[0] && !is_layer(info->layer))
        info->layer[0] = 0;
    snprintf(file, sizeof file, "layers/%s", info->layer);
    if (info->layer[0] && !registry_path(r, name, file, layer, none, sizeof none)) {
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

/* --- layers that nobody stands on any more ----------------------------------------------------------------------- */

struct layers {
    char used[LAYERS_MAX][64];
    unsigned n;
};

bool snapshot_base_layer(const char *path, char layer[64])
{
    char base[4096];

    if (disk_overlay_base(path, base))
        return false;
    const char *slash = strrchr(base, '/'), *file = slash ? slash + 1 : base;
    if (!is_layer(file) || strlen(file) >= 64)
        return false;
    memcpy(layer, file, strlen(file) + 1);
    return true;
}

static bool is_used(const struct layers *l, const char *file)
{
    for (unsigned i = 0; i < l->n; i++)
        if (strcmp(l->used[i], file) == 0)
            return true;
    return false;
}

/* It, and those below it. */
static void use(const struct registry *r, const char *name, struct layers *l, const char *file)
{
    char path[PATH_MAX], sub[128], none[1], next[64];

    snprintf(next, sizeof next, "%s", file);
    while (!is_used(l, next) && l->n < LAYERS_MAX) {
        memcpy(l->used[l->n++], next, sizeof next);
        snprintf(sub, sizeof sub, "layers/%s", next);
        if (registry_path(r, name, sub, path, none, sizeof none) || !snapshot_base_layer(path, next))
            return;
    }
}

static void find_used(const struct registry *r, const char *name, struct layers *l)
{
    struct snapshot_info *list = NULL;
    char path[PATH_MAX], none[1], layer[64];
    int n = snapshot_list(r, name, &list, none, sizeof none);

    for (int i = 0; i < n; i++)
        if (list[i].layer[0])
            use(r, name, l, list[i].layer);
    free(list);
    if (!registry_path(r, name, VM_DISK, path, none, sizeof none) && snapshot_base_layer(path, layer))
        use(r, name, l, layer);
}

void snapshot_sweep_layers(const struct registry *r, const char *name)
{
    struct layers *l = calloc(1, sizeof *l);
    char path[PATH_MAX], sub[320], none[1];
    DIR *dir = NULL;
    struct dirent *e;

    if (l && !registry_path(r, name, "layers", path, none, sizeof none) && (dir = opendir(path)))
        find_used(r, name, l);
    while (dir && l->n < LAYERS_MAX && (e = readdir(dir))) {
        snprintf(sub, sizeof sub, "layers/%s", e->d_name);
        if (is_layer(e->d_name) && !is_used(l, e->d_name) && !registry_path(r, name, sub, path, none, sizeof none))
            unlink(path);
    }
    if (dir)
        closedir(dir);
    free(l);
}

/* How many overlays of ours the disk is made of. */
static unsigned count_layers(const struct registry *r, const char *name)
{
    char path[PATH_MAX], sub[128], none[1], layer[64];
    unsigned n = 1;

    if (registry_path(r, name, VM_DISK, path, none, sizeof none))
        return 0;
    while (n < LAYERS_MAX && snapshot_base_layer(path, layer)) {
        snprintf(sub, sizeof sub, "layers/%s", layer);
        if (registry_path(r, name, sub, path, none, sizeof none))
            break;
        n++;
    }
    return n;
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
    if (flock(fd, LOCK_EX | LOCK_NB)) {
        close(fd);
        return error_set(err, n, -EBUSY, "another command is at work with the snapshots of %s", name);
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
    uint64_t id;
    char path[PATH_MAX], sub[128];
    int failed = registry_path(r, name, "layers", path, err, n);

    if (!failed)
        failed = path_make(path, 0700, err, n);
    if (failed)
        return failed;
    if (getrandom(&id, sizeof id, 0) != sizeof id)
        return error_sys(err, n, -errno, "there is no randomness for a name");
    snprintf(m->layer, sizeof m->layer, "%016llx" SUFFIX, (unsigned long long)id);
    snprintf(sub, sizeof sub, "layers/%s", m->layer);
    failed = registry_path(r, name, sub, m->layer_path, err, n);
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

/* If it has one. */
static int layer_disk(const struct registry *r, const struct vm_record *record, struct snapshot_making *m, char *err,
                      size_t n)
{
    if (!record->image_digest[0] || record->settings.root)
        return 0;
    if (count_layers(r, record->name) >= LAYERS_MOST)
        return error_set(err, n, -E2BIG,
                         "the disk of %s consists of %u layers, and more would be slow: `guise restore` an older "
                         "snapshot, or copy the disk into a new machine",
                         record->name, LAYERS_MOST);
    int failed = choose_layer(r, record->name, m, err, n);
    return failed ? failed : add_layer(m, err, n);
}

int snapshot_make(const struct registry *r, const struct vm_record *record, const char *tag, struct snapshot_making *m,
                  char *err, size_t n)
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
        failed = layer_disk(r, record, m, err, n);
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

int snapshot_make_layer(const struct registry *r, const struct vm_record *record, struct snapshot_making *m, char *err,
                        size_t n)
{
    *m = (struct snapshot_making){.lock = -1, .state = -1, .top = -1};
    m->lock = take_lock(r, record->name, err, n);
    if (m->lock < 0)
        return m->lock;
    int failed = layer_disk(r, record, m, err, n);
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

int snapshot_disk_back(const struct registry *r, const char *name, const char *layer, char *err, size_t n)
{
    char disk[PATH_MAX], fresh[PATH_MAX], base[PATH_MAX], sub[128];
    int failed = is_layer(layer) ? registry_path(r, name, VM_DISK, disk, err, n)
                                 : error_set(err, n, -EINVAL, "'%s' is not the name of a layer", layer);

    if (!failed)
        failed = path_format(fresh, sizeof fresh, err, n, "%s.new", disk);
    snprintf(sub, sizeof sub, "layers/%s", layer);
    if (!failed)
        failed = registry_path(r, name, sub, base, err, n);
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
        snapshot_sweep_layers(r, name);
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
        snapshot_sweep_layers(r, name);
    if (lock >= 0)
        close(lock);
    return failed;
}
