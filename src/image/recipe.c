/* What a Debian image consists of. */
#include "image/recipe.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"

static const struct recipe recipes[] = {
    {"debian", DEFAULT_SUITE}, {"debian-12", "bookworm"}, {"debian-13", "trixie"},
    {"bookworm", "bookworm"},  {"trixie", "trixie"},      {"sid", "sid"},
};

const char recipe_packages[] =
    "linux-image-cloud-amd64,systemd-sysv,udev,dbus,kmod,iproute2,openssh-server,ca-certificates,"
    "login,passwd";

/*
 * - systemd-networkd is there but not enabled unless told.
 * - Host keys are made by each VM for itself, and before sshd tests its configuration; one kind, since each costs a
 *   second under emulation.
 * - The serial console belongs to whoever runs the VM: it needs no password, and root has none.
 * - Masked is what costs boot time or writes to the disk without being of use to a machine that lives for an hour.
 */
const char recipe_customize[] =
    "--customize-hook=set -e\n"
    "cd \"$1\"\n"
    "echo debian > etc/hostname\n"
    "printf '127.0.0.1 localhost debian\\n::1 localhost ip6-localhost ip6-loopback\\n' > etc/hosts\n"
    "echo 'LABEL=root / ext4 rw,noatime 0 1' > etc/fstab\n"
    "echo LANG=C.UTF-8 > etc/default/locale\n"
    "chmod 644 etc/hostname etc/hosts etc/fstab\n"
    "mkdir -p etc/systemd/network etc/systemd/system/ssh.service.d etc/systemd/system/serial-getty@ttyS0.service.d\n"
    "printf '[Match]\\nName=en* eth*\\n[Network]\\nDHCP=yes\\n' > etc/systemd/network/80-dhcp.network\n"
    "cat > etc/systemd/system/ssh.service.d/hostkeys.conf <<'EOF'\n"
    "[Service]\n"
    "ExecStartPre=\n"
    "ExecStartPre=/bin/sh -c '[ -s /etc/ssh/ssh_host_ed25519_key ] || ssh-keygen -q -N \"\" -t ed25519 -f "
    "/etc/ssh/ssh_host_ed25519_key'\n"
    "ExecStartPre=/usr/sbin/sshd -t\n"
    "EOF\n"
    "cat > etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf <<'EOF'\n"
    "[Service]\n"
    "ExecStart=\n"
    "ExecStart=-/sbin/agetty -o '-p -f -- \\\\u' --autologin root --noclear --keep-baud 115200,38400,9600 - $TERM\n"
    "EOF\n"
    "for unit in e2scrub_reap.service e2scrub_all.timer apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer; "
    "do\n"
    "    ln -sf /dev/null etc/systemd/system/$unit\n"
    "done\n"
    "chroot . systemctl --quiet enable systemd-networkd serial-getty@ttyS0\n";

/*
 * What makes one machine: its identity, its keys.  The lists of packages stay, and apt's cache of them is made with the
 * paths that it will see: so `apt-get install` works at once.  The cache remembers the times of the files, and
 * mmdebstrap gives to what is newer the time SOURCE_DATE_EPOCH: so they have that before.
 */
const char recipe_finish[] =
    "--customize-hook=set -e\n"
    "cd \"$1\"\n"
    "rm -f etc/resolv.conf etc/ssh/ssh_host_* etc/apt/apt.conf.d/99mmdebstrap var/lib/systemd/random-seed\n"
    "echo 'nameserver 10.0.2.3' > etc/resolv.conf\n"
    "chmod 644 etc/resolv.conf\n"
    "echo 'Acquire::Languages \"none\";' > etc/apt/apt.conf.d/20languages\n"
    "rm -f var/cache/apt/archives/*.deb var/cache/apt/*.bin var/cache/ldconfig/aux-cache var/cache/debconf/*-old\n"
    "find var/log -type f -delete\n"
    "sed -i /force-unsafe-io/d etc/dpkg/dpkg.cfg.d/99mmdebstrap\n"
    "find etc/apt var/lib/apt/lists var/lib/dpkg/status -exec touch -h -d \"@$SOURCE_DATE_EPOCH\" {} +\n"
    "chroot . apt-cache gencaches >/dev/null\n"
    "rm -f etc/machine-id var/lib/dbus/machine-id\n" /* it is read-only: who is root by pretence cannot write to it */
    ": > etc/machine-id\n"
    "chmod 444 etc/machine-id\n";

const struct recipe *recipe_find(const char *name)
{
    for (size_t i = 0; i < sizeof recipes / sizeof recipes[0]; i++)
        if (strcmp(recipes[i].name, name) == 0)
            return &recipes[i];
    return NULL;
}

/* ---- where packages come from ---- */

enum { MAIN, UPDATES, SECURITY, KINDS };
static const char *const suffixes[KINDS] = {"", "-updates", "-security"};
static const char *const usual[KINDS] = {"http://deb.debian.org/debian", "http://deb.debian.org/debian",
                                         "http://deb.debian.org/debian-security"};

static bool ends_with(const char *text, const char *end)
{
    size_t len = strlen(text), n = strlen(end);

    return len >= n && strcmp(text + len - n, end) == 0;
}

/* Which of Debian's own archives a line "URI CODENAME main" is; KINDS: none of them. */
static unsigned kind_of(const char *uri, const char *codename, const char *component)
{
    unsigned kind = ends_with(codename, "-security") ? SECURITY : ends_with(codename, "-updates") ? UPDATES : MAIN;

    if (strcmp(component, "main") != 0 || !strstr(uri, "debian") || (kind == MAIN && strchr(codename, '-')))
        return KINDS;
    return kind;
}

