/* Stands between a program and libc's file calls for files below one directory (LD_PRELOAD).
 *
 * Counts the calls, fails or cuts short the n-th, kills the process at the n-th, and writes down what was
 * changed, in order and with contents, so that a power loss can be played afterwards. Knows nothing of
 * edgekv. What io_uring and mmap do is not seen: the store writes through neither.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, READ = 2, WRITE = 4, RESIZE = 8, RESERVE = 16, SYNC = 32, NAME = 64 };
enum { T_CREATE = 1, T_WRITE, T_TRUNCATE, T_SYNC, T_RENAME, T_UNLINK, T_MARK, T_OPEN };
enum { MAX_FD = 65536 };

static char root[PATH_MAX], only[64];
static size_t root_len;
static unsigned char watched[MAX_FD];
static int trace_fd = -1;
static pthread_mutex_t trace_lock = PTHREAD_MUTEX_INITIALIZER;

static int fail_mask, fail_errno, fail_sticky, kill_mask, kill_after, count_mask;
static long fail_at, kill_at, fail_seen, kill_seen, count_seen, failed;

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Control, called through ctypes */

void shim_watch(const char *directory) {
    root_len = strlen(directory);
    memcpy(root, directory, root_len + 1);
}
void shim_only(const char *part) { snprintf(only, sizeof only, "%s", part); } /* of a path; "": all */
void shim_trace(int fd) { trace_fd = fd; }
void shim_fail(int mask, long nth, int error, int sticky) { /* error 0: half of the bytes */
    fail_mask = mask, fail_at = nth, fail_errno = error, fail_sticky = sticky, fail_seen = 0, failed = 0;
}
void shim_kill(int mask, long nth, int after) { kill_mask = mask, kill_at = nth, kill_after = after, kill_seen = 0; }
void shim_count(int mask) { count_mask = mask, count_seen = 0; }
long shim_counted(void) { return count_seen; }
long shim_failed(void) { return failed; }

struct entry { uint32_t op, name_bytes; uint64_t file, offset, num_bytes; };

static void note(uint32_t op, uint64_t file, uint64_t offset, const char *name, const struct iovec *data, int parts,
                 uint64_t num_bytes) {
    if (trace_fd < 0) return;
    struct entry e = {op, name ? (uint32_t)strlen(name) : 0, file, offset, num_bytes};
    pthread_mutex_lock(&trace_lock);
    syscall(SYS_write, trace_fd, &e, sizeof e);
    if (name) syscall(SYS_write, trace_fd, name, e.name_bytes);
    for (int i = 0; i < parts && num_bytes; i++) {
        uint64_t n = data[i].iov_len < num_bytes ? data[i].iov_len : num_bytes;
        syscall(SYS_write, trace_fd, data[i].iov_base, n);
        num_bytes -= n;
    }
    pthread_mutex_unlock(&trace_lock);
}
void shim_mark(const char *bytes, long num_bytes) {
    struct iovec v = {(void *)bytes, (size_t)num_bytes};
    note(T_MARK, 0, 0, NULL, &v, 1, (uint64_t)num_bytes);
}

static int below(const char *path) {
    return root_len && path && !strncmp(path, root, root_len) && (path[root_len] == '/' || !path[root_len]) &&
           (!only[0] || strstr(path + root_len, only));
}
static int is_watched(int fd) { return fd >= 0 && fd < MAX_FD && watched[fd]; }
static void watch_fd(int fd, int on) {
    if (fd >= 0 && fd < MAX_FD) watched[fd] = (unsigned char)on;
}
static uint64_t file_of(int fd) {
    struct stat s;
    return fstat(fd, &s) ? 0 : s.st_ino;
}

/* 0: go on; 1: fail with errno set; 2: do half of it */
static int before(int kind) {
    if (count_mask & kind) __atomic_add_fetch(&count_seen, 1, __ATOMIC_SEQ_CST);
    if ((kill_mask & kind) && __atomic_add_fetch(&kill_seen, 1, __ATOMIC_SEQ_CST) == kill_at && !kill_after)
        syscall(SYS_kill, getpid(), SIGKILL);
    if (fail_mask & kind) {
        long n = __atomic_add_fetch(&fail_seen, 1, __ATOMIC_SEQ_CST);
        if (n == fail_at || (fail_sticky && n > fail_at && fail_at > 0)) {
            __atomic_add_fetch(&failed, 1, __ATOMIC_SEQ_CST);
            if (!fail_errno) return kind & (READ | WRITE) ? 2 : 0;
            errno = fail_errno;
            return 1;
        }
    }
    return 0;
}
static void after(int kind) {
    int saved = errno;
    if ((kill_mask & kind) && kill_after && __atomic_load_n(&kill_seen, __ATOMIC_SEQ_CST) >= kill_at && kill_at > 0)
        syscall(SYS_kill, getpid(), SIGKILL);
    errno = saved;
}

