/* Shared by the parts of the sandbox. */
#pragma once
#include <linux/filter.h>

#include "host/sandbox.h"

/* Under a sanitizer, or when coverage is counted, the process itself needs more: such builds, which are for tests, keep
 * names and user, and have a longer list of calls. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(GUISE_COVERAGE)
#define SANDBOX_INSTRUMENTED 1
#else
#define SANDBOX_INSTRUMENTED 0
#endif

struct sandbox {
    unsigned done; /* bits 1 << enum sandbox_step */
    uid_t user;
    char missing[256];
    struct sock_fprog filters[SANDBOX_ROLES]; /* of this role and of its threads; else empty */
};

/* The filter of a role as the kernel takes it; the caller frees filter->filter.  0 or -errno. */
int sandbox_compile(enum sandbox_role role, struct sock_fprog *filter);

/* Installs the handler that says which call was forbidden (sandbox_watch.c). */
int sandbox_watch(void);

/* landlock: no names but these, and TCP only with `network`.  0, -ENOSYS: this kernel has none, or another -errno. */
int sandbox_landlock(const struct sandbox_path *paths, unsigned n, bool network);

/* The same by a root directory of its own that has nothing else in it; the working directory is lost.  0, -ENOSYS: this
 * process may not mount, nothing has changed; another -errno: it is to end. */
int sandbox_mounts(const struct sandbox_path *paths, unsigned n);
