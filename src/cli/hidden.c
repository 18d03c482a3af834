/* Commands that `guise help` does not show, for other parts of guise. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "cli/life.h"
#include "image/image.h"
#include "vm/fork.h"

struct vm_arguments {
    bool attached;
    const char *restore;
    uint64_t copy;
    const char *incoming, *engine;
};

static const struct option_word incoming_words[] = {{"copied", 0}, {"shared", 0}, {0}};

const struct option_spec vm_command_options[] = {
    {.name = "attached",
     .kind = OPTION_FLAG,
     .offset = offsetof(struct vm_arguments, attached),
     .help = "end when the command that started it does"},
    {.name = "restore",
     .kind = OPTION_FILE,
     .offset = offsetof(struct vm_arguments, restore),
     .value = "FILE",
     .help = "begin with what this snapshot holds"},
    {.name = "copy",
     .kind = OPTION_NUMBER,
     .offset = offsetof(struct vm_arguments, copy),
     .min = 2,
     .max = FORK_FDS_MAX,
     .value = "N",
     .help = "begin with what N descriptors hold that a machine has handed over"},
    {.name = "incoming",
     .kind = OPTION_WORD,
     .offset = offsetof(struct vm_arguments, incoming),
     .value = "DISK",
     .words = incoming_words,
     .help = "wait to be received from another process, with its own disk or but for that"},
    {.name = "engine",
     .kind = OPTION_STRING,
     .offset = offsetof(struct vm_arguments, engine),
     .value = "NAME",
     .help = "where it is on this engine"},
    {0},
};

/* `guise vm NAME`: the process of a VM (vm/process.h). */
int vm_main(const struct command *self, int argc, char **argv)
{
    struct vm_arguments a = {0};
    int status, operands = cli_parse(self, argc, argv, &a, 1, &status);

    if (operands < 0)
        return status;
    if (operands == 0)
        return cli_usage_error(self, "this is for other commands of guise");
    return process_main(argv[1], a.attached, a.restore, (unsigned)a.copy, a.incoming, a.engine);
}

static void print_images(void)
{
    struct image_info *list;
    size_t n;

    if (image_list(&list, &n, NULL, 0))
        return;
    for (size_t i = 0; i < n; i++)
        if (list[i].name[0])
            puts(list[i].name);
    free(list);
}

/* `guise names vm|image`: for shell completion, one a line; never an error. */
int names_main(const struct command *self, int argc, char **argv)
{
    struct registry r;
    char(*names)[NAME_SIZE], err[ERROR_SIZE];

    if (argc == 2 && strcmp(argv[1], "image") == 0)
        print_images();
    if (argc != 2 || strcmp(argv[1], "vm") != 0 || registry_find(&r, err, sizeof err))
        return cli_flush();
    int n = registry_names(&r, &names, err, sizeof err);
    for (int i = 0; i < n; i++)
        puts(names[i]);
    free(names);
    return cli_flush();
}
