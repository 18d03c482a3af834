
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "backends/disk.h"
#include "backends/disk/overlay.h"
#include "base/error.h"
#include "base/log.h"
#include "cli/receive_int.h"
#include "host/loop.h"
#include "image/image.h"
#include "vm/prepare.h"
#include "vm/snapshot.h"

#define START_MS 60000
#define EARLIER_NS 20000000000ull
#define VERSION 3         /* 1 has no post-copy, 2 no disks that stay where they are */
#define WHOLE_MS 86400000 /* a day: who sends says when it is enough */
#define HEX_MOST (2 * 4096)

/* In what is released, too, for that is what the tests are of: who can set our environment can stop us as well. */
void receive_stop_at(const char *place)
{
    const char *here = getenv("GUISE_STOP_AT");

    if (here && strcmp(here, place) == 0)
        raise(SIGSTOP);
}

/* --- may it come? ------------------------------------------------------------------------------------------------ */

static int take_hello(struct receiving *v, char *err, size_t n)
{
    receive_map(&v->r->maps, v->hello);
    char *text = json_dumps(json_object_get(v->hello, "machine"), JSON_COMPACT);
    uint64_t version = number_of(v->hello, "version");
    int failed = 0;

    snprintf(v->id, sizeof v->id, "%s", text_of(v->hello, "id"));
    v->n_streams = (unsigned)number_of(v->hello, "streams");
    v->n_extra = json_is_true(json_object_get(v->hello, "postcopy")) ? MIGRATION_EXTRA : 0;
    if (!version || version > VERSION)
        failed = error_set(err, n, -ENOTSUP, "the source speaks version %llu of migration, this guise version %d: %s",
                           (unsigned long long)version, VERSION,
                           version > VERSION ? "update guise at the destination" : "update guise at the source");
    else if (!migration_is_id(v->id) || !text || !v->n_streams || v->n_streams > MIGRATION_STREAMS_MAX)
        failed = error_set(err, n, -EBADMSG, "what the source says about itself makes no sense");
    else if ((failed = record_parse(&v->record, text, strlen(text), err, n)))
        v->record.texts = NULL;
    free(text);
    if (failed)
        return failed;
    if (v->r->name)
        v->record.settings.name = v->r->name;
    snprintf(v->record.name, sizeof v->record.name, "%s", v->record.settings.name);
    return 0;
}

static int check_engine(const struct receiving *v, char *err, size_t n)
{
    const char *hex = text_of(v->hello, "cpuid");
    size_t len = strlen(hex);
    uint8_t bytes[HEX_MOST / 2];
    const struct vm_config *config = &v->record.settings.config;
    unsigned byte;

    if (len % 2 || len > HEX_MOST)
        return error_set(err, n, -EBADMSG, "what the source says about its CPU makes no sense");
    for (size_t i = 0; i < len / 2; i++) {
        if (sscanf(hex + 2 * i, "%2x", &byte) != 1)
            return error_set(err, n, -EBADMSG, "what the source says about its CPU makes no sense");
        bytes[i] = (uint8_t)byte;
    }
    const char *engine = vm_engine_again(config->engine, text_of(v->hello, "engine"));
    if (v->n_extra && !vm_guest_can_wait(engine))
        return error_set(err, n, -ENOTSUP,
                         "on the kvm engine a guest can wait for memory that comes later only where the process may "
                         "have a userfaultfd (as root, or with vm.unprivileged_userfaultfd=1): move it without "
                         "--postcopy");
    return vm_engine_check(engine, vm_vcpus(config), bytes, len / 2, "the destination", err, n);
}

static uint64_t memory_available(void)
{
    FILE *f = fopen("/proc/meminfo", "re");
    char line[128];
    unsigned long long kib = 0;

    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return (uint64_t)kib << 10;
}

static int check_memory(const struct receiving *v, char *err, size_t n)
{
    uint64_t memory = number_of(v->hello, "memory_used"), available = memory_available();

    if (available && memory > available)
        return error_set(err, n, -ENOSPC, "its guest uses %llu MiB of memory, the destination has %llu MiB left",
                         (unsigned long long)memory >> 20, (unsigned long long)available >> 20);
    return 0;
}

