#include "backends/net/control.h"

#include <errno.h>
#include <unistd.h>

int control_send(int fd, const struct control_message *m)
{
    return write(fd, m, sizeof *m) == sizeof *m ? 0 : -errno;
}

int control_receive(int fd, struct control_message *m)
{
    ssize_t got;

    do
        got = read(fd, m, sizeof *m);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return errno == EAGAIN ? 0 : -errno;
    if (got != sizeof *m)
        return -EPIPE; /* the end, or not one of ours */
    m->text[sizeof m->text - 1] = 0;
    return 1;
}
