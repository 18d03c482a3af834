/*
 * What is known about a virtual machine that has a name: DATA/vms/NAME/vm.json.
 *
 *      {"schema_version": 1, "name": "brave-otter", "uuid": "...", "created": "RFC 3339", "mode": "boot",
 *       "image_digest": "sha256-...", "mac": "52:54:...", "directory": "/where/it/was/made", "ephemeral": false,
 *       "options": {"memory": "512M", "publish": ["8080:80"], "no-reboot": true}}
 *
 * The options are those of the command line, by name and in the same words, which are resolved from `directory`.
 * A file of a later schema_version is refused; keys that are not known are kept out.
 */
#pragma once
#include <limits.h>

#include "base/timestamp.h"
#include "vm/names.h"
#include "vm/vm.h"

#define RECORD_SCHEMA 1
#define RECORD_BYTES_MAX (256u << 10)

/* What can be said about a named VM beside its machine. */
struct vm_settings {
    const char *name, *image, *hostname;
    const char *root;                    /* a directory of the host that is the guest's root, read-only; NULL: a disk */
    const char *cloud_init;              /* a file of user data; NULL: none */
    struct option_list labels, ssh_keys; /* KEY=VALUE; files of public keys */
    uint64_t disk_bytes;                 /* of the disk over the image's; 0: as large */
    struct vm_config config;
};

/* The rows for all that; goes on in vm_options. */
extern const struct option_spec vm_settings_options[];

/* How a guest comes to life. */
enum vm_mode {
    VM_MODE_KERNEL,  /* as the options say, nothing added */
    VM_MODE_COMMAND, /* our own init, to run commands by the agent */
    VM_MODE_BOOT,    /* the image's own init */
    VM_MODES
};
extern const char *const vm_mode_names[VM_MODES];

struct vm_record {
    char name[NAME_SIZE], uuid[40], mac[20], created[TIMESTAMP_SIZE], image_digest[80];
    char directory[PATH_MAX]; /* that relative paths in the options start from */
    enum vm_mode mode;
    bool ephemeral; /* goes away when it ends */
    struct vm_settings settings;
    void *texts; /* owns the strings in settings when the record was read; the record's own business */
};

/* The settings that hold when nothing is said. */
void settings_init(struct vm_settings *s);
/* A record of these settings, with a fresh uuid, MAC address (of the first card) and date.  The settings' texts stay
 * the caller's. */
int record_init(struct vm_record *r, const struct vm_settings *s, char *err, size_t n);
/* To JSON and back.  record_parse takes any bytes; 0, or -EINVAL with a sentence.  The text is the caller's to free. */
char *record_format(const struct vm_record *r);
int record_parse(struct vm_record *r, const char *text, size_t len, char *err, size_t n);
void record_free(struct vm_record *r);
