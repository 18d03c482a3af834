#include "devices/rtc.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Registers (MC146818A data sheet, "Address map") and the PC's own bytes behind them. */
enum {
    RTC_SECONDS = 0,
    RTC_SECONDS_ALARM = 1,
    RTC_MINUTES = 2,
    RTC_MINUTES_ALARM = 3,
    RTC_HOURS = 4,
    RTC_HOURS_ALARM = 5,
    RTC_WEEKDAY = 6,
    RTC_DAY = 7,
    RTC_MONTH = 8,
    RTC_YEAR = 9,
    RTC_A = 10,
    RTC_B = 11,
    RTC_C = 12,
    RTC_D = 13,
    CMOS_BASE_KB = 0x15,
    CMOS_EXTENDED_KB = 0x17,
    CMOS_SUM = 0x2e,
    CMOS_EXTENDED2_KB = 0x30,
    CMOS_CENTURY = 0x32,
    CMOS_ABOVE_16M = 0x34,
    CMOS_ABOVE_4G = 0x5b,
    CMOS_SIZE = 128,
};
enum { A_RATE = 0x0f, A_DIVIDER = 0x70, A_RUNNING = 0x20, A_UIP = 0x80 };
enum { B_24H = 0x02, B_BINARY = 0x04, B_UPDATE = 0x10, B_ALARM = 0x20, B_PERIODIC = 0x40, B_SET = 0x80 };
enum { C_UPDATE = 0x10, C_ALARM = 0x20, C_PERIODIC = 0x40, C_IRQ = 0x80 };
enum { D_VALID = 0x80 };
#define NS_PER_S 1000000000ull
#define UIP_NS 244000 /* the update is announced this long before it happens */

struct rtc {
    struct {
        int64_t offset_s;     /* guest's time of day - host's UTC */
        int64_t seen_s;       /* guest second up to which update and alarm flags were worked out */
        uint64_t periodic_ns; /* CLOCK_MONOTONIC: the last periodic tick worked out */
        uint64_t save_ns;
        uint8_t index, connected;
        uint8_t cmos[CMOS_SIZE]; /* time registers: as written while SET, else as last shown */
    } saved;
    struct bus *bus;
    struct loop *loop;
    struct irq_line irq;
    struct loop_timer timer;
    struct rtc_config config;
    struct bus_range range;
};

/* --- the clock ------------------------------------------------------------------------------------ */

/* The guest's time of day in seconds since 1970 (two digits of century: years 0 to 9999). */
static int64_t guest_seconds(const struct rtc *s)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (int64_t)((uint64_t)ts.tv_sec + (uint64_t)s->saved.offset_s);
}

/* How far the current second has come; the guest's and the host's begin together. */
static uint64_t second_fraction(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (uint64_t)ts.tv_nsec;
}

static uint8_t encode(const struct rtc *s, unsigned n)
{
    return (uint8_t)(s->saved.cmos[RTC_B] & B_BINARY ? n : n / 10 << 4 | n % 10);
}

static unsigned decode(const struct rtc *s, uint8_t n)
{
    return s->saved.cmos[RTC_B] & B_BINARY ? n : (n >> 4) * 10u + (n & 15);
}

static uint8_t encode_hour(const struct rtc *s, unsigned hour)
{
    if (s->saved.cmos[RTC_B] & B_24H)
        return encode(s, hour);
    return encode(s, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? 0x80 : 0);
}

static unsigned decode_hour(const struct rtc *s, uint8_t value)
{
    if (s->saved.cmos[RTC_B] & B_24H)
        return decode(s, value);
    return decode(s, value & 0x7f) % 12 + (value & 0x80 ? 12 : 0);
}

