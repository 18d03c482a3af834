/*
 * Files of the root file system that make it this machine's: for images that have no cloud-init to do so, with nothing
 * but what is in every image.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.h"
#include "guest/guest.h"

#define SMALL (1u << 20)
#define STATE "/var/lib/guise/instance" /* for which instance the first boot has been done */

/* The whole file, or an empty string; the caller frees it. */
static char *read_text(const char *path)
{
    char *text;

    return file_read(path, SMALL, &text, NULL, NULL, 0) ? strdup("") : text;
}

/* In place: in an image it may be a link or a mount, and nobody else is running yet. */
static int write_text(const char *path, const char *text, mode_t mode)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);

    if (fd < 0)
        return -errno;
    int r = fd_write_all(fd, text, strlen(text));
    close(fd);
    return r;
}

static void must_write(const char *path, const char *text, mode_t mode)
{
    int r = write_text(path, text, mode);

    if (r)
        say("%s cannot be written: %s", path, strerror(-r));
}

/* Is there a line in text in which `word` stands alone? */
static bool has_word(const char *text, const char *word)
{
    size_t len = strlen(word);

    for (const char *at = text; (at = strstr(at, word)) != NULL; at += len)
        if ((at == text || strchr(" \t\n", at[-1])) && (!at[len] || strchr(" \t\n", at[len])))
            return true;
    return false;
}

/* So that the machine's own name has an address, as programs such as sudo want: Debian's custom is a line for it alone,
 * which we replace when the name is another one. */
static void write_hosts(const char *hostname)
{
    static const char own[] = "127.0.1.1";
    char *text = read_text("/etc/hosts"), *made = NULL;
    size_t len;
    FILE *to = text && !has_word(text, hostname) ? open_memstream(&made, &len) : NULL;

    if (to) {
        if (!has_word(text, "localhost"))
            fputs("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n", to);
        for (char *save = NULL, *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
            if (strncmp(line, own, sizeof(own) - 1) != 0 || !strchr(" \t", line[sizeof(own) - 1]))
                fprintf(to, "%s\n", line);
        fprintf(to, "%s\t%s\n", own, hostname);
        if (fclose(to) == 0)
            must_write("/etc/hosts", made, 0644);
        free(made);
    }
    free(text);
}

void setup_names(const char *hostname, bool keep)
{
    char line[256];

    if (!hostname)
        return;
    if (sethostname(hostname, strlen(hostname)))
        say("the hostname cannot be set to %s: %s", hostname, strerror(errno));
    snprintf(line, sizeof(line), "%s\n", hostname);
    if (keep)
        must_write("/etc/hostname", line, 0644);
    write_hosts(hostname);
}

/* Where a link leads to is made, too: systemd-resolved's is below /run, which is empty. */
void setup_resolver(const char *dns)
{
    char text[128], target[PATH_MAX], path[PATH_MAX + 8];

    if (!dns)
        return;
    snprintf(text, sizeof(text), "nameserver %s\n", dns);
    ssize_t len = readlink("/etc/resolv.conf", target, sizeof(target) - 1);
    if (len > 0) {
        target[len] = 0;
        snprintf(path, sizeof(path), "%s%s", target[0] == '/' ? "" : "/etc/", target);
        *strrchr(path, '/') = 0;
        make_path(path, 0755);
    }
    char *before = read_text("/etc/resolv.conf");
    if (!before || strcmp(before, text) != 0)
        must_write("/etc/resolv.conf", text, 0644);
    free(before);
}

static int run(const char *const argv[])
{
    int status = 0;
    pid_t pid = fork();

    if (pid == 0) {
        int null = open("/dev/null", O_RDWR);
        if (null >= 0) {
            dup2(null, 0);
            dup2(null, 1);
            dup2(null, 2);
        }
        execv(argv[0], (char *const *)argv);
        _exit(127);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* One kind of key is enough for every client of today, and the others take seconds to make. */
void setup_host_keys(bool anew)
{
    static const char program[] = "/usr/bin/ssh-keygen", key[] = "/etc/ssh/ssh_host_ed25519_key";
    static const char *const others[] = {"/etc/ssh/ssh_host_rsa_key", "/etc/ssh/ssh_host_ecdsa_key"};
    const char *const argv[] = {program, "-q", "-t", "ed25519", "-N", "", "-f", key, NULL};
    bool have = access(key, F_OK) == 0;

    if (access(program, X_OK) || access("/etc/ssh/sshd_config", F_OK))
        return;
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        if (anew)
            unlink(others[i]);
        have = have || access(others[i], F_OK) == 0;
    }
    if (have && !anew)
        return;
    unlink(key);
    if (run(argv))
        say("ssh-keygen cannot make this machine's host key");
}

/* 128 random bits, as machine-id(5) wants them: version 4, variant 1. */
static void write_machine_id(bool anew)
{
    unsigned char id[16];
    char text[40], *before = read_text("/etc/machine-id"), *to = text;
    bool have = before && strlen(before) >= 32;

    free(before);
    if ((have && !anew) || getrandom(id, sizeof(id), 0) != sizeof(id))
        return;
    id[6] = (unsigned char)((id[6] & 0x0f) | 0x40);
    id[8] = (unsigned char)((id[8] & 0x3f) | 0x80);
    for (int i = 0; i < 16; i++)
        to += sprintf(to, "%02x", id[i]);
    sprintf(to, "\n");
    must_write("/etc/machine-id", text, 0444);
}

/* The lines of `keys` that are not in ~/.ssh/authorized_keys are added to it; sshd wants everything on the way to
 * belong to the user. */
void setup_keys(const struct guest_config *c)
{
    const struct option_list *keys = &c->keys;
    char directory[PATH_MAX], path[PATH_MAX + 32], why[256];
    struct user u;

    if (!keys->n)
        return;
    if (user_find(c->user, &u, why, sizeof(why))) {
        say("%s: its keys are not authorized", why);
        return;
    }
    snprintf(directory, sizeof(directory), "%s/.ssh", u.home);
    snprintf(path, sizeof(path), "%s/authorized_keys", directory);
    if (mkdir(directory, 0700) == 0 && chown(directory, u.uid, u.gid))
        say("%s cannot be given to its user: %s", directory, strerror(errno));
    char *before = read_text(path);
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0)
        say("%s cannot be written: %s", path, strerror(errno));
    if (fd >= 0 && before && *before && before[strlen(before) - 1] != '\n')
        fd_write_all(fd, "\n", 1);
    for (unsigned i = 0; fd >= 0 && before && i < keys->n; i++)
        if (!strstr(before, keys->value[i]))
            dprintf(fd, "%s\n", keys->value[i]);
    if (fd >= 0 && fchown(fd, u.uid, u.gid))
        say("%s cannot be given to its user: %s", path, strerror(errno));
    if (fd >= 0)
        close(fd);
    free(before);
}

/* Names and keys at each start, since the host's configuration may have changed; secrets once for each instance. */
void setup_first_boot(const struct guest_config *c)
{
    char line[256];

    setup_names(c->hostname, true);
    setup_keys(c);
    snprintf(line, sizeof(line), "%s\n", c->instance ? c->instance : "");
    char *done = read_text(STATE);
    bool anew = done && *done && strcmp(done, line) != 0;
    write_machine_id(anew);
    setup_host_keys(anew);
    if (!done || strcmp(done, line) != 0) {
        make_path("/var/lib/guise", 0755);
        must_write(STATE, line, 0644);
    }
    free(done);
}
