/* `guise create`: a virtual machine with a name, to be started later. */
#include <stdio.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/bring.h"

#define AT(field) offsetof(struct run_arguments, field)
/* clang-format off */
const struct option_spec create_options[] = {
    VERBOSITY_OPTIONS(struct run_arguments),
    CONFIG_OPTION(struct run_arguments, config_file),
    {.more = vm_settings_options, .offset = AT(settings)},
};
/* clang-format on */

int create_main(const struct command *self, int argc, char **argv)
{
    struct run_arguments a;
    struct bring b;
    char **command;
    int status, operands = run_parse(self, argc, argv, &a, 2, &command, &status);

    if (operands < 0)
        return status;
    status = run_take_image(self, &a, operands, argv);
    if (status == STATUS_OK && command)
        status = cli_usage_error(self, "there is nothing to run yet; `guise run` takes a command");
    else if (status == STATUS_OK && !a.settings.image && !a.settings.config.kernel_path)
        status = cli_usage_error(self, "an image must be given, or a kernel");
    if (status == STATUS_OK)
        status = bring_create(&b, &a, a.settings.image ? VM_MODE_BOOT : VM_MODE_KERNEL, false);
    if (status == STATUS_OK) {
        bring_leave(&b);
        puts(b.record.name);
        if (isatty(STDERR_FILENO) && !a.quiet)
            log_say("`guise start %s` starts it, `guise inspect %s` shows it", b.record.name, b.record.name);
        status = cli_flush();
    }
    run_free(&a);
    return status;
}
