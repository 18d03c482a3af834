/* Which layers are merged, and how: by the machine's process while it runs, else here. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/disk/overlay.h"
#include "base/error.h"
#include "vm/client.h"
#include "vm/layers.h"
#include "vm/snapshot_store.h"

#define NODES_MAX 256u
#define FRESH "merged.new"
#define MERGE_MS 3600000 /* of a machine that runs: as long as copying takes */

/* An overlay of the machine: its disk, nodes[0], or a layer. */
struct node {
    char name[LAYER_NAME_SIZE], path[PATH_MAX];
    int base;           /* the node that it lies on; -1: none of ours */
    unsigned on_it;     /* nodes that lie on it */
    int child;          /* one of them */
    bool kept, shared;  /* a snapshot is of it; another machine has it, too */
    bool live;          /* the machine that runs has it open */
    uint64_t size;      /* of the disk that it is */
    uint64_t allocated; /* bytes that it takes */
};

struct layers_plan {
    const struct registry *registry;
    const char *name;
    struct client *client;
    struct node *nodes;
    unsigned n;
};

/* --- looking --------------------------------------------------------------------------------------------------- */

static int find_node(const struct layers_plan *p, const char *name)
{
    for (unsigned i = 1; i < p->n; i++)
        if (strcmp(p->nodes[i].name, name) == 0)
            return (int)i;
    return -1;
}

static void add_node(struct layers_plan *p, const char *name)
{
    struct node *node = &p->nodes[p->n];
    struct stat st;
    char none[1];
    int failed = *name ? layer_path(p->registry, p->name, name, node->path, none, sizeof none)
                       : registry_path(p->registry, p->name, VM_DISK, node->path, none, sizeof none);

    if (failed || stat(node->path, &st) || !(node->size = disk_overlay_size(node->path)))
        return;
    snprintf(node->name, sizeof node->name, "%s", name);
    node->shared = st.st_nlink > 1;
    node->allocated = (uint64_t)st.st_blocks * 512;
    node->base = node->child = -1;
    p->n++;
}

static void note_bases(struct layers_plan *p)
{
    char base[LAYER_NAME_SIZE];

    for (unsigned i = 0; i < p->n; i++) {
        int below = layer_below(p->nodes[i].path, base) ? find_node(p, base) : -1;
        p->nodes[i].base = below;
        if (below < 0)
            continue;
        p->nodes[below].on_it++;
        p->nodes[below].child = (int)i;
    }
    for (int i = p->client ? 0 : -1; i >= 0 && !p->nodes[i].live; i = p->nodes[i].base)
        p->nodes[i].live = true;
}

/* 0, or -errno with a sentence; -ENOENT: it has no disk that could be read. */
static int look(struct layers_plan *p, char *err, size_t n)
{
    char path[PATH_MAX];
    struct snapshot_info *list = NULL;
    struct dirent *e;
    int failed = registry_path(p->registry, p->name, "layers", path, err, n);
    DIR *dir = failed ? NULL : opendir(path);

    p->n = 0;
    memset(p->nodes, 0, NODES_MAX * sizeof *p->nodes);
    add_node(p, "");
    if (!dir || !p->n) {
        if (dir)
            closedir(dir);
        return failed ? failed : error_set(err, n, -ENOENT, "the disk of %s cannot be read", p->name);
    }
    while ((e = readdir(dir)) && p->n < NODES_MAX)
        if (layer_is_name(e->d_name))
            add_node(p, e->d_name);
    closedir(dir);
    note_bases(p);
    int count = snapshot_list(p->registry, p->name, &list, err, n);
    for (int i = 0; i < count; i++) {
        int at = find_node(p, list[i].layer);
        if (at >= 0)
            p->nodes[at].kept = true;
    }
    free(list);
    return count < 0 ? count : 0;
}

/* --- doing ----------------------------------------------------------------------------------------------------- */

