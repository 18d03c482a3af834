/*
 * guise: the command line.  main() shows the order in which things happen; the table below is the list
 * of everything that the command can do.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "backends/disk/foreign.h"
#include "backends/net_helper.h"
#include "base/error.h"
#include "base/log.h"
#include "cli/cli.h"
#include "cli/version.h"
#include "engine/direct/helper.h"
#include "host/keeper.h"
#include "share/server.h"

static int help_main(const struct command *self, int argc, char **argv);
static int version_main(const struct command *self, int argc, char **argv);
static int helper_share_main(const struct command *self, int argc, char **argv);

static const struct option_spec no_options[] = {{0}};

const struct command cli_commands[] = {
    {"run", "run a command, a shell or a kernel in a virtual machine", "IMAGE [OPTION]... [-- COMMAND...]",
     "Boots the image (`debian` is built when it is missing), runs the command, or a shell, by the agent inside, and\n"
     "shuts down.  Exit status: the command's own; 125 guise failed, 126 and 127 the command cannot be run or is not\n"
     "there, 128+N signal N ended it, 6 --timeout passed.\n\n"
     "   or: guise run --kernel FILE [OPTION]...\n\n"
     "Boots that kernel; the guest's serial console is this terminal (Ctrl-] then q leaves), or stdin and stdout.\n"
     "Exit status: 0 the guest powered off, 1 it crashed or guise could not go on, 2 wrong usage,\n"
     "6 --timeout passed, 7 this host cannot.\n",
     run_options, "@image", run_main},
    {"launch", "boot an image in the background, as a server", "IMAGE [OPTION]...",
     "Prints its name.  Its own init runs; `guise shell`, `exec` and `ssh` lead into it.\n", launch_options, "@image",
     launch_main},
    {"create", "make a virtual machine, to be started later", "IMAGE|--kernel FILE [OPTION]...",
     "Prints its name.  Relative paths in the options mean what they mean here and now.\n", create_options, "@image",
     create_main},
    {"start", "start virtual machines", "NAME...", NULL, start_options, "@vm", start_main},
    {"stop", "shut virtual machines down", "NAME... [OPTION]...",
     "Asks the guest as a power button does, and waits.  Exit status 6: it has not shut down in time.\n", stop_options,
     "@vm", stop_main},
    {"kill", "cut the power of virtual machines", "NAME...", "The same as `guise stop --force`.\n", kill_options, "@vm",
     kill_main},
    {"restart", "stop virtual machines and start them again", "NAME... [OPTION]...", NULL, restart_options, "@vm",
     restart_main},
    {"rm", "remove virtual machines with all that they have", "NAME... [--force]", NULL, rm_options, "@vm", rm_main},
    {"ls", "list virtual machines", "[OPTION]...", "Other names: list, ps.\n", ls_options, NULL, ls_main},
    {"inspect", "print all about virtual machines, as JSON", "NAME...", NULL, inspect_options, "@vm", inspect_main},
    {"info", "say the most important about virtual machines", "NAME... [--json]", NULL, info_options, "@vm", info_main},
    {"logs", "show what a guest wrote to its serial port", "NAME [OPTION]...", NULL, logs_options, "@vm", logs_main},
    {"console", "use the serial console of a virtual machine", "NAME",
     "Ctrl-] then q leaves; the virtual machine runs on.\n", console_options, "@vm", console_main},
    {"exec", "run a command in a virtual machine", "NAME [OPTION]... -- COMMAND [ARGUMENT]...",
     "Exit status: the command's own, 128 + N if signal N ended it, 127 there is no such command in the guest, 126 it\n"
     "cannot be run, 125 guise itself failed.\n",
     exec_options, "@vm", exec_main},
    {"shell", "open a shell in a virtual machine", "NAME [OPTION]...", "Exit status: as of `guise exec`.\n",
     shell_options, "@vm", shell_main},
    {"cp", "copy files and directories into or out of a virtual machine", "[OPTION]... SOURCE... DESTINATION",
     "One side is NAME:PATH, the other a path here, or - for the bytes of one file.\n", cp_options, "@vm", cp_main},
    {"ssh", "log in to a virtual machine by ssh", "[--user USER] NAME [ARGUMENT]...",
     "Arguments, options among them, go to ssh(1).  Its server must be in the image.\n", ssh_options, "@vm", ssh_main},
    {"publish", "lead ports of the host to a virtual machine that runs, or list them", "NAME [PORTS]... [OPTION]...",
     "PORTS is [IP:]HOST:GUEST[/udp], as of `guise run --publish`.\n", publish_options, "@vm", publish_main},
    {"unpublish", "take such ports back", "NAME PORTS...", "Connections that exist stay.\n", unpublish_options, "@vm",
     unpublish_main},
    {"cpus", "say how many CPUs a virtual machine has, or change it while it runs", "NAME [K] [OPTION]...",
     "With K there are to be so many, of those that `--cpus N,max=M` allows.  What is too much the guest has to let "
     "go.\n",
     cpus_options, "@vm", cpus_main},
    {"snapshot", "keep the state of a virtual machine that runs", "NAME [TAG] [OPTION]...",
     "Prints the tag (snap-1, snap-2, ... unless told); the guest runs on.  `guise restore` goes back to it.\n\n"
     "   or: guise snapshot COMMAND [ARGUMENT]...\n",
     snapshot_options, "@vm", snapshot_main, snapshot_commands},
    {"restore", "let a virtual machine go on from a snapshot", "NAME [TAG]|--from FILE [NAME] [OPTION]...",
     "From the newest unless told.  What it is and has on its disk now is lost, unless that is in another snapshot.\n",
     restore_options, "@vm", restore_main},
    {"fork", "make running copies of a virtual machine that runs", "NAME [-n K] [OPTION]...",
     "Prints their names: NAME-1, NAME-2, ... unless told.  Memory and disk are shared until somebody writes to them;\n"
     "each copy has a name, addresses and random numbers of its own, and no published port of the machine's.\n",
     fork_options, "@vm", fork_main},
    {"clone", "copy a virtual machine that does not run", "NAME NEW",
     "The disk is shared until one of them writes to it.\n", clone_options, "@vm", clone_main},
    {"migrate", "move a virtual machine to another process, or host, while it runs",
     "NAME DESTINATION [OPTION]...\n   or: guise migrate --resume|--here NAME",
     "DESTINATION is where `guise receive` listens, unix:PATH or tcp://HOST[:PORT], or just a new name: the machine "
     "then stays on this "
     "host,\n"
     "in a new process.  Exactly one of the two runs at any time, whatever dies.\n",
     migrate_options, "@vm", migrate_main},
    {"receive", "take the virtual machines that `guise migrate` sends", "unix:PATH|tcp://HOST[:PORT] [OPTION]...",
     "Prints the name of each that has come.  By TCP the two hosts must trust each other:\n\n"
     "   or: guise receive COMMAND [ARGUMENT]...\n",
     receive_options, NULL, receive_main, receive_commands},
    {"stats", "show what virtual machines use", "[NAME]... [OPTION]...",
     "On a terminal the table is refreshed until Ctrl-C.\n", stats_options, "@vm", stats_main},
    {"events", "show what has happened to virtual machines", "[NAME] [OPTION]...", NULL, events_options, "@vm",
     events_main},
    {"config", "show what configuration files and the environment say", "show [run|create] [OPTION]...",
     "Prints a file as guise.toml(5): all that holds for that command, `run` unless told.\n", config_options, "show",
     config_main},
    {"image", "make, list and remove machine images", "COMMAND [ARGUMENT]...",
     "`guise help image COMMAND` explains one of them.\n", image_options, NULL, cli_sub_main, image_commands},
    {"disk", "make, copy and check the files that are disks", "COMMAND [ARGUMENT]...",
     "`guise help disk COMMAND` explains one of them.\n", disk_options, NULL, cli_sub_main, disk_commands},
    {"doctor", "say what this host offers to virtual machines, and why", "[--json]",
     "Exit status: 0 if virtual machines can run here, 7 if not.\n", doctor_options, NULL, doctor_main},
    {"completion", "print a completion script for a shell", "bash|zsh|fish",
     "For the running shell:  source <(guise completion bash)\n", completion_options, "bash zsh fish", completion_main},
    {"help", "explain a command", "[COMMAND [SUBCOMMAND]]", NULL, no_options, NULL, help_main},
    {"version", "print the version", "", NULL, no_options, NULL, version_main},
    {0},
};

const struct command cli_hidden_commands[] = {
    {"vm", "run the process of a virtual machine", "NAME", NULL, vm_command_options, NULL, vm_main},
    {"attend", "run a command in the background", "NAME", NULL, no_options, NULL, attend_main},
    {"names", "list names for completion", "vm", NULL, no_options, NULL, names_main},
    {"helper-share", "serve a shared folder to a virtual machine", "", NULL, no_options, NULL, helper_share_main},
    {"tunnel", "connect stdin and stdout to a port in a guest", "NAME PORT|PATH", NULL, tunnel_options, NULL,
     tunnel_main},
    {0},
};

static void overview(FILE *out)
{
    fputs("guise runs unmodified operating systems in virtual machines, with or without /dev/kvm.\n\n"
          "usage: guise COMMAND [OPTION]...\n\n",
          out);
    for (const struct command *c = cli_commands; c->name; c++)
        fprintf(out, "  %-12s%s\n", c->name, c->summary);
    fputs("\n`guise help COMMAND` explains a command; `man guise` explains more.\n", out);
}

static int help_main(const struct command *self, int argc, char **argv)
{
    char err[ERROR_SIZE];
    int status;
    int operands = cli_parse(self, argc, argv, NULL, 2, &status);

    if (operands < 0)
        return status;
    if (operands == 0) {
        overview(stdout);
        return cli_flush();
    }
    const struct command *c = cli_find(argv[1]);
    if (c && operands == 2) {
        const struct command *sub = cli_find_sub(c, argv[2]);
        if (!sub) {
            error_set(err, sizeof err, 0, "there is no command '%s %s'", argv[1], argv[2]);
            return cli_usage_error(c, err);
        }
        c = sub;
    }
    if (!c) {
        cli_no_command(argv[1], err, sizeof err);
        return cli_usage_error(NULL, err);
    }
    cli_explain(c);
    return cli_flush();
}

static int version_main(const struct command *self, int argc, char **argv)
{
    int status;

    if (cli_parse(self, argc, argv, NULL, 0, &status) < 0)
        return status;
    printf("guise %s\n", GUISE_VERSION);
    return cli_flush();
}

static int helper_share_main(const struct command *self, int argc, char **argv)
{
    return share_helper_main(argc, argv);
}

/* A descriptor 0, 1 or 2 that is closed would be taken by the first file that is opened. */
static int open_standard_descriptors(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == 0 ? O_RDONLY : O_WRONLY) != fd)
            return -1;
    return 0;
}

