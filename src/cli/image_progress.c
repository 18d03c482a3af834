#include "cli/image_progress.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void report(void *context, const char *stage, uint64_t done, uint64_t total)
{
    struct image_show *s = context;

    if (strcmp(s->stage, stage) != 0) {
        char next[sizeof s->stage];
        snprintf(next, sizeof next, "%s", stage);
        progress_stage(&s->progress, next, NULL); /* says that the one before is over */
        memcpy(s->stage, next, sizeof next);
        s->progress.stage = s->stage;
    }
    progress_part(&s->progress, done, total);
}

void image_show_begin(struct image_show *s, bool quiet)
{
    *s = (struct image_show){.report = {report, s}};
    progress_begin(&s->progress, false, quiet);
    if (!s->progress.line)
        progress_begin(&s->progress, true, quiet);
}

void image_show_end(struct image_show *s)
{
    progress_end(&s->progress);
}
