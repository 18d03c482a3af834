/* Frames that want no answer. */
#pragma once
#include <stdbool.h>
#include <sys/uio.h>

/* Does it only tell everybody who has which address, or who listens to which group (RARP, a gratuitous ARP, IPv6's
 * unsolicited advertisement, reports of IGMP and MLD)?  iov: as net_send's. */
bool net_is_announcement(const struct iovec *iov, unsigned n);
