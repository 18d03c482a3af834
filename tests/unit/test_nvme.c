/* The NVMe controller against drivers that are right and drivers that are hostile. */
#include "nvme_driver.h"

#include "devices/nvme/nvme_int.h"

#include <stdatomic.h>

static struct fixture fx;
static struct mock_disk mock;
static struct device dev;
static struct nvme_driver drv;

static uint8_t *ram(uint64_t gpa)
{
    return memory_hva(fx.memory, gpa, 1);
}

static int setup_bare(void **state)
{
    fixture_open(&fx);
    mock_open(&mock, DISK_BYTES);
    struct nvme_config config = {.disk = &mock.disk};
    dev = (struct device){.name = "nvme", .class = &nvme_class};
    assert_int_equal(nvme_class.create(&dev, &fx.env, &config), 0);
    nvme_find(&drv, &fx);
    return 0;
}

static int setup(void **state)
{
    setup_bare(state);
    nvme_enable(&drv);
    nvme_queue(&drv, 1);
    return 0;
}

static int teardown(void **state)
{
    nvme_class.destroy(&dev);
    assert_null(dev.state);
    assert_true(mock.closed);
    assert_int_equal(mock.disk.in_flight, 0);
    mock_free(&mock);
    fixture_close(&fx);
    return 0;
}

static void fill(uint64_t gpa, size_t len, uint8_t seed)
{
    for (size_t i = 0; i < len; i++)
        ram(gpa)[i] = (uint8_t)(seed + i * 7 + i / 256);
}

/* --- registers, identification --------------------------------------------------------------------------- */

static void registers(void **state)
{
    assert_int_equal(cfg_in(&fx, SLOT, PCI_CLASS, 4) & 0xffffff, 0x010802);
    assert_int_equal(reg(&drv, 0) & 0xffff, 1023);
    assert_int_equal(reg(&drv, 8), 0x00010400);
    assert_int_equal(mem_in(&fx, drv.regs, 8) >> 37 & 1, 1); /* the NVM command set */
    assert_int_equal(reg(&drv, 0x1c), 0);
    nvme_enable(&drv);
    assert_int_equal(reg(&drv, 0x1c), 1);
    set_reg(&drv, 0x14, 0);
    assert_int_equal(reg(&drv, 0x1c), 0);
    mem_out(&fx, drv.regs + 0x28, 0x123456789abcdef0, 8);
    assert_int_equal(mem_in(&fx, drv.regs + 0x28, 8), 0x123456789abcd000);
}

static void wrong_enabling_is_fatal(void **state)
{
    static const struct {
        uint32_t aqa, cc;
        uint64_t asq, acq;
    } wrong[] = {
        {0x001f0000, 0x460001, ASQ, ACQ},
        {0x0000001f, 0x460001, ASQ, ACQ},
        {0x0fff0fff, 0x460001, ASQ, ACQ},
        {0x001f001f, 0x460001, FIXTURE_RAM, ACQ},
        {0x001f001f, 0x460001, ASQ, 1ull << 52},
        {0x001f001f, 0x460081, ASQ, ACQ},
        {0x001f001f, 0x460011, ASQ, ACQ},
        {0x001f001f, 0x460801, ASQ, ACQ},
        {0x03ff001f, 0x460001, ASQ, FIXTURE_RAM - 0x1000},
    };
    for (unsigned i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        set_reg(&drv, 0x24, wrong[i].aqa);
        mem_out(&fx, drv.regs + 0x28, wrong[i].asq, 8);
        mem_out(&fx, drv.regs + 0x30, wrong[i].acq, 8);
        set_reg(&drv, 0x14, wrong[i].cc);
        assert_int_equal(reg(&drv, 0x1c), 2);
        doorbell(&drv, 0, false, 1);
        set_reg(&drv, 0x14, 0);
        assert_int_equal(reg(&drv, 0x1c), 0);
    }
}

static uint16_t identify_(unsigned cns, uint32_t nsid)
{
    memset(ram(BUFFER), 0xee, 8192);
    return command(&drv, 0, (struct nvme_command){.opcode = 6, .nsid = nsid, .prp1 = BUFFER, .cdw10 = cns}, NULL);
}

static void identifies_itself(void **state)
{
    assert_int_equal(identify_(1, 0), NVME_OK);
    assert_memory_equal(ram(BUFFER + 4), "MOCK1               ", 20);
    assert_int_equal(ram(BUFFER)[77], 8);
    assert_int_equal(ram(BUFFER)[516], 1);
    assert_memory_equal(ram(BUFFER + 768), "nqn.2014-08.org.nvmexpress:uuid:", 32);
    assert_int_equal(ram(BUFFER)[4096], 0xee);
    assert_int_equal(identify_(0, 1), NVME_OK);
    uint64_t blocks;
    memcpy(&blocks, ram(BUFFER), 8);
    assert_int_equal(blocks, DISK_BYTES / 512);
    assert_int_equal(ram(BUFFER)[130], 9);
    assert_int_equal(identify_(2, 0), NVME_OK);
    assert_int_equal(ram(BUFFER)[0], 1);
    assert_int_equal(ram(BUFFER)[4], 0);
    assert_int_equal(identify_(2, 1), NVME_OK);
    assert_int_equal(ram(BUFFER)[0], 0);
    assert_int_equal(identify_(3, 1), NVME_OK);
    assert_int_equal(ram(BUFFER)[0], 3);
    assert_int_equal(identify_(3, 2), NVME_INVALID_NAMESPACE);
    assert_int_equal(identify_(0, 0), NVME_INVALID_NAMESPACE);
    assert_int_equal(identify_(0x77, 1), NVME_INVALID_FIELD);
}

