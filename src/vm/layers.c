#include "vm/layers.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <unistd.h>

#include "backends/disk/overlay.h"
#include "base/error.h"
#include "base/path.h"
#include "vm/snapshot_store.h"

#define LAYERS_MAX 256u
#define SUFFIX ".overlay"

bool layer_is_name(const char *file)
{
    size_t n = strspn(file, "0123456789abcdef");

    return n && n < 40 && strcmp(file + n, SUFFIX) == 0;
}

int layer_path(const struct registry *r, const char *name, const char *layer, char out[PATH_MAX], char *err, size_t n)
{
    char sub[LAYER_NAME_SIZE + 16];

    snprintf(sub, sizeof sub, "layers/%.63s", layer);
    return registry_path(r, name, sub, out, err, n);
}

int layers_directory(const struct registry *r, const char *name, char out[PATH_MAX], char *err, size_t n)
{
    int failed = registry_path(r, name, "layers", out, err, n);

    return failed ? failed : path_make(out, 0700, err, n);
}

int layer_new(const struct registry *r, const char *name, char layer[LAYER_NAME_SIZE], char out[PATH_MAX], char *err,
              size_t n)
{
    uint64_t id;
    int failed = layers_directory(r, name, out, err, n);

    if (!failed && getrandom(&id, sizeof id, 0) != sizeof id)
        failed = error_sys(err, n, -errno, "there is no randomness for a name");
    if (failed)
        return failed;
    snprintf(layer, LAYER_NAME_SIZE, "%016llx" SUFFIX, (unsigned long long)id);
    return layer_path(r, name, layer, out, err, n);
}

bool layer_below(const char *path, char layer[LAYER_NAME_SIZE])
{
    char base[4096];

    if (disk_overlay_base(path, base))
        return false;
    const char *slash = strrchr(base, '/'), *file = slash ? slash + 1 : base;
    if (!layer_is_name(file))
        return false;
    memcpy(layer, file, strlen(file) + 1);
    return true;
}

unsigned layers_count(const struct registry *r, const char *name)
{
    char path[PATH_MAX], none[1], layer[LAYER_NAME_SIZE];
    unsigned n = 1;

    if (registry_path(r, name, VM_DISK, path, none, sizeof none))
        return 0;
    while (n < LAYERS_MAX && layer_below(path, layer) && !layer_path(r, name, layer, path, none, sizeof none))
        n++;
    return n;
}

int layers_hold(const struct registry *r, const char *name, char *err, size_t n)
{
    char path[PATH_MAX];
    int failed = layers_directory(r, name, path, err, n);

    if (failed)
        return failed;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || flock(fd, LOCK_SH)) {
        failed = error_sys(err, n, -errno, "cannot hold %s", path);
        if (fd >= 0)
            close(fd);
        return failed;
    }
    return fd;
}

/* --- those that nobody stands on any more ------------------------------------------------------------------------ */

struct layers {
    char used[LAYERS_MAX][LAYER_NAME_SIZE];
    unsigned n;
};

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
    char path[PATH_MAX], none[1], next[LAYER_NAME_SIZE];

    snprintf(next, sizeof next, "%s", file);
    while (!is_used(l, next) && l->n < LAYERS_MAX) {
        memcpy(l->used[l->n++], next, sizeof next);
        if (layer_path(r, name, next, path, none, sizeof none) || !layer_below(path, next))
            return;
    }
}

static void find_used(const struct registry *r, const char *name, struct layers *l)
{
    struct snapshot_info *list = NULL;
    char path[PATH_MAX], none[1], layer[LAYER_NAME_SIZE];
    int n = snapshot_list(r, name, &list, none, sizeof none);

    for (int i = 0; i < n; i++)
        if (list[i].layer[0])
            use(r, name, l, list[i].layer);
    free(list);
    if (!registry_path(r, name, VM_DISK, path, none, sizeof none) && layer_below(path, layer))
        use(r, name, l, layer);
}

void layers_sweep(const struct registry *r, const char *name)
{
    struct layers *l = calloc(1, sizeof *l);
    char path[PATH_MAX], sub[320], none[1];
    DIR *dir = NULL;
    struct dirent *e;

    if (l && !registry_path(r, name, "layers", path, none, sizeof none) && (dir = opendir(path)))
        find_used(r, name, l);
    while (dir && l->n < LAYERS_MAX && (e = readdir(dir))) {
        snprintf(sub, sizeof sub, "layers/%s", e->d_name);
        if (layer_is_name(e->d_name) && !is_used(l, e->d_name) && !registry_path(r, name, sub, path, none, sizeof none))
            unlink(path);
    }
    if (dir)
        closedir(dir);
    free(l);
}
