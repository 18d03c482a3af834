/*
 * Network backends: the other end of a network card's cable.
 *
 *      user[,KEY...]          a network of the guest's own, translated to the host's by a helper: needs no rights
 *      tap:NAME[,KEY...]      a tap interface of the host
 *      switch:PATH[,KEY...]   a switch between the VMs (of this user, on this host) that name the same socket
 *      vde:PATH[,KEY...]      a port of a vde_switch
 *      none                   no card; it is for the caller to see (net_is_none)
 *
 *      mac=XX:XX:XX:XX:XX:XX  the card's address        mtu=N  told to the guest, 1280 to 65520
 *      rate=SIZE              bytes a second, each way  (SIZE as parse_size: "10M")
 *      reach=all|world|none   of a user network: world, all but what listens on the host's loopback; none, only answers
 *                             to those who come by a published port
 *
 * A frame travels with a struct net_header, which may say that a checksum is yet to be
 * computed or that a long TCP segment is yet to be cut.  Every backend takes such frames: where the world behind it
 * does not, it is done here.  Frames that the client does not take (net_set_offloads) are finished before it gets
 * them.  Nothing is dropped for lack of room in either direction, except where the world behind drops.
 *
 * All functions but net_check and net_publish_parse: on the loop's lock.  The client's functions: likewise.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct loop;
struct net;

/* Ethernet header, two VLAN tags, IPv6 header and the longest payload that it can announce. */
#define NET_FRAME_MAX (14u + 8u + 40u + 65535u)
#define NET_IOV_MAX 257u /* of one frame with its header */

/* Before each frame; little-endian (virtio 1.2, 5.1.6), which this host is. */
struct net_header {
    uint8_t flags;                    /* enum net_flags */
    uint8_t gso_type;                 /* enum net_segment */
    uint16_t hdr_len;                 /* of a long segment: where its payload begins */
    uint16_t gso_size;                /* payload of one of its parts */
    uint16_t csum_start, csum_offset; /* with NET_NEEDS_CSUM: what is summed begins there; the field, from there on */
    uint16_t num_buffers;             /* the card's own business */
};
enum net_flags { NET_NEEDS_CSUM = 1, NET_DATA_VALID = 2 };
enum net_segment { NET_SEGMENT_NONE = 0, NET_SEGMENT_TCP4 = 1, NET_SEGMENT_TCP6 = 4, NET_SEGMENT_ECN = 0x80 };

/* What a client takes from the guest's side of the cable; bits. */
enum net_offload { NET_CSUM = 1, NET_TSO4 = 2, NET_TSO6 = 4, NET_ECN = 8 };

/* A network card. */
struct net_client {
    /* A frame.  true: taken, or not wanted.  false: no room; it is offered again after net_resume. */
    bool (*receive)(void *opaque, const struct net_header *header, const uint8_t *frame, size_t len);
    void (*received)(void *opaque); /* no more frames for now: time for an interrupt */
    void (*writable)(void *opaque); /* net_send, which had returned false, may work again */
    void (*link)(void *opaque, bool up);
};

/* Is `spec` one of these?  0, or -EINVAL with one sentence in err[n]. */
int net_check(const char *spec, char *err, size_t n);
bool net_is_none(const char *spec);

/* Opens it.  0, or -errno with one sentence in err[n].  Frames are held back until net_attach. */
int net_open(struct net **out, const char *spec, struct loop *loop, char *err, size_t n);
/* The same in two steps, between which its helper process gets ready, and nothing but net_mac, net_mtu and net_attach
 * may be done with it.  An error of net_ready leaves it to be closed; it may be called again.
 * late: a helper process for this machine alone may begin its work when there is some: what only announces the guest
 * before that is heard by nobody, and dropped. */
int net_begin(struct net **out, const char *spec, struct loop *loop, bool late, char *err, size_t n);
int net_ready(struct net *net, char *err, size_t n);
void net_close(struct net *net); /* NULL is allowed */

/* Six bytes such as 52:54:00:12:34:56, of a card and not of a group: 0, or -EINVAL with one sentence. */
int net_mac_parse(const char *text, uint8_t mac[6], char *err, size_t n);

/* What the words said: false if nothing.  net_mtu: 0 if nothing. */
bool net_mac(const struct net *net, uint8_t mac[6]);
unsigned net_mtu(const struct net *net);
/* Bytes a second, 0: no limit. */
uint64_t net_rate(const struct net *net);

/* *client is kept by reference.  NULL: nobody, as at the beginning. */
void net_attach(struct net *net, const struct net_client *client, void *opaque);
void net_set_offloads(struct net *net, unsigned offloads); /* 0 at the beginning */
bool net_link(const struct net *net);

/*
 * Sends a frame: iov[0] is a struct net_header that the caller owns, the rest is the frame, which may be guest
 * memory that changes meanwhile; n <= NET_IOV_MAX.  true: taken, or not a frame that makes sense.  false: no room;
 * `writable` will be called.  Frames may wait for others until net_flush.
 */
bool net_send(struct net *net, const struct iovec *iov, unsigned n);
void net_flush(struct net *net);

/* The client has room again. */
void net_resume(struct net *net);

/* From the guest, and to it.  A long segment counts as one frame. */
struct net_counters {
    uint64_t sent_frames, sent_bytes, received_frames, received_bytes;
};
const struct net_counters *net_counters(const struct net *net);

/* --- published ports: of a `user` network --------------------------------------------------------------------- */
struct net_publish {
    uint8_t ip[4]; /* of the host */
    uint16_t host_port, guest_port;
    bool udp;
};

/* [IP:]HOST:GUEST[/tcp|/udp]; IP is 127.0.0.1 unless told.  0, or -EINVAL with one sentence. */
int net_publish_parse(const char *word, struct net_publish *p, char *err, size_t n);
int net_publish_check(const char *word, char *err, size_t n); /* the same, for the answer alone */
bool net_can_publish(const struct net *net);

/* host_port 0: a free one is chosen, and written there.  0, or -errno with one sentence: -EADDRINUSE the port is busy,
 * -EEXIST it is published already. */
int net_publish_add(struct net *net, struct net_publish *p, char *err, size_t n);
/* Connections that exist stay.  -ENOENT: there is no such one; guest_port is not looked at. */
int net_publish_remove(struct net *net, const struct net_publish *p, char *err, size_t n);
/* The same without waiting for the helper process: `done` is called once, later, in the loop: with 0 and the port as it
 * is now, or -errno and a sentence; when the network goes, too.  0, or -errno with a sentence: then it will not be
 * called. */
typedef void net_publish_done(void *opaque, int failed, const struct net_publish *p, const char *why);
int net_publish_ask(struct net *net, const struct net_publish *p, bool add, net_publish_done *done, void *opaque,
                    char *err, size_t n);
/* The i-th of them, or NULL. */
const struct net_publish *net_published(const struct net *net, unsigned i);