static int check_room(const struct receiving *v, char *err, size_t n)
{
    uint64_t disk = number_of(v->hello, "disk_used");
    struct statvfs fs;

    if (!statvfs(v->r->registry.vms, &fs) && disk > (uint64_t)fs.f_bavail * fs.f_frsize)
        return error_set(err, n, -ENOSPC, "its disk takes %llu MiB, and where %s is there are %llu MiB left",
                         (unsigned long long)disk >> 20, v->r->registry.vms,
                         (unsigned long long)fs.f_bavail * fs.f_frsize >> 20);
    return 0;
}

/* --- one that came to nothing ------------------------------------------------------------------------------------ */

void receive_close_streams(struct receiving *v)
{
    for (unsigned i = 0; i < MIGRATION_ALL_MAX; i++) {
        if (v->streams[i] >= 0)
            close(v->streams[i]);
        v->streams[i] = -1;
    }
}

void receive_clean_up(struct receiving *v, bool remove)
{
    receive_close_streams(v);
    if (v->file >= 0)
        close(v->file);
    if (v->lock >= 0)
        close(v->lock);
    client_close(&v->client);
    if (remove && v->made)
        receive_remove(&v->r->registry, v->record.name, v->id);
    record_free(&v->record);
}

/* The same machine was here before, as a whole or in part, and was never told to run: the source, which sends it again,
 * has gone on since.  Is something of it still there? */
static bool forget_earlier(const struct receiving *v)
{
    struct migration_record m;
    struct vm_record earlier;
    struct registry swept;
    char none[1];

    registry_open(&swept, none, sizeof none);
    if (registry_load(&v->r->registry, v->record.name, &earlier, none, sizeof none))
        return false;
    bool same = strcmp(earlier.uuid, v->record.uuid) == 0, partly = same && earlier.ephemeral;
    record_free(&earlier);
    if (same && !migration_record_read(&v->r->registry, v->record.name, &m, none, sizeof none) && m.destination &&
        !m.decided)
        return receive_remove(&v->r->registry, v->record.name, m.id) != 0;
    return partly;
}

/* --- making it --------------------------------------------------------------------------------------------------- */

static int make_disk(struct receiving *v, char *err, size_t n)
{
    char path[PATH_MAX];
    struct image_info image;
    uint64_t size = number_of(v->hello, "disk_bytes");
    int failed = image_find(v->record.image_digest, &image, err, n);

    if (failed)
        return error_set(err, n, failed,
                         "its image %s is not at the destination: `guise image export` and `import` bring it there",
                         v->record.settings.image ? v->record.settings.image : v->record.image_digest);
    failed = receive_own_disk(v, err, n);
    if (failed || v->own_stays)
        return failed;
    failed = check_room(v, err, n);
    if (failed)
        return failed;
    char *base = disk_quote(image.disk, "raw");
    failed = registry_path(&v->r->registry, v->record.name, VM_DISK, path, err, n);
    if (!failed)
        failed = base ? disk_overlay_create(path, base, size, err, n) : error_set(err, n, -ENOMEM, "out of memory");
    free(base);
    return failed;
}

/* The process is there, and waits. */
static int start(struct receiving *v, char *err, size_t n)
{
    const struct process_source incoming = {
        .incoming = true, .disk_away = v->own_stays, .engine = vm_engine_again("auto", text_of(v->hello, "engine"))};
    json_t *event = NULL;
    int fd;
    int failed = process_start(&v->r->registry, &v->record, v->lock, true, &incoming, &fd, err, n);

    close(v->lock);
    v->lock = -1;
    if (failed)
        return failed;
    client_adopt(&v->client, fd);
    failed = client_event(&v->client, START_MS, &event);
    const char *reason = json_string_value(json_object_get(json_object_get(event, "data"), "reason"));
    if (failed || strcmp(text_of(event, "event"), "incoming") != 0)
        failed = error_set(err, n, -EIO, "it cannot be set up at the destination: %s",
                           reason ? reason : "its process died");
    json_decref(event);
    return failed;
}

