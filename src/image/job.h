/*
 * Work on an image in a process of its own (job.c): what takes long, and what reads strangers' files.  The parent waits
 * for it, passes on what it reports, ends it on a signal, and removes its draft whatever became of it.
 */
#pragma once
#include <jansson.h>

#include "image/image_int.h"
#include "image/make.h"

struct job {
    int report;                  /* where to tell the parent; -1: nobody */
    char draft[IMAGE_PATH_SIZE]; /* the directory to work in */
    char stage[64];
    uint64_t reported_ms;
    struct store_draft *own; /* NULL: without a process of its own, for tests */
    int signals;             /* with `own`: a signalfd of SIGTERM, which is blocked: the job is to end */
};

/* A new stage, said at once; then how far it is, said now and then.  When the job is to end neither returns: the draft
 * is removed and the process ends.  So whatever takes long calls job_progress often. */
void job_stage(struct job *j, const char *stage);
void job_progress(struct job *j, uint64_t done, uint64_t total);

/*
 * Runs a program to its end, its output in DRAFT/log (a new one).  -ENOENT: the program is missing; -EIO: it failed,
 * and the sentence ends with the last lines of the log.
 */
struct job_tool {
    const char *const *argv; /* at most 58 words */
    const char *name;        /* what it is called in a sentence; NULL: argv[0] */
    const int *fds;          /* its descriptors 4, 5, ... */
    unsigned n_fds;
    int *status;  /* not NULL: gets the exit status, and one that is not 0 is no error */
    int grace_ms; /* between SIGTERM and SIGKILL when the job is ended */
    /* Called some times a second with the log so far, NUL-terminated; may be NULL. */
    void (*watch)(void *context, struct job *j, const char *log);
    void *context;
};

int job_run(struct job *j, const struct job_tool *tool, char *err, size_t n);

/* Is there such a program, in PATH or where administrators' programs are? */
bool job_has_program(const char *name);

/* "DRAFT/NAME" into out[IMAGE_PATH_SIZE]. */
void job_path(const struct job *j, const char *name, char *out);

/*
 * Forks; the child calls work(j, context, ...) with a new draft, and publishes the result as `name` (NULL: nameless).
 * Fills *out.  What `work` returns as an error is returned here with its sentence.
 */
int job_make(const char *name, int (*work)(struct job *j, void *context, char *err, size_t n), void *context,
             const struct image_progress *progress, struct image_info *out, char *err, size_t n);

/* "YYYY-MM-DDTHH:MM:SSZ", now. */
void job_now(char out[32]);
