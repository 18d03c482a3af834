#include "cli/progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/loop.h"
#include "host/thread.h"

#define TICK_MS 100
#define SHOW_AFTER_NS 300000000ull /* what is over at once needs no line */

void progress_begin(struct progress *p, bool verbose, bool quiet)
{
    const char *term = getenv("TERM");
    bool can = isatty(STDERR_FILENO) && term && strcmp(term, "dumb") != 0;

    memset(p, 0, sizeof *p);
    p->line = can && !verbose && !quiet;
    p->verbose = verbose && !quiet;
    p->began_ns = p->stage_ns = clock_ns();
}

static void finish_stage(struct progress *p)
{
    uint64_t now = clock_ns();

    if (p->stage && p->verbose)
        fprintf(stderr, "guise: %-8s %6.2f s\n", p->stage, (double)(now - p->stage_ns) / 1e9);
    p->stage_ns = now;
}

static void show(struct progress *p, const char *what)
{
    uint64_t passed = clock_ns() - p->began_ns;

    if (!p->line || (passed < SHOW_AFTER_NS && !p->shown))
        return;
    fprintf(stderr, "\r\033[K[%5.1f s] %s%s%s", (double)passed / 1e9, p->stage, what ? ": " : "", what ? what : "");
    fflush(stderr);
    p->shown = true;
}

void progress_stage(struct progress *p, const char *stage, const char *what)
{
    finish_stage(p);
    p->stage = stage;
    show(p, what);
}

void progress_part(struct progress *p, uint64_t done, uint64_t total)
{
    enum { WIDTH = 30 };
    char bar[64];
    uint64_t part = total == 0 ? 0 : done < total ? done : total;

    if (total == 0) {
        show(p, NULL);
        return;
    }
    unsigned full = (unsigned)((double)part * WIDTH / (double)total);
    int used = snprintf(bar, sizeof bar, "%3u %% [", (unsigned)((double)part * 100 / (double)total));
    memset(bar + used, '#', full);
    memset(bar + used + full, ' ', WIDTH - full);
    snprintf(bar + used + WIDTH, sizeof bar - (size_t)used - WIDTH, "]");
    show(p, bar);
}

int progress_tick(struct progress *p)
{
    if (p->stage)
        show(p, NULL);
    return p->line ? TICK_MS : -1;
}

static void *tell(void *opaque)
{
    struct progress *p = opaque;

    while (atomic_load(&p->alone)) {
        show(p, NULL);
        usleep(TICK_MS * 1000);
    }
    return NULL;
}

void progress_alone(struct progress *p, const char *stage)
{
    progress_stage(p, stage, NULL);
    if (!p->line)
        return;
    atomic_store(&p->alone, true);
    if (thread_start(&p->thread, NULL, tell, p))
        atomic_store(&p->alone, false);
}

const char *progress_end(struct progress *p)
{
    const char *stage = p->stage;

    if (atomic_exchange(&p->alone, false))
        pthread_join(p->thread, NULL);
    finish_stage(p);
    if (p->shown)
        fputs("\r\033[K", stderr);
    p->shown = false;
    p->stage = NULL;
    return stage;
}
