/*
 * Layers of the machine's own disk become fewer while it runs (backends/disk/overlay_merge.h): a thread copies, then
 * the disk reads the merged file.  The command that asks (vm/layers.h) has opened that file, and gives it the name.
 */
#pragma once
#include <jansson.h>

struct control_call;
struct vm;

/* The control socket's "merge" (docs/CONTROL.md). */
json_t *command_merge(struct control_call *call);
/* The machine goes: what is being merged is given up.  Nothing is lost: the layers are what they were. */
void merge_abandon(struct vm *vm);
