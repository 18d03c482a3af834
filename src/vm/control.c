#include "vm/control.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"
#include "base/similar.h"
#include "base/utf8.h"
#include "host/unix.h"
#include "vm/control_int.h"
#include "vm/json_line.h"

#define LINES_PER_PASS 32 /* then it is the other clients', and the guest's, turn */
#define ACCEPT_PAUSE_NS 100000000ull
#define LAST_WORDS_MS 1000

/* --- answers ----------------------------------------------------------------------------------------------- */

/* Sends `answer`, whose reference is taken over, as one line. */
static void send_json(struct control_client *c, json_t *answer)
{
    size_t len;
    char *line = json_line(answer, &len);

    if (line)
        client_send(c, line, len);
    else
        client_drop(c); /* no memory to answer with */
    free(line);
}

/* id is borrowed, result taken over; without a result it is an error. */
static void answer(struct control_client *c, json_t *id, json_t *result, const char *code, const char *message)
{
    if (result)
        send_json(c, json_pack("{s:O, s:o}", "id", id, "result", result));
    else
        send_json(c, json_pack("{s:O, s:{s:s, s:s}}", "id", id, "error", "code", code, "message", message));
}

json_t *control_fail(struct control_call *call, const char *code, const char *format, ...)
{
    va_list args;

    snprintf(call->code, sizeof call->code, "%s", code);
    va_start(args, format);
    vsnprintf(call->message, sizeof call->message, format, args);
    va_end(args);
    utf8_repair(call->message);
    return NULL;
}

static const struct control_command *find_command(const struct control *s, const char *name, char *message, size_t n)
{
    struct similar near = {.word = name};

    for (const struct control_command *c = s->config.commands; c->name; c++) {
        if (strcmp(c->name, name) == 0)
            return c;
        similar_try(&near, c->name);
    }
    if (near.best)
        snprintf(message, n, "there is no command \"%.40s\"; did you mean \"%s\"?", name, near.best);
    else
        snprintf(message, n, "there is no command \"%.40s\"", name);
    utf8_repair(message); /* the name may be cut */
    return NULL;
}

/* The handler sees the request's id through the call (control_ticket). */
struct request {
    struct control_call call;
    json_t *id;
};

static void run(struct control_client *c, json_t *line)
{
    json_t *id = json_object_get(line, "id"), *arguments = json_object_get(line, "arguments");
    const char *name = json_string_value(json_object_get(line, "command"));
    struct request r = {.call = {.control = c->control, .client = c, .opaque = c->control->config.opaque}};
    json_t *empty = json_object(), *null = json_null(), *result = NULL;

    r.id = id ? id : null;
    r.call.arguments = arguments ? arguments : empty;
    if (!name)
        control_fail(&r.call, "bad-request", "\"command\" is missing or not a text");
    else if (!json_is_object(r.call.arguments))
        control_fail(&r.call, "bad-request", "\"arguments\" is not an object");
    else {
        const struct control_command *command = find_command(c->control, name, r.call.message, sizeof r.call.message);
        snprintf(r.call.code, sizeof r.call.code, "not-found");
        if (command)
            result = command->run(&r.call);
    }
    if (!r.call.later)
        answer(c, r.id, result, r.call.code, r.call.message);
    json_decref(empty);
}

static void run_line(struct control_client *c, const char *text, size_t len)
{
    json_error_t where;
    json_t *line = json_loadb(text, len, JSON_REJECT_DUPLICATES, &where);
    char message[256];

    if (json_is_object(line)) {
        run(c, line);
    } else {
        if (line)
            snprintf(message, sizeof message, "the line is not a JSON object");
        else
            snprintf(message, sizeof message, "the line is not JSON: %s", where.text);
        utf8_repair(message);
        answer(c, json_null(), NULL, "bad-request", message);
    }
    json_decref(line);
}

/* --- tickets ------------------------------------------------------------------------------------------------- */

static struct control_client *find_client(struct control *s, uint64_t id)
{
    for (unsigned i = 0; i < s->n_clients; i++)
        if (s->clients[i]->id == id && s->clients[i]->fd >= 0)
            return s->clients[i];
    return NULL;
}

bool control_has(struct control *s, uint64_t client)
{
    return find_client(s, client) != NULL;
}

struct control_ticket control_ticket(const struct control_call *call)
{
    const struct request *r = (const struct request *)call; /* its first member */

    call->client->pending++;
    return (struct control_ticket){call->client->id, json_incref(r->id)};
}

static struct control_client *use_ticket(struct control *s, struct control_ticket *ticket)
{
    struct control_client *c = find_client(s, ticket->client);

    if (c)
        c->pending--;
    return c;
}