static void show_time(struct rtc *s, int64_t seconds)
{
    time_t t = (time_t)seconds;
    struct tm tm;
    uint8_t *c = s->saved.cmos;
    if (!gmtime_r(&t, &tm))
        return;
    unsigned year = (unsigned)(tm.tm_year + 1900);
    c[RTC_SECONDS] = encode(s, (unsigned)tm.tm_sec);
    c[RTC_MINUTES] = encode(s, (unsigned)tm.tm_min);
    c[RTC_HOURS] = encode_hour(s, (unsigned)tm.tm_hour);
    c[RTC_WEEKDAY] = encode(s, (unsigned)tm.tm_wday + 1);
    c[RTC_DAY] = encode(s, (unsigned)tm.tm_mday);
    c[RTC_MONTH] = encode(s, (unsigned)tm.tm_mon + 1);
    c[RTC_YEAR] = encode(s, year % 100);
    c[CMOS_CENTURY] = encode(s, year / 100 % 100);
}

/* Takes the time registers for the time of day; timegm puts impossible dates right. */
static void take_time(struct rtc *s)
{
    const uint8_t *c = s->saved.cmos;
    struct tm tm = {
        .tm_sec = (int)decode(s, c[RTC_SECONDS]),
        .tm_min = (int)decode(s, c[RTC_MINUTES]),
        .tm_hour = (int)decode_hour(s, c[RTC_HOURS]),
        .tm_mday = (int)decode(s, c[RTC_DAY]),
        .tm_mon = (int)decode(s, c[RTC_MONTH]) - 1,
        .tm_year = (int)(decode(s, c[CMOS_CENTURY]) * 100 + decode(s, c[RTC_YEAR])) - 1900,
    };
    int64_t t = (int64_t)timegm(&tm);
    s->saved.offset_s = (int64_t)((uint64_t)s->saved.offset_s + (uint64_t)t - (uint64_t)guest_seconds(s));
    s->saved.seen_s = guest_seconds(s);
}

/* Reset dividers stop the clock too; nothing that runs today keeps them so. */
static bool updates_run(const struct rtc *s)
{
    return !(s->saved.cmos[RTC_B] & B_SET);
}

/* --- interrupts ----------------------------------------------------------------------------------- */

static uint64_t period_ns(const struct rtc *s)
{
    unsigned rate = s->saved.cmos[RTC_A] & A_RATE;
    if (!rate)
        return 0;
    if (rate <= 2)
        rate += 7; /* with a 32 kHz crystal rates 1 and 2 are 8 and 9 (table 5) */
    return (NS_PER_S << (rate - 1)) / 32768;
}

static bool alarm_matches(const struct rtc *s, int64_t second)
{
    const uint8_t *c = s->saved.cmos;
    unsigned day_s = (unsigned)((second % 86400 + 86400) % 86400);
    /* The two top bits set: any value matches. */
    return ((c[RTC_SECONDS_ALARM] & 0xc0) == 0xc0 || decode(s, c[RTC_SECONDS_ALARM]) == day_s % 60) &&
           ((c[RTC_MINUTES_ALARM] & 0xc0) == 0xc0 || decode(s, c[RTC_MINUTES_ALARM]) == day_s / 60 % 60) &&
           ((c[RTC_HOURS_ALARM] & 0xc0) == 0xc0 || decode_hour(s, c[RTC_HOURS_ALARM]) == day_s / 3600);
}

static void update_irq(struct rtc *s)
{
    uint8_t *c = &s->saved.cmos[RTC_C];
    bool due = *c & s->saved.cmos[RTC_B] & (C_UPDATE | C_ALARM | C_PERIODIC);
    *c = due ? *c | C_IRQ : *c & ~C_IRQ;
    if (s->saved.connected)
        irq_set(&s->irq, due);
}

/* Brings the flags of register C up to date: they are worked out when somebody looks. */
static void catch_up(struct rtc *s)
{
    uint8_t *flags = &s->saved.cmos[RTC_C];
    int64_t now_s = guest_seconds(s);
    uint64_t now = clock_ns(), period = period_ns(s);

    if (now_s < s->saved.seen_s) /* the host's clock was set back */
        s->saved.seen_s = now_s;
    if (updates_run(s) && now_s > s->saved.seen_s) {
        *flags |= C_UPDATE;
        int64_t day_ago = now_s - 86400, first = s->saved.seen_s < day_ago ? day_ago : s->saved.seen_s;
        for (int64_t t = first + 1; t <= now_s && !(*flags & C_ALARM); t++)
            if (alarm_matches(s, t))
                *flags |= C_ALARM;
    }
    s->saved.seen_s = now_s;
    if (period && now - s->saved.periodic_ns >= period) {
        *flags |= C_PERIODIC;
        s->saved.periodic_ns += (now - s->saved.periodic_ns) / period * period;
    }
    update_irq(s);
}

