#include "cli/life.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <fcntl.h>

#include "base/error.h"
#include "base/log.h"

#define QUOTED_BYTES 2048
#define QUOTED_LINES 10
#define START_MS 60000

int life_parse(const struct command *self, int argc, char **argv, void *out, int most, struct registry *r, int *status)
{
    char err[ERROR_SIZE];
    int operands = cli_parse(self, argc, argv, out, most, status);

    if (operands < 0)
        return -1;
    int failed = registry_open(r, err, sizeof err);
    if (!failed)
        return operands;
    *status = cli_failed(failed, err);
    return -1;
}

int life_each(const struct command *self, int argc, char **argv, void *out,
              int (*each)(const struct registry *r, const char *name, const void *arguments))
{
    struct registry r;
    int status, first = STATUS_OK, operands = life_parse(self, argc, argv, out, INT_MAX, &r, &status);

    if (operands < 0)
        return status;
    if (operands == 0)
        return cli_usage_error(self, "the name of a virtual machine must be given");
    for (int i = 1; i <= operands; i++) {
        status = each(&r, argv[i], out);
        first = first ? first : status;
    }
    return first;
}

/* Terminals interpret what a guest prints: only text is quoted. */
static void print_quoted(const char *text)
{
    fputs("    | ", stderr);
    for (; *text; text++) {
        if (*text == '\033') { /* an escape sequence, up to its letter */
            while (text[1] && !(text[1] >= '@' && text[1] <= '~' && text[1] != '['))
                text++;
            if (text[1])
                text++;
        } else if ((unsigned char)*text >= ' ' || *text == '\t') {
            fputc(*text, stderr);
        }
    }
    fputc('\n', stderr);
}

void life_quote_serial(const struct registry *r, const char *name)
{
    char path[PATH_MAX], none[1], text[QUOTED_BYTES + 1], *lines[QUOTED_LINES], *save = NULL;
    int n = 0,
        fd = registry_path(r, name, "serial.log", path, none, sizeof none) ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;

    if (fd < 0)
        return;
    off_t from = fstat(fd, &st) == 0 && st.st_size > QUOTED_BYTES ? st.st_size - QUOTED_BYTES : 0;
    ssize_t len = pread(fd, text, QUOTED_BYTES, from);
    close(fd);
    if (len <= 0)
        return;
    text[len] = 0;
    for (char *line = strtok_r(text, "\r\n", &save); line; line = strtok_r(NULL, "\r\n", &save)) {
        if (n == QUOTED_LINES)
            memmove(lines, lines + 1, sizeof *lines * (QUOTED_LINES - 1));
        lines[n < QUOTED_LINES ? n++ : n - 1] = line;
    }
    for (int i = 0; i < n; i++)
        print_quoted(lines[i]);
}

/* The process is gone, or has said that it fails. */
static int begin_failed(struct life_start *s, int failed, json_t *event)
{
    const char *stage = progress_end(s->progress);
    const char *reason = json_string_value(json_object_get(json_object_get(event, "data"), "reason"));
    const char *end = json_string_value(json_object_get(json_object_get(event, "data"), "end"));
    int status = end && strcmp(end, "unavailable") == 0 ? STATUS_UNAVAILABLE : STATUS_FAILED;

    if (reason)
        log_say("%s could not be started (%s): %s", s->record->name, stage, reason);
    else if (failed == -ETIMEDOUT)
        log_say("%s could not be started (%s): its process says nothing", s->record->name, stage);
    else
        log_say("%s could not be started (%s): its process died; `guise logs --engine %s` may say why", s->record->name,
                stage, s->record->name);
    life_quote_serial(s->registry, s->record->name);
    json_decref(event);
    client_close(&s->client);
    return status;
}

int life_begin(struct life_start *s, int lock, bool attached)
{
    char err[ERROR_SIZE];
    json_t *event = NULL;
    int fd, failed;

    progress_stage(s->progress, "engine", NULL);
    failed = process_start(s->registry, s->record, lock, attached, &fd, err, sizeof err);
    close(lock);
    if (failed) {
        progress_end(s->progress);
        return cli_failed(failed, err);
    }
    client_adopt(&s->client, fd);
    failed = client_event(&s->client, START_MS, &event);
    const char *name = json_string_value(json_object_get(event, "event"));
    if (failed || !name || strcmp(name, "started") != 0)
        return begin_failed(s, failed, event);
    progress_stage(s->progress, "boot", NULL);
    json_decref(event);
    return STATUS_OK;
}