static int make(struct receiving *v, char *err, size_t n)
{
    struct migration_record m = {.destination = true};

    for (uint64_t until = clock_ns() + EARLIER_NS; forget_earlier(v) && clock_ns() < until;)
        usleep(50000);          /* its process is about to end */
    v->record.ephemeral = true; /* until all of it is there: what is left of it when we die is swept up */
    int failed = registry_create(&v->r->registry, &v->record, &v->lock, err, n);
    if (failed)
        return failed;
    v->made = true;
    memcpy(m.id, v->id, sizeof m.id);
    memcpy(m.name, v->record.name, sizeof m.name);
    v->file = migration_record_make(&v->r->registry, &m, err, n);
    failed = v->file < 0 ? v->file : 0;
    if (!failed && record_has_disk(&v->record))
        failed = make_disk(v, err, n);
    return failed ? failed : start(v, err, n);
}

/* --- receiving it ------------------------------------------------------------------------------------------------ */

/* By the last of the extra ones this side talks. */
static bool is_ours(const struct receiving *v, uint64_t index)
{
    return v->n_extra && index == v->n_streams + v->n_extra - 1;
}

int receive_streams(struct receiving *v, char *err, size_t n)
{
    struct receiver *r = v->r;
    unsigned all = v->n_streams + v->n_extra, missing = all;

    while (missing) {
        struct peer p;
        json_t *first = NULL;
        struct pollfd ready[] = {{.fd = r->listening, .events = POLLIN}, {.fd = v->peer->fd, .events = POLLRDHUP}};
        if (poll(ready, 2, PEER_PATIENCE_MS) <= 0 || ready[1].revents)
            return error_set(err, n, -ECONNRESET, "the source has gone");
        if (peer_accept(&p, r->listening, &r->address, err, n))
            continue;
        bool mine = !peer_receive(&p, PEER_PATIENCE_MS, &first) &&
                    strcmp(text_of(first, "guise"), "migration-stream") == 0 &&
                    strcmp(text_of(first, "id"), v->id) == 0;
        uint64_t index = number_of(first, "stream");
        json_decref(first);
        if (mine && index < all && v->streams[index] < 0) {
            v->streams[index] = peer_stream(&p, is_ours(v, index));
            missing--;
        } else {
            peer_send(&p, json_pack("{s:s}", "refused", "another migration is being received: try again later"));
            peer_close(&p);
        }
    }
    return 0;
}

static int begin(struct receiving *v, char *err, size_t n)
{
    int fds[1 + MIGRATION_ALL_MAX] = {v->file};
    unsigned all = v->n_streams + v->n_extra;

    memcpy(fds + 1, v->streams, all * sizeof *fds);
    int failed = client_call_fds(&v->client, "incoming",
                                 json_pack("{s:s, s:b}", "action", "begin", "postcopy", v->n_extra != 0), fds, 1 + all,
                                 NULL, err, n);
    receive_close_streams(v); /* else their end would not be seen */
    return failed;
}

int receive_wait_for_word(struct receiving *v, char *err, size_t n)
{
    json_t *word = NULL;
    int failed = peer_receive(v->peer, -1, &word);
    bool go = !failed && json_is_true(json_object_get(word, "go"));
    bool lost = !failed && v->lacking && json_is_true(json_object_get(word, "lost"));

    json_decref(word);
    receive_stop_at("received-go");
    if (lost)
        return receive_lost(v, false, err, n);
    if (!go) {
        if (v->lacking)
            log_say("%s is here, but for some of its memory, and waits: its source will say whether it is to run",
                    v->record.name);
        else
            log_say("%s is here as a whole, and waits: its source will say whether it is to run; `guise migrate --here "
                    "%s` says so in its place",
                    v->record.name, v->record.name);
        return -EAGAIN;
    }
    failed = receive_go(&v->client, false, err, n);
    receive_stop_at("ran");
    if (failed)
        return failed;
    peer_send(v->peer, json_pack("{s:b}", "running", 1));
    if (v->lacking)
        return receive_arrive(v, err, n);
    migration_record_remove(&v->r->registry, v->record.name, err, n);
    return 0;
}

