/* Go through a running program one instruction at a time, and read its black box after each, as if it died there:

       step_through PID BOX STEPS LARGEST

   By the reader's rule each counter's bytes may change by one block of at most LARGEST bytes from one instruction to the
   next. Prints the steps, those inside of a flush, those with unsure records, the changes, the largest change, and how
   often one was larger than LARGEST. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include "black_box.h"

#define HOT_AT 4096
#define COUNTERS_AT 552960
#define SIZE 1994752
#define WATCHED 64

static int64_t bytes_of(const char *file, uint32_t number)
{
    const volatile struct black_box_hot *hot = (const void *)(file + HOT_AT);
    const volatile struct black_box_counter *record = (const void *)(file + COUNTERS_AT);
    int64_t own = record[number].own;
    if (hot->flushing != 0) {
        return hot->flushing == number + 1 ? hot->flushed_own : own;
    }
    return number == hot->counter ? own + hot->change : own;
}

static int stop_of(pid_t pid, int *signal)
{
    int status;
    if (waitpid(pid, &status, __WALL) < 0 || !WIFSTOPPED(status)) {
        return -1;
    }
    *signal = WSTOPSIG(status) == SIGTRAP || WSTOPSIG(status) == SIGSTOP ? 0 : WSTOPSIG(status);
    return 0;
}

int main(int count, char **arguments)
{
    if (count != 5) {
        return 2;
    }
    pid_t pid = atoi(arguments[1]);
    long steps = atol(arguments[3]), largest_block = atol(arguments[4]);
    int fd = open(arguments[2], O_RDONLY);
    const char *file = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);
    const volatile struct black_box_hot *hot = (const void *)(file + HOT_AT);
    int64_t before[WATCHED] = {0}, largest = 0;
    long taken = 0, flushes = 0, unsure = 0, changes = 0, jumps = 0;
    int signal = 0;
    if (file == MAP_FAILED || ptrace(PTRACE_ATTACH, pid, 0, 0) < 0 || stop_of(pid, &signal) < 0) {
        perror("ptrace");
        return 3;
    }
    for (uint32_t number = 0; number < WATCHED; number++) {
        before[number] = bytes_of(file, number);
    }
    for (; taken < steps; taken++) {
        if (ptrace(PTRACE_SINGLESTEP, pid, 0, (void *)(intptr_t)signal) < 0 || stop_of(pid, &signal) < 0) {
            break;
        }
        flushes += hot->flushing != 0;
        unsure += hot->is_unsure != 0;
        for (uint32_t number = 0; number < WATCHED; number++) {
            int64_t now = bytes_of(file, number);
            int64_t change = llabs(now - before[number]);
            before[number] = now;
            if (change == 0 || hot->is_unsure) {
                continue;
            }
            changes++;
            largest = change > largest ? change : largest;
            jumps += change > largest_block;
        }
    }
    (void)ptrace(PTRACE_DETACH, pid, 0, 0);
    printf("%ld %ld %ld %ld %ld %ld\n", taken, flushes, unsure, changes, (long)largest, jumps);
    return 0;
}
