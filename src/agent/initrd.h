/*
 * The initramfs that goes into every guest beside the image's own: guise's program for the inside of a guest, which
 * is a part of the guise command's file, and what it is to do.
 */
#pragma once
#include <stddef.h>

struct guest_config;

/* Replaces `path`, as one step, by an archive with GUEST_INIT_PATH and GUEST_CONFIG_PATH in it; mode 0600.  The kernel
 * then needs rdinit=/guise/init.  0, or -errno with a sentence. */
int agent_initrd_write(const char *path, const struct guest_config *config, char *err, size_t n);

/* The same into an open file, at its present position: behind another archive, say. */
int agent_initrd_append(int fd, const struct guest_config *config, char *err, size_t n);
