/*
 * metadata.json, the part of an image that is words (docs/IMAGES.md shows one).  A table says which field is where, for
 * reading and writing alike.  It may come from a stranger (image import): every type, length and character that matters
 * later is checked here.
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "image/image_int.h"

/* What a text may hold: it ends up on terminals, in a kernel's command line and in paths. */
enum text_rule { ANY_PRINTABLE, WORD, ABSOLUTE, NAME };

static const struct {
    const char *object, *key; /* object NULL: at the top */
    enum text_rule rule;
    bool required;
    size_t offset, size;
} texts[] = {
#define TEXT(object, key, rule, required, field)                                                                       \
    {                                                                                                                  \
        object, key, rule, required, offsetof(struct image_info, field), sizeof(((struct image_info *)0)->field)       \
    }
    TEXT(NULL, "name", NAME, false, name),
    TEXT(NULL, "created", WORD, true, created),
    TEXT(NULL, "source", ANY_PRINTABLE, false, source),
    TEXT(NULL, "architecture", WORD, true, architecture),
    TEXT("os", "id", WORD, false, os_id),
    TEXT("os", "version_id", WORD, false, os_version),
    TEXT("os", "pretty_name", ANY_PRINTABLE, false, os_name),
    TEXT("boot", "kernel_version", WORD, false, kernel_version),
    TEXT("boot", "command_line", ANY_PRINTABLE, true, command_line),
    TEXT("boot", "root_type", WORD, false, root_type),
    TEXT("boot", "init", ABSOLUTE, false, init),
#undef TEXT
};

static const struct {
    const char *object, *key;
    size_t offset;
} flags[] = {
    {"boot", "needs_initrd", offsetof(struct image_info, needs_initrd)},
    {"features", "cloud_init", offsetof(struct image_info, has_cloud_init)},
    {"features", "sshd", offsetof(struct image_info, has_sshd)},
    {"features", "qemu_guest_agent", offsetof(struct image_info, has_qemu_guest_agent)},
};

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

/* Of valid UTF-8: U+0080 to U+009F are control characters, too. */
static bool follows(const char *text, enum text_rule rule)
{
    for (const unsigned char *c = (const unsigned char *)text; *c; c++)
        if (*c < 0x20 || *c == 0x7f || (*c == 0xc2 && c[1] < 0xa0) || (rule == WORD && *c == ' '))
            return false;
    if (rule == ABSOLUTE)
        return !*text || *text == '/';
    return rule != NAME || !*text || image_name_check(text, NULL, 0) == 0;
}

/* The object called `name` (the whole when NULL); NULL when it is not there or none. */
static json_t *part(json_t *whole, const char *name)
{
    return name ? json_object_get(whole, name) : whole;
}

static int take_text(json_t *whole, size_t i, struct image_info *out, char *err, size_t n)
{
    json_t *value = json_object_get(part(whole, texts[i].object), texts[i].key);
    const char *text = json_string_value(value);
    char *to = (char *)out + texts[i].offset;

    if (!value && !texts[i].required)
        return 0;
    if (!text || strlen(text) != json_string_length(value) || strlen(text) >= texts[i].size ||
        !follows(text, texts[i].rule))
        return error_set(err, n, -EBADMSG, "its %s is missing or makes no sense", texts[i].key);
    memcpy(to, text, strlen(text) + 1);
    return 0;
}

static int take_flags(json_t *whole, struct image_info *out, char *err, size_t n)
{
    for (size_t i = 0; i < COUNT(flags); i++) {
        json_t *value = json_object_get(part(whole, flags[i].object), flags[i].key);
        if (value && !json_is_boolean(value))
            return error_set(err, n, -EBADMSG, "its %s is neither true nor false", flags[i].key);
        *(bool *)((char *)out + flags[i].offset) = json_is_true(value);
    }
    return 0;
}

static int take_numbers(json_t *whole, struct image_info *out, char *err, size_t n)
{
    json_t *schema = json_object_get(whole, "schema_version"), *bytes = json_object_get(whole, "disk_bytes");
    json_t *partition = json_object_get(part(whole, "boot"), "root_partition");

    if (!json_is_integer(schema) || json_integer_value(schema) < 1)
        return error_set(err, n, -EBADMSG, "it has no schema_version");
    if (json_integer_value(schema) > IMAGE_SCHEMA)
        return error_set(err, n, -EBADMSG,
                         "it was made by a newer guise (schema %lld, this one knows %d): update guise",
                         (long long)json_integer_value(schema), IMAGE_SCHEMA);
    if (!json_is_integer(bytes) || json_integer_value(bytes) < 0)
        return error_set(err, n, -EBADMSG, "its disk_bytes is missing or makes no sense");
    out->disk_bytes = (uint64_t)json_integer_value(bytes);
    if (!partition)
        return 0;
    if (!json_is_integer(partition) || json_integer_value(partition) < 0 || json_integer_value(partition) > 128)
        return error_set(err, n, -EBADMSG, "its root_partition makes no sense");
    out->root_partition = (unsigned)json_integer_value(partition);
    return 0;
}

