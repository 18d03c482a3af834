#include "cli/forking.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"
#include "cli/interrupt.h"
#include "host/loop.h"

#define BEGIN_MS 120000 /* a busy disk's flush, and the moment itself */
#define END_MS 5000
#define IDENTITY_MS 30000 /* a copy's agent answers, or there is something wrong with it */

/* --- the machine that is copied ----------------------------------------------------------------------------------- */

/* What `layer` says is where the disk of copies begins. */
static void note_layer(struct forking *f, const json_t *result)
{
    const char *layer = json_string_value(json_object_get(result, "layer"));

    snprintf(f->layer.layer, sizeof f->layer.layer, "%s", layer ? layer : "");
}

static int ask(struct forking *f, char *err, size_t n)
{
    json_t *result = NULL;
    int ends[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends))
        return error_sys(err, n, -errno, "cannot talk to the machine");
    const int fds[] = {ends[1], f->layer.top};
    int failed = fork_offer(ends[0], err, n);
    json_t *arguments = json_pack("{s:s, s:b, s:s?}", "tag", "fork", "park", (int)f->park, "layer",
                                  f->layer.top >= 0 ? f->layer.layer : NULL);
    f->client.patience_ms = BEGIN_MS;
    if (!failed)
        failed = client_call_fds(&f->client, "fork", json_incref(arguments), fds, 1 + (f->layer.top >= 0), &result, err,
                                 n);
    json_decref(arguments);
    close(ends[1]);
    if (!failed && (f->n_fds = fork_receive(ends[0], f->fds, err, n)) < 0)
        failed = f->n_fds;
    close(ends[0]);
    if (!failed)
        note_layer(f, result);
    f->pause_us = (uint64_t)json_integer_value(json_object_get(result, "pause_us"));
    json_decref(result);
    return failed;
}

int forking_begin(struct forking *f, char *err, size_t n)
{
    json_t *status = NULL;

    f->layer = (struct snapshot_making){.lock = -1, .state = -1, .top = -1};
    int failed = client_open(&f->client, f->registry, f->parent.name, err, n);
    if (!failed)
        failed = client_call(&f->client, "status", NULL, &status, err, n);
    bool parked = json_is_true(json_object_get(status, "parked"));
    f->agent = parked || json_is_true(json_object_get(status, "agent"));
    json_decref(status);
    if (!failed && !parked)
        failed = snapshot_make_layer(f->registry, &f->parent, &f->client, &f->layer, err, n);
    if (!failed && (failed = ask(f, err, n)) && !parked)
        snapshot_make_layer_end(&f->layer, snapshot_is_layered(&f->layer, &f->client));
    return failed;
}

void forking_end(struct forking *f)
{
    while (f->n_fds > 0)
        close(f->fds[--f->n_fds]);
    snapshot_make_layer_end(&f->layer, true);
    client_close(&f->client);
}

/* --- copies ------------------------------------------------------------------------------------------------------- */

static int make(struct forking *f, struct forked *c, struct copy_words *words, char *err, size_t n)
{
    static const struct option_list none;

    words->publish = words->publish ? words->publish : &none;
    int failed = copy_make(f->registry, &f->parent, f->layer.layer, words, &c->record, &c->lock, err, n);
    c->made = !failed;
    return failed;
}

static int start(struct forking *f, struct forked *c, bool attached, char *err, size_t n)
{
    const struct process_source source = {.copy = f->fds, .n_copy = (unsigned)f->n_fds};
    int fd, failed = process_start(f->registry, &c->record, c->lock, attached, &source, &fd, err, n);

    if (failed)
        return failed;
    close(c->lock);
    c->lock = -1;
    c->runs = true;
    client_adopt(&c->client, fd);
    return 0;
}

int forking_copy(struct forking *f, struct forked *c, struct copy_words *words, bool attached, char *err, size_t n)
{
    int failed = make(f, c, words, err, n);

    return failed ? failed : start(f, c, attached, err, n);
}

#define LOOK_MS 100

/* -EINTR: there was a signal. */
static int next_event(struct client *client, json_t **event)
{
    const uint64_t until = clock_ns() + IDENTITY_MS * 1000000ull;
    int failed;

    do
        failed = interrupt_came() ? -EINTR : client_event(client, LOOK_MS, event);
    while (failed == -ETIMEDOUT && clock_ns() < until);
    return failed;
}

int forking_wait(const struct forking *f, struct forked *c, char *err, size_t n)
{
    static const char *const ends[] = {"stopped", "crashed", "failed"};
    const char *const wanted = f->agent ? "identity" : "started";
    char reason[ERROR_SIZE] = "its process died";
    bool ready = false;
    int failed = 0;

    while (!ready && !failed) {
        json_t *event = NULL;
        failed = next_event(&c->client, &event);
        const char *name = json_string_value(json_object_get(event, "event"));
        const char *why = json_string_value(json_object_get(json_object_get(event, "data"), "reason"));
        for (size_t i = 0; name && i < sizeof ends / sizeof *ends; i++)
            failed = strcmp(name, ends[i]) == 0 ? -EIO : failed;
        if (failed == -ETIMEDOUT)
            snprintf(reason, sizeof reason, "there is no word from inside the guest");
        else if (failed == -EINTR)
            snprintf(reason, sizeof reason, "interrupted");
        else if (why)
            snprintf(reason, sizeof reason, "%s", why);
        ready = name && strcmp(name, wanted) == 0;
        json_decref(event);
    }
    return failed ? error_set(err, n, failed, "%s has not come up: %s", c->record.name, reason) : 0;
}

void forking_take_away(const struct forking *f, struct forked *c)
{
    char none[1];

    if (c->runs) { /* by the connection that it has had from the beginning: it may not be known yet by its name */
        client_call(&c->client, "stop", json_pack("{s:s}", "mode", "force"), NULL, none, sizeof none);
        process_wait(f->registry, c->record.name, END_MS);
        life_cut_power_if_on(f->registry, c->record.name);
        if (registry_lock(f->registry, c->record.name, &c->lock, none, sizeof none))
            c->lock = -1;
    }
    if (c->made && c->lock >= 0)
        registry_remove(f->registry, c->record.name, c->lock, none, sizeof none);
    c->made = false;
}
