/*
 * Code that one vCPU writes and another has translated.
 *
 * Each vCPU has an engine of its own: what it has translated, its TLBs, its processes.  So RAM is all that they share,
 * and whoever writes to a page has to know who has translated code of it.  By page there is a mask of those (`code`).
 *
 *      A wants to write                               B wants to translate
 *      1. written_A |= page                           1. code[page] |= B
 *      2. code[page] is empty: into A's write TLB     2. written_A has it: A is asked to give it up, and B waits
 *         else each store comes here                     until A has, or is not in guest code
 *                                                     3. reads the bytes
 *
 * One of the two sees the other.  A store that is made once, without the write TLB, is noted in written_A all the same,
 * so that B waits for it.  A store to a page with code of others is made first; then those of them that have translated
 * these bytes, or are about to, are told, and drop it when they next look up (REQ_FLUSH).  A does not wait for that:
 * until then it is as if the store had not got there yet, and what A stores after it, which B could learn of it by, B
 * looks at through a backward or a computed branch, where it looks up.  That is less than SDM vol. 3, 8.1.3 asks of
 * software that modifies the code of another processor, and more than it promises.
 *
 * Devices write as A does, without a TLB.
 */
#include "engine/soft/soft_int.h"

#include <errno.h>
#include <stdlib.h>

int soft_peers_create(struct peers **out, const struct engine_config *config)
{
    struct peers *p = calloc(1, sizeof *p);
    if (!p)
        return -ENOMEM;
    p->n = config->n_cpus;
    p->n_pages = config->memory->end >> 12;
    if (p->n > 1) {
        p->code = soft_reserve(p->n_pages * sizeof *p->code);
        if (!p->code) {
            free(p);
            return -ENOMEM;
        }
    }
    pthread_mutex_init(&p->split, NULL);
    *out = p;
    return 0;
}

void soft_peers_destroy(struct peers *p)
{
    if (!p)
        return;
    pthread_mutex_destroy(&p->split);
    soft_release(p->code, p->n_pages * sizeof *p->code);
    free(p);
}

static uint64_t own_bit(const struct engine *e)
{
    return 1ull << e->index;
}

/* --- what others ask of a vCPU -------------------------------------------------------------------------------- */

static void add(struct page_list *l, uint64_t page)
{
    if (l->n && l->n <= PAGE_LIST && l->page[l->n - 1] == page)
        return;
    if (l->n < PAGE_LIST)
        l->page[l->n] = page;
    if (l->n <= PAGE_LIST)
        l->n++;
}

static void request(struct engine *e)
{
    atomic_fetch_or(&e->vcpu->cpu.request, REQ_FLUSH);
    atomic_store(&e->vcpu->poll, 1);
}

/* The page's bytes have changed.  Of a vCPU that runs no guest code, and may not for long, what it has translated is
 * dropped here, since every store to a page with code of anybody's comes to tell; but not of what a copy has been
 * given, before it looks at that (soft_carry_begin).  A program that runs directly has no use of the translations
 * either, but only its vCPU can drop them. */
static void tell(struct engine *e, uint64_t page)
{
    pthread_mutex_lock(&e->asked.lock);
    const bool inside = e->asked.inside;
    if (inside || e->carried)
        add(&e->asked.changed, page);
    else
        soft_invalidate(e, page << 12, 4096);
    pthread_mutex_unlock(&e->asked.lock);
    if (!inside)
        return;
    request(e);
    if (e->peers->n > 1)
        soft_direct_kick(e);
}

/* It must not write there any more without saying so.  Returns what e->asked.served will be when that is so; 0: it runs
 * no guest code before that. */
static uint64_t ask(struct engine *e, uint64_t page)
{
    pthread_mutex_lock(&e->asked.lock);
    add(&e->asked.closed, page);
    uint64_t ticket = e->asked.inside ? ++e->asked.tickets : 0;
    pthread_mutex_unlock(&e->asked.lock);
    if (ticket) {
        request(e);
        soft_direct_kick(e);
    }
    return ticket;
}

static void drop_changed(struct engine *e)
{
    const struct page_list *l = &e->asked.changed;
    if (l->n > PAGE_LIST)
        soft_cache_flush(e);
    for (unsigned i = 0; l->n <= PAGE_LIST && i < l->n; i++)
        soft_invalidate(e, l->page[i] << 12, 4096);
    e->asked.changed.n = 0;
}

static void give_up_closed(struct engine *e)
{
    const struct page_list *l = &e->asked.closed;
    for (unsigned i = 0; l->n <= PAGE_LIST && i < l->n; i++)
        soft_close_page(e, l->page[i]);
    if (l->n > PAGE_LIST)
        soft_close_all(e);
    e->asked.closed.n = 0;
    atomic_store(&e->asked.served, e->asked.tickets);
}

/* Between two blocks of guest code.  In the middle of a translation only what is asked of TLBs is done. */
static void serve(struct engine *e, bool translating)
{
    pthread_mutex_lock(&e->asked.lock);
    if (!translating)
        drop_changed(e);
    give_up_closed(e);
    pthread_mutex_unlock(&e->asked.lock);
}

void soft_serve(struct engine *e)
{
    serve(e, false);
}

void soft_go_inside(struct engine *e)
{
    pthread_mutex_lock(&e->asked.lock);
    e->asked.inside = true;
    give_up_closed(e);
    pthread_mutex_unlock(&e->asked.lock);
}

void soft_come_out(struct engine *e)
{
    pthread_mutex_lock(&e->asked.lock);
    e->asked.inside = false;
    drop_changed(e);
    atomic_store(&e->asked.served, e->asked.tickets);
    pthread_mutex_unlock(&e->asked.lock);
}

