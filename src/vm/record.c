#include "vm/record.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

const char *const vm_mode_names[VM_MODES] = {"kernel", "command", "boot"};

static int check_label(const char *text, char *err, size_t n)
{
    const char *equals = strchr(text, '=');

    if (equals && equals != text)
        return 0;
    return error_set(err, n, -EINVAL, "'%s' is not KEY=VALUE", text);
}

static int check_directory(const char *text, char *err, size_t n)
{
    struct stat st;

    if (stat(text, &st))
        return error_sys(err, n, -errno, "%s cannot be used", text), -EINVAL;
    return S_ISDIR(st.st_mode) ? 0 : error_set(err, n, -EINVAL, "%s is not a directory", text);
}

static int check_file(const char *text, char *err, size_t n)
{
    if (access(text, R_OK))
        return error_sys(err, n, -errno, "%s cannot be read", text), -EINVAL;
    return 0;
}

#define AT(field) offsetof(struct vm_settings, field)
/* clang-format off */
const struct option_spec vm_settings_options[] = {
    {.name = "name", .letter = 'n', .kind = OPTION_STRING, .offset = AT(name), .value = "NAME",
     .help = "how to call it (an adjective and a noun, unless told)", .check = name_check},
    {.name = "image", .kind = OPTION_STRING, .offset = AT(image), .value = "IMAGE",
     .help = "what it boots; the same as the first word"},
    {.name = "hostname", .kind = OPTION_STRING, .offset = AT(hostname), .value = "NAME",
     .help = "what the guest calls itself (its name, unless told)", .check = name_check},
    {.name = "disk-size", .kind = OPTION_SIZE, .offset = AT(disk_bytes), .value = "SIZE",
     .help = "of its own disk (the image's unless told)", .min = 1 << 20, .max = 1ull << 50, .examples = "10G 20G 50G"},
    {.name = "root", .kind = OPTION_STRING, .offset = AT(root), .value = "DIR",
     .help = "boot with this directory of the host as root, read-only", .check = check_directory},
    {.name = "ssh-key", .kind = OPTION_LIST, .offset = AT(ssh_keys), .value = "FILE",
     .help = "public keys that may log in as root", .check = check_file},
    {.name = "cloud-init", .kind = OPTION_FILE, .offset = AT(cloud_init), .value = "FILE",
     .help = "for an image that has cloud-init: user data, or a directory", .check = check_file},
    {.name = "label", .kind = OPTION_LIST, .offset = AT(labels), .value = "KEY=VALUE",
     .help = "a note to find it by", .check = check_label},
    {.more = vm_options, .offset = AT(config)},
};
/* clang-format on */

void settings_init(struct vm_settings *s)
{
    *s = (struct vm_settings){.config = {.memory_bytes = VM_DEFAULT_MEMORY, .n_cpus = 1, .engine = "auto"}};
}

int record_init(struct vm_record *r, const struct vm_settings *s, char *err, size_t n)
{
    uint8_t random[16];

    *r = (struct vm_record){.settings = *s};
    if (getrandom(random, sizeof random, 0) != sizeof random)
        return error_sys(err, n, -errno, "there is no randomness for an identity");
    if (!getcwd(r->directory, sizeof r->directory))
        snprintf(r->directory, sizeof r->directory, "/");
    timestamp_format(timestamp_ms(), r->created);
    random[6] = (random[6] & 0x0f) | 0x40; /* RFC 4122, 4.4: version 4 */
    random[8] = (random[8] & 0x3f) | 0x80;
    snprintf(r->uuid, sizeof r->uuid, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", random[0],
             random[1], random[2], random[3], random[4], random[5], random[6], random[7], random[8], random[9],
             random[10], random[11], random[12], random[13], random[14], random[15]);
    /* Locally administered, unicast: the prefix that virtual machines have by custom. */
    snprintf(r->mac, sizeof r->mac, "52:54:00:%02x:%02x:%02x", random[13], random[14], random[15]);
    return 0;
}

/* --- to JSON ------------------------------------------------------------------------------------------- */

static json_t *option_values(const struct options_cursor *c, const struct option_spec *o, const void *values)
{
    json_t *all;
    char buf[128];
    const char *text = options_text(c, o, values, 0, buf, sizeof buf);

    if (!text)
        return NULL;
    if (o->kind == OPTION_FLAG)
        return json_true();
    if (o->kind != OPTION_LIST)
        return json_string(text);
    all = json_array();
    for (unsigned i = 0; (text = options_text(c, o, values, i, buf, sizeof buf)); i++)
        json_array_append_new(all, json_string(text));
    return all;
}

static json_t *settings_to_json(const struct vm_settings *s)
{
    struct options_cursor c = {.at = vm_settings_options};
    const struct option_spec *o;
    json_t *all = json_object();

    while ((o = options_next(&c))) {
        json_t *value = strcmp(o->name, "name") == 0 ? NULL : option_values(&c, o, s);
        if (value)
            json_object_set_new(all, o->name, value);
    }
    return all;
}

