/*
 * tables PAGES PROGRESS WRONG: pages that are checked and written to again, at random, without a system call: such a
 * program runs directly.  Each page has its version in all of its words, and what version that is stands elsewhere, so
 * that a store that is lost shows.  How many were gone through is in the file PROGRESS; the first that is wrong is told
 * in WRONG.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define WORDS 512

int main(int argc, char **argv)
{
    const uint64_t pages = strtoull(argv[1], NULL, 10);
    uint64_t *table = mmap(NULL, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t *version = calloc(pages, sizeof *version), random = 1;
    int fd = open(argv[2], O_RDWR | O_CREAT | O_TRUNC, 0600);

    if (argc != 4 || table == MAP_FAILED || !version || fd < 0 || ftruncate(fd, 4096))
        return 1;
    volatile uint64_t *done = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    for (;;) {
        random = random * 6364136223846793005 + 1442695040888963407;
        const uint64_t page = (random >> 33) % pages;
        volatile uint64_t *at = table + page * WORDS;
        for (unsigned i = 0; i < WORDS; i++) {
            if (at[i] != version[page]) {
                FILE *f = fopen(argv[3], "w");
                fprintf(f, "page %lu: word %u has version %lu instead of %lu\n", page, i, at[i], version[page]);
                fclose(f);
                return 1;
            }
        }
        version[page]++;
        for (unsigned i = 0; i < WORDS; i++)
            at[i] = version[page];
        ++*done;
    }
}