static void logs(void **state)
{
    struct nvme_command c = {.opcode = 2, .prp1 = BUFFER, .nsid = 0xffffffff, .cdw10 = 127 << 16 | 2};

    memset(ram(BUFFER), 0xee, 4096);
    assert_int_equal(command(&drv, 0, c, NULL), NVME_OK);
    assert_int_equal(ram(BUFFER)[3], 100);
    assert_int_equal(ram(BUFFER)[512], 0xee);
    c.cdw10 = 0xffff0003; /* longer than the log */
    assert_int_equal(command(&drv, 0, c, NULL), NVME_OK);
    c.cdw10 = 3 << 16 | 2;
    c.cdw12 = 508; /* the last dword */
    assert_int_equal(command(&drv, 0, c, NULL), NVME_OK);
    c.cdw12 = 516;
    assert_int_equal(command(&drv, 0, c, NULL), NVME_INVALID_FIELD);
    c.cdw13 = 0xffffffff;
    assert_int_equal(command(&drv, 0, c, NULL), NVME_INVALID_FIELD);
    c.cdw12 = c.cdw13 = 0;
    c.cdw10 = 0x99;
    assert_int_equal(command(&drv, 0, c, NULL), NVME_INVALID_LOG);
}

static void features(void **state)
{
    uint32_t dw0;

    assert_int_equal(command(&drv, 0, (struct nvme_command){.opcode = 9, .cdw10 = 7, .cdw11 = 0x3f003f}, &dw0),
                     NVME_OK);
    assert_int_equal(dw0, 0x000f000f);
    assert_int_equal(command(&drv, 0, (struct nvme_command){.opcode = 10, .cdw10 = 6}, &dw0), NVME_OK);
    assert_int_equal(dw0, 1);
    assert_int_equal(command(&drv, 0, (struct nvme_command){.opcode = 9, .cdw10 = 6, .cdw11 = 0}, &dw0), NVME_OK);
    assert_int_equal(command(&drv, 0, (struct nvme_command){.opcode = 10, .cdw10 = 6}, &dw0), NVME_OK);
    assert_int_equal(dw0, 0);
    assert_int_equal(command(&drv, 0, (struct nvme_command){.opcode = 10, .cdw10 = 6 | 1 << 8}, &dw0), NVME_OK);
    assert_int_equal(dw0, 1);
    assert_int_equal(command(&drv, 0, (struct nvme_command){.opcode = 10, .cdw10 = 6 | 3 << 8}, &dw0), NVME_OK);
    assert_int_equal(dw0, 4);
    for (unsigned id = 0; id < 256; id++) { /* every number, with everything set: none may be out of bounds */
        command(&drv, 0, (struct nvme_command){.opcode = 9, .cdw10 = id, .cdw11 = 0xffffffff}, NULL);
        command(&drv, 0, (struct nvme_command){.opcode = 10, .cdw10 = id | 7 << 8}, NULL);
    }
    assert_int_equal(command(&drv, 0, (struct nvme_command){.opcode = 9, .cdw10 = 1u << 31 | 6}, NULL),
                     NVME_FEATURE_NOT_SAVEABLE);
    assert_int_equal(command(&drv, 0, (struct nvme_command){.opcode = 0x7f}, NULL), NVME_INVALID_OPCODE);
    assert_int_equal(command(&drv, 0, (struct nvme_command){.opcode = 6, .flags = 0x40}, NULL), NVME_INVALID_FIELD);
    assert_int_equal(command(&drv, 0, (struct nvme_command){.opcode = 8}, &dw0), NVME_OK);
    assert_int_equal(dw0, 1);
}

/* --- reading and writing ------------------------------------------------------------------------------------- */

static void reads_what_was_written(void **state)
{
    fill(BUFFER, 8192, 1);
    assert_int_equal(command(&drv, 1, transfer_command(1, 100, 8, BUFFER + 512, BUFFER + 4096), NULL), NVME_OK);
    assert_memory_equal(mock.data + 100 * 512, ram(BUFFER + 512), 4096);
    assert_int_equal(fx.msi_data, 0x41); /* its own vector */
    memset(ram(BUFFER + 0x10000), 0, 4096);
    assert_int_equal(command(&drv, 1, transfer_command(2, 100, 8, BUFFER + 0x10000, 0), NULL), NVME_OK);
    assert_memory_equal(ram(BUFFER + 512), ram(BUFFER + 0x10000), 4096);
    assert_int_equal(command(&drv, 1, transfer_command(2, DISK_BYTES / 512 - 1, 1, BUFFER, 0), NULL), NVME_OK);
}

static void put_list(uint64_t list, unsigned i, uint64_t page)
{
    memory_write(fx.memory, list + 8 * i, &page, 8);
}

