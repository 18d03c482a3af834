#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int error_set(char *err, size_t n, int code, const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    vsnprintf(err, n, format, ap);
    va_end(ap);
    return code;
}

int error_sys(char *err, size_t n, int code, const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    vsnprintf(err, n, format, ap);
    va_end(ap);

    size_t used = n ? strlen(err) : 0;
    if (used < n)
        snprintf(err + used, n - used, ": %s", strerror(-code));
    return code;
}
