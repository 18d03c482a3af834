/*
 * A root file system while it is put together: the names and attributes of all its files, in memory.
 *
 * Archives and the layers of container images are read into one such tree first and written into a new file system
 * from there.  Nothing is ever unpacked on the host, so there is nothing an archive could escape into: "..", absolute
 * names and symbolic links are resolved inside the tree, whose root has no parent.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TREE_NODES_MAX (4u << 20)    /* names; Debian has some 10,000, a large desktop 500,000 */
#define TREE_MEMORY_MAX (1ull << 30) /* bytes of names, links and extended attributes */

struct tree_xattr {
    struct tree_xattr *next;
    const char *name;
    size_t len;
    unsigned char value[];
};

/* What hard links share. */
struct tree_inode {
    uint32_t mode, uid, gid; /* mode with the type, S_IFMT */
    int64_t mtime;
    uint64_t size;         /* of a regular file */
    uint32_t major, minor; /* of a device */
    char *target;          /* of a symbolic link */
    struct tree_xattr *xattrs;
    uint32_t links;  /* names in the tree */
    uint32_t number; /* in the file system that is written; 0: not there yet */
    struct tree_inode *all;
};

struct tree_node {
    struct tree_node *parent, *children, *next, *previous, *bucket;
    struct tree_inode *inode;
    uint32_t hash;
    unsigned layer; /* that put it here last */
    char name[];
};

struct tree {
    struct tree_node *root, **buckets;
    size_t n_buckets, n_nodes;
    uint64_t memory;
    unsigned layer;         /* that is being read: what tree_put marks nodes with */
    struct tree_inode *all; /* those without a name, too: who reads the archives holds pointers to them */
};

int tree_create(struct tree *t);
void tree_destroy(struct tree *t);

/* A new inode; of a symbolic link or with attributes it is filled by the two functions below.  NULL: too much. */
struct tree_inode *tree_inode(struct tree *t, uint32_t mode, uint32_t uid, uint32_t gid, int64_t mtime);
int tree_set_target(struct tree *t, struct tree_inode *inode, const char *target);
int tree_add_xattr(struct tree *t, struct tree_inode *inode, const char *name, const void *value, size_t len);

/* The node at `path`, following symbolic links inside the tree on the way and, if asked to, at its end.  NULL: none. */
struct tree_node *tree_find(const struct tree *t, const char *path, bool follow);
struct tree_node *tree_child(const struct tree *t, const struct tree_node *parent, const char *name);

/*
 * Puts the inode at `path`, making the directories on the way (0755, root's).  Replaces what is there; a directory over
 * a directory keeps what is in it.  -EINVAL a name that cannot be, -ENOTDIR a file is in the way, -ELOOP too many
 * links, -E2BIG the tree grew too large.  *node (may be NULL) is the new node.
 */
int tree_put(struct tree *t, const char *path, struct tree_inode *inode, struct tree_node **node);

void tree_drop(struct tree *t, struct tree_node *node);          /* with all below it */
void tree_drop_children(struct tree *t, struct tree_node *node); /* not itself */

/* Removes what earlier layers put at and below the node, if nothing of this layer is there: an OCI whiteout. */
void tree_hide(struct tree *t, struct tree_node *node);
void tree_hide_children(struct tree *t, struct tree_node *node); /* an opaque one */

/* Depth first, parents before children.  Stops at the first that is not 0 and returns that. */
int tree_walk(struct tree_node *node, int (*visit)(struct tree_node *, void *), void *context);