/* --- translating ---------------------------------------------------------------------------------------------- */

static bool has_written(const struct engine *e, uint64_t page)
{
    return __atomic_load_n(&e->written[page / 64], __ATOMIC_RELAXED) >> page % 64 & 1;
}

static void await(struct engine *e, const struct engine *other, uint64_t ticket)
{
    for (unsigned i = 0; atomic_load(&other->asked.served) < ticket; i++) {
        serve(e, true); /* it may be waiting for us */
        soft_spin(i);
    }
}

void soft_code_claim(struct engine *e, uint64_t page)
{
    struct peers *p = e->peers;
    uint64_t tickets[SOFT_CPUS_MAX];
    if (p->n == 1 || page >= e->n_pages)
        return;
    __atomic_exchange_n(&e->translating[e->translating[0] && e->translating[0] != page + 1], page + 1,
                        __ATOMIC_SEQ_CST);
    if (p->code[page] & own_bit(e)) /* only this vCPU takes it out */
        return;
    __atomic_fetch_or(&p->code[page], own_bit(e), __ATOMIC_SEQ_CST);
    for (unsigned i = 0; i < p->n; i++)
        tickets[i] = i != e->index && has_written(p->of[i], page) ? ask(p->of[i], page) : 0;
    for (unsigned i = 0; i < p->n; i++)
        if (tickets[i])
            await(e, p->of[i], tickets[i]);
}

void soft_code_gone(struct engine *e, uint64_t page)
{
    e->code_granules[page] = 0;
    soft_code_none(e, page);
}

void soft_code_none(struct engine *e, uint64_t page)
{
    if (e->peers->n > 1 && e->translating[0] != page + 1 && e->translating[1] != page + 1)
        __atomic_fetch_and(&e->peers->code[page], ~own_bit(e), __ATOMIC_SEQ_CST);
}

void soft_code_claimed(struct engine *e)
{
    for (unsigned i = 0; e->peers->n > 1 && i < 2; i++) {
        uint64_t page = e->translating[i] - 1;
        __atomic_store_n(&e->translating[i], 0, __ATOMIC_RELEASE);
        if (page < e->n_pages && !e->code_granules[page])
            soft_code_gone(e, page);
    }
}

/* --- writing -------------------------------------------------------------------------------------------------- */

bool soft_others_code(const struct engine *e, uint64_t page)
{
    return e->peers->n > 1 && (__atomic_load_n(&e->peers->code[page], __ATOMIC_RELAXED) & ~own_bit(e));
}

void soft_note_write(struct engine *e, uint64_t page)
{
    e->written[page / 64] |= 1ull << page % 64;
    if (e->peers->n > 1)
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

bool soft_may_write(struct engine *e, uint64_t page)
{
    if (e->code_granules[page])
        return false;
    soft_note_write(e, page);
    return !soft_others_code(e, page);
}

/* In this order: who is found not to translate it any more has entered what it has made of it. */
static bool depends(const struct engine *e, uint64_t page, uint64_t granules)
{
    return __atomic_load_n(&e->translating[0], __ATOMIC_ACQUIRE) == page + 1 ||
           __atomic_load_n(&e->translating[1], __ATOMIC_ACQUIRE) == page + 1 ||
           (__atomic_load_n(&e->code_granules[page], __ATOMIC_RELAXED) & granules);
}

/* The store has been made.  `but`: of whom it is, who knows; NULL: a device's. */
static void tell_page(struct peers *p, const struct engine *but, uint64_t page, uint64_t granules)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* what they read from now on has it */
    uint64_t others = __atomic_load_n(&p->code[page], __ATOMIC_RELAXED) & (but ? ~own_bit(but) : ~0ull);
    for (; others; others &= others - 1) {
        struct engine *e = p->of[__builtin_ctzll(others)];
        if (depends(e, page, granules))
            tell(e, page);
    }
}

void soft_others_tell(struct soft_vcpu *v, uint64_t gpa, uint64_t len)
{
    struct engine *e = v->engine;
    if (!soft_others_code(e, gpa >> 12))
        return;
    soft_fpu_park(v);
    tell_page(e->peers, e, gpa >> 12, soft_granules(gpa, len));
}

void soft_others_tell_later(struct soft_vcpu *v, uint64_t gpa, uint64_t len)
{
    struct engine *e = v->engine;
    for (uint64_t page = gpa >> 12; e->peers->n > 1 && page <= (gpa + len - 1) >> 12; page++) {
        if (page >= e->n_pages)
            continue;
        soft_note_write(e, page);
        if (soft_others_code(e, page))
            add(&e->to_tell, page);
    }
}

void soft_tell_now(struct soft_vcpu *v)
{
    struct engine *e = v->engine;
    struct page_list *l = &e->to_tell;
    bool live = v->fpu_live;
    soft_fpu_park(v);
    for (unsigned i = 0; l->n <= PAGE_LIST && i < l->n; i++)
        tell_page(e->peers, e, l->page[i], ~0ull);
    for (uint64_t page = 0; l->n > PAGE_LIST && page < e->n_pages; page++)
        if (soft_others_code(e, page))
            tell_page(e->peers, e, page, ~0ull);
    l->n = 0;
    if (live)
        soft_fpu_unpark(v);
}

void soft_device_wrote(void *opaque, uint64_t gpa, uint64_t len)
{
    struct peers *p = opaque;
    for (uint64_t page = gpa >> 12; page <= (gpa + len - 1) >> 12 && page < p->n_pages; page++)
        if (p->n > 1)
            tell_page(p, NULL, page, ~0ull);
        else if (p->of[0]->code_granules[page])
            tell(p->of[0], page);
}
