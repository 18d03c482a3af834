#include "base/log.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

static bool stderr_is_raw(void)
{
    struct termios t;

    return tcgetattr(STDERR_FILENO, &t) == 0 && !(t.c_oflag & OPOST);
}

/* Control characters, those of UTF-8 (U+0080 to U+009F) too, as '?'. */
static void make_printable(char *text)
{
    for (unsigned char *p = (unsigned char *)text; *p; p++) {
        bool second = *p == 0xc2 && p[1] >= 0x80 && p[1] < 0xa0;
        if (*p >= ' ' && *p != 0x7f && !second)
            continue;
        *p = '?';
        if (second)
            *++p = '?';
    }
}

void log_say(const char *format, ...)
{
    static const char prefix[] = "guise: ";
    char line[1024];
    bool raw = stderr_is_raw();
    size_t used = (size_t)snprintf(line, sizeof(line), "%s%s", raw ? "\r\n" : "", prefix);
    va_list ap;

    va_start(ap, format);
    int body = vsnprintf(line + used, sizeof(line) - used - 2, format, ap);
    va_end(ap);
    if (body > 0) {
        make_printable(line + used);
        used = strlen(line);
    }
    if (raw)
        line[used++] = '\r';
    line[used++] = '\n';
    /* Nobody is left to tell if stderr itself is gone. */
    if (write(STDERR_FILENO, line, used) < 0)
        return;
}
