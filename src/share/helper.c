/* The process of the file server. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/log.h"
#include "share/server_int.h"
#include "share/wire.h"

enum { SOCKET = 3, ARENA = 4, ROOT = 5 };
#define THREADS 8u /* operations that may take long, at a time, and one */

static int map_arena(void **arena, char *err, size_t n)
{
    struct stat st;

    if (fstat(ARENA, &st) || (uint64_t)st.st_size < SHARE_ARENA_SIZE)
        return error_set(err, n, -EINVAL, "the file server is started by guise itself, for a shared folder");
    *arena = mmap(NULL, SHARE_ARENA_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, ARENA, 0);
    return *arena == MAP_FAILED ? error_sys(err, n, -errno, "the file server cannot map its arena") : 0;
}

int share_helper_main(int argc, char **argv)
{
    struct server_config config = {.root_fd = ROOT};
    char err[ERROR_SIZE];
    void *arena;

    for (int i = 1; i < argc; i++) {
        config.read_only |= strcmp(argv[i], "--read-only") == 0;
        config.cross_mounts |= strcmp(argv[i], "--cross-mounts") == 0;
        config.locks |= strcmp(argv[i], "--locks") == 0;
    }
    int r = map_arena(&arena, err, sizeof err);
    if (!r)
        r = confine(&config.root_fd, config.read_only, config.cross_mounts, err, sizeof err);
    if (!r)
        r = server_run(SOCKET, arena, &config, THREADS, err, sizeof err);
    if (r)
        log_say("%s", err);
    return r ? 1 : 0;
}