/* 1 MiB by a list that goes on in a second page. */
static void the_largest_transfer(void **state)
{
    uint64_t list = LIST + 4096 - 8 * 100; /* 100 places: 99 pages and a link */

    for (unsigned i = 0; i < 99; i++)
        put_list(list, i, BUFFER + (uint64_t)(i + 1) * 4096);
    put_list(list, 99, LIST + 4096);
    for (unsigned i = 0; i < 257 - 100; i++)
        put_list(LIST + 4096, i, BUFFER + (uint64_t)(i + 100) * 4096);
    fill(BUFFER, 257 * 4096, 3);
    assert_int_equal(command(&drv, 1, transfer_command(1, 0, 2048, BUFFER + 1024, list), NULL), NVME_OK);
    assert_memory_equal(mock.data, ram(BUFFER + 1024), 1 << 20);
    assert_int_equal(command(&drv, 1, transfer_command(1, 0, 2049, BUFFER, list), NULL), NVME_INVALID_FIELD);
    assert_int_equal(command(&drv, 1, transfer_command(1, 0, 65536, BUFFER, list), NULL), NVME_INVALID_FIELD);
    assert_int_equal(mock.count[DISK_WRITE], 1);
}

static void flush_zeroes_and_deallocate(void **state)
{
    struct nvme_command zero = {.opcode = 8, .nsid = 1, .cdw10 = 8, .cdw12 = 7 | 1 << 25};
    struct nvme_range ranges[3] = {{0, 8, 0}, {0, 0, 4}, {0, 16, 64}};

    memset(mock.data, 0xff, 65536);
    assert_int_equal(command(&drv, 1, (struct nvme_command){.opcode = 0, .nsid = 1}, NULL), NVME_OK);
    assert_int_equal(command(&drv, 1, (struct nvme_command){.opcode = 0, .nsid = 0xffffffff}, NULL), NVME_OK);
    assert_int_equal(mock.count[DISK_FLUSH], 2);
    assert_int_equal(command(&drv, 1, zero, NULL), NVME_OK);
    assert_int_equal(mock.unmap, 1);
    assert_int_equal(mock.data[8 * 512 - 1], 0xff);
    assert_int_equal(mock.data[8 * 512], 0);
    assert_int_equal(mock.data[16 * 512], 0xff);
    zero.cdw12 = 65535; /* 32 MiB on a disk of 8 */
    assert_int_equal(command(&drv, 1, zero, NULL), NVME_LBA_RANGE);
    memory_write(fx.memory, BUFFER, ranges, sizeof ranges);
    struct nvme_command dsm = {.opcode = 9, .nsid = 1, .prp1 = BUFFER, .cdw10 = 2, .cdw11 = 4};
    assert_int_equal(command(&drv, 1, dsm, NULL), NVME_OK);
    assert_int_equal(mock.count[DISK_DISCARD], 2); /* an empty range is none */
    assert_int_equal(mock.data[64 * 512], 0);
    assert_int_equal(mock.data[0], 0);
    ranges[2].blocks = 0xffffffff;
    memory_write(fx.memory, BUFFER, ranges, sizeof ranges);
    assert_int_equal(command(&drv, 1, dsm, NULL), NVME_LBA_RANGE);
    assert_int_equal(mock.count[DISK_DISCARD], 2); /* not half of it either */
}

static void forced_unit_access(void **state)
{
    struct nvme_command c = transfer_command(1, 0, 1, BUFFER, 0);

    assert_int_equal(command(&drv, 1, c, NULL), NVME_OK);
    assert_int_equal(mock.fua, 0);
    c.cdw12 |= 1u << 30;
    assert_int_equal(command(&drv, 1, c, NULL), NVME_OK);
    assert_int_equal(mock.fua, 1);
    c.cdw12 &= ~(1u << 30);
    command(&drv, 0, (struct nvme_command){.opcode = 9, .cdw10 = 6, .cdw11 = 0}, NULL); /* write cache off */
    assert_int_equal(command(&drv, 1, c, NULL), NVME_OK);
    assert_int_equal(mock.fua, 2);
}

static void errors_of_the_disk(void **state)
{
    static const struct {
        int error;
        uint16_t read, write;
    } table[] = {
        {-EIO, NVME_READ_ERROR, NVME_WRITE_FAULT},
        {-ENOSPC, NVME_CAPACITY_EXCEEDED, NVME_CAPACITY_EXCEEDED},
        {-ENOMEM, NVME_READ_ERROR, NVME_WRITE_FAULT},
    };
    for (unsigned i = 0; i < sizeof table / sizeof *table; i++) {
        mock.fail[DISK_READ] = mock.fail[DISK_WRITE] = table[i].error;
        mock.fail[DISK_FLUSH] = mock.fail[DISK_DISCARD] = mock.fail[DISK_WRITE_ZEROES] = table[i].error;
        assert_int_equal(command(&drv, 1, transfer_command(2, 0, 1, BUFFER, 0), NULL), table[i].read);
        assert_int_equal(command(&drv, 1, transfer_command(1, 0, 1, BUFFER, 0), NULL), table[i].write);
        assert_int_equal(command(&drv, 1, (struct nvme_command){.opcode = 0, .nsid = 1}, NULL), table[i].write);
    }
    memset(mock.fail, 0, sizeof mock.fail);
    mock.disk.read_only = true;
    assert_int_equal(command(&drv, 1, transfer_command(1, 0, 1, BUFFER, 0), NULL), NVME_READ_ONLY);
    assert_int_equal(command(&drv, 1, transfer_command(2, 0, 1, BUFFER, 0), NULL), NVME_OK);
}

