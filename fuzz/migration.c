/*
 * The streams of a migration, as a stranger may send them, from either side: frames with right check sums around what
 * the input says, or all of it the input's; then all frames are read, and every byte that they say they have.
 */
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "fixture.h"
#include "vm/migration_wire.h"

#define HEADER 24u
#define STREAM_MAX 16384u

static size_t make_frame(struct fuzz_input *in, uint8_t *to, size_t room)
{
    uint8_t how = fuzz_u8(in);
    uint32_t length = how & 1 ? fuzz_u8(in) : (uint32_t)(fuzz_u8(in) % 4) * 4096, crc;

    if (room < HEADER + length)
        return 0;
    fuzz_bytes(in, to, HEADER);
    if (how & 2)
        to[0] = (uint8_t)(WIRE_MEMORY + (how >> 2 & 15) % WIRE_ASK);
    if (how & 4)
        to[1] &= 1;
    if (how & 8)
        memset(to + 6, 0, 2);
    if (how & 16) /* as many pages as there are */
        memcpy(to + 2, (uint8_t[]){(uint8_t)((1u << length / 4096) - 1), 0, 0, 0}, 4);
    if (!(how & 32))
        memcpy(to + 8, &length, 4);
    memset(to + 12, 0, 4);
    fuzz_bytes(in, to + HEADER, length < 512 ? length : 512);
    crc = crc32c(0, to, HEADER + length);
    memcpy(to + 12, &crc, 4);
    return HEADER + length;
}

static void look(const struct wire_frame *f)
{
    size_t length = f->type == WIRE_LACKS ? f->length : (size_t)__builtin_popcount(f->present) * WIRE_PAGE;
    unsigned sum = 0;

    for (size_t i = 0; i < length; i++)
        sum += f->bytes[i];
    if (f->type == WIRE_SECTION && f->section->size)
        sum += f->section->bytes[f->section->size - 1];
    if ((f->type == WIRE_LACKS && !length) || (f->type == WIRE_ASK && length) || sum > 255 * WIRE_BITS_MAX)
        __builtin_trap();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};
    uint8_t stream[STREAM_MAX] = {0};
    struct wire_frame f;
    struct wire w;
    const char *why;
    size_t length = 0, one;
    int fd = memfd_create("stream", MFD_CLOEXEC);

    if (fd < 0)
        return 0;
    if (fuzz_u8(&in) & 1)
        while (in.left && (one = make_frame(&in, stream + length, STREAM_MAX - length)))
            length += one;
    else
        memcpy(stream, data, length = size < STREAM_MAX ? size : STREAM_MAX);
    if (write(fd, stream, length) == (ssize_t)length && lseek(fd, 0, SEEK_SET) == 0 && wire_open(&w, fd, false) == 0) {
        while (wire_get(&w, &f, &why) == 0 && f.type != WIRE_END)
            look(&f);
        wire_close(&w);
    }
    close(fd);
    return 0;
}
