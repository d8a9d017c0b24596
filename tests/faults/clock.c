/* A wrong clock, for a process that loads this first (LD_PRELOAD).
 *
 * The time of day is off by CLOCK_OFFSET_S; at each CLOCK_TURN-th time that it is asked for, the
 * error changes its sign: the clock is set back and forth while the process runs. Clocks that only
 * count (CLOCK_MONOTONIC) are right, as on a real machine whose clock is set.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static int64_t offset_s;
static uint64_t turn, asked;

__attribute__((constructor)) static void from_environment(void) {
    const char *offset = getenv("CLOCK_OFFSET_S"), *every = getenv("CLOCK_TURN");
    offset_s = offset ? strtoll(offset, NULL, 10) : 0;
    turn = every ? strtoull(every, NULL, 10) : 0;
}

static int64_t error_s(void) {
    uint64_t number = __atomic_add_fetch(&asked, 1, __ATOMIC_RELAXED);
    return turn && number / turn % 2 ? -offset_s : offset_s;
}

int clock_gettime(clockid_t which, struct timespec *out) {
    int (*call)(clockid_t, struct timespec *) = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = call(which, out);
    if (!result && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) out->tv_sec += error_s();
    return result;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
