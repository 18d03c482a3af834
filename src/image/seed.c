/* What cloud-init is told, as text. */
#include "image/seed.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

/* A text as a YAML string in double quotes (YAML 1.2, 7.3.1): only what could end it is escaped. */
static void put_quoted(FILE *out, const char *text)
{
    fputc('"', out);
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            fputc('\\', out);
        if (c < 0x20 || c == 0x7f)
            fprintf(out, "\\x%02x", c);
        else
            fputc(c, out);
    }
    fputc('"', out);
}

/*
 * What guise wishes, below what the user says: cloud-init takes each key of vendor data that user data lacks.  One kind
 * of host key, since each takes a second to make under emulation; a locale that every schema takes.
 */
static const char vendor_data[] =
    "#cloud-config\nssh_pwauth: false\ndisable_root: false\nssh_genkeytypes: [ed25519]\nlocale: C.UTF-8\n";
static const char no_user_data[] = "#cloud-config\n{}\n";

char *seed_meta_data(const struct seed *s)
{
    char *text = NULL;
    size_t len;
    FILE *out = open_memstream(&text, &len);

    if (!out)
        return NULL;
    fputs("instance-id: ", out);
    put_quoted(out, s->instance);
    if (s->hostname) {
        fputs("\nlocal-hostname: ", out);
        put_quoted(out, s->hostname);
    }
    fputc('\n', out);
    if (s->n_keys)
        fputs("public-keys:\n", out);
    for (unsigned i = 0; i < s->n_keys; i++) {
        fputs("  - ", out);
        put_quoted(out, s->keys[i]);
        fputc('\n', out);
    }
    return fclose(out) ? NULL : text;
}

static bool is_line(const char *text)
{
    return *text && !strpbrk(text, "\r\n") && strlen(text) < 16384;
}

static int check(const struct seed *s, char *err, size_t n)
{
    if (!s->instance || !is_line(s->instance))
        return error_set(err, n, -EINVAL, "a seed for cloud-init needs the name of an instance");
    if (s->hostname &&
        (!*s->hostname || strlen(s->hostname) > 63 ||
         strspn(s->hostname, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") != strlen(s->hostname)))
        return error_set(err, n, -EINVAL, "'%s' cannot be the name of a host", s->hostname);
    if (s->n_keys > SEED_KEYS_MAX)
        return error_set(err, n, -EINVAL, "more than %d ssh keys are given", SEED_KEYS_MAX);
    for (unsigned i = 0; i < s->n_keys; i++)
        if (!is_line(s->keys[i]))
            return error_set(err, n, -EINVAL, "an ssh key is one line: '%.40s' is none", s->keys[i]);
    const char *const texts[] = {s->user_data, s->meta_data, s->network_config};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        if (texts[i] && strlen(texts[i]) > SEED_TEXT_MAX)
            return error_set(err, n, -EFBIG, "a file for cloud-init has at most %u KiB", SEED_TEXT_MAX >> 10);
    return 0;
}

int seed_write(int fd, const struct seed *s, char *err, size_t n)
{
    int failed = check(s, err, n);

    if (failed)
        return failed;
    char *made = s->meta_data ? NULL : seed_meta_data(s);
    const char *meta = s->meta_data ? s->meta_data : made, *user = s->user_data ? s->user_data : no_user_data;
    if (meta) {
        const struct seed_file files[] = {
            {"user-data", user, strlen(user)},
            {"meta-data", meta, strlen(meta)},
            {"vendor-data", vendor_data, sizeof vendor_data - 1},
            {"network-config", s->network_config, s->network_config ? strlen(s->network_config) : 0},
        };
        failed = fat_write(fd, "CIDATA     ", files, s->network_config ? 4 : 3, err, n);
    } else {
        failed = error_sys(err, n, -ENOMEM, "cannot make the seed for cloud-init");
    }
    free(made);
    return failed;
}
