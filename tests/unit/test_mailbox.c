/* Mailboxes: messages through shared memory, whoever looks or sleeps, and an other end that is hostile. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "host/loop_mailbox.h"
#include "host/patience.h"

static struct mailbox a, b;
static void *memory;

static int setup(void **state)
{
    int pair[2];

    memory = aligned_alloc(64, MAILBOX_MEMORY);
    memset(memory, 0, MAILBOX_MEMORY);
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    mailbox_init(&a, memory, pair[0], 0);
    mailbox_init(&b, memory, pair[1], 1);
    return 0;
}

static int teardown(void **state)
{
    if (a.fd >= 0)
        close(a.fd);
    if (b.fd >= 0)
        close(b.fd);
    free(memory);
    return 0;
}

static int say(struct mailbox *m, const void *text, size_t n)
{
    const struct iovec piece = {(void *)(uintptr_t)text, n};
    return mailbox_send(m, &piece, 1);
}

static bool has_byte(const struct mailbox *m)
{
    char byte;
    return recv(m->fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK) == 1;
}

static void messages_go_both_ways(void **state)
{
    char got[16] = "";

    assert_int_equal(mailbox_receive(&a, got, sizeof got), -EAGAIN);
    assert_int_equal(say(&a, "hello", 6), 0);
    assert_int_equal(say(&b, "you", 4), 0);
    assert_true(mailbox_ready(&b));
    assert_false(mailbox_taken(&a));
    assert_int_equal(mailbox_receive(&b, got, sizeof got), 6);
    assert_string_equal(got, "hello");
    assert_true(mailbox_taken(&a));
    assert_int_equal(mailbox_receive(&a, got, sizeof got), 4);
    assert_string_equal(got, "you");
    assert_int_equal(mailbox_receive(&a, got, sizeof got), -EAGAIN);
}

/* In order and whole, of all lengths, in pieces, across the ring's end many times over. */
static void messages_of_all_lengths(void **state)
{
    static uint8_t data[MAILBOX_MESSAGE_MAX], got[MAILBOX_MESSAGE_MAX];
    unsigned sent = 0, taken = 0;

    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i * 7);
    while (taken < 5000) {
        unsigned n = sent * 31 % 6000, part = n / 3;
        const struct iovec pieces[2] = {{data + sent % 100, part}, {data + sent % 100 + part, n - part}};
        int r = mailbox_send(&a, pieces, 2);
        if (r == 0) {
            sent++;
            continue;
        }
        assert_int_equal(r, -EAGAIN);
        while (taken < sent - sent % 3) {
            assert_int_equal(mailbox_receive(&b, got, sizeof got), taken * 31 % 6000);
            assert_memory_equal(got, data + taken % 100, taken * 31 % 6000);
            taken++;
        }
    }
    assert_int_equal(say(&a, data, MAILBOX_MESSAGE_MAX + 1), -EMSGSIZE);
}

static void who_looks_is_not_woken_and_who_sleeps_is(void **state)
{
    char got[8];

    mailbox_look(&b);
    assert_true(mailbox_is_watched(&a));
    say(&a, "1", 2);
    assert_false(has_byte(&b));
    assert_false(mailbox_rest(&b)); /* there is one */
    mailbox_receive(&b, got, sizeof got);
    assert_true(mailbox_rest(&b));
    assert_false(mailbox_is_watched(&a));
    say(&a, "2", 2);
    say(&a, "3", 2);
    assert_true(mailbox_woken(&b));
    assert_false(has_byte(&b)); /* once for both */
    assert_true(mailbox_ready(&b));
}

static void who_has_no_room_is_woken(void **state)
{
    static uint8_t data[MAILBOX_MESSAGE_MAX];
    unsigned n = 0;

    while (say(&a, data, sizeof data) == 0)
        n++;
    assert_true(n >= 3);
    assert_false(has_byte(&a));
    assert_int_equal(mailbox_receive(&b, data, sizeof data), sizeof data);
    assert_true(has_byte(&a));
    assert_int_equal(say(&a, data, sizeof data), 0);
}

static void the_end_of_the_other_end(void **state)
{
    char got[8];

    say(&b, "last", 5);
    close(b.fd);
    b.fd = -1;
    assert_false(mailbox_woken(&a));
    assert_false(mailbox_ready(&a));
    assert_int_equal(mailbox_receive(&a, got, sizeof got), -EPROTO);
    assert_int_equal(say(&a, "x", 1), 0); /* nobody will read it, nobody is hurt */
}

static void numbers_that_make_no_sense(void **state)
{
    static const struct {
        uint32_t written, length;
    } wrong[] = {{MAILBOX_RING + 8, 4}, {UINT32_MAX, 4},     {3, 4}, {8, 5}, {16, UINT32_MAX},
                 {4096, 4000},          {16, UINT32_MAX - 4}};
    char got[64];

    for (unsigned i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        mailbox_init(&a, memory, a.fd, 0);
        atomic_store(&a.in->written, wrong[i].written);
        memcpy(a.in->bytes, &wrong[i].length, 4);
        assert_int_equal(mailbox_receive(&a, got, sizeof got), -EPROTO);
        assert_false(mailbox_ready(&a));
    }
    mailbox_init(&a, memory, a.fd, 0);
    atomic_store(&a.out->read, 12345); /* more than was ever sent */
    assert_int_equal(say(&a, "x", 1), -EAGAIN);
}

