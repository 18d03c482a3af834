/* What the two halves of preparing share: prepare.c (the machine) and prepare_guest.c (what the guest is told). */
#pragma once
#include "vm/prepare.h"

/* By which the guest finds the disk that is its own. */
#define ROOT_SERIAL "guise-root"

/* A text that lives as long as *p; NULL without memory, or when there are too many. */
const char *prepare_keep(struct prepared *p, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Appends a word (NULL: that there was no memory for), or puts it first.  0, or -errno with a sentence. */
int prepare_add(struct option_list *list, const char *word, char *err, size_t n);
int prepare_add_first(struct option_list *list, const char *word, char *err, size_t n);
int prepare_no_room(char *err, size_t n);

/* The initramfs with the program for the inside of the guest, and a seed for an image that has cloud-init. */
int prepare_guest(const struct registry *r, const struct vm_record *record, struct prepared *p, char *err, size_t n);
