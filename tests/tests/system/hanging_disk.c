/* Makes a disk hang, or fail. See `hanging_disk` in station_pressure.rs. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static const char *control(void) {
    const char *file = getenv("HANG");
    return file ? file : "/nonexistent";
}

static int has(const char *suffix) {
    char path[4096];
    snprintf(path, sizeof path, "%s%s", control(), suffix);
    return access(path, F_OK) == 0;
}

static void hang(const char *call, const char *mode) {
    int told = 0;
    while (has("") && has(mode)) {
        if (!told++) {
            char path[4096];
            snprintf(path, sizeof path, "%s.hangs", control());
            int fd = REAL(open)(path, O_CREAT | O_WRONLY | O_APPEND, 0600);
            dprintf(fd, "%s\n", call);
            close(fd);
        }
        usleep(10000);
    }
}

static int is_under(const char *path) {
    const char *under = getenv("HANG_UNDER");
    return under && path && strncmp(path, under, strlen(under)) == 0;
}

static int is_fd_under(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = has(".all") ? readlink(link, path, sizeof path - 1) : -1;
    if (length < 0)
        return 0;
    path[length] = 0;
    return is_under(path);
}

static void hang_path(const char *call, const char *path) {
    if (is_under(path))
        hang(call, ".all");
}

static void hang_fd(const char *call, int fd) {
    if (is_fd_under(fd))
        hang(call, ".all");
}

static int sync_with(int (*real)(int), const char *call, int fd) {
    hang(call, "");
    if (has(".fails"))
        return errno = EIO, -1;
    return real(fd);
}

int fsync(int fd) { return sync_with(REAL(fsync), "fsync", fd); }
int fdatasync(int fd) { return sync_with(REAL(fdatasync), "fdatasync", fd); }

#define OPEN(name)                                   \
    int name(const char *path, int flags, ...) {     \
        va_list rest;                                \
        va_start(rest, flags);                       \
        mode_t mode = va_arg(rest, mode_t);          \
        va_end(rest);                                \
        hang_path(#name, path);                      \
        return REAL(name)(path, flags, mode);        \
    }
OPEN(open)
OPEN(open64)

ssize_t write(int fd, const void *bytes, size_t length) {
    hang_fd("write", fd);
    return REAL(write)(fd, bytes, length);
}

ssize_t pread64(int fd, void *bytes, size_t length, off64_t at) {
    hang_fd("pread", fd);
    return REAL(pread64)(fd, bytes, length, at);
}

int flock(int fd, int operation) {
    hang_fd("flock", fd);
    return REAL(flock)(fd, operation);
}

int rename(const char *from, const char *to) {
    hang_path("rename", from);
    return REAL(rename)(from, to);
}

int unlink(const char *path) {
    hang_path("unlink", path);
    return REAL(unlink)(path);
}

int mkdir(const char *path, mode_t mode) {
    hang_path("mkdir", path);
    return REAL(mkdir)(path, mode);
}

int statx(int folder, const char *restrict path, int flags, unsigned mask, struct statx *restrict found) {
    if (*path)
        hang_path("statx", path);
    else
        hang_fd("statx", folder);
    return REAL(statx)(folder, path, flags, mask, found);
}
