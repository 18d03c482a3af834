/*
 * What a bzImage's own code does first, done by the host: the kernel proper is unpacked, its segments go to their
 * places, and it is moved to random addresses (KASLR), by the host's random numbers.  A guest that is translated would
 * take several times as long, for what is done once.  Whatever is not as it is expected here is left to the kernel.
 *
 * Physical address P and virtual address V of what is linked for L, "preferred" (16 MiB), are chosen apart:
 *
 *   RAM:     ... | ELF header, 2 MiB | P: text, data, per-CPU, init, bss ... |
 *   virtual: START_MAP + V: the same.  V = L unless relocated, P and V multiples of `align`
 *
 * The ELF file is unpacked to 2 MiB below P, for its text begins 2 MiB behind its header: so most of it is where it
 * belongs.  Behind the file are relocations, as numbers of 32 bits which are read from the end: addresses of 32-bit
 * fields that V - L is added to; then, with kernels before 6.15, those that it is subtracted from; then of 64-bit
 * fields.  A zero is before each of these lists.
 */
#include <elf.h>
#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "base/bytes.h"
#include "boot/boot_int.h"
#include "boot/vmlinux.h"

#define START_MAP 0xffffffff80000000ull /* __START_KERNEL_map */
#define MAP_SIZE (1ull << 30)           /* KERNEL_IMAGE_SIZE with KASLR */
#define HEADER_ROOM (2ull << 20)
#define SEGMENTS_MAX 16u

/* A kernel in RAM. */
struct placed {
    const struct vmlinux *v;
    struct memory *memory;
    uint8_t *file; /* the ELF file with what is behind it, in RAM */
    uint64_t file_size, elf_size;
    uint64_t physical; /* P */
    uint8_t *image;    /* the same in the host */
    uint64_t room;     /* bytes there */
    uint64_t image_size;
    uint64_t moved; /* V - L */
    uint64_t entry;
};

/* A random one of `slots`. */
static uint64_t random_slot(uint64_t slots)
{
    uint64_t r;

    return getrandom(&r, sizeof r, 0) == sizeof r ? (uint64_t)((unsigned __int128)r * slots >> 64) : 0;
}

static uint64_t choose_physical(const struct vmlinux *v, uint64_t limit)
{
    const uint64_t room = limit - v->preferred;

    return v->preferred +
           (v->random_address && v->relocatable ? random_slot((room - v->span) / v->align + 1) * v->align : 0);
}

/* --- the ELF file ---------------------------------------------------------------------------------------------- */

/* n bytes of the image come from further up.  Where there is nothing, nothing is made. */
static void move_down(struct memory *m, uint64_t to, uint64_t from, uint64_t n)
{
    const uint64_t chunk = 1ull << MEMORY_CHUNK_SHIFT;

    for (uint64_t piece; n; to += piece, from += piece, n -= piece) {
        const uint64_t end = to % chunk > from % chunk ? to % chunk : from % chunk;
        piece = chunk - end < n ? chunk - end : n;
        const bool nothing = memory_is_new(m, from);
        if (nothing && memory_is_new(m, to))
            continue;
        memory_touch(m, to);
        if (nothing)
            memset(m->base + to, 0, piece);
        else
            memmove(m->base + to, m->base + from, piece);
    }
}

/* Segments move down or stay; none is written over before it has moved. */
static bool place_segments(struct placed *p)
{
    Elf64_Ehdr h;
    Elf64_Phdr ph[SEGMENTS_MAX];
    uint64_t from = 0;

    memcpy(&h, p->file, sizeof h);
    if (memcmp(h.e_ident, ELFMAG, SELFMAG) || h.e_ident[EI_CLASS] != ELFCLASS64 || h.e_machine != EM_X86_64 ||
        h.e_phentsize != sizeof *ph || h.e_phnum > SEGMENTS_MAX || h.e_phoff > p->file_size - sizeof ph ||
        h.e_shoff > p->file_size || (uint64_t)h.e_shnum * h.e_shentsize > p->file_size - h.e_shoff)
        return false;
    memcpy(ph, p->file + h.e_phoff, sizeof ph);
    p->elf_size = h.e_shoff + (uint64_t)h.e_shnum * h.e_shentsize;
    for (unsigned i = 0; i < h.e_phnum; i++) {
        const Elf64_Phdr *s = &ph[i];
        if (s->p_type != PT_LOAD)
            continue;
        uint64_t to = s->p_paddr - p->v->preferred;
        if (s->p_paddr < p->v->preferred || s->p_offset < from || s->p_offset > p->elf_size ||
            s->p_filesz > p->elf_size - s->p_offset || s->p_filesz > s->p_memsz || s->p_offset < to + HEADER_ROOM ||
            to > p->room || s->p_memsz > p->room - to)
            return false;
        if (to + HEADER_ROOM != s->p_offset)
            move_down(p->memory, p->physical + to, p->physical - HEADER_ROOM + s->p_offset, s->p_filesz);
        from = s->p_offset + s->p_filesz;
        if (p->image_size < to + s->p_memsz)
            p->image_size = to + s->p_memsz;
    }
    p->entry = h.e_entry - p->v->preferred;
    return h.e_entry >= p->v->preferred && p->entry < p->image_size;
}

