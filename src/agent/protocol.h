/*
 * What the host and the agent in a guest say to each other: docs/AGENT.md in prose, here in numbers.
 *
 * A stream of virtio-vsock is one session: the host connects to the guest's port AGENT_PORT, sends one request, and the
 * rest of the stream belongs to it.  Everything is a frame, except the bytes that follow the answer to a TUNNEL:
 *
 *       0               4       5       8
 *      | length         | type  | zero  | payload, `length` bytes ...
 *
 * Integers are little-endian.  A payload is either raw bytes or a list of fields:
 *
 *       0       2       4               8
 *      | tag    | zero  | length        | `length` bytes, not terminated ...       | next field ...
 *
 * Integers in fields have 8 bytes.  A receiver skips fields whose tag it does not know: so a guest that was
 * suspended by an older guise still understands a newer one.  What changes meaning gets a new number.
 */
#pragma once
#include <stdint.h>

#define AGENT_PORT 1024 /* in the guest for requests, on the host (CID 2) for HELLO */
#define AGENT_VERSION 1

#define FRAME_HEADER 8
#define FRAME_MAX (64u << 10)  /* the payload of any frame but a request */
#define REQUEST_MAX (1u << 20) /* of a request: a command line with its environment may be long */
#define FIELD_HEADER 8
#define CHANNEL_WINDOW (256u << 10) /* bytes of one channel that may be under way without a WINDOW frame */

enum frame_type {
    /* The first frame of a session, from the host. */
    FRAME_EXEC = 1,     /* ARGUMENT*, ENVIRONMENT*, DIRECTORY, USER, FLAGS, ROWS, COLUMNS */
    FRAME_PUT = 2,      /* PATH, NAME, FLAGS, USER; then a tree from the host */
    FRAME_GET = 3,      /* PATH; a tree from the guest */
    FRAME_TUNNEL = 4,   /* PORT or PATH, PATIENCE; OK or ERROR, then raw bytes both ways */
    FRAME_INFO = 5,     /* -; OK with INFO fields */
    FRAME_POWER = 6,    /* ACTION; OK as soon as it is on its way (SYNC: when it is done) */
    FRAME_IDENTITY = 7, /* HOSTNAME, SEED, TIME, MAC*, each optional; OK */

    /* From the guest, on a stream of its own to the host's AGENT_PORT. */
    FRAME_HELLO = 16, /* VERSION, MODE, UPTIME, or MESSAGE when the guest cannot start */

    /* EXEC, from the host. */
    FRAME_STDIN = 32,   /* raw bytes */
    FRAME_SIGNAL = 33,  /* SIGNAL */
    FRAME_WINSIZE = 34, /* ROWS, COLUMNS */
    /* EXEC, from the guest. */
    FRAME_STDOUT = 36, /* raw bytes */
    FRAME_STDERR = 37, /* raw bytes */
    FRAME_EXIT = 38,   /* KIND, CODE, MESSAGE; the last frame */
    /* EXEC, both ways. */
    FRAME_WINDOW = 40, /* CHANNEL, BYTES: so many more may be sent */
    FRAME_CLOSE = 41,  /* CHANNEL: from its sender the end of file, from its receiver "nobody reads this any more" */

    /* Trees: PUT and GET (agent/tree.h). */
    FRAME_ENTRY = 48, /* NAME, KIND, MODE, UID, GID, SECONDS, NANOSECONDS, SIZE, TARGET */
    FRAME_DATA = 49,  /* 8 bytes offset, raw bytes: a piece of the file just entered */
    FRAME_LEAVE = 50, /* up to the parent directory */
    FRAME_NOTE = 51,  /* MESSAGE: something was left out, and why */
    FRAME_END = 52,   /* the tree is complete */

    FRAME_OK = 64,    /* what each request says */
    FRAME_ERROR = 65, /* CODE (an errno of Linux), MESSAGE */
};

enum field_tag {
    FIELD_ARGUMENT = 1,
    FIELD_ENVIRONMENT = 2, /* K=V */
    FIELD_DIRECTORY = 3,
    FIELD_USER = 4, /* NAME or UID, or either with :GROUP */
    FIELD_FLAGS = 5,
    FIELD_ROWS = 6,
    FIELD_COLUMNS = 7,
    FIELD_PATH = 8,
    FIELD_NAME = 9,
    FIELD_PORT = 10,
    FIELD_ACTION = 11,
    FIELD_HOSTNAME = 12,
    FIELD_SEED = 13, /* random bytes */
    FIELD_TIME = 14, /* nanoseconds since 1970 */
    FIELD_VERSION = 15,
    FIELD_MODE = 16,
    FIELD_UPTIME = 17, /* milliseconds since the kernel started */
    FIELD_MESSAGE = 18,
    FIELD_SIGNAL = 19,
    FIELD_KIND = 20,
    FIELD_CODE = 21,
    FIELD_CHANNEL = 22,
    FIELD_BYTES = 23,
    FIELD_UID = 24,
    FIELD_GID = 25,
    FIELD_SECONDS = 26,
    FIELD_NANOSECONDS = 27,
    FIELD_SIZE = 28,
    FIELD_TARGET = 29,
    FIELD_INFO = 30,     /* KEY=VALUE */
    FIELD_PATIENCE = 31, /* milliseconds */
    FIELD_XATTR = 32,    /* NAME, a NUL, and the value: bytes */
    FIELD_MAC = 33,      /* 6 bytes: of the first network card, then of the next ... */
};

/* FIELD_FLAGS of EXEC. */
#define EXEC_TTY 1u   /* on a new pseudo-terminal; its output is all STDOUT */
#define EXEC_LOGIN 2u /* the user's shell, as at a login, with the arguments given */
#define EXEC_STDIN 4u /* STDIN frames will come; else the command reads an empty file */

/* FIELD_FLAGS of PUT and GET. */
#define TREE_OWNERS 1u   /* keep numeric owners, set-uid bits, attributes, hard links; else all belongs to USER */
#define TREE_FOLLOW 4u   /* GET: of a link that is named itself, what it leads to */
#define TREE_CONTENTS 2u /* what is in the directory, not the directory itself */

/* FIELD_CHANNEL. */
enum channel {
    CHANNEL_STDIN = 0,
    CHANNEL_STDOUT = 1,
    CHANNEL_STDERR = 2,
    N_CHANNELS,
};

/* FIELD_KIND of EXIT. */
enum exit_kind {
    EXIT_STATUS = 0, /* CODE: what it gave to exit(2) */
    EXIT_SIGNAL = 1, /* CODE: the signal's number */
    EXIT_FAILED = 2, /* it never began; CODE 126 cannot be invoked, 127 not found, 125 else; MESSAGE says why */
};

/* FIELD_ACTION of POWER. */
enum power_action {
    POWER_OFF = 1,
    POWER_REBOOT = 2,
    POWER_SYNC = 3, /* all file systems are on their disks */
};

/* FIELD_KIND of ENTRY. */
enum tree_kind {
    TREE_FILE = 1,
    TREE_DIRECTORY = 2,
    TREE_SYMLINK = 3,
    TREE_FIFO = 4,
    TREE_HARDLINK = 5, /* TARGET: the path of a file that came before, from the tree's first directory */
};
