#include "base/openssl_library.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>

#include "base/error.h"

#define SONAME "libssl.so.3" /* which brings libcrypto along */

struct openssl_library openssl;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool loaded;

static void load(void)
{
    static const struct {
        const char *name;
        void **at;
    } functions[] = {
#define ENTRY(name) {#name, (void **)&openssl.name},
        OPENSSL_FUNCTIONS(ENTRY)
#undef ENTRY
    };
    void *library = dlopen(SONAME, RTLD_NOW | RTLD_LOCAL);

    loaded = library;
    for (size_t i = sizeof functions / sizeof *functions; loaded && i--;)
        loaded = (*functions[i].at = dlsym(library, functions[i].name)) != NULL;
}

int openssl_load(char *err, size_t n)
{
    pthread_once(&once, load);
    return loaded ? 0
                  : error_set(err, n, -ENOENT,
                              "OpenSSL 3 (" SONAME ") is needed for this, which this host does not have: install it "
                              "(Debian: libssl3)");
}
