/*
 * The kernel modules that a guest needs before it has its root: chosen by modules.dep and its siblings (depmod(8)),
 * unpacked, and written as an initramfs part:
 *
 *      /guise/modules/NAME.ko      uncompressed
 *      /guise/modules/order        file names, one a line, in the order in which to load them; one that this machine's
 *                                  hardware has no use for may fail to load
 *      /guise/modules/dep          as modules.dep: "NAME.ko: NAME.ko ...", what each needs, among those in the archive
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>

struct extfs;

struct modules {
    struct modules_entry *entries; /* of modules.dep, sorted by name */
    size_t n_entries;
    char *texts[4]; /* that the entries point into */
    unsigned *order, n_order;
    unsigned scans; /* of the texts so far: a stranger's lists shall not keep us busy for ever */
};

/* Reads DIRECTORY/modules.dep, .builtin, .softdep and .alias, all but the first optional.  -ENOENT, -EBADMSG. */
int modules_read(struct modules *m, struct extfs *f, const char *directory);
void modules_free(struct modules *m);

/* From the texts themselves (each may be NULL; copied). */
int modules_parse(struct modules *m, const char *dep, const char *builtin, const char *softdep, const char *alias);

/* Adds the module with all it depends on to the order.  False: there is none of that name, nor is it built in. */
bool modules_want(struct modules *m, const char *name);

/* Wants what every guest gets, and for a root of the type `root_type`.  False: that root cannot be reached with them.
 */
bool modules_want_all(struct modules *m, const char *root_type);

/* The path of the i-th of the order, below the directory; NULL at the end. */
const char *modules_path(const struct modules *m, unsigned i);

/* Writes the archive to `fd`; m NULL: without any module. */
int modules_write(const struct modules *m, struct extfs *f, const char *directory, int fd, char *err, size_t n);
