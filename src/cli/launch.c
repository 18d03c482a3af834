/* `guise launch IMAGE`: a virtual machine in the background that boots as a server would, by its own init. */
#include <stdio.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/bring.h"
#include "cli/wait.h"

#define AT(field) offsetof(struct run_arguments, field)
/* clang-format off */
const struct option_spec launch_options[] = {
    WAIT_OPTION(struct run_arguments, wait),
    VERBOSITY_OPTIONS(struct run_arguments),
    CONFIG_OPTION(struct run_arguments, config_file),
    {.more = vm_settings_options, .offset = AT(settings)},
};
/* clang-format on */

static int launch(const struct run_arguments *a)
{
    struct bring b;
    int status = bring_create(&b, a, VM_MODE_BOOT, false);

    if (status == STATUS_OK)
        status = bring_start(&b, false);
    if (status != STATUS_OK)
        return status;
    status = wait_until(&b.start, a->wait);
    progress_end(&b.progress);
    client_close(&b.start.client);
    if (status != STATUS_OK)
        return status;
    puts(b.record.name);
    if (isatty(STDERR_FILENO) && !a->quiet)
        log_say("`guise shell %s` leads to it, `guise ls` lists it, `guise stop %s` shuts it down", b.record.name,
                b.record.name);
    return cli_flush();
}

int launch_main(const struct command *self, int argc, char **argv)
{
    struct run_arguments a;
    char **command;
    int status, operands = run_parse(self, argc, argv, &a, 2, &command, &status);

    if (operands < 0)
        return status;
    status = run_take_image(self, &a, operands, argv);
    if (status == STATUS_OK && command)
        status = cli_usage_error(self, "it boots the image's own init; `guise run` takes a command");
    else if (status == STATUS_OK && !a.settings.image)
        status = cli_usage_error(self, "an image must be given: guise launch debian");
    else if (status == STATUS_OK && a.settings.root)
        status = cli_usage_error(self, "--root: the host's own init is not started; `guise run` takes a command");
    if (status == STATUS_OK)
        status = launch(&a);
    run_free(&a);
    return status;
}