void control_reply(struct control *s, struct control_ticket *ticket, json_t *result, const char *code,
                   const char *message)
{
    struct control_client *c = use_ticket(s, ticket);

    if (c)
        answer(c, ticket->id, result, code, message);
    else
        json_decref(result);
    json_decref(ticket->id);
    *ticket = (struct control_ticket){0};
}

int control_connection(const struct control_call *call)
{
    const struct control_client *c = call->client;

    return c->fd < 0 || c->pending || c->console || c->first ? -1 : fcntl(c->fd, F_DUPFD_CLOEXEC, 3);
}

int control_take(struct control *s, struct control_ticket *ticket, json_t *result)
{
    struct control_client *c = use_ticket(s, ticket);
    int fd = -1;

    if (!c) {
        json_decref(result);
    } else {
        answer(c, ticket->id, result, NULL, NULL);
        fd = c->fd >= 0 && !c->out_len && !c->in_len ? fcntl(c->fd, F_DUPFD_CLOEXEC, 3) : -1;
        client_drop(c);
    }
    json_decref(ticket->id);
    *ticket = (struct control_ticket){0};
    return fd;
}

/* --- events and consoles ------------------------------------------------------------------------------------ */

void control_subscribe(struct control_client *c)
{
    c->subscribed = true;
}

void control_event(struct control *s, const char *line, size_t len)
{
    for (unsigned i = 0; i < s->n_clients; i++)
        if (s->clients[i]->subscribed)
            client_send(s->clients[i], line, len);
}

void control_make_console(struct control_call *call)
{
    call->client->console = true;
    call->client->subscribed = false;
}

void control_console_write(struct control *s, const void *data, size_t len)
{
    for (unsigned i = 0; i < s->n_clients; i++)
        if (s->clients[i]->console)
            client_send(s->clients[i], data, len);
}

void control_set_console_input(struct control *s, size_t (*fn)(void *opaque, const void *data, size_t len),
                               void *opaque)
{
    s->input = fn;
    s->input_opaque = opaque;
}

static void type(struct control_client *c)
{
    if (c->in_len && c->control->input)
        client_consume(c, c->control->input(c->control->input_opaque, c->in, c->in_len));
}

/* --- connections ---------------------------------------------------------------------------------------------- */

static void process(struct control_client *c)
{
    const char *line;
    size_t len;

    for (int i = 0; i < LINES_PER_PASS && c->fd >= 0 && !c->console && (line = client_line(c, &len)); i++) {
        run_line(c, line, len);
        if (c->fd >= 0)
            client_consume(c, len + 1);
    }
    if (c->fd < 0)
        return;
    if (c->console)
        type(c);
    else if (client_line(c, &len))
        loop_timer_set(c->control->config.loop, &c->control->later, clock_ns());
    else if (c->in_len == CONTROL_LINE_MAX && c->out_len == 0) {
        answer(c, json_null(), NULL, "bad-request", "the line is too long");
        client_drop(c);
    }
    /* It has sent all that it wanted to and has been answered. */
    if (c->ended && !c->in_len && !c->out_len && !c->pending && !c->subscribed && !c->console)
        client_drop(c);
}

static void ended(struct control_client *c, bool gone)
{
    c->ended = true;
    client_was_first(c);
    if (c->in_len && !c->console && !memchr(c->in, '\n', c->in_len))
        c->in_len = 0; /* half a line */
    process(c);
    if (gone)
        client_drop(c);
}

void control_on_client(void *opaque, uint32_t events)
{
    struct control_client *c = opaque;
    bool gone = events & (EPOLLHUP | EPOLLERR);
    int got = 1;

    if (events & EPOLLOUT)
        client_flush(c);
    while (c->fd >= 0 && got > 0) {
        got = client_fill(c);
        if (got >= 0)
            process(c);
        if (!gone)
            break; /* the loop comes back; a dead peer's last words are heard now or never */
    }
    if (c->fd >= 0 && (got < 0 || gone) && !c->ended)
        ended(c, gone);
    else if (c->fd >= 0 && gone)
        client_drop(c);
    if (c->fd >= 0 && c->ended)
        process(c);
    client_watch(c);
}

void control_console_resume(struct control *s)
{
    for (unsigned i = 0; i < s->n_clients; i++) {
        if (s->clients[i]->fd >= 0 && s->clients[i]->console) {
            type(s->clients[i]);
            client_watch(s->clients[i]);
        }
    }
}

