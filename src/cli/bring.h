/*
 * From the words of a command to a virtual machine that has a name, a disk of its own over an image's, and perhaps a
 * process: what `run IMAGE`, `launch` and `create` do alike.
 */
#pragma once
#include "cli/life.h"
#include "cli/run.h"
#include "image/image.h"

struct bring {
    struct registry registry;
    struct vm_record record;
    struct progress progress;
    struct life_start start;
    int lock;
};

/* Finds or makes the image (a->settings.image, or none for mode VM_MODE_KERNEL), the record and the disk.  The lock is
 * held. Returns STATUS_OK, or what to exit with after saying why. */
int bring_create(struct bring *b, const struct run_arguments *a, enum vm_mode mode, bool ephemeral);
/* Finds or makes the image `word` alone; *hold keeps it until it is closed.  0, or -errno with a sentence. */
int bring_find_image(struct bring *b, const char *word, struct image_info *info, int *hold, char *err, size_t n);
/* Gives up the lock: it exists, and does not run. */
void bring_leave(struct bring *b);

/* Starts its process, and returns when its CPUs run; as life_begin. */
int bring_start(struct bring *b, bool attached);
/* Waits until the agent in the guest is there.  A guest that does not come up is killed and, if it is a throw-away one,
 * removed.  Returns STATUS_OK, or what to exit with after the stage, the reason and the end of the serial log were
 * said. */
int bring_wait_agent(struct bring *b);

/* It has done its work: shuts it down, or just cuts the power of a throw-away one, and removes that. */
void bring_end(struct bring *b);
