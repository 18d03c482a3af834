#include "base/path.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

int path_format(char *out, size_t size, char *err, size_t n, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    int len = vsnprintf(out, size, format, args);
    va_end(args);
    if (len < 0 || (size_t)len >= size)
        return error_set(err, n, -ENAMETOOLONG, "the path %.60s... is too long: at most %zu characters fit here", out,
                         size - 1);
    return 0;
}

int path_make(const char *path, unsigned mode, char *err, size_t n)
{
    char part[PATH_MAX];
    struct stat st;
    int failed = path_format(part, sizeof part, err, n, "%s", path);

    if (failed)
        return failed;
    for (char *slash = strchr(part + 1, '/');; slash = strchr(slash + 1, '/')) {
        if (slash)
            *slash = 0;
        if (mkdir(part, mode) && errno != EEXIST)
            return error_sys(err, n, -errno, "cannot make the directory %s", part);
        if (!slash)
            break;
        *slash = '/';
    }
    if (stat(path, &st) || !S_ISDIR(st.st_mode))
        return error_set(err, n, -ENOTDIR, "%s is not a directory", path);
    return 0;
}

/* Makes it; somebody else's, or one that others may write to, is a trap. */
static int make_own(const char *path, char *err, size_t n)
{
    struct stat st;
    int failed = path_make(path, 0700, err, n);

    if (failed)
        return failed;
    if (lstat(path, &st))
        return error_sys(err, n, -errno, "cannot look at %s", path);
    if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid())
        return error_set(err, n, -EPERM, "%s does not belong to you: remove it, or name another directory", path);
    if (st.st_mode & 022)
        return error_set(err, n, -EPERM, "others may write to %s: chmod 700 it", path);
    return 0;
}

/* $variable/suffix when the variable is set and absolute, as the specification wants. */
static const char *absolute(const char *variable)
{
    const char *value = getenv(variable);
    return value && value[0] == '/' ? value : NULL;
}

/* own: taken as it is; xdg: plus /guise; else below the home directory. */
static int below_home(char *out, size_t size, char *err, size_t n, const char *own, const char *xdg,
                      const char *home_part)
{
    const char *home = absolute("HOME"), *from = own ? absolute(own) : NULL;
    int failed;

    if (from)
        failed = path_format(out, size, err, n, "%s", from);
    else if ((from = absolute(xdg)))
        failed = path_format(out, size, err, n, "%s/guise", from);
    else if (home)
        failed = path_format(out, size, err, n, "%s/%s/guise", home, home_part);
    else
        return error_set(err, n, -ENOENT, "there is no home directory to keep things in: set HOME or %s", xdg);
    return failed ? failed : make_own(out, err, n);
}

int path_data(char *out, size_t size, char *err, size_t n)
{
    return below_home(out, size, err, n, "GUISE_DATA", "XDG_DATA_HOME", ".local/share");
}

int path_cache(char *out, size_t size, char *err, size_t n)
{
    return below_home(out, size, err, n, NULL, "XDG_CACHE_HOME", ".cache");
}

int path_config(char *out, size_t size, char *err, size_t n)
{
    return below_home(out, size, err, n, NULL, "XDG_CONFIG_HOME", ".config");
}

int path_runtime(char *out, size_t size, char *err, size_t n)
{
    const char *own = absolute("GUISE_RUNTIME"), *xdg = absolute("XDG_RUNTIME_DIR");
    size_t limit = size < PATH_RUNTIME_MAX + 1 ? size : PATH_RUNTIME_MAX + 1;
    int failed;

    if (own)
        failed = path_format(out, limit, err, n, "%s", own);
    else if (xdg && strlen(xdg) + sizeof "/guise" <= limit && !access(xdg, W_OK))
        failed = path_format(out, limit, err, n, "%s/guise", xdg);
    else if (geteuid() == 0 && !access("/run", W_OK))
        failed = path_format(out, limit, err, n, "/run/guise");
    else
        failed = path_format(out, limit, err, n, "/tmp/guise-%u", geteuid());
    return failed ? failed : make_own(out, err, n);
}