static void arm(struct rtc *s)
{
    uint8_t b = s->saved.cmos[RTC_B];
    uint64_t at = UINT64_MAX;
    if ((b & (B_UPDATE | B_ALARM)) && updates_run(s))
        at = clock_ns() + NS_PER_S - second_fraction();
    if ((b & B_PERIODIC) && period_ns(s) && s->saved.periodic_ns + period_ns(s) < at)
        at = s->saved.periodic_ns + period_ns(s);
    loop_timer_set(s->loop, &s->timer, at);
}

static void timer_fired(void *opaque)
{
    struct rtc *s = opaque;
    catch_up(s);
    arm(s);
}

/* --- registers ------------------------------------------------------------------------------------ */

static bool is_time(unsigned i)
{
    return (i <= RTC_YEAR && i != RTC_SECONDS_ALARM && i != RTC_MINUTES_ALARM && i != RTC_HOURS_ALARM) ||
           i == CMOS_CENTURY;
}

static uint8_t cmos_read(struct rtc *s, unsigned i)
{
    uint8_t value;
    if (is_time(i) && updates_run(s))
        show_time(s, guest_seconds(s));
    switch (i) {
    case RTC_A:
        value = s->saved.cmos[RTC_A];
        return updates_run(s) && second_fraction() >= NS_PER_S - UIP_NS ? value | A_UIP : value;
    case RTC_C:
        catch_up(s);
        value = s->saved.cmos[RTC_C];
        s->saved.cmos[RTC_C] = 0;
        update_irq(s);
        return value;
    default:
        return s->saved.cmos[i];
    }
}

static void b_write(struct rtc *s, uint8_t value)
{
    uint8_t old = s->saved.cmos[RTC_B];
    catch_up(s);
    if (updates_run(s))
        show_time(s, guest_seconds(s)); /* what SET freezes */
    if (value & B_SET)
        value &= ~B_UPDATE; /* data sheet: SET clears UIE */
    s->saved.cmos[RTC_B] = value;
    if ((old & B_SET) && !(value & B_SET))
        take_time(s);
    update_irq(s);
    arm(s);
}

static void cmos_write(struct rtc *s, unsigned i, uint8_t value)
{
    if (i == RTC_B) {
        b_write(s, value);
    } else if (i == RTC_A) {
        catch_up(s);
        s->saved.cmos[RTC_A] = value & ~A_UIP;
        s->saved.periodic_ns = clock_ns();
        arm(s);
    } else if (i == RTC_C || i == RTC_D) {
        return; /* read-only */
    } else if (is_time(i) && updates_run(s)) {
        show_time(s, guest_seconds(s));
        s->saved.cmos[i] = value;
        take_time(s);
        arm(s);
    } else {
        s->saved.cmos[i] = value;
    }
}

static uint64_t rtc_read(void *opaque, uint64_t offset, unsigned size)
{
    struct rtc *s = opaque;
    return offset == 1 ? cmos_read(s, s->saved.index) : 0xff; /* the index is write-only */
}

static void rtc_write(void *opaque, uint64_t offset, uint64_t value, unsigned size)
{
    struct rtc *s = opaque;
    /* Bit 7 of the index port masks NMI.  Nothing on this board raises NMI but the APICs, which are
     * not behind that gate. */
    if (offset == 0)
        s->saved.index = value & 0x7f;
    else
        cmos_write(s, s->saved.index, (uint8_t)value);
    if (offset == 0 && size > 1)
        cmos_write(s, s->saved.index, (uint8_t)(value >> 8));
}

static const struct bus_ops rtc_ops = {rtc_read, rtc_write};

void rtc_connect_irq(void *opaque, bool connected)
{
    struct rtc *s = opaque;
    if (s->saved.connected == connected)
        return;
    if (!connected)
        irq_set(&s->irq, false);
    s->saved.connected = connected;
    update_irq(s);
}

/* --- contents at power-on --------------------------------------------------------------------------- */

