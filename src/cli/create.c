/* `guise create`: a virtual machine with a name, to be started later. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "cli/life.h"
#include "vm/events.h"

struct create_arguments {
    struct vm_settings settings;
};

const struct option_spec create_options[] = {
    {.more = vm_settings_options, .offset = offsetof(struct create_arguments, settings)},
};

/* Says what to do next, to people only. */
static void hint(const char *name)
{
    if (isatty(STDERR_FILENO))
        log_say("`guise start %s` starts it, `guise inspect %s` shows it", name, name);
}

static int create(const struct registry *r, const struct vm_settings *settings)
{
    char err[ERROR_SIZE], path[PATH_MAX];
    struct vm_record record;
    struct event_log events;
    int lock, failed = record_init(&record, settings, err, sizeof err);

    if (!failed)
        failed = registry_create(r, &record, &lock, err, sizeof err);
    if (failed)
        return cli_failed(failed, err);
    if (registry_path(r, record.name, "events.log", path, err, sizeof err) == 0 &&
        event_log_open(&events, path, record.name, err, sizeof err) == 0) {
        free(event_log_add(&events, "created", NULL));
        event_log_close(&events);
    }
    close(lock);
    puts(record.name);
    hint(record.name);
    return cli_flush();
}

int create_main(const struct command *self, int argc, char **argv)
{
    struct create_arguments a;
    struct registry r;
    int status;

    settings_init(&a.settings);
    if (life_parse(self, argc, argv, &a, 0, &r, &status) < 0)
        return status;
    if (!a.settings.config.kernel_path)
        return cli_usage_error(self, "a kernel must be given: --kernel FILE");
    return create(&r, &a.settings);
}
