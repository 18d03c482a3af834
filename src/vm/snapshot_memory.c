/*
 * The thread that writes a machine's memory as it was at one moment, while the guest runs on.
 *
 * It goes through all chunks; what the guest is about to change first is copied aside (memory/watch.h) and waits in a
 * list, which comes first and has an end: a guest that writes faster than the file takes it waits.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#include "host/sandbox.h"
#include "host/thread.h"
#include "vm/snapshot_int.h"

#define KEPT_MOST (64u << 20)

/* --- on the guest's threads -------------------------------------------------------------------------------------- */

void saving_wait_for_room(void *opaque)
{
    struct saving *s = opaque;

    pthread_mutex_lock(&s->lock);
    while (s->kept_bytes > KEPT_MOST && !s->give_up && s->result == 1)
        pthread_cond_wait(&s->room, &s->lock);
    pthread_mutex_unlock(&s->lock);
}

void saving_keep(void *opaque, uint64_t chunk, const void *bytes, uint32_t length)
{
    struct saving *s = opaque;
    struct kept_chunk *k = s->give_up ? NULL : malloc(sizeof *k + length);

    if (!k) { /* no memory: then there is no snapshot */
        s->give_up = true;
        return;
    }
    *k = (struct kept_chunk){.chunk = chunk, .length = length};
    memcpy(k->bytes, bytes, length);
    pthread_mutex_lock(&s->lock);
    *s->kept_end = k;
    s->kept_end = &k->next;
    s->kept_bytes += length;
    pthread_cond_broadcast(&s->go_on);
    pthread_mutex_unlock(&s->lock);
}

/* --- the thread --------------------------------------------------------------------------------------------------- */

static struct kept_chunk *take_kept(struct saving *s)
{
    pthread_mutex_lock(&s->lock);
    struct kept_chunk *k = s->kept;
    if (k) {
        if (!(s->kept = k->next))
            s->kept_end = &s->kept;
        s->kept_bytes -= k->length;
        pthread_cond_broadcast(&s->room);
    }
    pthread_mutex_unlock(&s->lock);
    return k;
}

int saving_write_kept(struct saving *s, struct snapshot_writer *w)
{
    struct kept_chunk *k;
    int err = 0;

    while (!err && (k = take_kept(s))) {
        err = snapshot_write_chunk(w, SNAPSHOT_MEMORY, k->chunk, k->bytes, k->length);
        free(k);
    }
    return err;
}

static int write_memory(struct saving *s, struct snapshot_writer *w)
{
    struct memory *m = machine_memory(s->vm->machine);
    uint8_t bytes[WATCH_CHUNK];
    uint32_t length;
    int err = 0;

    for (uint64_t i = 0; i < memory_chunks(m) && !err && !s->give_up; i++) {
        err = saving_write_kept(s, w);
        i = memory_keep_skip(m, i);
        if (!err && i < memory_chunks(m) && memory_keep_take(m, i, bytes, &length))
            err = snapshot_write_chunk(w, SNAPSHOT_MEMORY, i, bytes, length);
        s->done_bytes = (i + 1) << WATCH_SHIFT;
        s->written_bytes = snapshot_written(w);
    }
    return err ? err : saving_write_kept(s, w);
}

static int write_all(struct saving *s)
{
    struct snapshot_writer *w;
    int err = snapshot_writer_create(&w, s->file);

    if (err)
        return err;
    err = snapshot_write_extent(w, SNAPSHOT_MEMORY, machine_memory(s->vm->machine)->size);
    if (!err)
        err = s->by_rounds ? saving_write_rounds(s, w) : write_memory(s, w);
    if (!err && !s->give_up) /* else there are none, perhaps */
        err = snapshot_write_sections(w, &s->sections);
    if (!err && s->give_up)
        err = -ECANCELED;
    if (!err)
        err = snapshot_write_end(w);
    s->written_bytes = snapshot_written(w);
    snapshot_writer_destroy(w);
    return err;
}

static void *writer_main(void *opaque)
{
    struct saving *s = opaque;

    prctl(PR_SET_NAME, "snapshot");
    int err = sandbox_thread(s->vm->sandbox, SANDBOX_WORKER);
    if (!err)
        err = write_all(s);
    if (!s->by_rounds)
        memory_keep_end(machine_memory(s->vm->machine));
    pthread_mutex_lock(&s->lock);
    s->result = err;
    pthread_cond_broadcast(&s->room);
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

int saving_thread_start(struct saving *s)
{
    s->result = 1;
    int err = thread_start(&s->thread, NULL, writer_main, s);
    s->has_thread = !err;
    if (err)
        s->result = err;
    return err;
}

int saving_memory_begin(struct saving *s)
{
    const struct memory_keeper keeper = {saving_wait_for_room, saving_keep, s};
    struct memory *m = machine_memory(s->vm->machine);
    int err = memory_keep_begin(m, &keeper);

    if (err)
        return err;
    s->vm->ops->watch(s->vm->engine);
    err = saving_thread_start(s);
    if (err)
        memory_keep_end(m);
    return err;
}

void saving_memory_end(struct saving *s)
{
    struct kept_chunk *k;

    if (s->has_thread)
        pthread_join(s->thread, NULL);
    s->has_thread = false;
    while ((k = take_kept(s)))
        free(k);
    if (s->changed)
        memory_log_end(machine_memory(s->vm->machine));
    free(s->changed);
    s->changed = NULL;
}