static void dma_is_announced(void *opaque, uint64_t gpa, uint64_t len)
{
    if (gpa <= BUFFER && BUFFER + 4096 <= gpa + len)
        (*(unsigned *)opaque)++;
}

static void translations_are_told(void **state)
{
    unsigned told = 0;

    fx.bus->dma_dirty = dma_is_announced;
    fx.bus->dma_dirty_opaque = &told;
    assert_int_equal(command(&drv, 1, transfer_command(1, 0, 8, BUFFER, 0), NULL), NVME_OK);
    assert_int_equal(told, 0);
    assert_int_equal(command(&drv, 1, transfer_command(2, 0, 8, BUFFER, 0), NULL), NVME_OK);
    assert_int_equal(told, 1);
}

/* --- queues ------------------------------------------------------------------------------------------------------ */

static void rings_wrap(void **state)
{
    for (unsigned i = 0; i < 1000; i++)
        assert_int_equal(command(&drv, 1, transfer_command(2, i, 1, BUFFER, 0), NULL), NVME_OK);
}

static void many_at_work(void **state)
{
    struct nvme_completion e;
    unsigned seen = 0;

    nvme_queue(&drv, 2);
    mock.hold = true;
    for (unsigned i = 0; i < 63; i++) {
        put_command(&drv, 1, transfer_command(1, i, 1, BUFFER, 0));
        put_command(&drv, 2, transfer_command(1, i, 1, BUFFER, 0));
    }
    ring(&drv, 1);
    ring(&drv, 2);
    assert_int_equal(mock.n_held, 126);
    assert_false(take_completion(&drv, 1, &e));
    mock.hold = false;
    mock_release(&mock);
    while (take_completion(&drv, 1, &e) || take_completion(&drv, 2, &e))
        seen++;
    assert_int_equal(seen, 126);
}

/* More commands than requests: the rest is taken when there is room. */
static void more_than_fit(void **state)
{
    struct nvme_completion e;
    unsigned seen = 0;

    nvme_queue(&drv, 2);
    nvme_queue(&drv, 3);
    mock.hold = true;
    for (unsigned q = 1; q <= 3; q++) {
        for (unsigned i = 0; i < 63; i++)
            put_command(&drv, q, transfer_command(2, i, 1, BUFFER, 0));
        ring(&drv, q);
    }
    assert_int_equal(mock.n_held, NVME_REQUESTS);
    mock.hold = false;
    mock_release(&mock);
    assert_int_equal(mock.count[DISK_READ], 189);
    for (unsigned q = 1; q <= 3; q++)
        while (take_completion(&drv, q, &e))
            seen++;
    assert_int_equal(seen, 189);
}

/* A completion queue that nobody reads takes what it holds; nothing is lost. */
static void full_completion_queue(void **state)
{
    struct nvme_completion e;
    unsigned seen = 0;

    memset(ram(0x80000), 0, 4096);
    assert_int_equal(make_cq(&drv, 2, 0x80000, 4), NVME_OK);
    assert_int_equal(make_sq(&drv, 2, IOSQ + 2 * 0x4000, IO_ENTRIES, 2), NVME_OK);
    drv.q[2].sq = IOSQ + 2 * 0x4000;
    drv.q[2].cq = 0x80000;
    drv.q[2].entries = IO_ENTRIES;
    drv.q[2].cq_entries = 4;
    drv.q[2].phase = 1;
    for (unsigned i = 0; i < 60; i++)
        put_command(&drv, 2, transfer_command(2, i, 1, BUFFER, 0));
    ring(&drv, 2);
    uint8_t entry[16];
    memory_read(fx.memory, 0x80000 + 3 * 16, entry, 16);
    assert_int_equal(entry[14] & 1, 0); /* three of four: the fourth stays free */
    while (take_completion(&drv, 2, &e))
        seen++;
    assert_int_equal(seen, 60);
}