/* --- relocations ------------------------------------------------------------------------------------------------ */

enum { ADD32, SUBTRACT32, ADD64 };

static bool relocate_one(struct placed *p, uint32_t address, unsigned kind, uint64_t by)
{
    const unsigned width = kind == ADD64 ? 8 : 4;
    uint64_t at = (uint64_t)(int64_t)(int32_t)address - START_MAP - p->v->preferred;

    if (p->image_size < width || at > p->image_size - width)
        return false;
    if (kind == ADD64)
        le64_put(p->image + at, le64_at(p->image + at) + by);
    else
        le32_put(p->image + at, le32_at(p->image + at) + (uint32_t)(kind == ADD32 ? by : -by));
    return true;
}

static uint64_t count_zeroes(const uint8_t *table, uint64_t n)
{
    uint64_t zeroes = 0;

    for (uint64_t i = 0; i < n; i++)
        zeroes += !le32_at(table + 4 * i);
    return zeroes;
}

/* `table` has lists as they should be; what is in them was not looked at. */
static bool relocate(struct placed *p, const uint8_t *table, uint64_t n, uint64_t zeroes, uint64_t by)
{
    static const uint8_t old[] = {ADD32, SUBTRACT32, ADD64}, new[] = {ADD32, ADD64};
    const uint8_t *kinds = zeroes == 3 ? old : new;

    for (uint64_t list = 0; list < zeroes; list++)
        for (uint32_t address; n && (address = le32_at(table + 4 * --n));)
            if (!relocate_one(p, address, kinds[list], by))
                return false;
    return n == 0;
}

/* Moves it to a random virtual address.  False: there is something wrong with it. */
static bool randomize(struct placed *p, bool *randomized)
{
    const struct vmlinux *v = p->v;
    const uint8_t *table = p->file + p->elf_size;
    const uint64_t n = (p->file_size - p->elf_size) / 4, zeroes = count_zeroes(table, n);

    *randomized = false;
    if (!n || !v->random || !v->relocatable || v->preferred + v->span > MAP_SIZE)
        return true; /* it cannot be moved, or is not to be */
    if (zeroes != 2 && zeroes != 3)
        return false;
    p->moved = random_slot((MAP_SIZE - v->preferred - v->span) / v->align + 1) * v->align;
    *randomized = relocate(p, table, n, zeroes, p->moved);
    return *randomized;
}

int vmlinux_load(struct memory *m, const struct vmlinux *v, uint64_t limit, uint64_t *entry, bool *randomized,
                 struct boot_image *image)
{
    const int64_t size = payload_size(&v->payload);

    if (size < 0)
        return (int)size;
    if (v->preferred < BOOT_HIGH + HEADER_ROOM || !v->align || v->align & (v->align - 1) || limit < v->preferred ||
        v->span > limit - v->preferred || (uint64_t)size > v->span + HEADER_ROOM ||
        size < (int64_t)sizeof(Elf64_Ehdr) + (int64_t)sizeof(Elf64_Phdr) * SEGMENTS_MAX)
        return -ENOEXEC;
    struct placed p = {
        .v = v, .memory = m, .file_size = (uint64_t)size, .physical = choose_physical(v, limit), .room = v->span};
    p.file = memory_hva(m, p.physical - HEADER_ROOM, HEADER_ROOM + v->span);
    if (!p.file)
        return -ENOMEM;
    p.image = p.file + HEADER_ROOM;
    int err = payload_unpack(&v->payload, m, p.physical - HEADER_ROOM, p.file_size);
    if (err)
        return err;
    if (!place_segments(&p) || !randomize(&p, randomized))
        return -ENOEXEC;
    *entry = p.physical + p.entry;
    *image = (struct boot_image){p.physical, START_MAP + v->preferred + p.moved, p.image_size};
    return 0;
}
