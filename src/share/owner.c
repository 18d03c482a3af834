/*
 * Who owns a file, on either side.
 *
 *   the host's user (server.uid; as root: the owner of the shared directory)     the guest
 *   owns it, no attribute           <->   root owns it
 *   owns it, "user.guise.owner"     <->   the user, group and set-id bits named there:  UID:GID[:BITS]  (BITS octal)
 *   another user owns it             ->   that number owns it; the guest's root cannot give it away (EPERM)
 *
 * What the guest makes belongs to the host's user.  His group is the guest's group 0, other groups keep their numbers.
 * Set-user-id and set-group-id bits that the guest gives a file are kept in the attribute, never in the host's mode: no
 * program of a guest becomes a set-user-id program of the host.  A directory's are harmless and stay in its mode.  The
 * attribute counts only on files of the host's user, because only he can have put it there; symbolic links, FIFOs and
 * sockets cannot have one, their owner is always the default.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/xattr.h>

#include "share/server_int.h"

#define ATTRIBUTE OWNER_XATTR_PREFIX "owner"
#define BITS (S_ISUID | S_ISGID)
#define TEXT_SIZE 40

static bool can_have(const struct server *s, const struct statx *st)
{
    return st->stx_uid == s->uid && (S_ISREG(st->stx_mode) || S_ISDIR(st->stx_mode));
}

static struct owner owner_default(const struct server *s, const struct statx *st)
{
    return (struct owner){.uid = st->stx_uid == s->uid ? 0 : st->stx_uid,
                          .gid = st->stx_gid == s->gid ? 0 : st->stx_gid,
                          .bits = st->stx_mode & BITS};
}

/* The file may have been given any text by the host's user: what is not of the form counts as none. */
static bool parse(const char *text, struct owner *owner)
{
    unsigned long long uid, gid;
    unsigned bits = 0;
    int end = 0;

    if (sscanf(text, "%10llu:%10llu%n:%5o%n", &uid, &gid, &end, &bits, &end) < 2 || text[end])
        return false;
    if (uid >= UINT32_MAX || gid >= UINT32_MAX)
        return false;
    *owner = (struct owner){(uint32_t)uid, (uint32_t)gid, bits & BITS};
    return true;
}

static void remember(struct node *node, const struct owner *stored)
{
    node->owner = (struct known_owner){.known = true, .stored = stored, .at = now_s()};
    if (stored)
        node->owner.owner = *stored;
}

void owner_is_default(struct node *node)
{
    remember(node, NULL);
}

/* As long as the guest itself takes it for known.  And for good when reading needs a permission that the file does not
 * give: it would have to be given each time. */
bool owner_is_at_hand(struct server *s, const struct node *node, const struct statx *st)
{
    if (!can_have(s, st))
        return true;
    return node && node->owner.known && (now_s() - node->owner.at < VALID_S || !(st->stx_mode & S_IRUSR));
}

/* What getxattr gave. */
static void take(struct node *node, char *text, int n)
{
    struct owner owner;

    text[n > 0 ? n : 0] = 0;
    remember(node, parse(text, &owner) ? &owner : NULL);
}

static void look(struct server *s, struct node *node, int fd)
{
    char path[PROC_PATH_SIZE], text[TEXT_SIZE];
    struct grant g = {0};
    int n;

    proc_path(path, fd);
    do
        n = sys(getxattr(path, ATTRIBUTE, text, sizeof text - 1));
    while (grant_again(s, &g, fd, S_IRUSR, n));
    take(node, text, n);
}

/* If the name has become another file's a moment ago, this is that one's owner, until the guest asks again.  Only who
 * may set owners could have brought that about. */
int owner_look(struct server *s, struct node *node, int directory, const char *name)
{
    char path[PROC_PATH_SIZE + SHARE_NAME_MAX + 2], text[TEXT_SIZE];

    snprintf(path, sizeof path, "/proc/self/fd/%d/%s", directory, name);
    int n = sys(lgetxattr(path, ATTRIBUTE, text, sizeof text - 1));
    if (n == -EACCES)
        return n;
    take(node, text, n);
    return 0;
}

void owner_load(struct server *s, struct node *node, int fd, const struct statx *st, struct owner *owner)
{
    *owner = owner_default(s, st);
    if (!can_have(s, st))
        return;
    if (!owner_is_at_hand(s, node, st))
        look(s, node, fd);
    if (node->owner.stored)
        *owner = node->owner.owner;
    if (S_ISDIR(st->stx_mode))
        owner->bits = st->stx_mode & BITS;
}

/* The host's mode loses bits that the attribute is there for. */
static void strip_mode(int fd, const struct statx *st)
{
    char path[PROC_PATH_SIZE];

    if (!S_ISREG(st->stx_mode) || !(st->stx_mode & BITS))
        return;
    proc_path(path, fd);
    chmod(path, st->stx_mode & 07777 & ~BITS);
}

int owner_store(struct server *s, struct node *node, int fd, const struct statx *st, const struct owner *owner)
{
    struct owner usual = owner_default(s, st);
    bool same = owner->uid == usual.uid && owner->gid == usual.gid;
    uint32_t bits = S_ISREG(st->stx_mode) ? owner->bits : 0;
    struct grant g = {0};
    char path[PROC_PATH_SIZE], text[TEXT_SIZE];
    int r;

    if (!can_have(s, st))
        return same || st->stx_uid == s->uid ? 0 : -EPERM;
    strip_mode(fd, st);
    proc_path(path, fd);
    int n = snprintf(text, sizeof text, bits ? "%u:%u:%o" : "%u:%u", owner->uid, owner->gid, bits);
    do
        r = sys(same && !bits ? removexattr(path, ATTRIBUTE) : setxattr(path, ATTRIBUTE, text, (size_t)n, 0));
    while (grant_again(s, &g, fd, S_IWUSR, r));
    if (same && !bits && (r == -ENODATA || r == -EOPNOTSUPP))
        r = 0;
    if (!r)
        remember(node, same && !bits ? NULL : &(struct owner){owner->uid, owner->gid, bits});
    return r == -EOPNOTSUPP ? -EPERM : r;
}

int owner_of_new(struct call *c, struct node *directory, mode_t *mode, struct owner *owner)
{
    struct attributes a;
    int err = node_attributes(c->s, directory, &a);

    if (err)
        return err;
    *owner = (struct owner){c->in.uid, a.owner.bits & S_ISGID ? a.owner.gid : c->in.gid, *mode & BITS};
    *mode &= ~(mode_t)BITS;
    return 0;
}

void owner_kill_bits(struct server *s, struct node *node, int fd)
{
    struct statx st;
    struct owner owner;

    if (node->owner.known && !node->owner.owner.bits)
        return;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &st) || !can_have(s, &st) || S_ISDIR(st.stx_mode))
        return;
    owner_load(s, node, fd, &st, &owner);
    if (!owner.bits)
        return;
    owner.bits &= st.stx_mode & S_IXGRP ? 0 : ~(uint32_t)S_ISUID;
    owner_store(s, node, fd, &st, &owner);
}
