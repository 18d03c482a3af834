/* Building a Debian system with mmdebstrap (build.c) and what it is told (recipe.c). */
#pragma once
#include "image/job.h"

#define RECIPE_SOURCES_MAX 4
#define DEFAULT_SUITE "bookworm"

struct recipe {
    const char *name, *suite;
};

/* The built-in recipe called `name`, or NULL. */
const struct recipe *recipe_find(const char *name);

/* The lines of sources.list for a suite into lines[]; how many.  `mirrors`: what `apt-get indextargets` prints on this
 * host (URI, codename and component, a line each), for the same mirrors; `mirror`: instead of them, or NULL. */
unsigned recipe_sources(const char *suite, const char *mirror, const char *mirrors,
                        char lines[RECIPE_SOURCES_MAX][512]);

/* May that be a suite, a list of packages, a mirror?  They are words of a command line.  0 or -EINVAL. */
int recipe_check(const struct image_build *b, char *err, size_t n);

extern const char recipe_packages[]; /* the least of an image, for --include */
/* Options of mmdebstrap: shell scripts that get the new system's directory as $1, before and after the user's hook. */
extern const char recipe_customize[], recipe_finish[];

/* How mmdebstrap is to get its rights: "root", "unshare" or "fakechroot"; NULL with a sentence if there is no way. */
const char *recipe_mode(char *err, size_t n);
