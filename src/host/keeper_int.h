/* What the keeper's process and the VM's say to each other, by a socket of type SOCK_SEQPACKET (keeper.c, remover.c).
 */
#pragma once
#include <stdint.h>

#include "host/keeper.h"

/* One message each way, and with the answer to a successful dial the descriptor.  KEEPER_SEAL is no port that a guest
 * can name.  The id tells an answer from one that came too late for whoever asked before. */
struct keeper_request {
    uint64_t what; /* KEEPER_SEAL, or a number to dial */
    uint64_t id;
};
#define KEEPER_SEAL UINT64_MAX
struct keeper_answer {
    uint64_t id;
    int64_t err;
};

/* The program of remover.c. */
extern const char remover_program[];
extern const uint64_t remover_program_size;
