/* Is there a KVM here that really runs unmodified 64-bit code at the CPU's speed? */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kvm_probe_result {
    uint64_t native_ns; /* the workload run directly on this CPU */
    uint64_t guest_ns;  /* the same in a guest; when `interrupted`, how long it had run by then */
    uint64_t setup_ns;  /* opening, creating and preparing the virtual machine */
    bool measured;      /* the guest was started */
    bool interrupted;   /* the watchdog stopped it */
};

/* true: KVM is usable.  false: why[size] holds one sentence.  Takes at most some seconds, however
 * slow the host's KVM is.  `result` may be NULL. */
bool kvm_probe(char *why, size_t size, struct kvm_probe_result *result);
