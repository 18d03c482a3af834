/*
 * The memory of a restored machine: each piece comes out of the file when somebody first looks at it (memory/watch.h),
 * so that the machine runs at once, whatever its size; a thread brings the rest.
 *
 * What is looked at in the first moments is much the same each time.  It is written down, beside the file, the first
 * time, and comes first from then on:
 *
 *      SNAPSHOT/working-set    "GUISEWKS"  count (4)  crc32c of what follows (4)  numbers of chunks (4 each)
 */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/error.h"
#include "host/sandbox.h"
#include "host/thread.h"
#include "memory/faults.h"
#include "memory/watch.h"
#include "vm/restore_int.h"

#define MAGIC "GUISEWKS"
#define HEADER 16u
#define SET_MOST LOADING_SET_MOST
#define RECORD_US 500000

/* --- when somebody looks ---------------------------------------------------------------------------------------- */

/* No zeroes are taken for what was there: the machine ends.  Its vCPUs stop at once, the loop says why. */
static void give_up(struct loading *l, int err)
{
    struct vm *vm = l->vm;

    l->failed = err;
    atomic_store(&vm->stop, true);
    for (unsigned i = 0; i < vm_vcpus(vm->config); i++) {
        atomic_fetch_or(&vm->vcpus[i].cpu->request, REQ_EXIT);
        vm_kick(vm, i);
    }
}

static void load(void *opaque, uint64_t chunk, void *bytes, uint32_t length)
{
    struct loading *l = opaque;
    uint8_t *out = length == SNAPSHOT_CHUNK ? bytes : l->last;
    int kept = snapshot_read_chunk(&l->restore->file, SNAPSHOT_MEMORY, chunk, out);

    if (kept < 0) {
        memset(bytes, 0, length);
        give_up(l, kept);
    } else if (out != bytes) {
        memcpy(bytes, out, length);
    }
    if (!l->by_thread && l->recording && l->n_set < SET_MOST)
        l->set[l->n_set++] = (uint32_t)chunk;
}

static void lost(void *opaque, int err)
{
    give_up(opaque, err);
}

static bool is_kept(void *opaque, uint64_t chunk)
{
    const struct loading *l = opaque;

    return l->restore->file.extent[SNAPSHOT_MEMORY].place[chunk].length != 0;
}

/* --- the working set --------------------------------------------------------------------------------------------- */

static void read_set(struct loading *l)
{
    uint8_t head[HEADER];
    int fd = l->restore->set_fd;

    if (fd < 0 || pread(fd, head, sizeof head, 0) != sizeof head || memcmp(head, MAGIC, 8) != 0)
        return;
    uint32_t n = le32_at(head + 8);
    size_t size = n * sizeof *l->set;
    if (n > SET_MOST || pread(fd, l->set, size, HEADER) != (ssize_t)size ||
        crc32c(0, l->set, size) != le32_at(head + 12))
        return;
    l->n_set = n;
}

static void write_set(struct loading *l)
{
    uint8_t head[HEADER] = MAGIC;
    size_t size = l->n_set * sizeof *l->set;
    uint32_t n = htole32(l->n_set), crc = htole32(crc32c(0, l->set, size));

    memcpy(head + 8, &n, sizeof n);
    memcpy(head + 12, &crc, sizeof crc);
    if (l->restore->set_fd >= 0 && pwrite(l->restore->set_fd, l->set, size, HEADER) == (ssize_t)size)
        (void)!pwrite(l->restore->set_fd, head, sizeof head, 0); /* without it there is none: no harm is done */
}

/* --- the thread -------------------------------------------------------------------------------------------------- */

static void bring(struct loading *l, uint64_t chunk)
{
    if (chunk < memory_chunks(machine_memory(l->vm->machine)))
        memory_load_chunk(machine_memory(l->vm->machine), chunk, &l->by_thread);
}

static void wait_and_record(struct loading *l)
{
    for (unsigned i = 0; i < 50 && !l->stop; i++)
        usleep(RECORD_US / 50);
    l->recording = false;
    write_set(l);
}

static void *loader_main(void *opaque)
{
    struct loading *l = opaque;
    struct memory *m = machine_memory(l->vm->machine);

    prctl(PR_SET_NAME, "restore");
    if (sandbox_thread(l->vm->sandbox, SANDBOX_WORKER)) {
        give_up(l, -EPERM);
        return NULL;
    }
    if (l->recording)
        wait_and_record(l);
    for (uint32_t i = 0; i < l->n_set && !l->stop; i++)
        bring(l, le32toh(l->set[i]));
    for (uint64_t i = 0; i < memory_chunks(m) && !l->stop; i++)
        bring(l, i);
    if (!l->stop && !l->failed) {
        memory_load_end(m);
        memory_faults_end(m);
    }
    return NULL;
}

static const char *what_is_wrong(int err)
{
    return err == -EBADMSG ? "is damaged: the check sum of a piece of memory is wrong" : "cannot be read";
}

/* On the loop. */
static void look(void *opaque)
{
    struct loading *l = opaque;
    struct vm *vm = l->vm;

    if (l->failed)
        vm_end(vm, VM_FAILED, "the snapshot %s %s", l->restore->name, what_is_wrong(l->failed));
    else if (memory_is_watched(machine_memory(vm->machine)))
        loop_timer_set(vm->loop, &l->look, clock_ns() + 10000000);
}