static void queues_that_cannot_be(void **state)
{
    assert_int_equal(make_cq(&drv, 0, IOCQ, 16), NVME_INVALID_QID);
    assert_int_equal(make_cq(&drv, 17, IOCQ, 16), NVME_INVALID_QID);
    assert_int_equal(make_cq(&drv, 0xffff, IOCQ, 16), NVME_INVALID_QID);
    assert_int_equal(make_cq(&drv, 1, IOCQ, 16), NVME_INVALID_QID); /* there is one */
    assert_int_equal(make_cq(&drv, 2, IOCQ, 1), NVME_INVALID_QSIZE);
    assert_int_equal(make_cq(&drv, 2, IOCQ, 1025), NVME_INVALID_QSIZE);
    assert_int_equal(make_cq(&drv, 2, IOCQ, 65536), NVME_INVALID_QSIZE);
    assert_int_equal(make_cq(&drv, 2, IOCQ + 8, 16), NVME_INVALID_FIELD);
    assert_int_equal(make_cq(&drv, 2, FIXTURE_RAM, 16), NVME_INVALID_FIELD);
    assert_int_equal(make_cq(&drv, 2, ~0xfffull, 1024), NVME_INVALID_FIELD);
    assert_int_equal(make_sq(&drv, 2, IOSQ, 16, 0), NVME_INVALID_CQ);
    assert_int_equal(make_sq(&drv, 2, IOSQ, 16, 2), NVME_INVALID_CQ);
    assert_int_equal(make_sq(&drv, 2, IOSQ, 16, 999), NVME_INVALID_CQ);
    assert_int_equal(make_sq(&drv, 1, IOSQ, 16, 1), NVME_INVALID_QID);
    assert_int_equal(
        command(&drv, 0, (struct nvme_command){.opcode = 5, .prp1 = IOCQ, .cdw10 = 15 << 16 | 2, .cdw11 = 17 << 16 | 3},
                NULL),
        NVME_INVALID_VECTOR);
    assert_int_equal(
        command(&drv, 0, (struct nvme_command){.opcode = 5, .prp1 = IOCQ, .cdw10 = 15 << 16 | 2, .cdw11 = 2}, NULL),
        NVME_INVALID_FIELD);
    assert_int_equal(command(&drv, 0, (struct nvme_command){.opcode = 4, .cdw10 = 1}, NULL), NVME_INVALID_DELETION);
    assert_int_equal(command(&drv, 0, (struct nvme_command){.opcode = 0, .cdw10 = 1}, NULL), NVME_OK);
    assert_int_equal(command(&drv, 0, (struct nvme_command){.opcode = 4, .cdw10 = 1}, NULL), NVME_OK);
    for (unsigned q = 0; q < 70000; q += q < 40 ? 1 : 4999) {
        assert_int_equal(command(&drv, 0, (struct nvme_command){.opcode = 0, .cdw10 = q}, NULL), NVME_INVALID_QID);
        assert_int_equal(command(&drv, 0, (struct nvme_command){.opcode = 4, .cdw10 = q}, NULL), NVME_INVALID_QID);
    }
}

/* A queue is deleted while its commands are at work: the answer comes after them. */
static void deletion_waits(void **state)
{
    struct nvme_completion e;

    mock.hold = true;
    put_command(&drv, 1, transfer_command(2, 0, 1, BUFFER, 0));
    put_command(&drv, 1, transfer_command(2, 1, 1, BUFFER, 0));
    ring(&drv, 1);
    uint16_t cid = put_command(&drv, 0, (struct nvme_command){.opcode = 0, .cdw10 = 1});
    ring(&drv, 0);
    put_command(&drv, 1, transfer_command(2, 2, 1, BUFFER, 0)); /* no more is taken */
    ring(&drv, 1);
    assert_int_equal(mock.n_held, 2);
    assert_false(take_completion(&drv, 0, &e));
    mock_release(&mock);
    assert_true(take_completion(&drv, 1, &e));
    assert_true(take_completion(&drv, 1, &e));
    assert_false(take_completion(&drv, 1, &e));
    assert_true(take_completion(&drv, 0, &e));
    assert_int_equal(e.cid, cid);
    assert_int_equal(mock.count[DISK_READ], 2);
}

static void events(void **state)
{
    struct nvme_completion e;
    uint16_t cid = put_command(&drv, 0, (struct nvme_command){.opcode = 12});

    ring(&drv, 0);
    assert_false(take_completion(&drv, 0, &e));
    doorbell(&drv, 9, false, 1); /* there is no such queue */
    assert_true(take_completion(&drv, 0, &e));
    assert_int_equal(e.cid, cid);
    assert_int_equal(e.dw0, NVME_EVENT_BAD_DOORBELL);
    doorbell(&drv, 1, false, 64); /* beyond the queue: remembered until somebody asks */
    uint32_t dw0;
    assert_int_equal(command(&drv, 0, (struct nvme_command){.opcode = 12}, &dw0), NVME_OK);
    assert_int_equal(dw0, NVME_EVENT_BAD_VALUE);
    for (unsigned i = 0; i < 4; i++)
        put_command(&drv, 0, (struct nvme_command){.opcode = 12});
    ring(&drv, 0);
    assert_false(take_completion(&drv, 0, &e));
    assert_int_equal(command(&drv, 0, (struct nvme_command){.opcode = 12}, NULL), NVME_EVENT_LIMIT);
}

/* --- ends --------------------------------------------------------------------------------------------------------- */

static void shutdown_flushes(void **state)
{
    mock.hold = true;
    set_reg(&drv, 0x14, 0x464001);
    assert_int_equal(reg(&drv, 0x1c), 5); /* in progress */
    assert_int_equal(mock.count[DISK_FLUSH], 1);
    mock_release(&mock);
    assert_int_equal(reg(&drv, 0x1c), 9);
    set_reg(&drv, 0x14, 0);
    assert_int_equal(reg(&drv, 0x1c), 0);
    nvme_enable(&drv);
    assert_int_equal(reg(&drv, 0x1c), 1);
}

/* --- hostile drivers, by name ------------------------------------------------------------------------------------ */

