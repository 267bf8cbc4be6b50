/* Moves the wall clock that Python code reads by the seconds in the file $CCNET_CHAOS_CLOCK: gcc -shared -fPIC, LD_PRELOAD.

   Native libraries keep the true clock: the kernel ends their waits for a time of day, and its clock does not move. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int is_python;

__attribute__((constructor)) static void detect_python(void) {
    char path[4096] = {0};
    const char *name = readlink("/proc/self/exe", path, sizeof path - 1) > 0 ? strrchr(path, '/') : NULL;
    is_python = name && !strncmp(name, "/python", 7);
}

static long jump(const void *caller) {
    Dl_info from;
    char digits[32] = {0};
    const char *file = getenv("CCNET_CHAOS_CLOCK");
    if (!is_python || !file || !dladdr(caller, &from)) return 0;
    if (strstr(from.dli_fname, ".so") && !strstr(from.dli_fname, "libpython")) return 0;
    int opened = open(file, O_RDONLY | O_CLOEXEC);
    if (opened < 0) return 0;
    long seconds = read(opened, digits, sizeof digits - 1) > 0 ? atol(digits) : 0;
    close(opened);
    return seconds;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int failed = syscall(SYS_clock_gettime, clock, time);
    if (!failed && clock == CLOCK_REALTIME) time->tv_sec += jump(__builtin_return_address(0));
    return failed;
}
