/* Makes synchronising slow while a control file is there: a symbolic link whose text is the time in milliseconds, because
 * reading a link takes no descriptor. Loaded into daemons with LD_PRELOAD. */
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