/* What guise starts of itself (host/child.h): not for people, so in no list. */
static const struct helper {
    const char *name;
    int (*main)(int argc, char **argv);
} helpers[] = {
    {"helper-net", net_helper_main},
    {"helper-disk", disk_helper_main},
    {"helper-direct", direct_helper_main},
    {"helper-dial", keeper_dial_main},
};

static const struct helper *find_helper(const char *word)
{
    for (size_t i = 0; i < sizeof(helpers) / sizeof(helpers[0]); i++)
        if (strcmp(word, helpers[i].name) == 0)
            return &helpers[i];
    return NULL;
}

static const struct command *find_or_alias(const char *word)
{
    static const struct {
        const char *alias, *command;
    } aliases[] = {{"--help", "help"}, {"-h", "help"}, {"--version", "version"}, {"list", "ls"}, {"ps", "ls"}};

    for (size_t i = 0; i < sizeof aliases / sizeof *aliases; i++)
        if (strcmp(word, aliases[i].alias) == 0)
            return cli_find(aliases[i].command);
    for (const struct command *c = cli_hidden_commands; c->name; c++)
        if (strcmp(c->name, word) == 0)
            return c;
    return cli_find(word);
}

int main(int argc, char **argv)
{
    char err[ERROR_SIZE];

    if (open_standard_descriptors() < 0)
        return STATUS_FAILED;
    signal(SIGXFSZ,
           SIG_IGN); /* a file that may not grow is an error of write(2), which a guest gets as one of its disk */
    signal(SIGPIPE, SIG_IGN); /* a reader that leaves is an error of write(2), handled where it happens */
    if (argc < 2) {
        overview(stderr);
        return STATUS_USAGE;
    }
    const struct helper *helper = find_helper(argv[1]);
    if (helper)
        return helper->main(argc - 1, argv + 1);
    const struct command *c = find_or_alias(argv[1]);
    if (!c) {
        cli_no_command(argv[1], err, sizeof err);
        return cli_usage_error(NULL, err);
    }
    return c->main(c, argc - 1, argv + 1);
}
