/* Loaded into daemons and what they start with LD_PRELOAD. Makes synchronising slow, and sets the time of day off, while a control file
 * is there: a symbolic link, because reading one takes no descriptor. Its text is how many milliseconds a wait for the disk takes, or by
 * how many seconds the clock is off. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static void wait_for_disk(void) {
    const char *control = getenv("PRESSURE_SLOW_DISK");
    const struct timespec tick = {0, 10 * 1000 * 1000};
    char text[32];
    for (long waited = 0; control; waited += 10) {
        ssize_t length = readlink(control, text, sizeof text - 1);
        if (length <= 0)
            return;
        text[length] = 0;
        if (waited >= atol(text))
            return;
        nanosleep(&tick, NULL);
    }
}

int fsync(int descriptor) {
    static int (*real)(int);
    if (!real)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    wait_for_disk();
    return real(descriptor);
}

int fdatasync(int descriptor) {
    static int (*real)(int);
    if (!real)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    wait_for_disk();
    return real(descriptor);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    const int result = real(clock, time);
    const char *control = clock == CLOCK_REALTIME ? getenv("PRESSURE_CLOCK") : NULL;
    char text[32];
    const ssize_t length = control ? readlink(control, text, sizeof text - 1) : -1;
    if (result == 0 && length > 0) {
        text[length] = 0;
        time->tv_sec += atol(text);
    }
    return result;
}
