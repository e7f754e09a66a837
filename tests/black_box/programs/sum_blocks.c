/* Sum the live blocks of a stopped process by the counter that each carries, from its block map alone:

       sum_blocks PID ADDRESS

   ADDRESS is that of the map's table of pages, in hexadecimal. Prints 32,768 numbers of 64 bits. No counter of the ledger
   is read, so the sums are a second opinion on them. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PAGES ((size_t)1 << 22)
#define ENTRIES ((size_t)1 << 22)
#define COUNTERS 32768

static int memory;

static void get(void *into, size_t size, uint64_t from)
{
    for (size_t got = 0; got < size;) {
        ssize_t part = pread(memory, (char *)into + got, size - got, (off_t)(from + got));
        if (part <= 0) {
            perror("pread");
            exit(1);
        }
        got += (size_t)part;
    }
}

static size_t add_block(const uint16_t *at, int64_t *sums)
{
    uint32_t counter = (uint32_t)(at[0] >> 1) - 1;
    if (at[0] & 1) {
        sums[counter] += 16;
        return 1;
    }
    if (at[1] != 0) {
        sums[counter] += at[1];
        return 2;
    }
    int64_t size;
    memcpy(&size, at + 2, sizeof size);
    sums[counter] += size;
    return 6;
}

int main(int count, char **arguments)
{
    if (count != 3) {
        return 2;
    }
    char path[64];
    snprintf(path, sizeof path, "/proc/%s/mem", arguments[1]);
    memory = open(path, O_RDONLY);
    uint64_t *pages = malloc(PAGES * sizeof *pages);
    uint16_t *entries = malloc(ENTRIES * sizeof *entries + 4096);
    int64_t *sums = calloc(COUNTERS, sizeof *sums);
    get(pages, PAGES * sizeof *pages, strtoull(arguments[2], NULL, 16));
    for (size_t page = 0; page < PAGES; page++) {
        if (pages[page] == 0) {
            continue;
        }
        get(entries, ENTRIES * sizeof *entries + 4096, pages[page]);
        for (size_t place = 0; place < ENTRIES;) {
            place += entries[place] == 0 ? 1 : add_block(entries + place, sums);
        }
    }
    return fwrite(sums, sizeof *sums, COUNTERS, stdout) == COUNTERS ? 0 : 1;
}
