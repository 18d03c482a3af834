/* Where the pages of a copied machine's memory are, by its own words: either refused, or each page is what its template
 * has, and what is written to it stays here. */
#include <sys/mman.h>
#include <unistd.h>

#include "fixture.h"
#include "memory/template.h"

#define SIZE (1ull << 20)
#define PAGE 4096u

/* Of two machines, the second a copy of the first that has written to every third page: byte 0 of a page says who has.
 */
static struct memory *machine(void)
{
    static struct memory *m;

    if (m)
        return m;
    assert_int_equal(memory_create(&m, SIZE), 0);
    for (uint64_t at = 0; at < SIZE; at += PAGE)
        memory_write(m, at, "\1", 1);
    assert_int_equal(memory_freeze(m, memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING)), 0);
    for (uint64_t at = 0; at < SIZE; at += 3 * PAGE)
        memory_write(m, at, "\2", 1);
    assert_int_equal(memory_freeze(m, memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING)), 0);
    return m;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct memory_run runs[128], *unused;
    uint32_t n_unused, n = 0, pages = 0;
    struct memory *m;
    int fds[MEMORY_TEMPLATES_MAX];
    int count = memory_templates(machine(), fds, &unused, &n_unused);

    free(unused);
    for (size_t i = 1; i + 1 < size && n < 127; i += 2, pages += runs[n++].pages)
        runs[n] = (struct memory_run){data[i], data[i + 1] % 4u == 3 ? data[i + 1] : data[i + 1] % 2u};
    if (size && data[0] % 4 && pages < SIZE / PAGE) /* mostly, it adds up */
        runs[n++] = (struct memory_run){SIZE / PAGE - pages, data[0] % 2u};
    for (int i = 0; i < count; i++)
        fds[i] = dup(fds[i]);
    assert_int_equal(memory_create(&m, SIZE), 0);
    if (memory_adopt(m, fds, (unsigned)count, runs, n)) {
        for (int i = 0; i < count; i++)
            close(fds[i]);
        memory_destroy(m);
        return 0;
    }
    for (uint64_t at = 0, page = 0, i = 0; at < SIZE; at += PAGE, page++) {
        uint8_t byte;
        while (page >= runs[i].pages)
            page -= runs[i++].pages;
        assert_int_equal(memory_read(m, at, &byte, 1), 0);
        assert_true(runs[i].from ? byte == (at % (3 * PAGE) ? 0 : 2) : byte == 1);
        assert_int_equal(memory_write(m, at, "\3", 1), 0);
        assert_int_equal(memory_read(machine(), at, &byte, 1), 0);
        assert_true(byte != 3);
    }
    memory_destroy(m);
    return 0;
}
