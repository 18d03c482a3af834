/* Who receives a machine that stays on this host: a process of `guise migrate`'s own, at a socket of its own. */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"
#include "base/path.h"
#include "cli/migrate_int.h"
#include "host/unix.h"

#define DOOR ".migrate" /* and a point, and whose it is */

/* Of commands that were killed: nobody listens there any more. */
static void sweep_doors(const struct migrate *m)
{
    DIR *dir = opendir(m->registry.runtime);
    char path[PATH_MAX], none[1];

    for (const struct dirent *e; dir && (e = readdir(dir));) {
        bool ours = strncmp(e->d_name, DOOR ".", strlen(DOOR ".")) == 0;
        if (!ours || path_format(path, sizeof path, none, sizeof none, "%s/%s", m->registry.runtime, e->d_name))
            continue;
        int fd = unix_connect(path);
        if (fd >= 0)
            close(fd);
        else if (fd == -ECONNREFUSED)
            unlink(path);
    }
    if (dir)
        closedir(dir);
}

int migrate_receive_here(struct migrate *m, char *err, size_t n)
{
    struct receiver r = {.registry = m->registry, .name = m->to.text, .quiet = true};
    pid_t parent = getpid();

    m->to.kind = PEER_UNIX;
    int failed = registry_socket(&m->registry, DOOR, "", m->to.path, err, n);
    snprintf(m->to.path + strlen(m->to.path), sizeof m->to.path - strlen(m->to.path), "%d", (int)parent);
    r.address = m->to;
    sweep_doors(m);
    unlink(m->to.path);
    r.listening = failed ? failed : peer_listen(&r.address, err, n);
    if (r.listening < 0)
        return r.listening;
    m->receiver = fork();
    if (m->receiver == 0) {
        setpgid(0, 0); /* Ctrl-C is ours, and this ends with us */
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        _exit(getppid() == parent ? receive_all(&r, false) : STATUS_FAILED);
    }
    close(r.listening);
    if (m->receiver < 0)
        unlink(m->to.path);
    return m->receiver < 0 ? error_sys(err, n, -errno, "cannot start a process that receives") : 0;
}

void migrate_receive_end(struct migrate *m)
{
    if (m->receiver <= 0)
        return;
    kill(m->receiver, SIGKILL);
    waitpid(m->receiver, NULL, 0);
    unlink(m->to.path);
    m->receiver = 0;
}
