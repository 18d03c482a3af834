/* What image/ reports while it makes an image, shown as the other commands show their stages. */
#pragma once
#include "cli/progress.h"
#include "image/make.h"

struct image_show {
    struct progress progress;
    char stage[64];
    struct image_progress report; /* to hand to image/ */
};

/* Where there is no line to change, a line a stage, unless `quiet`: it takes a minute. */
void image_show_begin(struct image_show *s, bool quiet);
void image_show_end(struct image_show *s);