static json_t *load(const char *text, size_t len, char *err, size_t n)
{
    json_error_t where;
    json_t *whole = json_loadb(text, len, JSON_REJECT_DUPLICATES, &where);

    if (!whole)
        error_set(err, n, -EBADMSG, "it is not JSON (line %d: %s)", where.line, where.text);
    else if (!json_is_object(whole)) {
        error_set(err, n, -EBADMSG, "it is not a JSON object");
        json_decref(whole);
        whole = NULL;
    }
    return whole;
}

int metadata_parse(const char *text, size_t len, struct image_info *out, char *err, size_t n)
{
    json_t *whole = load(text, len, err, n);

    *out = (struct image_info){0};
    if (!whole)
        return -EBADMSG;
    int failed = take_numbers(whole, out, err, n);
    for (size_t i = 0; i < COUNT(texts) && !failed; i++)
        failed = take_text(whole, i, out, err, n);
    if (!failed)
        failed = take_flags(whole, out, err, n);
    json_decref(whole);
    return failed;
}

/* The object `name` of `whole`, made if it is not there. */
static json_t *make_part(json_t *whole, const char *name)
{
    json_t *object = part(whole, name);

    if (!object) {
        json_object_set_new(whole, name, json_object());
        object = json_object_get(whole, name);
    }
    return object;
}

char *metadata_format(const struct image_info *info, json_t *process)
{
    json_t *whole = json_pack("{s:i, s:I}", "schema_version", IMAGE_SCHEMA, "disk_bytes", (json_int_t)info->disk_bytes);

    for (size_t i = 0; i < COUNT(texts); i++) {
        const char *text = (const char *)info + texts[i].offset;
        if (*text || texts[i].required)
            json_object_set_new(make_part(whole, texts[i].object), texts[i].key, json_string(text));
    }
    for (size_t i = 0; i < COUNT(flags); i++)
        json_object_set_new(make_part(whole, flags[i].object), flags[i].key,
                            json_boolean(*(const bool *)((const char *)info + flags[i].offset)));
    json_object_set_new(make_part(whole, "boot"), "root_partition", json_integer(info->root_partition));
    if (process)
        json_object_set(whole, "process", process);
    char *text = json_dumps(whole, JSON_INDENT(2));
    json_decref(whole);
    return text;
}

/* ---- the process of a container's image ---- */

void image_process_free(struct image_process *p)
{
    for (char **word = p->argv; word && *word; word++)
        free(*word);
    for (char **word = p->env; word && *word; word++)
        free(*word);
    free(p->argv);
    free(p->env);
    free(p->directory);
    free(p->user);
    *p = (struct image_process){0};
}

#define WORDS_MAX 4096

/* An array of strings as argv has it; NULL in *out when the member is not there or empty. */
static int take_words(json_t *array, char ***out)
{
    size_t count = json_array_size(array);

    *out = NULL;
    if (!array || json_is_null(array) || (json_is_array(array) && count == 0))
        return 0;
    if (!json_is_array(array) || count > WORDS_MAX)
        return -EBADMSG;
    *out = calloc(count + 1, sizeof **out);
    if (!*out)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++) {
        json_t *word = json_array_get(array, i);
        if (!json_is_string(word) || strlen(json_string_value(word)) != json_string_length(word))
            return -EBADMSG;
        if (!((*out)[i] = strdup(json_string_value(word))))
            return -ENOMEM;
    }
    return 0;
}

static int take_word(json_t *value, char **out)
{
    *out = NULL;
    if (!value || json_is_null(value))
        return 0;
    if (!json_is_string(value) || strlen(json_string_value(value)) != json_string_length(value))
        return -EBADMSG;
    *out = strdup(json_string_value(value));
    return *out ? 0 : -ENOMEM;
}

int metadata_process(const char *text, size_t len, struct image_process *out, char *err, size_t n)
{
    json_t *whole = load(text, len, err, n);

    *out = (struct image_process){0};
    if (!whole)
        return -EBADMSG;
    json_t *process = json_object_get(whole, "process");
    int failed = process && !json_is_object(process) ? -EBADMSG : 0;
    if (!failed)
        failed = take_words(json_object_get(process, "argv"), &out->argv);
    if (!failed)
        failed = take_words(json_object_get(process, "env"), &out->env);
    if (!failed)
        failed = take_word(json_object_get(process, "directory"), &out->directory);
    if (!failed)
        failed = take_word(json_object_get(process, "user"), &out->user);
    json_decref(whole);
    if (!failed)
        return 0;
    image_process_free(out);
    return failed == -EBADMSG ? error_set(err, n, failed, "its process makes no sense")
                              : error_sys(err, n, failed, "its process cannot be read");
}
