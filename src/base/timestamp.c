#include "base/timestamp.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

uint64_t timestamp_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void timestamp_format(uint64_t ms, char out[TIMESTAMP_SIZE])
{
    time_t seconds = (time_t)(ms / 1000);
    struct tm t;

    gmtime_r(&seconds, &t);
    size_t used = strftime(out, TIMESTAMP_SIZE, "%Y-%m-%dT%H:%M:%S", &t);
    snprintf(out + used, TIMESTAMP_SIZE - used, ".%03uZ", (unsigned)(ms % 1000));
}

void timestamp_duration(uint64_t ms, char out[TIMESTAMP_SIZE])
{
    uint64_t s = ms / 1000;

    if (s < 60)
        snprintf(out, TIMESTAMP_SIZE, "%us", (unsigned)s);
    else if (s < 3600)
        snprintf(out, TIMESTAMP_SIZE, "%um", (unsigned)(s / 60));
    else if (s < 86400)
        snprintf(out, TIMESTAMP_SIZE, "%uh%02um", (unsigned)(s / 3600), (unsigned)(s % 3600 / 60));
    else
        snprintf(out, TIMESTAMP_SIZE, "%llud%02uh", (unsigned long long)(s / 86400), (unsigned)(s % 86400 / 3600));
}
