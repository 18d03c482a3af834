/*
 * Ctrl-C, and signals that mean the same, in a command that has something to take back first: it looks now and then
 * whether there was one.  A second one ends it at once.
 */
#pragma once
#include <stdbool.h>

/* From now on. */
void interrupt_catch(void);
bool interrupt_came(void);
/* All is taken back: the process ends by that signal, so that a shell sees what happened.  Without one it does nothing.
 */
void interrupt_end(void);