static void prp_outside_ram(void **state)
{
    static const uint64_t wrong[] = {FIXTURE_RAM, ~0xfffull, 0xfee00000, PCI_MMIO32_BASE, 1ull << 63};

    for (unsigned i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(command(&drv, 1, transfer_command(2, 0, 8, wrong[i], 0), NULL), NVME_DATA_TRANSFER_ERROR);
        assert_int_equal(command(&drv, 1, transfer_command(2, 0, 16, BUFFER, wrong[i]), NULL),
                         NVME_DATA_TRANSFER_ERROR);
        assert_int_equal(command(&drv, 1, transfer_command(2, 0, 64, BUFFER, wrong[i]), NULL),
                         NVME_DATA_TRANSFER_ERROR);
        put_list(LIST, 0, wrong[i]);
        assert_int_equal(command(&drv, 1, transfer_command(2, 0, 24, BUFFER, LIST), NULL), NVME_DATA_TRANSFER_ERROR);
    }
    assert_int_equal(mock.count[DISK_READ], 0);
}

static void prp_offsets(void **state)
{
    assert_int_equal(command(&drv, 1, transfer_command(2, 0, 8, BUFFER + 2, 0), NULL), NVME_PRP_OFFSET);
    assert_int_equal(command(&drv, 1, transfer_command(2, 0, 16, BUFFER, BUFFER + 512), NULL), NVME_PRP_OFFSET);
    assert_int_equal(command(&drv, 1, transfer_command(2, 0, 24, BUFFER, LIST + 4), NULL), NVME_PRP_OFFSET);
    put_list(LIST, 0, BUFFER + 512);
    assert_int_equal(command(&drv, 1, transfer_command(2, 0, 24, BUFFER, LIST), NULL), NVME_PRP_OFFSET);
    put_list(LIST + 4096 - 8, 0, LIST + 8); /* a link that is not to a page's start */
    assert_int_equal(command(&drv, 1, transfer_command(2, 0, 24, BUFFER, LIST + 4096 - 8), NULL), NVME_PRP_OFFSET);
}

/* A list that leads to itself is walked once for each page of the transfer, no longer. */
static void prp_list_loops(void **state)
{
    for (unsigned i = 0; i < 512; i++)
        put_list(LIST, i, LIST);
    put_list(LIST + 0x1000, 511, LIST + 0x1000);
    for (unsigned i = 0; i < 511; i++)
        put_list(LIST + 0x1000, i, BUFFER);
    assert_int_equal(command(&drv, 1, transfer_command(1, 0, 2048, BUFFER, LIST), NULL), NVME_OK);
    assert_int_equal(command(&drv, 1, transfer_command(2, 0, 2048, BUFFER, LIST + 0x1000 + 8 * 511), NULL), NVME_OK);
}

static void block_ranges_that_wrap(void **state)
{
    static const uint64_t starts[] = {DISK_BYTES / 512, DISK_BYTES / 512 - 7, ~0ull,
                                      ~0ull - 7,        1ull << 55,           (1ull << 55) - 8};

    for (unsigned i = 0; i < sizeof starts / sizeof *starts; i++) {
        assert_int_equal(command(&drv, 1, transfer_command(2, starts[i], 8, BUFFER, 0), NULL), NVME_LBA_RANGE);
        struct nvme_command zero = transfer_command(8, starts[i], 8, 0, 0);
        assert_int_equal(command(&drv, 1, zero, NULL), NVME_LBA_RANGE);
        struct nvme_range range = {0, 8, starts[i]};
        memory_write(fx.memory, BUFFER, &range, sizeof range);
        assert_int_equal(
            command(&drv, 1, (struct nvme_command){.opcode = 9, .nsid = 1, .prp1 = BUFFER, .cdw11 = 4}, NULL),
            NVME_LBA_RANGE);
    }
    assert_int_equal(mock.count[DISK_READ] + mock.count[DISK_WRITE_ZEROES] + mock.count[DISK_DISCARD], 0);
}

static void wrong_namespaces_and_flags(void **state)
{
    struct nvme_command c = transfer_command(2, 0, 1, BUFFER, 0);

    c.nsid = 0;
    assert_int_equal(command(&drv, 1, c, NULL), NVME_INVALID_NAMESPACE);
    c.nsid = 2;
    assert_int_equal(command(&drv, 1, c, NULL), NVME_INVALID_NAMESPACE);
    c.nsid = 0xffffffff;
    assert_int_equal(command(&drv, 1, c, NULL), NVME_INVALID_NAMESPACE);
    c.nsid = 1;
    c.flags = 1;
    assert_int_equal(command(&drv, 1, c, NULL), NVME_INVALID_FIELD);
    c.flags = 0x40;
    assert_int_equal(command(&drv, 1, c, NULL), NVME_INVALID_FIELD);
    c.flags = 0;
    c.opcode = 0x55;
    assert_int_equal(command(&drv, 1, c, NULL), NVME_INVALID_OPCODE);
}

/* The data buffer is the completion queue, the submission queue, the list itself: the guest's memory, its loss. */
static void reentrant_buffers(void **state)
{
    struct nvme_completion e;

    put_command(&drv, 1, transfer_command(2, 0, 8, IOCQ + 0x4000, 0));
    ring(&drv, 1);
    take_completion(&drv, 1, &e);
    put_command(&drv, 1, transfer_command(2, 0, 8, IOSQ + 0x4000, 0));
    ring(&drv, 1);
    put_list(LIST, 0, LIST);
    put_list(LIST, 1, ASQ);
    put_command(&drv, 1, transfer_command(2, 0, 24, BUFFER, LIST));
    ring(&drv, 1);
}

