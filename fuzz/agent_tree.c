/* A tree from a guest: whatever it is, nothing is made outside of the destination. */
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/frame.h"
#include "agent/tree.h"
#include "base/error.h"
#include "tree.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const names[] = {"a", "b", "..", ".", "", "a/b", "/", "../outside", "a\nb", "link"};
static const char *const targets[] = {"a", "../outside", "/", ".", "", "../../outside/x"};

#define PICK(list, n) list[(n) % (sizeof(list) / sizeof(list[0]))]

static void put_entry(struct stream *s, const uint8_t *bytes)
{
    stream_begin(s, FRAME_ENTRY);
    stream_text(s, FIELD_NAME, PICK(names, bytes[0]));
    stream_number(s, FIELD_KIND, bytes[1] % 6);
    stream_number(s, FIELD_MODE, 0700 | bytes[2]);
    stream_number(s, FIELD_SIZE, bytes[2] < 250 ? bytes[2] : UINT64_MAX - bytes[1]);
    stream_text(s, FIELD_TARGET, PICK(targets, bytes[1] / 6));
    stream_end(s);
}

static void put_data(struct stream *s, const uint8_t *bytes)
{
    uint8_t piece[16] = {0};

    piece[0] = bytes[0];
    piece[7] = bytes[1] > 0xf0 ? bytes[1] : 0;
    stream_put(s, FRAME_DATA, piece, bytes[2] % sizeof(piece));
}

/* Four bytes a frame: which, and three to make it of; the rest of the kinds raw. */
static void feed(int fd, const uint8_t *data, size_t size)
{
    struct stream s;

    stream_init(&s, fd);
    for (; size >= 4; data += 4, size -= 4)
        switch (data[0] % 6) {
        case 0:
        case 1:
            put_entry(&s, data + 1);
            break;
        case 2:
            put_data(&s, data + 1);
            break;
        case 3:
            stream_put(&s, FRAME_LEAVE, NULL, 0);
            break;
        case 4:
            stream_put(&s, FRAME_END, NULL, 0);
            break;
        default:
            stream_put(&s, data[1], data + 2, 2);
        }
    stream_flush(&s);
    stream_release(&s);
    shutdown(fd, SHUT_WR);
}

/* Directories `inside`, empty, and `outside`, whose state is `*before`. */
static int make_places(char inside[64], struct stat *before)
{
    char top[] = "/dev/shm/guise-fuzz-XXXXXX";
    int fd = mkdtemp(top) ? open(top, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;

    if (fd < 0 || mkdirat(fd, "inside", 0700) || mkdirat(fd, "outside", 0700) || fstatat(fd, "outside", before, 0))
        abort();
    snprintf(inside, 64, "%s/inside", top);
    return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct tree_watch nobody = {0};
    static struct stat before;
    static char inside[64];
    static int top = -1;
    struct tree_target t;
    struct stream s;
    struct stat st;
    char err[ERROR_SIZE];
    int ends[2];

    if (top < 0)
        top = make_places(inside, &before);
    if (size < 1 || size > 2048 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends))
        return 0;
    feed(ends[1], data + 1, size - 1);
    stream_init(&s, ends[0]);
    if (tree_target_open(inside, data[0] & 2 ? "" : "a", data[0] & 2, &t, err, sizeof(err)))
        abort();
    tree_receive(&s, &t, data[0] & TREE_OWNERS, &nobody, err, sizeof(err));
    tree_target_close(&t);
    stream_release(&s);
    close(ends[0]);
    close(ends[1]);
    if (fstatat(top, "outside", &st, 0) || st.st_size != before.st_size || st.st_nlink != before.st_nlink ||
        st.st_mode != before.st_mode || memcmp(&st.st_ctim, &before.st_ctim, sizeof st.st_ctim) != 0)
        abort();
    fuzz_empty_directory(top, "inside", 0700);
    return 0;
}