static int merge_there(const struct layers_plan *p, const char *upper, const char *lower, const char *into, char *err,
                       size_t n)
{
    char ids[2][DISK_OVERLAY_ID_SIZE];
    int failed = disk_overlay_id(upper, ids[0]), patience = p->client->patience_ms;
    const int fds[] = {open(into, O_RDWR | O_CLOEXEC), open(into, O_RDONLY | O_CLOEXEC)};

    if (!failed)
        failed = disk_overlay_id(lower, ids[1]);
    if (!failed && (fds[0] < 0 || fds[1] < 0))
        failed = -errno;
    if (failed) {
        error_sys(err, n, failed, "cannot open %s", into);
    } else {
        p->client->patience_ms = MERGE_MS;
        failed = client_call_fds(p->client, "merge", json_pack("{s:s, s:s}", "upper", ids[0], "lower", ids[1]), fds, 2,
                                 NULL, err, n);
        p->client->patience_ms = patience;
    }
    for (unsigned i = 0; i < 2; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    return failed;
}

/* Those of `run`, from the uppermost on, into the one that has most; or (fresh) into a new file. */
static int merge_run(const struct layers_plan *p, const unsigned *run, unsigned count, bool fresh, char *err, size_t n)
{
    const char *paths[DISK_OVERLAYS_MAX], *file = NULL;
    char path[PATH_MAX];
    unsigned into = 0;
    int failed = registry_path(p->registry, p->name, "layers/" FRESH, path, err, n);

    if (failed)
        return failed;
    for (unsigned i = 0; i < count; i++) {
        paths[i] = p->nodes[run[i]].path;
        into = p->nodes[run[i]].allocated > p->nodes[run[into]].allocated ? i : into;
    }
    unlink(path); /* of one that died */
    if (fresh) {
        file = path;
        failed = disk_overlay_merge_create(file, paths[count - 1], err, n);
    }
    if (!failed)
        failed = p->nodes[run[0]].live ? merge_there(p, paths[0], paths[count - 1], fresh ? file : paths[into], err, n)
                                       : disk_overlay_merge(paths, count, into, file, err, n);
    if (!failed)
        failed = disk_overlay_replace(paths, count, into, file, err, n);
    if (fresh && failed)
        unlink(path);
    return failed;
}

/* --- planning -------------------------------------------------------------------------------------------------- */

/* Nobody needs it for itself: it can become a part of the one that lies on it. */
static bool is_free(const struct node *node)
{
    return *node->name && !node->kept && !node->shared && node->on_it == 1;
}

/* The disk of a machine that runs is written to. */
static bool can_be_upper(const struct layers_plan *p, unsigned i)
{
    return !p->nodes[i].shared && (*p->nodes[i].name || !p->client);
}

/* Of the overlays from i on down: how many can be merged into one, without a copy of what others have. */
static unsigned free_run(const struct layers_plan *p, unsigned i, unsigned run[DISK_OVERLAYS_MAX])
{
    const struct node *nodes = p->nodes;
    unsigned count = 1;

    if (!can_be_upper(p, i) || (is_free(&nodes[i]) && can_be_upper(p, (unsigned)nodes[i].child) &&
                                nodes[nodes[i].child].size == nodes[i].size)) /* a part of a longer one */
        return 0;
    run[0] = i;
    for (int at = nodes[i].base; at >= 0 && is_free(&nodes[at]) && nodes[at].size == nodes[i].size;
         at = nodes[at].base) {
        if (count == DISK_OVERLAYS_MAX)
            break;
        run[count++] = (unsigned)at;
    }
    return count > 1 ? count : 0;
}

/* 0: nothing is free any more. */
static int merge_free(struct layers_plan *p, char *err, size_t n)
{
    unsigned run[DISK_OVERLAYS_MAX];
    int failed = 0;

    for (unsigned i = 0; i < p->n && !failed;) {
        unsigned count = free_run(p, i, run);
        if (!count) {
            i++;
            continue;
        }
        failed = merge_run(p, run, count, false, err, n);
        layers_sweep(p->registry, p->name);
        if (!failed)
            failed = look(p, err, n);
        i = 0; /* all numbers are others now */
    }
    return failed;
}

/* Half of the disk's layers, from the uppermost on, and more as long as they are small: what was copied once is not
 * copied again each time. */
static int merge_deep(struct layers_plan *p, char *err, size_t n)
{
    unsigned run[DISK_OVERLAYS_MAX] = {0}, count = 0, depth = 0;
    uint64_t sum = 0;

    for (int i = p->nodes[0].base; i >= 0 && depth < p->n; i = p->nodes[i].base)
        depth++;
    for (int i = p->nodes[0].base; i >= 0 && count < DISK_OVERLAYS_MAX; i = p->nodes[i].base) {
        const struct node *node = &p->nodes[i];
        if ((count > depth / 2 && node->allocated > sum) || (count && node->size != p->nodes[run[0]].size))
            break;
        run[count++] = (unsigned)i;
        sum += node->allocated;
    }
    int failed = count > 1 ? merge_run(p, run, count, true, err, n) : 0;
    layers_sweep(p->registry, p->name);
    return failed;
}

/* Nobody reads the layers but those that have them open as disks. */
static int hold_alone(const struct layers_plan *p)
{
    char path[PATH_MAX], none[1];
    int fd = registry_path(p->registry, p->name, "layers", path, none, sizeof none)
                 ? -1
                 : open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB)) {
        close(fd);
        fd = -1;
    }
    return fd;
}

int layers_merge(const struct registry *r, const char *name, unsigned few, struct client *client, char *err, size_t n)
{
    struct layers_plan p = {.registry = r, .name = name, .client = client};

    if (few && layers_count(r, name) <= few)
        return 0;
    int hold = hold_alone(&p);
    if (hold < 0) /* there are none, or they are being read: the next time */
        return 0;
    p.nodes = calloc(NODES_MAX, sizeof *p.nodes);
    int failed = p.nodes ? look(&p, err, n) : error_set(err, n, -ENOMEM, "out of memory");
    if (!failed)
        failed = merge_free(&p, err, n);
    if (!failed && layers_count(r, name) > LAYERS_DEEP)
        failed = merge_deep(&p, err, n);
    free(p.nodes);
    close(hold);
    return failed;
}