/* The controller is reset with commands in the hands of the disk: it is ready again when they are done, not before,
 * and their completions go nowhere. */
static void reset_in_the_middle(void **state)
{
    mock.hold = true;
    for (unsigned i = 0; i < 40; i++)
        put_command(&drv, 1, transfer_command(2, i, 1, BUFFER, 0));
    ring(&drv, 1);
    assert_int_equal(mock.n_held, 40);
    memset(ram(IOCQ + 0x4000), 0, 4096);
    set_reg(&drv, 0x14, 0);
    assert_int_equal(reg(&drv, 0x1c), 1);
    set_reg(&drv, 0x14, 0x460001); /* too early: has no effect */
    doorbell(&drv, 1, false, 3);
    mock.hold = false;
    mock_release(&mock);
    assert_int_equal(reg(&drv, 0x1c), 0);
    for (unsigned i = 0; i < 4096; i++)
        assert_int_equal(ram(IOCQ + 0x4000)[i], 0);
    nvme_enable(&drv);
    nvme_queue(&drv, 1);
    assert_int_equal(command(&drv, 1, transfer_command(2, 0, 1, BUFFER, 0), NULL), NVME_OK);
}

static void machine_reset_in_the_middle(void **state)
{
    mock.hold = true;
    put_command(&drv, 1, transfer_command(2, 0, 1, BUFFER, 0));
    ring(&drv, 1);
    set_reg(&drv, 0x14, 0x464001); /* and a shutdown is at work */
    nvme_class.reset(&dev);
    assert_int_equal(mock.n_held, 0);
    assert_int_equal(cfg_in(&fx, SLOT, PCI_COMMAND, 2), 0);
    mock.hold = false;
    nvme_find(&drv, &fx);
    assert_int_equal(reg(&drv, 0x1c), 0);
    nvme_enable(&drv);
    nvme_queue(&drv, 1);
    assert_int_equal(command(&drv, 1, transfer_command(2, 0, 1, BUFFER, 0), NULL), NVME_OK);
}

/* Between submission and completion the guest may do anything; the device goes away all the same. */
static void destroyed_in_the_middle(void **state)
{
    mock.hold = true;
    for (unsigned i = 0; i < 10; i++)
        put_command(&drv, 1, transfer_command(2, i, 1, BUFFER, 0));
    ring(&drv, 1);
    assert_int_equal(mock.n_held, 10);
}