static void find_mirrors(const char *text, char uris[KINDS][400])
{
    char uri[400], codename[64], component[64];

    for (const char *line = text; *line; line += strcspn(line, "\n"), line += *line == '\n') {
        if (sscanf(line, "%399s %63s %63s", uri, codename, component) != 3)
            continue;
        unsigned kind = kind_of(uri, codename, component);
        if (kind != KINDS && !uris[kind][0])
            memcpy(uris[kind], uri, sizeof uri);
    }
}

unsigned recipe_sources(const char *suite, const char *mirror, const char *mirrors, char lines[RECIPE_SOURCES_MAX][512])
{
    bool rolling = strcmp(suite, "sid") == 0 || strcmp(suite, "unstable") == 0;
    char uris[KINDS][400] = {""};
    unsigned n = 0;

    if (mirror)
        snprintf(uris[MAIN], sizeof uris[MAIN], "%s", mirror);
    else
        find_mirrors(mirrors ? mirrors : "", uris);
    for (unsigned kind = 0; kind < (rolling ? 1 : KINDS); kind++) {
        const char *uri = uris[kind];
        if (!uri[0] && mirror)
            uri = kind == UPDATES ? mirror : ""; /* where it keeps security updates is not known */
        else if (!uri[0])
            uri = usual[kind];
        if (uri[0])
            snprintf(lines[n++], 512, "deb %.400s %.60s%s main", uri, suite, suffixes[kind]);
    }
    return n;
}

/* ---- what may be asked for ---- */

static bool only(const char *text, const char *more)
{
    for (; *text; text++)
        if (!isalnum((unsigned char)*text) && !strchr(more, *text))
            return false;
    return true;
}

/* It is run after minutes: what cannot be run is said at once. */
static int check_hook(const char *path, char *err, size_t n)
{
    char head[4] = {0};
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0)
        return error_sys(err, n, -errno, "cannot read the hook %s", path);
    bool fits = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && pread(fd, head, sizeof head, 0) >= 2 &&
                (memcmp(head, "#!", 2) == 0 || memcmp(head,
                                                      "\x7f"
                                                      "ELF",
                                                      4) == 0);
    close(fd);
    return fits ? 0
                : error_set(err, n, -EINVAL,
                            "the hook %s cannot be run: it is neither a program nor a script whose first "
                            "line is #! and an interpreter",
                            path);
}

int recipe_check(const struct image_build *b, char *err, size_t n)
{
    if (b->suite && (!*b->suite || !only(b->suite, "-") || *b->suite == '-'))
        return error_set(err, n, -EINVAL, "'%s' cannot be a suite of Debian: write bookworm, trixie or sid", b->suite);
    if (b->include && (!only(b->include, "+-.,:~=/") || *b->include == '-' || strstr(b->include, ",-")))
        return error_set(err, n, -EINVAL, "'%s' is not a list of packages: write their names with commas between them",
                         b->include);
    if (b->mirror && ((strncmp(b->mirror, "http://", 7) != 0 && strncmp(b->mirror, "https://", 8) != 0 &&
                       strncmp(b->mirror, "file:/", 6) != 0) ||
                      strpbrk(b->mirror, " \t\n") || strlen(b->mirror) > 399))
        return error_set(err, n, -EINVAL, "'%s' is not a mirror: write a URL, http://HOST/debian", b->mirror);
    int failed = b->hook ? check_hook(b->hook, err, n) : 0;
    return failed ? failed : image_name_check(b->name, err, n);
}

/* ---- with which rights ---- */

static bool has_subordinate_ids(void)
{
    const struct passwd *user = getpwuid(geteuid());
    char *text, number[16];
    bool has = false;

    snprintf(number, sizeof number, "%u", geteuid());
    if (file_read("/etc/subuid", 1u << 20, &text, NULL, NULL, 0))
        return false;
    for (const char *line = text; *line && !has; line += strcspn(line, "\n"), line += *line == '\n') {
        size_t len = strcspn(line, ":\n");
        has = (user && strlen(user->pw_name) == len && memcmp(line, user->pw_name, len) == 0) ||
              (strlen(number) == len && memcmp(line, number, len) == 0);
    }
    free(text);
    return has;
}

/* A kernel's setting, a container or a chroot may refuse them. */
static bool has_user_namespaces(void)
{
    int status = 1;
    pid_t pid = fork();

    if (pid == 0)
        _exit(unshare(CLONE_NEWUSER) != 0);
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return status == 0;
}

const char *recipe_mode(char *err, size_t n)
{
    if (geteuid() == 0)
        return "root";
    bool mappers = job_has_program("newuidmap"), namespaces = has_user_namespaces();
    if (mappers && namespaces && has_subordinate_ids())
        return "unshare";
    if (job_has_program("fakechroot") && job_has_program("fakeroot"))
        return "fakechroot";
    if (!namespaces)
        error_set(err, n, -EPERM,
                  "this host gives ordinary users no user namespaces to build in: install the packages fakechroot and "
                  "fakeroot, or build as root");
    else if (mappers)
        error_set(err, n, -EPERM,
                  "you have no subordinate user ids to build with: as root run usermod --add-subuids 100000-165535 "
                  "--add-subgids 100000-165535 and your name, or install the packages fakechroot and fakeroot");
    else
        error_set(err, n, -ENOENT, "building as an ordinary user needs the package uidmap: install it");
    return NULL;
}
