/* Waiting for what a virtual machine that has just been started is to be ready for. */
#pragma once
#include "cli/life.h"

#define WAIT_OPTION(type, field)                                                                                       \
    {                                                                                                                  \
        .name = "wait", .kind = OPTION_WORD, .offset = offsetof(type, field), .value = "WHAT", .words = wait_words,    \
        .help = "return when this is there (agent unless told, boot if only --wait is)", .implied = "boot"             \
    }

extern const struct option_word wait_words[]; /* none, agent, boot, ssh */

/* `what`: one of wait_words.  Without an image there is no agent: then it is as none.  Returns STATUS_OK, or what to
 * exit with after the reason was said; the virtual machine runs on, if it does. */
int wait_until(struct life_start *s, const char *what);
