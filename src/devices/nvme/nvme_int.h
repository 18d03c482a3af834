/* Inside nvme/.  Section numbers are of the NVM Express Base Specification 1.4. */
#pragma once
#include "backends/disk.h"
#include "devices/nvme/nvme.h"
#include "devices/pci/pci.h"

#define NVME_PAGE 4096u
#define NVME_LBA 512u
#define NVME_LBA_SHIFT 9u
#define NVME_IO_QUEUES 16u                /* pairs; queue 0 is for administration */
#define NVME_QUEUES (NVME_IO_QUEUES + 1u) /* vectors, too: one a completion queue */
#define NVME_ENTRIES_MAX 1024u            /* of an I/O queue, and of the admin queues here */
#define NVME_MDTS 8u                      /* most bytes a command: NVME_PAGE << this, 1 MiB */
#define NVME_TRANSFER_MAX (NVME_PAGE << NVME_MDTS)
#define NVME_PIECES (NVME_TRANSFER_MAX / NVME_PAGE + 1u)
#define NVME_REQUESTS 128u /* I/O commands at work; others stay in their queues */
#define NVME_EVENTS 4u     /* Asynchronous Event Requests outstanding */
#define NVME_NSID 1u
#define NVME_RANGES 256u

/* The submission queue entry (4.2). */
struct nvme_command {
    uint8_t opcode, flags; /* flags: 0-1 fused, 6-7 PRP or SGL */
    uint16_t cid;
    uint32_t nsid;
    uint64_t reserved, mptr, prp1, prp2;
    uint32_t cdw10, cdw11, cdw12, cdw13, cdw14, cdw15;
};
_Static_assert(sizeof(struct nvme_command) == 64, "4.2");

/* The completion queue entry (4.6). */
struct nvme_completion {
    uint32_t dw0, dw1;
    uint16_t sq_head, sq_id, cid, status; /* status: bit 0 phase, 1-8 code, 9-11 type, 15 do not retry */
};
_Static_assert(sizeof(struct nvme_completion) == 16, "4.6");

/* Status: type << 8 | code, and the wish not to be asked again. */
enum {
    NVME_OK = 0,
    NVME_DNR = 1 << 14,
    NVME_INVALID_OPCODE = 0x01 | NVME_DNR,
    NVME_INVALID_FIELD = 0x02 | NVME_DNR,
    NVME_DATA_TRANSFER_ERROR = 0x04 | NVME_DNR,
    NVME_INTERNAL_ERROR = 0x06 | NVME_DNR,
    NVME_ABORTED = 0x07,
    NVME_INVALID_NAMESPACE = 0x0b | NVME_DNR,
    NVME_PRP_OFFSET = 0x13 | NVME_DNR,
    NVME_LBA_RANGE = 0x80 | NVME_DNR,
    NVME_CAPACITY_EXCEEDED = 0x81 | NVME_DNR,
    NVME_INVALID_CQ = 0x100 | NVME_DNR,
    NVME_INVALID_QID = 0x101 | NVME_DNR,
    NVME_INVALID_QSIZE = 0x102 | NVME_DNR,
    NVME_EVENT_LIMIT = 0x105 | NVME_DNR,
    NVME_INVALID_VECTOR = 0x108 | NVME_DNR,
    NVME_INVALID_LOG = 0x109 | NVME_DNR,
    NVME_INVALID_DELETION = 0x10c | NVME_DNR,
    NVME_FEATURE_NOT_SAVEABLE = 0x10d | NVME_DNR,
    NVME_FEATURE_NOT_CHANGEABLE = 0x10e | NVME_DNR,
    NVME_READ_ONLY = 0x182 | NVME_DNR,
    NVME_WRITE_FAULT = 0x280 | NVME_DNR,
    NVME_READ_ERROR = 0x281 | NVME_DNR,
    NVME_LATER = 0xffff, /* no status: the command is at work */
};

struct nvme_sq {
    uint64_t base;
    uint16_t size, head, tail, cq;
    uint8_t valid, reserved[7];
};

struct nvme_cq {
    uint64_t base;
    uint16_t size, head, tail, vector;
    uint8_t valid, phase, interrupts, reserved[5];
};

#define NVME_FEATURES 16u

/* What is saved: plain bytes. */
struct nvme_state {
    struct pci_state pci;
    uint32_t cc, csts, aqa, reserved;
    uint64_t asq, acq;
    struct nvme_sq sq[NVME_QUEUES];
    struct nvme_cq cq[NVME_QUEUES];
    uint32_t features[NVME_FEATURES]; /* by feature identifier */
    uint32_t n_events, event_waiting; /* event_waiting: dword 0 of an event nobody has asked for yet, or 0 */
    uint16_t events[NVME_EVENTS];     /* identifiers of the requests for them */
    uint32_t deleting; /* queues whose deletion waits for queue_work, or for room to say so: a bit each */
    uint16_t delete_cid[NVME_QUEUES];
    uint32_t n_waiting; /* requests that are done and wait for room in a completion queue */
    struct nvme_waiting {
        uint16_t sq, cid, status;
    } waiting[NVME_REQUESTS];
    uint64_t sectors_read, sectors_written, reads, writes; /* for the SMART log */
};

