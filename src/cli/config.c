#include "cli/config.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/similar.h"
#include "base/toml.h"

#define FILE_MOST (1u << 20)
#define LOCAL_FILE "guise.toml"
#define SYSTEM_FILE "/etc/guise/guise.toml"

static const char command_line[] = "the command line", environment[] = "the environment";

static const char *keep(struct config *c, const char *text)
{
    char *copy = c->n_texts < CONFIG_TEXTS_MAX ? strdup(text) : NULL;

    if (copy)
        c->texts[c->n_texts++] = copy;
    return copy;
}

void config_free(struct config *c)
{
    while (c->n_texts)
        free(c->texts[--c->n_texts]);
    while (c->n_files)
        free(c->files[--c->n_files]);
}

/* --- the environment ------------------------------------------------------------------------------------- */

/* "no-reboot" is GUISE_NO_REBOOT. */
static const char *variable(const char *option, char *name, size_t n)
{
    size_t used = (size_t)snprintf(name, n, "GUISE_");

    for (; *option && used + 1 < n; option++)
        name[used++] = *option == '-' ? '_' : (char)toupper((unsigned char)*option);
    name[used] = 0;
    return getenv(name);
}

static int read_environment(const struct option_spec *specs, void *out, struct config *config, char *err, size_t n)
{
    struct options_cursor c = {.at = specs};
    const struct option_spec *o;
    char name[64], why[ERROR_SIZE];

    while ((o = options_next(&c))) {
        const char *text = variable(o->name, name, sizeof name);
        if (text && *text && options_set_by(specs, o->name, text, out, &config->origins, environment, why, sizeof why))
            return error_set(err, n, -EINVAL, "%s: %s", name, why);
    }
    return 0;
}

/* --- files -------------------------------------------------------------------------------------------------- */

struct reading {
    const struct command *self;
    void *out;
    struct config *config;
    const char *file; /* as the origin */
};

/* Is there a command of that name?  Its table is not ours. */
static int other_table(const char *table, char *err, size_t n)
{
    if (cli_find(table))
        return 0;
    return error_set(err, n, -EINVAL, "[%s] is not the name of a command", table);
}

static int unknown_key(const struct option_spec *specs, const char *key, char *err, size_t n)
{
    struct options_cursor c = {.at = specs};
    struct similar near = {.word = key};
    const struct option_spec *o;

    while ((o = options_next(&c)))
        similar_try(&near, o->name);
    if (near.best)
        return error_set(err, n, -EINVAL, "there is no option %s; did you mean %s?", key, near.best);
    return error_set(err, n, -EINVAL, "there is no option %s", key);
}

/* A key outside tables may be an option of another command: that one reads it. */
static bool is_known_elsewhere(const char *key)
{
    for (const struct command *command = cli_commands; command->name; command++) {
        struct options_cursor c = {.at = command->options};
        for (const struct option_spec *o; (o = options_next(&c));)
            if (strcmp(o->name, key) == 0)
                return true;
    }
    return false;
}

static int take(void *opaque, const struct toml_value *v, char *err, size_t n)
{
    struct reading *r = opaque;
    bool ours = strcmp(v->table, r->self->name) == 0;
    char why[ERROR_SIZE];

    if (v->table[0] && !ours)
        return other_table(v->table, err, n);
    const char *text = keep(r->config, v->text);
    if (!text)
        return error_set(err, n, -E2BIG, "there are more than %d values", CONFIG_TEXTS_MAX);
    int failed = options_set_by(r->self->options, v->key, text, r->out, &r->config->origins, r->file, why, sizeof why);
    if (failed == -ENOENT)
        return !ours && is_known_elsewhere(v->key) ? 0 : unknown_key(r->self->options, v->key, err, n);
    return failed ? error_set(err, n, failed, "%s: %s", v->key, why) : 0;
}

/* One that need not be there may be missing. */
static int read_file(const struct command *self, void *out, struct config *config, const char *path, bool needed,
                     char *err, size_t n)
{
    char *text, why[ERROR_SIZE];
    size_t len;

    if (!needed && access(path, F_OK) && errno == ENOENT)
        return 0;
    int failed = file_read(path, FILE_MOST, &text, &len, err, n);
    if (failed)
        return failed;
    struct reading r = {self, out, config, strdup(path)};
    if (!r.file)
        failed = error_sys(err, n, -ENOMEM, "%s cannot be read", path);
    else
        config->files[config->n_files++] = (char *)r.file;
    if (!failed && toml_parse(text, len, take, &r, why, sizeof why))
        failed = error_set(err, n, -EINVAL, "%s, %s", path, why);
    free(text);
    return failed;
}

/* guise.toml of the user's configuration directory (base/path.h), which is not made for this; "" if there can be none.
 */
static void own_file(char out[PATH_MAX])
{
    const char *xdg = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
    int len = -1;

    if (xdg && xdg[0] == '/')
        len = snprintf(out, PATH_MAX, "%s/guise/" LOCAL_FILE, xdg);
    else if (home && home[0] == '/')
        len = snprintf(out, PATH_MAX, "%s/.config/guise/" LOCAL_FILE, home);
    if (len < 0 || len >= PATH_MAX)
        out[0] = 0;
}

static int read_files(const struct command *self, void *out, struct config *config, const char *named, char *err,
                      size_t n)
{
    char own[PATH_MAX];

    own_file(own);
    int failed = read_file(self, out, config, named ? named : LOCAL_FILE, named != NULL, err, n);
    if (!failed && own[0])
        failed = read_file(self, out, config, own, false, err, n);
    return failed ? failed : read_file(self, out, config, SYSTEM_FILE, false, err, n);
}

int config_parse(const struct command *self, int argc, char **argv, void *out, const char *const *file,
                 struct config *config, int max_operands, int *status)
{
    char err[ERROR_SIZE];

    *config = (struct config){.n_texts = 0};
    int operands = cli_parse_by(self, argc, argv, out, &config->origins, command_line, max_operands, status);
    if (operands < 0)
        return -1;
    int failed = read_environment(self->options, out, config, err, sizeof err);
    if (!failed)
        failed = read_files(self, out, config, *file, err, sizeof err);
    if (!failed)
        return operands;
    *status = cli_usage_error(self, err);
    config_free(config);
    return -1;
}