/* Until it is complete; is some of its memory to come later? */
static int wait_until_complete(struct receiving *v, char *err, size_t n)
{
    json_t *status = NULL;

    v->client.patience_ms = WHOLE_MS;
    int failed = client_call(&v->client, "incoming", json_pack("{s:s}", "action", "wait"), &status, err, n);
    v->client.patience_ms = CLIENT_ANSWER_MS;
    v->lacking = json_is_true(json_object_get(status, "lacking"));
    json_decref(status);
    return failed;
}

static int receive_machine(struct receiving *v, char *err, size_t n)
{
    int failed = take_hello(v, err, n);

    if (!failed)
        failed = check_engine(v, err, n);
    if (!failed)
        failed = check_memory(v, err, n);
    if (!failed)
        failed = receive_see_disks(v, err, n);
    if (!failed)
        failed = make(v, err, n);
    if (!failed)
        failed = peer_send(v->peer, json_pack("{s:b, s:b}", "ready", 1, "own_stays", (int)v->own_stays));
    if (!failed)
        failed = receive_streams(v, err, n);
    if (!failed)
        failed = begin(v, err, n);
    if (!failed)
        failed = peer_send(v->peer, json_pack("{s:b}", "receiving", 1));
    if (!failed)
        failed = wait_until_complete(v, err, n);
    return failed ? failed : registry_keep(&v->r->registry, &v->record, err, n);
}

static int receive_hello(struct receiver *r, struct peer *p, json_t *hello, char name[NAME_SIZE], char *err, size_t n)
{
    struct receiving v = {.r = r, .peer = p, .hello = hello, .lock = -1, .file = -1, .client.fd = -1};

    for (unsigned i = 0; i < MIGRATION_ALL_MAX; i++)
        v.streams[i] = -1;
    int failed = receive_machine(&v, err, n);
    if (failed) {
        peer_send(p, json_pack("{s:s, s:b}", "refused", err, "unavailable", (int)(failed == -ENOTSUP)));
        receive_clean_up(&v, true);
        return failed;
    }
    receive_stop_at("received");
    peer_send(p, json_pack("{s:b}", "complete", 1));
    failed = receive_wait_for_word(&v, err, n);
    snprintf(name, NAME_SIZE, "%s", v.record.name);
    receive_clean_up(&v, false);
    return failed;
}

int receive_one(struct receiver *r, struct peer *p, char name[NAME_SIZE], char *err, size_t n)
{
    json_t *hello = NULL;
    int failed = peer_receive(p, PEER_PATIENCE_MS, &hello);

    if (failed)
        return error_set(err, n, -EAGAIN, "somebody connected, and did not say what for");
    if (strcmp(text_of(hello, "guise"), "migration") == 0)
        failed = receive_hello(r, p, hello, name, err, n);
    else if (strcmp(text_of(hello, "guise"), "migration-question") == 0)
        failed = receive_resolve(r, p, hello, name, err, n);
    else
        failed = error_set(err, n, -EAGAIN, "somebody connected who wants something unknown");
    json_decref(hello);
    return failed;
}

int receive_all(struct receiver *r, bool once)
{
    char err[ERROR_SIZE], name[NAME_SIZE];
    struct peer p;

    for (;;) {
        err[0] = 0;
        if (poll(&(struct pollfd){.fd = r->listening, .events = POLLIN}, 1, -1) < 0 && errno != EINTR)
            return cli_failed(-errno, "cannot wait for machines");
        if (peer_accept(&p, r->listening, &r->address, err, sizeof err)) {
            if (err[0])
                log_say("%s", err);
            continue;
        }
        int failed = receive_one(r, &p, name, err, sizeof err);
        peer_close(&p);
        if (!failed && !r->quiet) {
            puts(name);
            fflush(stdout);
        } else if (failed && err[0]) {
            log_say("%s", err);
        }
        if (!failed && once)
            return STATUS_OK;
    }
}
