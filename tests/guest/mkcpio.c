/*
 * mkcpio LIST: writes a newc cpio archive (the kernel's initramfs format) to standard output.
 *
 * The list has one entry a line, as the kernel's own gen_init_cpio reads it:
 *
 *      dir NAME MODE UID GID
 *      nod NAME MODE UID GID c|b MAJOR MINOR
 *      file NAME PATH MODE UID GID
 *      slink NAME TARGET MODE UID GID
 *
 * So an image can hold device nodes and files of root without anyone being root.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct entry {
    const char *name, *target;
    unsigned mode, uid, gid, major, minor;
    unsigned long size;
};

static unsigned long written;
static unsigned inode = 1;

static void put(const void *data, size_t size)
{
    if (fwrite(data, 1, size, stdout) != size) {
        perror("mkcpio");
        exit(1);
    }
    written += size;
}

static void pad(void)
{
    put("\0\0\0", -written & 3);
}

static void header(const struct entry *e)
{
    char text[128];
    int n = snprintf(text, sizeof text, "070701%08X%08X%08X%08X%08X%08X%08lX%08X%08X%08X%08X%08X%08X", inode++, e->mode,
                     e->uid, e->gid, 1u, 0u, e->size, 0u, 0u, e->major, e->minor, (unsigned)strlen(e->name) + 1, 0u);
    put(text, (size_t)n);
    put(e->name, strlen(e->name) + 1);
    pad();
}

static int copy(struct entry *e, const char *path)
{
    char data[65536];
    struct stat st;
    FILE *f = fopen(path, "rb");
    if (!f || fstat(fileno(f), &st)) {
        fprintf(stderr, "mkcpio: %s: %s\n", path, strerror(errno));
        return 1;
    }
    e->size = (unsigned long)st.st_size;
    header(e);
    for (unsigned long left = e->size; left;) {
        size_t n = fread(data, 1, left < sizeof data ? left : sizeof data, f);
        if (!n) {
            fprintf(stderr, "mkcpio: %s: shorter than it was\n", path);
            fclose(f);
            return 1;
        }
        put(data, n);
        left -= n;
    }
    fclose(f);
    pad();
    return 0;
}

static int add(char *line)
{
    char kind[8], name[4096], source[4096], type;
    struct entry e = {.name = name};
    if (sscanf(line, "%7s", kind) != 1 || *kind == '#')
        return 0;
    if (sscanf(line, "file %4095s %4095s %o %u %u", name, source, &e.mode, &e.uid, &e.gid) == 5) {
        memmove(name, name + (*name == '/'), strlen(name) + (*name != '/'));
        e.mode |= S_IFREG;
        return copy(&e, source);
    }
    if (sscanf(line, "dir %4095s %o %u %u", name, &e.mode, &e.uid, &e.gid) == 4)
        e.mode |= S_IFDIR;
    else if (sscanf(line, "nod %4095s %o %u %u %c %u %u", name, &e.mode, &e.uid, &e.gid, &type, &e.major, &e.minor) ==
             7)
        e.mode |= type == 'b' ? S_IFBLK : S_IFCHR;
    else if (sscanf(line, "slink %4095s %4095s %o %u %u", name, source, &e.mode, &e.uid, &e.gid) == 5)
        e.mode |= S_IFLNK, e.size = strlen(source), e.target = source;
    else {
        fprintf(stderr, "mkcpio: cannot read: %s", line);
        return 1;
    }
    memmove(name, name + (*name == '/'), strlen(name) + (*name != '/'));
    header(&e);
    if (e.target) {
        put(source, e.size);
        pad();
    }
    return 0;
}

int main(int argc, char **argv)
{
    char line[16384];
    FILE *list = argc == 2 ? fopen(argv[1], "r") : NULL;
    if (!list) {
        fprintf(stderr, "usage: mkcpio LIST\n");
        return 2;
    }
    while (fgets(line, sizeof line, list))
        if (add(line))
            return 1;
    fclose(list);
    header(&(struct entry){.name = "TRAILER!!!"});
    return fflush(stdout) ? 1 : 0;
}