/* Opening and closing */

static int opened(int fd, const char *path, int flags, int existed) {
    watch_fd(fd, below(path));
    if (fd >= 0 && below(path)) {
        uint64_t file = file_of(fd);
        if ((flags & O_CREAT) && !existed) note(T_CREATE, file, 0, path, NULL, 0, 0);
        else note(T_OPEN, file, 0, path, NULL, 0, 0);
        if (flags & O_TRUNC) note(T_TRUNCATE, file, 0, NULL, NULL, 0, 0);
        after(OPEN);
    }
    return fd;
}
static int do_open(const char *path, int flags, mode_t mode) {
    struct stat s;
    int existed = 1;
    if (below(path)) {
        existed = !lstat(path, &s);
        if (before(OPEN)) return -1;
    }
    return opened((int)syscall(SYS_openat, AT_FDCWD, path, flags | O_LARGEFILE, mode), path, flags, existed);
}
#define OPEN_BODY(path, flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { va_list a; va_start(a, flags); mode = va_arg(a, mode_t); va_end(a); }
int open(const char *path, int flags, ...) { OPEN_BODY(path, flags) return do_open(path, flags, mode); }
int open64(const char *path, int flags, ...) { OPEN_BODY(path, flags) return do_open(path, flags, mode); }
int openat(int at, const char *path, int flags, ...) {
    OPEN_BODY(path, flags)
    if (at == AT_FDCWD || path[0] == '/') return do_open(path, flags, mode);
    return (int)syscall(SYS_openat, at, path, flags, mode);
}
int openat64(int at, const char *path, int flags, ...) {
    OPEN_BODY(path, flags)
    if (at == AT_FDCWD || path[0] == '/') return do_open(path, flags, mode);
    return (int)syscall(SYS_openat, at, path, flags, mode);
}
int close(int fd) { watch_fd(fd, 0); return NEXT(close)(fd); }
int dup(int fd) { int n = NEXT(dup)(fd); watch_fd(n, is_watched(fd)); return n; }
static int do_fcntl(int fd, int command, void *argument) {
    int n = (int)syscall(SYS_fcntl, fd, command, argument);
    if (command == F_DUPFD || command == F_DUPFD_CLOEXEC) watch_fd(n, is_watched(fd));
    return n;
}
int fcntl(int fd, int command, ...) {
    va_list a; va_start(a, command); void *argument = va_arg(a, void *); va_end(a);
    return do_fcntl(fd, command, argument);
}
int fcntl64(int fd, int command, ...) {
    va_list a; va_start(a, command); void *argument = va_arg(a, void *); va_end(a);
    return do_fcntl(fd, command, argument);
}

/* Reading */

#define READING(fd, call, half) \
    if (!is_watched(fd)) return call; \
    int what = before(READ); \
    if (what == 1) return -1; \
    return what == 2 ? half : call;
ssize_t read(int fd, void *to, size_t n) { READING(fd, NEXT(read)(fd, to, n), NEXT(read)(fd, to, n > 1 ? n / 2 : n)) }
ssize_t pread(int fd, void *to, size_t n, off_t at) {
    READING(fd, NEXT(pread)(fd, to, n, at), NEXT(pread)(fd, to, n > 1 ? n / 2 : n, at))
}
ssize_t pread64(int fd, void *to, size_t n, off64_t at) {
    READING(fd, NEXT(pread64)(fd, to, n, at), NEXT(pread64)(fd, to, n > 1 ? n / 2 : n, at))
}
ssize_t preadv(int fd, const struct iovec *v, int c, off_t at) {
    READING(fd, NEXT(preadv)(fd, v, c, at), NEXT(pread)(fd, v[0].iov_base, v[0].iov_len / 2, at))
}
ssize_t preadv64(int fd, const struct iovec *v, int c, off64_t at) {
    READING(fd, NEXT(preadv64)(fd, v, c, at), NEXT(pread64)(fd, v[0].iov_base, v[0].iov_len / 2, at))
}
ssize_t preadv2(int fd, const struct iovec *v, int c, off_t at, int flags) {
    READING(fd, NEXT(preadv2)(fd, v, c, at, flags), NEXT(pread)(fd, v[0].iov_base, v[0].iov_len / 2, at))
}
ssize_t preadv64v2(int fd, const struct iovec *v, int c, off64_t at, int flags) {
    READING(fd, NEXT(preadv64v2)(fd, v, c, at, flags), NEXT(pread64)(fd, v[0].iov_base, v[0].iov_len / 2, at))
}

/* Writing */

