/*
 * JSON by the input: values of a few kinds, nested a few times, with the keys and texts that the code under test knows.
 * Most of it is JSON; a byte here and there may be another one.
 */
#pragma once
#include "fixture.h"

struct fuzz_json {
    struct fuzz_input *in;
    const char *const *keys, *const *texts; /* each ends with NULL */
    char *out;
    size_t len, size;
};

static inline void fuzz_json_put(struct fuzz_json *j, const char *text)
{
    size_t len = strlen(text);

    if (len > j->size - j->len)
        len = j->size - j->len;
    memcpy(j->out + j->len, text, len);
    j->len += len;
}

static inline void fuzz_json_word(struct fuzz_json *j, const char *const *words)
{
    unsigned n = 0;

    while (words[n])
        n++;
    fuzz_json_put(j, "\"");
    fuzz_json_put(j, words[fuzz_u8(j->in) % n]);
    fuzz_json_put(j, "\"");
}

static inline void fuzz_json_value(struct fuzz_json *j, unsigned depth)
{
    uint8_t how = fuzz_u8(j->in), n = how >> 5;
    char number[24];

    switch (how % 8) {
    case 0:
    case 1:
        fuzz_json_word(j, j->texts);
        return;
    case 2:
        snprintf(number, sizeof number, "%lld", n ? n - 2ll : (long long)fuzz_u64(j->in));
        fuzz_json_put(j, number);
        return;
    case 3:
        fuzz_json_put(j, n % 3 ? n % 3 == 1 ? "true" : "false" : "null");
        return;
    case 4:
        fuzz_json_put(j, "[");
        for (unsigned i = 0; depth && i < n; i++) {
            fuzz_json_put(j, i ? "," : "");
            fuzz_json_value(j, depth - 1);
        }
        fuzz_json_put(j, "]");
        return;
    default:
        fuzz_json_put(j, "{");
        for (unsigned i = 0; depth && i < n; i++) {
            fuzz_json_put(j, i ? "," : "");
            fuzz_json_word(j, j->keys);
            fuzz_json_put(j, ":");
            fuzz_json_value(j, depth - 1);
        }
        fuzz_json_put(j, "}");
    }
}

/* One document into out[size], which is no string; how long it is. */
static inline size_t fuzz_json(struct fuzz_input *in, const char *const *keys, const char *const *texts, char *out,
                               size_t size)
{
    struct fuzz_json j = {in, keys, texts, out, 0, size};
    uint8_t how = fuzz_u8(in);

    fuzz_json_value(&j, 5);
    for (unsigned n = how > 200 ? how & 3 : 0; n && j.len; n--) {
        uint16_t at = fuzz_u16(in);
        out[at % j.len] = (char)fuzz_u8(in);
    }
    return j.len;
}
