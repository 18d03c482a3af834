/*
 * Templates under a guest whose writes nobody announces: every page of theirs is mapped privately, and when it is
 * written to, by the guest or by this process, the host's kernel makes a page of the process's own of it, at the same
 * address.  KVM follows, as for any mapping of the process's.
 *
 *      page of a template   not written to: the template's; written to: anonymous memory (pagemap.h)
 *      own page             in the memory's file, as everywhere: what was given back, and what gather has put there
 *
 * The kernel alone knows which pages it has made.  When what memory holds is to become a template they are put into the
 * file first; from then on it is done as for an engine that announces.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "memory/pagemap.h"
#include "memory/template_int.h"

static bool is_written(const struct memory *m, struct pagemap *p, uint64_t page)
{
    return from(m->templates, page) != MEMORY_OWN && pagemap_is_written(p, at(m, page));
}

/* The run that begins at or after `page`: pages that were written to, with gaps of so many that were not.  Its end, and
 * *first; or 0: there is none. */
static uint64_t next_run(const struct memory *m, struct pagemap *p, uint64_t page, uint64_t gap, uint64_t *first)
{
    const uint64_t n = m->templates->n_pages, low = m->low_size >> PAGE_SHIFT;

    while (page < n && !is_written(m, p, page))
        page++;
    if (page == n)
        return 0;
    *first = page;
    uint64_t end = page + 1;
    for (page = end; page < n && page != low && page - end <= gap; page++)
        if (is_written(m, p, page))
            end = page + 1;
    return end;
}

static uint64_t runs(const struct memory *m, uint64_t gap)
{
    struct pagemap p;
    uint64_t n = 0, first;

    pagemap_begin(&p, m->pagemap);
    for (uint64_t page = 0; (page = next_run(m, &p, page, gap, &first)) > 0;)
        n++;
    return n;
}

int private_gather(struct memory *m)
{
    struct pagemap p;
    uint64_t gap = 0, first;
    int err = 0;

    while (runs(m, gap) > RUNS_MOST)
        gap = gap * 4 + 4;
    pagemap_begin(&p, m->pagemap);
    for (uint64_t page = 0; !err && (page = next_run(m, &p, page, gap, &first)) > 0;)
        err = templates_own(m, first, page, true);
    return err;
}

uint64_t private_pages(const struct memory *m)
{
    struct pagemap p;
    uint64_t n = 0;

    pagemap_begin(&p, m->pagemap);
    for (uint64_t page = 0; page < m->templates->n_pages; page++)
        n += is_written(m, &p, page);
    return n;
}

bool memory_has_data(const struct memory *m, uint64_t offset, uint64_t len)
{
    struct pagemap p;

    if (memory_next_data(m, offset) < offset + len)
        return true;
    if (!m->templates || memory_is_announced(m))
        return false;
    pagemap_begin(&p, m->pagemap);
    for (uint64_t page = offset >> PAGE_SHIFT; page << PAGE_SHIFT < offset + len; page++)
        if (is_written(m, &p, page))
            return true;
    return false;
}