static ssize_t do_write(int fd, const struct iovec *v, int count, off_t at, int positioned) {
    uint64_t file = 0;
    struct iovec first;
    int is_ours = is_watched(fd);
    if (is_ours) {
        int what = before(WRITE);
        if (what == 1) return -1;
        if (what == 2 && v[0].iov_len > 1) first = (struct iovec){v[0].iov_base, v[0].iov_len / 2}, v = &first, count = 1;
        if (!positioned && trace_fd >= 0) {
            struct stat s;
            int append = (int)syscall(SYS_fcntl, fd, F_GETFL) & O_APPEND;
            at = append && !fstat(fd, &s) ? s.st_size : lseek(fd, 0, SEEK_CUR);
        }
        if (trace_fd >= 0) file = file_of(fd);
    }
    ssize_t n = positioned ? syscall(SYS_pwritev, fd, v, count, (unsigned long)at, 0UL) : syscall(SYS_writev, fd, v, count);
    if (is_ours) {
        if (n > 0) note(T_WRITE, file, (uint64_t)at, NULL, v, count, (uint64_t)n);
        after(WRITE);
    }
    return n;
}
#define ONE(p, n) struct iovec v = {(void *)(p), n}
ssize_t write(int fd, const void *from, size_t n) { ONE(from, n); return do_write(fd, &v, 1, 0, 0); }
ssize_t pwrite(int fd, const void *from, size_t n, off_t at) { ONE(from, n); return do_write(fd, &v, 1, at, 1); }
ssize_t pwrite64(int fd, const void *from, size_t n, off64_t at) { ONE(from, n); return do_write(fd, &v, 1, at, 1); }
ssize_t writev(int fd, const struct iovec *v, int c) { return do_write(fd, v, c, 0, 0); }
ssize_t pwritev(int fd, const struct iovec *v, int c, off_t at) { return do_write(fd, v, c, at, 1); }
ssize_t pwritev64(int fd, const struct iovec *v, int c, off64_t at) { return do_write(fd, v, c, at, 1); }
ssize_t pwritev2(int fd, const struct iovec *v, int c, off_t at, int f) { (void)f; return do_write(fd, v, c, at, 1); }
ssize_t pwritev64v2(int fd, const struct iovec *v, int c, off64_t at, int f) { (void)f; return do_write(fd, v, c, at, 1); }

static int do_truncate(int fd, off_t size) {
    if (is_watched(fd) && before(RESIZE)) return -1;
    int r = (int)syscall(SYS_ftruncate, fd, size);
    if (is_watched(fd)) {
        if (!r) note(T_TRUNCATE, file_of(fd), (uint64_t)size, NULL, NULL, 0, 0);
        after(RESIZE);
    }
    return r;
}
int ftruncate(int fd, off_t size) { return do_truncate(fd, size); }
int ftruncate64(int fd, off64_t size) { return do_truncate(fd, size); }
static int do_fallocate(int fd, int mode, off_t at, off_t n) {
    if (is_watched(fd) && before(RESERVE)) return -1;
    int r = (int)syscall(SYS_fallocate, fd, mode, at, n);
    if (is_watched(fd)) after(RESERVE);
    return r;
}
int fallocate(int fd, int mode, off_t at, off_t n) { return do_fallocate(fd, mode, at, n); }
int fallocate64(int fd, int mode, off64_t at, off64_t n) { return do_fallocate(fd, mode, at, n); }

static int do_sync(int fd, long call) {
    if (is_watched(fd) && before(SYNC)) return -1;
    uint64_t file = is_watched(fd) ? file_of(fd) : 0;
    int r = (int)syscall(call, fd);
    if (is_watched(fd)) {
        if (!r) note(T_SYNC, file, 0, NULL, NULL, 0, 0);
        after(SYNC);
    }
    return r;
}
int fsync(int fd) { return do_sync(fd, SYS_fsync); }
int fdatasync(int fd) { return do_sync(fd, SYS_fdatasync); }

/* Names */

int unlink(const char *path) {
    if (!below(path)) return NEXT(unlink)(path);
    if (before(NAME)) return -1;
    int r = (int)syscall(SYS_unlink, path);
    if (!r) note(T_UNLINK, 0, 0, path, NULL, 0, 0);
    after(NAME);
    return r;
}
int unlinkat(int at, const char *path, int flags) {
    if (at == AT_FDCWD && !(flags & AT_REMOVEDIR) && below(path)) return unlink(path);
    return NEXT(unlinkat)(at, path, flags);
}
int rename(const char *from, const char *to) {
    if (!below(to)) return NEXT(rename)(from, to);
    if (before(NAME)) return -1;
    struct iovec v = {(void *)from, strlen(from)};
    int r = (int)syscall(SYS_rename, from, to);
    if (!r) note(T_RENAME, 0, 0, to, &v, 1, v.iov_len);
    after(NAME);
    return r;
}
int renameat(int a, const char *from, int b, const char *to) {
    return a == AT_FDCWD && b == AT_FDCWD ? rename(from, to) : NEXT(renameat)(a, from, b, to);
}