static void put(uint8_t *cmos, unsigned at, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        cmos[at + i] = (uint8_t)(value >> (i * 8));
}

static uint64_t at_most(uint64_t value, uint64_t limit)
{
    return value < limit ? value : limit;
}

/* Memory sizes as PC firmware and its successors leave them. */
static void store_memory(struct rtc *s)
{
    uint8_t *c = s->saved.cmos;
    uint64_t low = s->config.low_memory;
    uint64_t above_1m = low > 1 << 20 ? low - (1 << 20) : 0, above_16m = low > 16 << 20 ? low - (16 << 20) : 0;
    put(c, CMOS_BASE_KB, 640, 2);
    put(c, CMOS_EXTENDED_KB, at_most(above_1m >> 10, 0xffff), 2);
    put(c, CMOS_EXTENDED2_KB, at_most(above_1m >> 10, 0xffff), 2);
    put(c, CMOS_ABOVE_16M, at_most(above_16m >> 16, 0xffff), 2);
    put(c, CMOS_ABOVE_4G, at_most(s->config.high_memory >> 16, 0xffffff), 3);
    unsigned sum = 0;
    for (unsigned i = 0x10; i < CMOS_SUM; i++)
        sum += c[i];
    c[CMOS_SUM] = (uint8_t)(sum >> 8); /* the checksum is stored high byte first */
    c[CMOS_SUM + 1] = (uint8_t)sum;
}

/* A reset leaves the time and the CMOS bytes, and turns interrupts off (data sheet, "RESET"). */
static void rtc_reset(struct device *dev)
{
    struct rtc *s = dev->state;
    s->saved.cmos[RTC_B] &= ~(B_UPDATE | B_ALARM | B_PERIODIC);
    s->saved.cmos[RTC_C] = 0;
    s->saved.index = 0;
    s->saved.connected = 1;
    update_irq(s);
    arm(s);
}

static int rtc_create(struct device *dev, const struct device_env *env, const void *config)
{
    struct rtc *s = calloc(1, sizeof(*s));
    if (!s)
        return -ENOMEM;
    s->bus = env->bus;
    s->loop = env->loop;
    s->irq = env->isa_irq[8];
    s->config = *(const struct rtc_config *)config;
    dev->state = s;
    loop_timer_init(&s->timer, timer_fired, s);
    s->saved.cmos[RTC_A] = A_RUNNING | 6; /* 1024 Hz, as every PC starts */
    s->saved.cmos[RTC_B] = B_24H;
    s->saved.cmos[RTC_D] = D_VALID;
    s->saved.seen_s = guest_seconds(s);
    s->saved.periodic_ns = clock_ns();
    store_memory(s);
    rtc_reset(dev);
    s->range = (struct bus_range){0x70, 2, &rtc_ops, s, "rtc"};
    return bus_map(s->bus, BUS_PORT, &s->range);
}

static void rtc_destroy(struct device *dev)
{
    struct rtc *s = dev->state;
    if (!s)
        return;
    loop_timer_cancel(s->loop, &s->timer);
    bus_unmap(s->bus, BUS_PORT, &s->range);
    free(s);
    dev->state = NULL;
}

static void rtc_pre_save(struct device *dev)
{
    struct rtc *s = dev->state;
    s->saved.save_ns = clock_ns();
}

static void rtc_post_restore(struct device *dev)
{
    struct rtc *s = dev->state;
    s->saved.index &= 0x7f;
    if (s->saved.offset_s > INT64_MAX >> 20 || s->saved.offset_s < INT64_MIN >> 20)
        s->saved.offset_s = 0; /* no guest can have set that: 10,000 years are 2^39 seconds */
    s->saved.periodic_ns += device_later(dev, s->saved.save_ns);
    catch_up(s);
    arm(s);
}

const struct device_class rtc_class = {
    .type = "rtc",
    .create = rtc_create,
    .reset = rtc_reset,
    .destroy = rtc_destroy,
    .save_offset = offsetof(struct rtc, saved),
    .save_size = sizeof(((struct rtc *)0)->saved),
    .pre_save = rtc_pre_save,
    .post_restore = rtc_post_restore,
};
