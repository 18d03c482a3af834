#include "vm/names.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/error.h"

static const char *const adjectives[] = {
    "able",   "airy",    "amber",  "arctic", "azure", "bold",  "brave",  "brief",  "bright", "brisk", "calm",
    "clear",  "clever",  "coral",  "cosy",   "crisp", "deft",  "dusty",  "eager",  "early",  "fair",  "fancy",
    "fleet",  "fresh",   "frosty", "gentle", "glad",  "gold",  "grand",  "green",  "happy",  "hardy", "hazy",
    "honest", "humble",  "icy",    "ideal",  "jolly", "keen",  "kind",   "late",   "lively", "loyal", "lucid",
    "lucky",  "lunar",   "mellow", "merry",  "mild",  "misty", "modest", "neat",   "nimble", "noble", "novel",
    "olive",  "patient", "plain",  "polite", "prime", "proud", "quick",  "quiet",  "rapid",  "ready", "rosy",
    "royal",  "rustic",  "sage",   "sandy",  "sharp", "shy",   "silent", "silver", "smart",  "snowy", "solar",
    "solid",  "sound",   "spry",   "steady", "still", "sunny", "swift",  "tidy",   "true",   "vivid", "warm",
    "wild",   "wise",    "witty",  "young",  "zesty",
};
static const char *const nouns[] = {
    "acorn",  "alder",   "anchor", "aspen", "badger", "basin",   "beacon", "bear",   "beech",  "birch",  "bison",
    "brook",  "canyon",  "cedar",  "cliff", "comet",  "coral",   "crane",  "creek",  "dawn",   "deer",   "delta",
    "dove",   "dune",    "eagle",  "ember", "falcon", "fern",    "field",  "finch",  "fjord",  "forest", "fox",
    "garden", "glacier", "grove",  "gull",  "harbor", "hare",    "hawk",   "heron",  "hill",   "horse",  "island",
    "jay",    "kestrel", "lagoon", "lake",  "lark",   "leaf",    "lemur",  "lynx",   "maple",  "marsh",  "marten",
    "meadow", "meteor",  "moon",   "moose", "moss",   "oak",     "ocean",  "orchid", "otter",  "owl",    "panda",
    "pebble", "pine",    "planet", "pond",  "poppy",  "puffin",  "quail",  "raven",  "reed",   "reef",   "ridge",
    "river",  "robin",   "rook",   "seal",  "shore",  "sparrow", "spruce", "star",   "stone",  "stork",  "swan",
    "tern",   "thistle", "tiger",  "trout", "tulip",  "valley",  "walnut", "whale",  "willow", "wolf",   "wren",
};
#define COUNT(array) (sizeof(array) / sizeof(*(array)))

int name_check(const char *name, char *err, size_t n)
{
    size_t good = strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-");

    if (name[0] >= 'a' && name[0] <= 'z' && !name[good] && good < NAME_SIZE)
        return 0;
    return error_set(err, n, -EINVAL,
                     "'%.80s' is not a name: a letter, then letters, digits and '-', all small, at most %d together",
                     name, NAME_SIZE - 1);
}

void name_random(unsigned attempt, char out[NAME_SIZE])
{
    uint32_t r[3] = {0};

    /* Without randomness the attempts still differ. */
    if (getrandom(r, sizeof r, GRND_NONBLOCK) != sizeof r)
        r[0] = r[1] = r[2] = attempt * 2654435761u;
    const char *adjective = adjectives[r[0] % COUNT(adjectives)], *noun = nouns[r[1] % COUNT(nouns)];
    if (attempt)
        snprintf(out, NAME_SIZE, "%s-%s-%u", adjective, noun, 2 + r[2] % 98);
    else
        snprintf(out, NAME_SIZE, "%s-%s", adjective, noun);
}