int loading_begin(struct vm *vm, struct restore *r)
{
    struct loading *l = calloc(1, sizeof *l);

    if (!l)
        return -ENOMEM;
    *l = (struct loading){.vm = vm, .restore = r};
    loop_timer_init(&l->look, look, l);
    read_set(l);
    l->recording = !l->n_set;
    vm->loading = l;
    const struct memory_source source = {.load = load, .lost = lost, .has = is_kept, .opaque = l};
    struct memory *m = machine_memory(vm->machine);
    int err = memory_load_begin(m, &source);
    if (!err && !memory_is_announced(m))
        (void)memory_faults_open(m, false); /* else all comes before the guest runs */
    return err;
}

#define BRINGERS_MOST 4u
#define BRING_RUN 16u /* chunks that a thread takes at once */

struct bringing {
    struct loading *loading;
    _Atomic uint64_t next;
    _Atomic int failed;
};

static int bring_run(struct bringing *b, const struct snapshot_file *f, uint64_t first)
{
    struct memory *m = machine_memory(b->loading->vm->machine);
    uint8_t bytes[SNAPSHOT_CHUNK];
    int kept = 0;

    for (uint64_t i = first; i < first + BRING_RUN && i < memory_chunks(m) && kept >= 0; i++) {
        uint64_t pages = (m->size - i * WATCH_CHUNK) >> LOG_SHIFT;
        uint16_t present = pages < LOG_PER_CHUNK ? (uint16_t)((1u << pages) - 1) : 0xffff;
        if (memory_lacks_chunk(m, i) && (kept = snapshot_read_chunk(f, SNAPSHOT_MEMORY, i, bytes)) >= 0)
            memory_bring_chunk(m, i, present, 0, bytes);
    }
    return kept < 0 ? kept : 0;
}

static void *bringer_main(void *opaque)
{
    struct bringing *b = opaque;
    struct loading *l = b->loading;
    struct snapshot_file f = l->restore->file;

    prctl(PR_SET_NAME, "restore");
    f.scratch = malloc(SNAPSHOT_CHUNK); /* the other is others', too */
    int err = sandbox_thread(l->vm->sandbox, SANDBOX_WORKER);
    if (!err && !f.scratch)
        err = -ENOMEM;
    while (!err && !b->failed) {
        uint64_t first = atomic_fetch_add(&b->next, BRING_RUN);
        if (first >= f.extent[SNAPSHOT_MEMORY].n)
            break;
        err = bring_run(b, &f, first);
    }
    if (err)
        b->failed = err;
    free(f.scratch);
    return NULL;
}

int loading_all(struct vm *vm, char *err, size_t n)
{
    struct bringing b = {.loading = vm->loading};
    pthread_t threads[BRINGERS_MOST];
    unsigned started = 0;
    cpu_set_t cpus;
    unsigned want = sched_getaffinity(0, sizeof cpus, &cpus) ? 1 : (unsigned)CPU_COUNT(&cpus);
    int failed = 0;

    for (; started < want && started < BRINGERS_MOST && !failed; started += !failed)
        failed = thread_start(&threads[started], NULL, bringer_main, &b);
    failed = started ? 0 : failed;
    while (started)
        pthread_join(threads[--started], NULL);
    failed = failed ? failed : b.failed;
    if (failed)
        return error_set(err, n, failed, "the snapshot %s %s", vm->loading->restore->name, what_is_wrong(failed));
    memory_load_end(machine_memory(vm->machine));
    return 0;
}

static void *server_main(void *opaque)
{
    struct loading *l = opaque;

    prctl(PR_SET_NAME, "faults");
    if (sandbox_thread(l->vm->sandbox, SANDBOX_WORKER))
        give_up(l, -EPERM);
    memory_faults_serve(machine_memory(l->vm->machine));
    return NULL;
}

bool loading_serve(struct vm *vm)
{
    struct loading *l = vm->loading;
    struct memory *m = machine_memory(vm->machine);

    if (memory_faults_begin(m))
        return false;
    l->serves = !thread_start(&l->server, NULL, server_main, l);
    if (!l->serves) {
        memory_faults_end(m);
        memory_faults_serve(m);
    }
    return l->serves;
}

int loading_start(struct vm *vm)
{
    struct loading *l = vm->loading;

    loop_timer_set(vm->loop, &l->look, 0);
    int err = thread_start(&l->thread, NULL, loader_main, l);
    l->has_thread = !err;
    return err;
}

void restore_stop(struct vm *vm)
{
    struct loading *l = vm->loading;

    if (!l)
        return;
    l->stop = true;
    if (l->has_thread)
        pthread_join(l->thread, NULL);
    memory_faults_end(machine_memory(vm->machine));
    if (l->serves)
        pthread_join(l->server, NULL);
    loop_timer_cancel(vm->loop, &l->look);
    memory_load_end(machine_memory(vm->machine)); /* what devices still do at their end is of no account */
    free(l);
    vm->loading = NULL;
}
