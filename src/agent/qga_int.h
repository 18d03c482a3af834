/* What the files of the client for QEMU's guest agent share. */
#pragma once
#include <jansson.h>

#include "agent/qga.h"

/* Sends `command` with `arguments` (taken over; may be NULL) and waits for the answer: *result is a new reference,
 * which may be left out.  Errors of the agent are -EIO, or -ENOENT where it names that. */
int qga_call(struct qga *q, const char *command, json_t *arguments, json_t **result, char *err, size_t n);
/* Sends without waiting: some commands have no answer when they succeed. */
int qga_send(struct qga *q, const char *command, json_t *arguments, char *err, size_t n);

/* Base64, as JSON has binary data: new memory, or NULL. */
char *qga_encode(const void *data, size_t len);
unsigned char *qga_decode(const char *text, size_t *len);
