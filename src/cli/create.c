/* `guise create`: a virtual machine with a name, to be started later. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "cli/life.h"
#include "cli/run.h"
#include "vm/events.h"

#define AT(field) offsetof(struct run_arguments, field)
const struct option_spec create_options[] = {
    CONFIG_OPTION(struct run_arguments, config_file),
    {.more = vm_settings_options, .offset = AT(settings)},
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
    struct run_arguments a;
    struct registry r;
    char **command, err[ERROR_SIZE];
    int status;

    if (run_parse(self, argc, argv, &a, 0, &command, &status) < 0)
        return status;
    int failed = registry_open(&r, err, sizeof err);
    if (failed)
        status = cli_failed(failed, err);
    else if (!a.settings.config.kernel_path)
        status = cli_usage_error(self, "a kernel must be given: --kernel FILE");
    else
        status = create(&r, &a.settings);
    run_free(&a);
    return status;
}
