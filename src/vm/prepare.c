#include "vm/prepare.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/config.h"
#include "backends/disk.h"
#include "base/error.h"
#include "vm/prepare_int.h"

const char *prepare_keep(struct prepared *p, const char *format, ...)
{
    char *text = NULL;
    va_list args;

    va_start(args, format);
    if (p->n_texts == PREPARED_TEXTS_MAX || vasprintf(&text, format, args) < 0)
        text = NULL;
    va_end(args);
    if (text)
        p->texts[p->n_texts++] = text;
    return text;
}

void prepare_free(struct prepared *p)
{
    while (p->n_texts)
        free(p->texts[--p->n_texts]);
    if (p->initrd >= 0)
        close(p->initrd);
}

int prepare_no_room(char *err, size_t n)
{
    return error_set(err, n, -ENOMEM, "the configuration is too large");
}

int prepare_add(struct option_list *list, const char *word, char *err, size_t n)
{
    if (!word)
        return prepare_no_room(err, n);
    if (list->n == OPTION_LIST_MAX)
        return error_set(err, n, -E2BIG, "there are more than %d of a kind", OPTION_LIST_MAX);
    list->value[list->n++] = word;
    return 0;
}

int prepare_add_first(struct option_list *list, const char *word, char *err, size_t n)
{
    int failed = prepare_add(list, word, err, n);

    for (unsigned i = failed ? 0 : list->n - 1; i > 0; i--) {
        const char *other = list->value[i - 1];
        list->value[i - 1] = list->value[i];
        list->value[i] = other;
    }
    return failed;
}

bool record_has_disk(const struct vm_record *record)
{
    return record->image_digest[0] && !record->settings.root;
}

/* --- kernel and initramfs ------------------------------------------------------------------------------------ */

/* The release of a bzImage (Documentation/arch/x86/boot.rst: 0x202 "HdrS", 0x20e kernel_version), up to a blank; empty
 * when it does not say. */
static void kernel_release(const char *path, char *release, size_t n)
{
    unsigned char head[0x210];
    char text[128] = "";
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    release[0] = 0;
    if (fd < 0)
        return;
    if (pread(fd, head, sizeof head, 0) == sizeof head && memcmp(head + 0x202, "HdrS", 4) == 0) {
        off_t at = 0x200 + (head[0x20e] | head[0x20f] << 8);
        if (at > 0x200 && pread(fd, text, sizeof text - 1, at) > 0)
            snprintf(release, n, "%.*s", (int)strcspn(text, " "), text);
    }
    close(fd);
}

/* A kernel of one's own gets the image's modules when they are made for it; else it must have built in what it needs.
 */
static int choose_kernel(const struct registry *r, const struct vm_record *record, struct prepared *p, char *err,
                         size_t n)
{
    char release[128];
    int failed = 0;

    if (!p->config.kernel_path)
        p->config.kernel_path = p->image.kernel;
    kernel_release(p->config.kernel_path, release, sizeof release);
    bool fits = p->config.kernel_path == p->image.kernel || strcmp(release, p->image.kernel_version) == 0;
    if (fits && p->image.modules[0])
        failed = prepare_add_first(&p->config.initrds, p->image.modules, err, n);
    if (!failed && p->image.needs_initrd && p->image.initrd[0])
        failed = prepare_add_first(&p->config.initrds, p->image.initrd, err, n);
    return failed;
}

/* The tests of its own ciphers are a fifth of the time that a kernel takes to its first process; a machine that lives
 * for one command does without. */
#define FAST_BOOT " cryptomgr.notests"

/* What the kernel is told: the image's words, ours, the user's. */
static int command_line(const struct registry *r, const struct vm_record *record, struct prepared *p, char *err,
                        size_t n)
{
    const char *words = p->image.command_line, *more = record->settings.config.append;

    if (record->settings.root)
        words = "console=ttyS0 quiet panic=-1";
    p->config.append = prepare_keep(p, "%s%s rdinit=/" GUEST_INIT_PATH "%s%s", words,
                                    record->mode == VM_MODE_COMMAND ? FAST_BOOT : "", more ? " " : "",
                                    more ? more : "");
    return p->config.append ? 0 : prepare_no_room(err, n);
}

/* --- devices ------------------------------------------------------------------------------------------------------ */

static int add_disk(const struct registry *r, const struct vm_record *record, struct prepared *p, char *err, size_t n)
{
    char path[PATH_MAX];
    int failed = registry_path(r, record->name, VM_DISK, path, err, n);

    if (!record_has_disk(record) || failed)
        return failed;
    /* The image is where it is here: the overlay may have been made on another host, which had it elsewhere. */
    char *words = disk_quote(path, "overlay"), *base = disk_quote(p->image.disk, NULL);
    const char *all = words && base ? prepare_keep(p, "%s,serial=" ROOT_SERIAL ",base=%s", words, base) : NULL;
    failed = prepare_add_first(&p->config.disks, all, err, n);
    free(words);
    free(base);
    return failed;
}

static int add_devices(const struct registry *r, const struct vm_record *record, struct prepared *p, char *err,
                       size_t n)
{
    char socket[108];
    int failed = 0;

    if (!p->config.nets.n)
        failed = prepare_add(&p->config.nets, "user", err, n);
    if (!failed && !p->config.vsock_path) {
        failed = registry_socket(r, record->name, "vsock", socket, err, n);
        if (!failed && !(p->config.vsock_path = prepare_keep(p, "%s", socket)))
            failed = prepare_no_room(err, n);
    }
    p->config.balloon = true;
    return failed;
}

static int find_image(const struct registry *r, const struct vm_record *record, struct prepared *p, char *err, size_t n)
{
    int failed = image_find(record->image_digest, &p->image, err, n);

    if (!failed && record->mode == VM_MODE_COMMAND && p->image.needs_initrd && !record->settings.root)
        failed = error_set(err, n, -ENOTSUP,
                           "the root of this image is reached by its own initrd only: `guise launch` it");
    if (record->mode == VM_MODE_COMMAND)
        p->config.no_reboot = true;
    return failed;
}

int prepare(const struct registry *r, const struct vm_record *record, bool runs, struct prepared *p, char *err,
            size_t n)
{
    static int (*const steps[])(const struct registry *r, const struct vm_record *record, struct prepared *p, char *err,
                                size_t n) = {find_image, choose_kernel, command_line,
                                             add_disk,   add_devices,   prepare_guest};
    int failed = 0;

    *p = (struct prepared){.config = record->settings.config, .runs = runs, .initrd = -1};
    for (size_t i = 0; i < sizeof steps / sizeof *steps && !failed && record->mode != VM_MODE_KERNEL; i++)
        failed = steps[i](r, record, p, err, n);
    return failed;
}