static void bus_mastering_off(void **state)
{
    put_command(&drv, 1, transfer_command(2, 0, 1, BUFFER, 0));
    cfg_out(&fx, SLOT, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
    ring(&drv, 1);
    assert_int_equal(mock.count[DISK_READ], 0);
}

static void doorbell_values(void **state)
{
    for (unsigned i = 0; i < 64; i++) {
        set_reg(&drv, 0x1000 + 4 * i, 0xffffffff);
        set_reg(&drv, 0x1000 + 4 * i, 0x10000);
    }
    mem_out(&fx, drv.regs + 0x1008, 1, 2); /* not a whole doorbell */
    mem_out(&fx, drv.regs + 0x1008, 1, 1);
    mem_out(&fx, drv.regs + 0x1009, 1, 4);
    mem_out(&fx, drv.regs + 0x3ffc, 1, 4);
    mem_out(&fx, drv.regs + 0x1008, 0x100000001, 8);
    doorbell(&drv, 1, true, 5); /* a head ahead of the tail: refused */
    assert_int_equal(command(&drv, 1, transfer_command(2, 0, 1, BUFFER, 0), NULL), NVME_OK);
    assert_int_equal(mock.count[DISK_READ], 1);
}

/* Another thread changes the PRP list while it is read: every piece that comes out is RAM. */
static _Atomic bool flipping;
static void *flip(void *opaque)
{
    volatile uint64_t *entry = (volatile uint64_t *)ram(LIST);
    while (atomic_load(&flipping)) {
        entry[0] = 0xfee00000;
        entry[1] = ~0xfffull;
        entry[0] = BUFFER;
        entry[1] = BUFFER;
    }
    return NULL;
}

static void double_fetch(void **state)
{
    pthread_t thread;
    unsigned good = 0;

    atomic_store(&flipping, true);
    put_list(LIST, 0, BUFFER);
    put_list(LIST, 1, BUFFER);
    pthread_create(&thread, NULL, flip, NULL);
    for (unsigned i = 0; i < 20000; i++)
        good += command(&drv, 1, transfer_command(2, 0, 24, BUFFER, LIST), NULL) == NVME_OK;
    atomic_store(&flipping, false);
    pthread_join(thread, NULL);
    assert_int_equal(mock.count[DISK_READ], good);
}

static void random_commands(void **state)
{
    uint64_t seed = 5;

    nvme_queue(&drv, 2);
    for (unsigned i = 0; i < 60000; i++) {
        struct nvme_command c = {0};
        uint64_t words[8];
        for (unsigned w = 0; w < 8; w++) {
            seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
            words[w] = seed >> (seed % 60);
        }
        memcpy(&c, words, sizeof c);
        c.opcode %= 16;
        c.flags &= seed & 64 ? 0 : 0xff;
        c.nsid = seed & 128 ? c.nsid : 1;
        c.prp1 = seed & 256 ? c.prp1 : BUFFER;
        unsigned q = (unsigned)(seed % 3);
        mock.hold = seed >> 20 & 1;
        if (q == 0 && (c.opcode == 0 || c.opcode == 4) && seed & 512)
            continue; /* let queues live for a while */
        put_command(&drv, q, c);
        ring(&drv, q);
        struct nvme_completion e;
        if (i % 2)
            while (take_completion(&drv, q, &e))
                ;
        if (i % 64 == 0)
            mock_release(&mock);
        if (i % 1000 == 0) {
            mock_release(&mock);
            set_reg(&drv, 0x14, 0);
            nvme_enable(&drv);
            nvme_queue(&drv, 1);
            nvme_queue(&drv, 2);
        }
    }
}

/* --- save and restore -------------------------------------------------------------------------------------------- */

static void state_goes_on(void **state)
{
    struct nvme_completion e;
    uint8_t *saved = malloc(nvme_class.save_size);

    mock.hold = true;
    put_command(&drv, 1, transfer_command(1, 5, 1, BUFFER, 0));
    ring(&drv, 1);
    fx.msi_data = 0;
    nvme_class.pre_save(&dev);
    assert_int_equal(fx.msi_data, 0x41); /* what was at work is part of what is saved */
    memcpy(saved, (char *)dev.state + nvme_class.save_offset, nvme_class.save_size);
    put_command(&drv, 1, transfer_command(1, 6, 1, BUFFER, 0)); /* of a time that will not have been */
    ring(&drv, 1);
    mock.hold = false;
    struct nvme_driver before = drv;
    set_reg(&drv, 0x14, 0);
    memcpy((char *)dev.state + nvme_class.save_offset, saved, nvme_class.save_size);
    nvme_class.post_restore(&dev);
    drv = before;
    drv.q[1].tail--;
    assert_true(take_completion(&drv, 1, &e));
    assert_int_equal(e.status >> 1, NVME_OK);
    assert_false(take_completion(&drv, 1, &e));
    assert_int_equal(command(&drv, 1, transfer_command(2, 0, 1, BUFFER, 0), NULL), NVME_OK);
    free(saved);
}

/* A saved state that deletes a queue which is not there, with a number of a completion queue that nobody checks. */
static void saved_deletion_of_no_queue(void **state)
{
    struct nvme_state *saved = (struct nvme_state *)((uint8_t *)dev.state + nvme_class.save_offset);

    nvme_class.pre_save(&dev);
    saved->deleting = 1 << 5;
    saved->sq[5].cq = 79;
    nvme_class.post_restore(&dev);
    assert_int_equal(reg(&drv, 0x1c) & 2, 2); /* CSTS.CFS */
    nvme_class.pre_save(&dev);
}

static void hostile_saved_state(void **state)
{
    uint8_t *bytes = (uint8_t *)dev.state + nvme_class.save_offset;
    uint64_t seed = 9;

    for (unsigned round = 0; round < 300; round++) {
        nvme_class.pre_save(&dev);
        unsigned changes = round % 3 ? 1 + (unsigned)(seed % 40) : (unsigned)nvme_class.save_size;
        for (unsigned i = 0; i < changes; i++) {
            seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
            size_t at = sizeof(struct pci_state) + seed % (nvme_class.save_size - sizeof(struct pci_state));
            bytes[round % 3 ? at : i] = (uint8_t)(seed >> 32);
        }
        nvme_class.post_restore(&dev);
        for (unsigned q = 0; q < 17; q++) {
            doorbell(&drv, q, false, (uint32_t)(seed >> q) % 64);
            doorbell(&drv, q, true, (uint32_t)(seed >> q) % 64);
        }
        mock_release(&mock);
        nvme_class.reset(&dev);
        nvme_find(&drv, &fx);
        nvme_enable(&drv);
        nvme_queue(&drv, 1);
    }
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(registers, setup_bare, teardown),
        cmocka_unit_test_setup_teardown(wrong_enabling_is_fatal, setup_bare, teardown),
        T(identifies_itself),
        T(logs),
        T(features),
        T(reads_what_was_written),
        T(the_largest_transfer),
        T(flush_zeroes_and_deallocate),
        T(forced_unit_access),
        T(errors_of_the_disk),
        T(translations_are_told),
        T(rings_wrap),
        T(many_at_work),
        T(more_than_fit),
        T(full_completion_queue),
        T(queues_that_cannot_be),
        T(deletion_waits),
        T(events),
        T(shutdown_flushes),
        T(prp_outside_ram),
        T(prp_offsets),
        T(prp_list_loops),
        T(block_ranges_that_wrap),
        T(wrong_namespaces_and_flags),
        T(reentrant_buffers),
        T(reset_in_the_middle),
        T(machine_reset_in_the_middle),
        T(destroyed_in_the_middle),
        T(bus_mastering_off),
        T(doorbell_values),
        T(double_fetch),
        T(random_commands),
        T(state_goes_on),
        T(saved_deletion_of_no_queue),
        T(hostile_saved_state),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