/* --- two threads: no wake-up is lost ---------------------------------------------------------------------------- */

enum { ROUNDS = 50000 };

static void wait_for(struct mailbox *m, unsigned want, unsigned spin)
{
    unsigned got = 0;
    ssize_t r;

    while ((r = mailbox_receive(m, &got, sizeof got)) == -EAGAIN) {
        if (spin-- > 0)
            continue;
        if (mailbox_rest(m))
            assert_true(mailbox_sleep(m));
        mailbox_look(m);
        spin = 10;
    }
    assert_int_equal(got, want);
}

static void *answerer(void *opaque)
{
    for (unsigned i = 0; i < ROUNDS; i++) {
        wait_for(&b, i, i % 7);
        say(&b, &i, sizeof i);
    }
    return NULL;
}

static void two_threads(void **state)
{
    pthread_t thread;

    pthread_create(&thread, NULL, answerer, NULL);
    for (unsigned i = 0; i < ROUNDS; i++) {
        say(&a, &i, sizeof i);
        wait_for(&a, i, i % 5);
    }
    pthread_join(thread, NULL);
}

/* --- in a loop -------------------------------------------------------------------------------------------------- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct loop *loop;
static unsigned taken, calls, ended;

static void take_two(void *opaque, bool gone)
{
    char got[8];

    calls++;
    ended += gone;
    for (unsigned i = 0; i < 2 && mailbox_receive(&a, got, sizeof got) > 0; i++)
        taken++;
    if (taken == 5 || gone)
        loop_stop(loop);
}

static void the_loop_takes_all_and_sees_the_end(void **state)
{
    struct loop_mailbox box = {.mailbox = &a, .fn = take_two};

    taken = calls = ended = 0;
    assert_int_equal(loop_create(&loop, &lock), 0);
    say(&b, "before", 7);
    assert_int_equal(loop_mailbox_add(loop, &box), 0);
    for (unsigned i = 0; i < 4; i++)
        say(&b, "m", 2);
    loop_run(loop);
    assert_int_equal(taken, 5); /* although two are taken at a time */
    close(b.fd);
    b.fd = -1;
    loop_run(loop);
    assert_int_equal(ended, 1);
    loop_mailbox_del(loop, &box);
    loop_destroy(loop);
}

static void another_thread_looks(void **state)
{
    struct loop_mailbox box = {.mailbox = &a, .fn = take_two};

    taken = calls = ended = 0;
    assert_int_equal(loop_create(&loop, &lock), 0);
    assert_int_equal(loop_mailbox_add(loop, &box), 0);
    loop_look_begin(loop);
    say(&b, "m", 2);
    assert_false(has_byte(&a));
    pthread_mutex_lock(&lock);
    loop_look(loop); /* whoever has the lock will see to it */
    assert_int_equal(taken, 0);
    pthread_mutex_unlock(&lock);
    loop_look(loop);
    assert_int_equal(taken, 1);
    say(&b, "m", 2);
    loop_look_end(loop);
    assert_int_equal(taken, 2); /* that one came without a wake-up */
    say(&b, "m", 2);
    assert_true(has_byte(&a));
    loop_mailbox_del(loop, &box);
    loop_destroy(loop);
}

/* --- patience --------------------------------------------------------------------------------------------------- */

static bool count_down(void *opaque)
{
    unsigned *left = opaque;
    return *left == 0 || --*left == 0;
}

static void patience_grows_while_it_helps(void **state)
{
    struct patience p = {0};
    unsigned looks = 100;

    assert_false(patience_look(&p, clock_ns(), count_down, &looks));
    assert_int_equal(looks, 100);
    patience_waited(&p, 5000);
    assert_int_equal(p.ns, PATIENCE_LEAST_NS);
    assert_true(patience_look(&p, clock_ns() + 1000000000, count_down, &looks));
    patience_waited(&p, 5000);
    assert_int_equal(p.ns, PATIENCE_LEAST_NS); /* enough */
    for (unsigned i = 0; i < 10; i++)
        patience_waited(&p, PATIENCE_MOST_NS);
    assert_int_equal(p.ns, PATIENCE_MOST_NS);
    patience_waited(&p, PATIENCE_MOST_NS + 1);
    assert_int_equal(p.ns, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(messages_go_both_ways, setup, teardown),
        cmocka_unit_test_setup_teardown(messages_of_all_lengths, setup, teardown),
        cmocka_unit_test_setup_teardown(who_looks_is_not_woken_and_who_sleeps_is, setup, teardown),
        cmocka_unit_test_setup_teardown(who_has_no_room_is_woken, setup, teardown),
        cmocka_unit_test_setup_teardown(the_end_of_the_other_end, setup, teardown),
        cmocka_unit_test_setup_teardown(numbers_that_make_no_sense, setup, teardown),
        cmocka_unit_test_setup_teardown(two_threads, setup, teardown),
        cmocka_unit_test_setup_teardown(the_loop_takes_all_and_sees_the_end, setup, teardown),
        cmocka_unit_test_setup_teardown(another_thread_looks, setup, teardown),
        cmocka_unit_test(patience_grows_while_it_helps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