char *record_format(const struct vm_record *r)
{
    json_t *all = json_pack("{s:i, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:b, s:o}", "schema_version", RECORD_SCHEMA,
                            "name", r->name, "uuid", r->uuid, "created", r->created, "mode", vm_mode_names[r->mode],
                            "image_digest", r->image_digest, "mac", r->mac, "directory", r->directory, "ephemeral",
                            (int)r->ephemeral, "options", settings_to_json(&r->settings));
    char *text = all ? json_dumps(all, JSON_INDENT(2)) : NULL;

    json_decref(all);
    return text;
}

/* --- from JSON ------------------------------------------------------------------------------------------- */

/* A string of the top level into out[size]. */
static int take_text(json_t *all, const char *key, char *out, size_t size, char *err, size_t n)
{
    const char *text = json_string_value(json_object_get(all, key));

    if (!text || strlen(text) >= size)
        return error_set(err, n, -EINVAL, "\"%s\" is missing, too long or not a text", key);
    memcpy(out, text, strlen(text) + 1);
    return 0;
}

static int take_value(struct vm_settings *s, const char *key, json_t *value, char *err, size_t n)
{
    char why[ERROR_SIZE] = "it is neither a text nor true";
    int failed = -EINVAL;

    if (json_is_string(value) || json_is_true(value))
        failed = options_restore(vm_settings_options, key, json_string_value(value), s, why, sizeof why);
    return failed ? error_set(err, n, -EINVAL, "\"options\", \"%s\": %s", key, why) : 0;
}

static int take_options(struct vm_settings *s, json_t *options, char *err, size_t n)
{
    const char *key;
    json_t *value, *item;
    size_t i;
    int failed = json_is_object(options) ? 0 : error_set(err, n, -EINVAL, "\"options\" is missing");

    if (failed)
        return failed;
    json_object_foreach(options, key, value)
    {
        if (!json_is_array(value))
            failed = take_value(s, key, value, err, n);
        else
            json_array_foreach(value, i, item) if (!failed) failed = take_value(s, key, item, err, n);
        if (failed)
            return failed;
    }
    return 0;
}

static int take_mode(struct vm_record *r, json_t *all, char *err, size_t n)
{
    const char *text = json_string_value(json_object_get(all, "mode"));

    for (unsigned i = 0; text && i < VM_MODES; i++) {
        if (strcmp(text, vm_mode_names[i]) == 0) {
            r->mode = (enum vm_mode)i;
            return 0;
        }
    }
    return error_set(err, n, -EINVAL, "\"mode\" is missing or unknown");
}

static int take_all(struct vm_record *r, json_t *all, char *err, size_t n)
{
    const struct {
        const char *key;
        char *out;
        size_t size;
    } texts[] = {
        {"name", r->name, sizeof r->name},
        {"uuid", r->uuid, sizeof r->uuid},
        {"mac", r->mac, sizeof r->mac},
        {"created", r->created, sizeof r->created},
        {"image_digest", r->image_digest, sizeof r->image_digest},
        {"directory", r->directory, sizeof r->directory},
    };
    json_int_t version = json_integer_value(json_object_get(all, "schema_version"));
    int failed = 0;

    if (version != RECORD_SCHEMA)
        return error_set(err, n, -EINVAL, "its schema_version is %lld, this guise reads %d: a newer guise has made it",
                         (long long)version, RECORD_SCHEMA);
    for (size_t i = 0; i < sizeof texts / sizeof *texts && !failed; i++)
        failed = take_text(all, texts[i].key, texts[i].out, texts[i].size, err, n);
    if (!failed)
        failed = name_check(r->name, err, n);
    if (!failed)
        failed = take_mode(r, all, err, n);
    r->ephemeral = json_is_true(json_object_get(all, "ephemeral"));
    if (!failed)
        failed = take_options(&r->settings, json_object_get(all, "options"), err, n);
    r->settings.name = json_string_value(json_object_get(all, "name"));
    return failed;
}

int record_parse(struct vm_record *r, const char *text, size_t len, char *err, size_t n)
{
    json_error_t where;
    json_t *all = json_loadb(text, len, JSON_REJECT_DUPLICATES, &where);

    *r = (struct vm_record){.texts = all};
    settings_init(&r->settings);
    if (!all)
        return error_set(err, n, -EINVAL, "line %d: %s", where.line, where.text);
    int failed = json_is_object(all) ? take_all(r, all, err, n) : error_set(err, n, -EINVAL, "it is not a JSON object");
    if (failed)
        record_free(r);
    return failed;
}

void record_free(struct vm_record *r)
{
    json_decref(r->texts);
    r->texts = NULL;
}