struct nvme_piece {
    uint64_t gpa; /* all of [gpa, gpa+len) is RAM */
    uint32_t len;
};

struct nvme_range {
    uint32_t attributes, blocks;
    uint64_t start;
};

struct nvme;

/* A command at work. */
struct nvme_request {
    struct disk_request disk;
    struct nvme *nvme;
    struct nvme_request *next; /* free, or waiting for room in its completion queue */
    uint16_t sq, cid, status;
    unsigned n_pieces, n_ranges, range;
    struct nvme_piece pieces[NVME_PIECES]; /* guest memory; the disk uses up its own list, iov */
    union {
        struct iovec iov[NVME_PIECES];
        struct nvme_range ranges[NVME_RANGES];
    };
};

struct nvme {
    struct nvme_state saved;
    struct pci_function pci;
    struct bus *bus;
    struct disk *disk;
    uint64_t blocks;
    struct nvme_request *requests[NVME_REQUESTS], *free; /* all that have been needed so far; a list */
    unsigned n_requests;
    unsigned at_work; /* requests that the disk has; how many of them of each queue: */
    unsigned queue_work[NVME_QUEUES];
    struct nvme_request *full[NVME_QUEUES], **full_end[NVME_QUEUES]; /* done, but their queue has no room */
    uint32_t ready;  /* submission queues that may have commands: a bit each */
    uint32_t notify; /* completion queues that have news: a bit each */
    unsigned turn;   /* queue to look at first */
    bool running;
    struct disk_request shutdown; /* the flush of an orderly end */
    bool flushing;                /* that is at work */
    bool stopped;                 /* being saved or restored: no command is taken */
    bool restoring;               /* what is at work is nobody's any more */
    bool resetting;               /* CC.EN was cleared; done when nothing is at work any more */
};

/* --- prp.c ------------------------------------------------------------------------------------------ */
/* The guest memory of a command's first `len` bytes of data, at most NVME_TRANSFER_MAX.  Status. */
uint16_t nvme_map(struct nvme *n, const struct nvme_command *c, uint32_t len, struct nvme_piece *pieces,
                  unsigned *n_pieces);
/* Copies a small answer there, or a small question from there; len <= NVME_PAGE. */
uint16_t nvme_answer(struct nvme *n, const struct nvme_command *c, const void *data, uint32_t len);
uint16_t nvme_fetch(struct nvme *n, const struct nvme_command *c, void *data, uint32_t len);

/* --- queue.c ----------------------------------------------------------------------------------------- */
/* Takes commands from queues and hands them to admin.c and io.c, until there are none or no room. */
void nvme_run(struct nvme *n);
void nvme_doorbell(struct nvme *n, uint64_t offset, uint32_t value);
/* Takes a free request, makes one if there are not yet NVME_REQUESTS; NULL: none to be had now. */
struct nvme_request *nvme_request_take(struct nvme *n);
/* Puts the completion of command cid into sq's completion queue; false: there is no room. */
bool nvme_complete(struct nvme *n, uint16_t sq, uint16_t cid, uint16_t status, uint32_t dw0);
/* The same for a request, which is free again afterwards or once there is room. */
void nvme_request_done(struct nvme_request *r, uint16_t status);
void nvme_queues_reset(struct nvme *n);
/* After a restore, of a state that may come from a stranger: what does not check out stops the controller. */
void nvme_queues_restored(struct nvme *n);
void nvme_queues_save(struct nvme *n);
/* One request less is at work: what waited for that goes on. */
void nvme_request_ended(struct nvme *n, unsigned sq);
/* Forgets requests of submission queue `sq` that wait for room in a completion queue. */
void nvme_drop_waiting(struct nvme *n, unsigned sq);
/* Something went wrong that only a reset cures (CSTS.CFS). */
void nvme_fatal(struct nvme *n);
/* The rings lie where they may (checked again after a restore). */
bool nvme_ring_ok(const struct nvme *n, uint64_t base, unsigned entries, unsigned entry_size);

/* --- admin.c, identify.c, io.c: a command's status, or NVME_LATER -------------------------------------- */
uint16_t nvme_admin(struct nvme *n, const struct nvme_command *c, uint32_t *dw0);
uint16_t nvme_identify(struct nvme *n, const struct nvme_command *c);
uint16_t nvme_get_log(struct nvme *n, const struct nvme_command *c);
uint16_t nvme_io(struct nvme *n, struct nvme_request *r, const struct nvme_command *c);
void nvme_features_reset(struct nvme *n);
/* Tells the guest of an error event (5.2), now or when it asks. */
void nvme_event(struct nvme *n, uint32_t dw0);
/* Answers to administration that waited: a queue is idle now, or there is room in the admin completion queue. */
void nvme_admin_resume(struct nvme *n);
/* Nothing of the deleted is left: forgets queues and features, and lets CSTS.RDY fall (nvme.c). */
void nvme_reset_finish(struct nvme *n);
enum { NVME_EVENT_BAD_DOORBELL = 0x00010000, NVME_EVENT_BAD_VALUE = 0x00010100 };
enum { NVME_FEATURE_CACHE = 0x06, NVME_FEATURE_QUEUES = 0x07 };
