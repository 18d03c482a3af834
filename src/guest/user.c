/*
 * The system's own users.  Not getpwnam: a statically linked C library would load the guest's NSS modules, which may be
 * of another version.  Users that are in no file (LDAP) can be given by number.
 */
#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "guest/guest.h"

static bool is_number(const char *text, unsigned long *value)
{
    char *end;

    if (*text < '0' || *text > '9')
        return false;
    *value = strtoul(text, &end, 10);
    return !*end && *value < UINT32_MAX;
}

static void copy(char *to, size_t size, const char *from)
{
    snprintf(to, size, "%s", from);
}

/* Fills *u from /etc/passwd; false if there is none of that name or number. */
static bool find_entry(const char *who, struct user *u)
{
    FILE *f = fopen("/etc/passwd", "re");
    unsigned long number = 0;
    bool by_number = is_number(who, &number), found = false;
    struct passwd *p;

    while (f && !found && (p = fgetpwent(f)) != NULL) {
        if (strcmp(p->pw_name, who) != 0 && !(by_number && p->pw_uid == number))
            continue;
        u->uid = p->pw_uid;
        u->gid = p->pw_gid;
        copy(u->name, sizeof(u->name), p->pw_name);
        copy(u->home, sizeof(u->home), p->pw_dir && *p->pw_dir ? p->pw_dir : "/");
        copy(u->shell, sizeof(u->shell), p->pw_shell && *p->pw_shell ? p->pw_shell : "/bin/sh");
        found = true;
    }
    if (f)
        fclose(f);
    return found;
}

static bool lists(char **members, const char *name)
{
    for (; *members; members++)
        if (strcmp(*members, name) == 0)
            return true;
    return false;
}

/* The group of that name or number, if one is given; and all groups that u is a member of. */
static bool find_groups(const char *group, struct user *u)
{
    FILE *f = fopen("/etc/group", "re");
    unsigned long number = 0;
    bool by_number = group && is_number(group, &number), found = !group || by_number;
    struct group *g;

    if (by_number)
        u->gid = (gid_t)number;
    while (f && (g = fgetgrent(f)) != NULL) {
        if (group && strcmp(g->gr_name, group) == 0) {
            u->gid = g->gr_gid;
            found = true;
        }
        if (!group && u->n_groups < sizeof(u->groups) / sizeof(u->groups[0]) && lists(g->gr_mem, u->name))
            u->groups[u->n_groups++] = g->gr_gid;
    }
    if (f)
        fclose(f);
    return found;
}

int user_find(const char *who, struct user *u, char *err, size_t n)
{
    char name[128];
    unsigned long number;

    *u = (struct user){0};
    if (who && *who)
        copy(name, sizeof(name), who);
    else /* root in a guest; in a test whoever runs it */
        snprintf(name, sizeof(name), "%u", geteuid());
    char *group = strchr(name, ':');
    if (group)
        *group++ = 0;
    if (!find_entry(name, u)) {
        /* An image may have no /etc/passwd at all, and root and numbers still mean something. */
        if (strcmp(name, "root") == 0)
            number = 0;
        else if (!is_number(name, &number))
            return error_set(err, n, -ENOENT, "the guest has no user '%s'", name);
        u->uid = (uid_t)number;
        u->gid = (gid_t)number;
        copy(u->name, sizeof(u->name), name);
        copy(u->home, sizeof(u->home), number ? "/" : "/root");
        copy(u->shell, sizeof(u->shell), "/bin/sh");
    }
    if (!find_groups(group, u))
        return error_set(err, n, -ENOENT, "the guest has no group '%s'", group);
    return 0;
}

int user_become(const struct user *u)
{
    if (geteuid() != 0 && geteuid() == u->uid)
        return 0;
    if (setgroups(u->n_groups, u->groups) || setgid(u->gid) || setuid(u->uid))
        return -errno;
    return 0;
}