static int add_client(struct control *s, int fd, bool first)
{
    struct control_client *c = s->n_clients < CONTROL_CLIENTS_MAX ? calloc(1, sizeof *c) : NULL;

    if (!c)
        return -ENOMEM;
    *c = (struct control_client){
        .control = s, .fd = fd, .id = ++s->next_id, .first = first, .subscribed = first, .active_ns = clock_ns()};
    c->watching = EPOLLIN;
    int failed = loop_fd_add(s->config.loop, fd, EPOLLIN, control_on_client, c);
    if (failed) {
        free(c);
        return failed;
    }
    s->clients[s->n_clients++] = c;
    return 0;
}

static void reap(struct control *s)
{
    unsigned kept = 0;

    for (unsigned i = 0; i < s->n_clients; i++) {
        if (s->clients[i]->fd >= 0)
            s->clients[kept++] = s->clients[i];
        else
            client_free(s->clients[i]);
    }
    s->n_clients = kept;
}

/* Room for a new one: the client goes that has been silent longest and waits for nothing. */
static void evict(struct control *s)
{
    struct control_client *idlest = NULL;

    for (unsigned i = 0; i < s->n_clients; i++) {
        struct control_client *c = s->clients[i];
        bool waits = c->subscribed || c->console || c->pending || c->first;
        if (!waits && (!idlest || c->active_ns < idlest->active_ns))
            idlest = c;
    }
    if (idlest) {
        client_drop(idlest);
        reap(s);
    }
}

static bool is_owner(const struct control *s, int fd)
{
    struct ucred peer;
    socklen_t len = sizeof peer;

    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 && (peer.uid == s->owner || peer.uid == 0);
}

static void on_listener(void *opaque, uint32_t events)
{
    struct control *s = opaque;
    int fd = accept4(s->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd < 0) {
        if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
            loop_fd_del(s->config.loop, s->listener); /* until `later`: it would be ready all the time */
            loop_timer_set(s->config.loop, &s->later, clock_ns() + ACCEPT_PAUSE_NS);
        }
        return;
    }
    if (s->n_clients == CONTROL_CLIENTS_MAX)
        evict(s);
    if (!is_owner(s, fd) || add_client(s, fd, false))
        close(fd);
}

static void on_later(void *opaque)
{
    struct control *s = opaque;

    if (s->listener >= 0)
        loop_fd_add(s->config.loop, s->listener, EPOLLIN, on_listener, s); /* or it is there already */
    for (unsigned i = 0; i < s->n_clients; i++) {
        if (s->clients[i]->fd < 0)
            continue;
        process(s->clients[i]);
        client_watch(s->clients[i]);
    }
    reap(s);
}

/* --- the socket -------------------------------------------------------------------------------------------------- */

static int listen_at(struct control *s, const char *path, char *err, size_t n)
{
    int fd = unix_listen(path, 64, err, n);

    if (fd < 0)
        return fd;
    s->listener = fd;
    int failed = loop_fd_add(s->config.loop, fd, EPOLLIN, on_listener, s);
    return failed ? error_sys(err, n, failed, "the control socket %s cannot be made", path) : 0;
}

int control_create(struct control **out, const struct control_config *config, char *err, size_t n)
{
    struct control *s = calloc(1, sizeof *s);
    int failed = 0;

    if (!s)
        return error_sys(err, n, -ENOMEM, "the control socket cannot be made");
    s->config = *config;
    s->listener = -1;
    s->owner = geteuid();
    loop_timer_init(&s->later, on_later, s);
    if (config->path)
        failed = listen_at(s, config->path, err, n);
    if (!failed && config->client >= 0 && (failed = add_client(s, config->client, true)))
        error_sys(err, n, failed, "the first client cannot be served");
    if (failed) {
        control_destroy(s);
        return failed;
    }
    *out = s;
    return 0;
}

/* Waits for slow readers, all together for LAST_WORDS_MS. */
static void last_words(struct control *s)
{
    uint64_t until = clock_ns() + LAST_WORDS_MS * 1000000ull;

    for (unsigned i = 0; i < s->n_clients; i++) {
        struct control_client *c = s->clients[i];
        while (c->fd >= 0 && c->out_len && clock_ns() < until) {
            client_flush(c);
            if (c->fd >= 0 && c->out_len)
                poll(&(struct pollfd){.fd = c->fd, .events = POLLOUT}, 1, 50);
        }
    }
}

void control_destroy(struct control *s)
{
    if (!s)
        return;
    last_words(s);
    while (s->n_clients) {
        struct control_client *c = s->clients[--s->n_clients];
        client_drop(c);
        client_free(c);
    }
    if (s->listener >= 0) {
        loop_fd_del(s->config.loop, s->listener);
        close(s->listener);
        unlink(s->config.path);
    }
    loop_timer_cancel(s->config.loop, &s->later);
    free(s);
}
