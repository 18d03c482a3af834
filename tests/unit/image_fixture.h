/* A store of images of one's own, below /tmp, and images with next to nothing in them. */
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"
#include "base/file.h"
#include "image/image_int.h"

static char top[64], images[IMAGE_PATH_SIZE], err[ERROR_SIZE];

static inline int store_setup(void **state)
{
    snprintf(top, sizeof top, "/tmp/guise-store-XXXXXX");
    if (!mkdtemp(top))
        return 1;
    setenv("GUISE_DATA", top, 1);
    return store_path(images, err, sizeof err);
}

static inline int store_teardown(void **state)
{
    return files_remove(top);
}

__attribute__((format(printf, 1, 2))) static inline const char *below(const char *format, ...)
{
    static char path[4096];
    va_list args;
    int used = snprintf(path, sizeof path, "%s/", top);

    va_start(args, format);
    vsnprintf(path + used, sizeof path - (size_t)used, format, args);
    va_end(args);
    return path;
}

/* A shell command that has to succeed. */
__attribute__((format(printf, 1, 2))) static inline void shell(const char *format, ...)
{
    char *command;
    va_list args;

    va_start(args, format);
    assert_true(vasprintf(&command, format, args) > 0);
    va_end(args);
    assert_int_equal(system(command), 0);
    free(command);
}

static inline void put(const char *path, const char *text)
{
    assert_int_equal(file_write(path, text, strlen(text), 0600, err, sizeof err), 0);
}

static inline bool exists(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0;
}

static inline void fill_draft(struct store_draft *d, const char *content)
{
    struct image_info info = {.created = "2026-01-01T00:00:00Z",
                              .architecture = "amd64",
                              .command_line = "console=ttyS0",
                              .disk_bytes = 1u << 20};
    char path[2 * IMAGE_PATH_SIZE], *text = metadata_format(&info, NULL);

    assert_int_equal(store_draft(d, err, sizeof err), 0);
    static const char *const names[] = {"disk.raw", "kernel", "modules.cpio"};
    for (size_t i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", d->path, names[i]);
        put(path, content);
    }
    snprintf(path, sizeof path, "%s/metadata.json", d->path);
    put(path, text);
    free(text);
}

/* An image called `name` whose files hold `content`. */
static inline struct image_info make_image(const char *name, const char *content)
{
    struct store_draft d;
    struct image_info info;

    fill_draft(&d, content);
    assert_int_equal(store_publish(&d, name, &info, err, sizeof err), 0);
    return info;
}

#define STORE_TEST(name) cmocka_unit_test_setup_teardown(name, store_setup, store_teardown)
