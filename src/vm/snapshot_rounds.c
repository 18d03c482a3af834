/*
 * Saving memory whose changes nobody announces (memory/memory.h: struct memory_writer_ops; a guest on KVM).  It cannot
 * be written as it was at a moment that has passed: so it is written while the guest runs, then again what has changed
 * meanwhile, as a migration sends it, and the moment is the end of that.  What is left then is copied aside while the
 * guest stands still, and written when it runs again.
 *
 *      loop    begin -> [is_done?] -> begin ... -> [is_last] -> last
 *      thread  write a round, and another ...                -> write what is kept
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vm/snapshot_int.h"

#define LEFT_MOST ((32u << 20) >> WATCH_SHIFT) /* chunks that are copied in a moment */
#define STALLS 2u                              /* rounds that leave about as much as there was */
#define ROUNDS_MOST 16u

/* --- the thread --------------------------------------------------------------------------------------------------- */

static int write_round(struct saving *s, struct snapshot_writer *w)
{
    struct memory *m = machine_memory(s->vm->machine);
    uint8_t bytes[WATCH_CHUNK];
    int err = 0;

    for (uint64_t i = 0; i < memory_chunks(m) && !err && !s->give_up; i++) {
        if (!s->changed[i])
            continue;
        if (memory_read_chunk(m, i, bytes) || s->round > 1) /* zeroes, too, if it has been something else */
            err = snapshot_write_chunk(w, SNAPSHOT_MEMORY, i, bytes, WATCH_CHUNK);
        if (s->round == 1)
            s->done_bytes = (i + 1) << WATCH_SHIFT;
        s->written_bytes = snapshot_written(w);
    }
    return err;
}

static bool wait_for_round(struct saving *s)
{
    pthread_mutex_lock(&s->lock);
    while (s->written == s->round && !s->last_begun && !s->give_up)
        pthread_cond_wait(&s->go_on, &s->lock);
    bool more = !s->last_begun && !s->give_up;
    pthread_mutex_unlock(&s->lock);
    return more;
}

static bool wait_for_kept(struct saving *s)
{
    pthread_mutex_lock(&s->lock);
    while (!s->kept && !s->all_kept && !s->give_up)
        pthread_cond_wait(&s->go_on, &s->lock);
    bool more = s->kept && !s->give_up;
    pthread_mutex_unlock(&s->lock);
    return more;
}

int saving_write_rounds(struct saving *s, struct snapshot_writer *w)
{
    int err = 0;

    while (!err && wait_for_round(s)) {
        err = write_round(s, w);
        s->written = s->round;
    }
    while (!err && wait_for_kept(s))
        err = saving_write_kept(s, w);
    return err;
}

/* --- the loop ----------------------------------------------------------------------------------------------------- */

static int begin(struct saving *s)
{
    struct memory *m = machine_memory(s->vm->machine);
    int err = memory_log_begin(m);

    s->n_changed = memory_chunks(m);
    s->changed = malloc(s->n_changed * sizeof *s->changed);
    if (!err && !s->changed)
        err = -ENOMEM;
    if (err)
        return err;
    memset(s->changed, 0xff, s->n_changed * sizeof *s->changed);
    s->vm->ops->watch(s->vm->engine);
    return saving_thread_start(s);
}

static void take_changes(struct saving *s)
{
    memory_log_take(machine_memory(s->vm->machine), s->changed);
    s->vm->ops->watch(s->vm->engine);
    s->n_changed = 0;
    for (uint64_t i = 0; i < memory_chunks(machine_memory(s->vm->machine)); i++)
        s->n_changed += s->changed[i] != 0;
}

int saving_round_begin(struct saving *s)
{
    int err = 0;

    if (!s->changed)
        err = begin(s);
    else
        take_changes(s);
    pthread_mutex_lock(&s->lock);
    s->round++;
    pthread_cond_broadcast(&s->go_on);
    pthread_mutex_unlock(&s->lock);
    return err;
}

bool saving_round_is_done(const struct saving *s)
{
    return s->written == s->round;
}

bool saving_round_is_last(struct saving *s)
{
    uint64_t left = memory_log_chunks(machine_memory(s->vm->machine));

    s->stalls += left * 10 > s->n_changed * 7;
    return left <= LEFT_MOST || s->stalls >= STALLS || s->round >= ROUNDS_MOST;
}

static void tell(struct saving *s, bool *what)
{
    pthread_mutex_lock(&s->lock);
    *what = true;
    pthread_cond_broadcast(&s->go_on);
    pthread_mutex_unlock(&s->lock);
}

/* The thread writes meanwhile: more than there is room for is left as fast as it is written. */
int saving_round_last(struct saving *s)
{
    struct memory *m = machine_memory(s->vm->machine);
    uint8_t bytes[WATCH_CHUNK];

    tell(s, &s->last_begun);
    take_changes(s);
    for (uint64_t i = 0; i < memory_chunks(m) && !s->give_up; i++) {
        if (!s->changed[i])
            continue;
        memory_read_chunk(m, i, bytes);
        saving_wait_for_room(s);
        saving_keep(s, i, bytes, WATCH_CHUNK);
    }
    memory_log_end(m);
    tell(s, &s->all_kept);
    return s->result < 0 ? s->result : 0;
}
