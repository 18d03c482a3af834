#include "backends/disk/nbd_library.h"

#include <dlfcn.h>
#include <errno.h>

#include "base/error.h"

#define SONAME "libnbd.so.0"

struct nbd_library nbd;

int nbd_library_load(char *err, size_t n)
{
    static const struct {
        const char *name;
        void **at;
    } functions[] = {
#define ENTRY(name) {"nbd_" #name, (void **)&nbd.name},
        NBD_FUNCTIONS(ENTRY)
#undef ENTRY
    };

    if (nbd.create)
        return 0;
    void *library = dlopen(SONAME, RTLD_NOW | RTLD_LOCAL);
    for (size_t i = sizeof functions / sizeof *functions; library && i--;)
        if (!(*functions[i].at = dlsym(library, functions[i].name))) {
            dlclose(library);
            library = NULL;
        }
    if (!library)
        nbd.create = NULL;
    return library ? 0
                   : error_set(err, n, -ENOENT,
                               "a disk of this kind needs the library libnbd (" SONAME "), which this host does not "
                               "have: install it (Debian: libnbd0)");
}
