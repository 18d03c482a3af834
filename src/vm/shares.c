/*
 * What the file servers of the shared folders know of the guest (share/state.c), as sections of the machine's state:
 *
 *      kind      name            version   bytes
 *      share     FOLDER.PIECE    1         both numbers count from 0; pieces of PIECE bytes, the last shorter
 *
 * This process looks at nothing in them: the server does, which can do no more than its guest could.
 */
#include "vm/shares.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends/share.h"
#include "base/error.h"
#include "base/sections.h"
#include "vm/vm_int.h"

#define KIND "share"
#define VERSION 1u
#define PIECE (8u << 20)

const char *shares_refused(const struct vm *vm, char *why, size_t n)
{
    struct share_words words;

    for (unsigned i = 0; i < vm->config->shares.n; i++)
        if (!share_parse(vm->config->shares.value[i], &words, why, n) && words.locks) {
            error_set(why, n, 0,
                      "its shared folder %s has `locks`, which the host's programs and other machines see: they cannot "
                      "be had again later without a gap in which others take them",
                      words.directory);
            return why;
        }
    return NULL;
}

static void section_name(char name[SECTION_NAME_SIZE], unsigned folder, size_t piece)
{
    snprintf(name, SECTION_NAME_SIZE, "%u.%zu", folder, piece);
}

static int save_one(struct vm *vm, unsigned i, struct sections *out, char *err, size_t n)
{
    char name[SECTION_NAME_SIZE];
    uint8_t *bytes;
    size_t size;
    int failed = share_save(vm->shares[i], &bytes, &size, err, n);

    if (failed)
        return failed;
    for (size_t at = 0; at < size && !failed; at += PIECE) {
        section_name(name, i, at / PIECE);
        failed = sections_add(out, KIND, name, VERSION, bytes + at, size - at < PIECE ? size - at : PIECE);
    }
    free(bytes);
    return failed ? error_sys(err, n, failed, "what it has open in its shared folders cannot be kept") : 0;
}

int shares_save(struct vm *vm, struct sections *out, char *err, size_t n)
{
    int failed = 0;

    for (unsigned i = 0; i < vm->n_shares && !failed; i++)
        failed = save_one(vm, i, out, err, n);
    return failed;
}

static const struct section *piece_of(const struct sections *in, unsigned folder, size_t piece)
{
    char name[SECTION_NAME_SIZE];

    section_name(name, folder, piece);
    return sections_find(in, KIND, name);
}

static int load_one(struct vm *vm, unsigned i, const struct sections *in, char *err, size_t n)
{
    const struct section *s;
    size_t size = 0, at = 0;

    for (size_t piece = 0; (s = piece_of(in, i, piece)); piece++) {
        if (s->version != VERSION)
            return error_set(err, n, -ENOTSUP, "what it has open in its shared folders is a newer guise's");
        size += s->size;
    }
    uint8_t *bytes = malloc(size + 1);
    if (!bytes)
        return error_set(err, n, -ENOMEM, "out of memory");
    for (size_t piece = 0; (s = piece_of(in, i, piece)); piece++) {
        memcpy(bytes + at, s->bytes, s->size);
        at += s->size;
    }
    int failed = share_load(vm->shares[i], bytes, size, err, n);
    free(bytes);
    return failed;
}

int shares_load(struct vm *vm, const struct sections *in, char *err, size_t n)
{
    int failed = 0;

    for (unsigned i = 0; i < vm->n_shares && !failed; i++)
        failed = load_one(vm, i, in, err, n);
    return failed;
}
