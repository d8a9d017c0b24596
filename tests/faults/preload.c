/* Faults of the disk, for a process that loads this first (LD_PRELOAD).
 *
 * Every call that changes something under PREFIX is an operation with a number, from 1. At number AT
 * the process ends before it (exit) or in the middle of it (torn: half of a write is done), or the
 * call fails (enospc: this one and all later ones that need room; eio: this one). Independent of that,
 * `bytes` is the room left on the disk, and LOG gets a record of each operation that was done, from
 * which powercut.py works out what would be left after a power cut.
 *
 * By environment (whole commands; the numbers are shared by all their processes through STATE):
 *   FAULT_PREFIX FAULT_AT FAULT_ACTION FAULT_BYTES FAULT_LOG FAULT_STATE (a file of 16 zero bytes)
 * or by a call of fault_arm() in the process itself. Not seen: writes through mmap, stdio and io_uring,
 * and links.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum action { NONE, EXIT, TORN, ENOSPC_FROM, EIO_ONCE };
enum kind { WRITE = 1, CREATE, TRUNCATE, RENAME, UNLINK, MKDIR, RMDIR, FSYNC };
enum { EXIT_CODE = 86 };

static char prefix[PATH_MAX], log_path[PATH_MAX];
static uint64_t at, room = UINT64_MAX;
static int action = NONE, log_fd = -1;
static uint64_t own_state[2];
static uint64_t *state = own_state; /* operations, bytes written */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) _exit(87);
    return found;
}

void fault_arm(const char *where, uint64_t number, int what, uint64_t bytes, const char *log_file) {
    snprintf(prefix, sizeof prefix, "%s", where);
    snprintf(log_path, sizeof log_path, "%s", log_file);
    at = number;
    action = what;
    room = bytes;
    log_fd = -1;
    state[0] = state[1] = 0;
}

uint64_t fault_operations(void) { return state[0]; }

static uint64_t number_from(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtoull(text, NULL, 10) : otherwise;
}

__attribute__((constructor)) static void from_environment(void) {
    const char *where = getenv("FAULT_PREFIX"), *file = getenv("FAULT_STATE");
    if (!where || !*where) return;
    const char *log_file = getenv("FAULT_LOG");
    fault_arm(where, number_from("FAULT_AT", 0), (int)number_from("FAULT_ACTION", NONE),
              number_from("FAULT_BYTES", UINT64_MAX), log_file ? log_file : "");
    if (!file || !*file) return;
    int fd = REAL(open)(file, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *shared = mmap(NULL, 16, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (shared != MAP_FAILED) state = shared;
}

/* --- paths ------------------------------------------------------------------------------------ */

static int is_under(const char *path) {
    size_t length = strlen(prefix);
    return length && !strncmp(path, prefix, length) && (path[length] == '/' || !path[length]);
}

static int path_of_fd(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t count = readlink(link, out, PATH_MAX - 1);
    out[count > 0 ? count : 0] = 0;
    return count > 0;
}

/* `path` as given to an *at() call, made absolute (names inside the prefix hold no links). */
static void absolute(int folder, const char *path, char *out) {
    char base[PATH_MAX] = "";
    if (path[0] == '/') {
        snprintf(out, PATH_MAX, "%s", path);
        return;
    }
    if (folder == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) base[0] = 0;
    } else {
        path_of_fd(folder, base);
    }
    if (strlen(base) + strlen(path) + 2 > PATH_MAX) base[0] = 0;
    snprintf(out, PATH_MAX, "%.*s/%.*s", PATH_MAX / 2 - 2, base, PATH_MAX / 2 - 2, path);
}

/* --- counting, failing, logging ------------------------------------------------------------------ */

enum verdict { GO, HALF, FAIL };

/* The fate of the next operation; `bytes` is what it would write, `needs_room` whether it can fill up. */
static enum verdict fate(uint64_t bytes, int needs_room) {
    uint64_t number = __atomic_add_fetch(&state[0], 1, __ATOMIC_SEQ_CST);
    uint64_t total = __atomic_add_fetch(&state[1], bytes, __ATOMIC_SEQ_CST);
    if (action == EXIT && number == at) _exit(EXIT_CODE);
    if (action == TORN && number == at) return HALF;
    if (action == EIO_ONCE && number == at) {
        errno = EIO;
        return FAIL;
    }
    if (needs_room && (total > room || (action == ENOSPC_FROM && number >= at))) {
        errno = ENOSPC;
        return FAIL;
    }
    return GO;
}

static void record(enum kind kind, const char *path, const char *other, uint64_t offset,
                   const void *data, uint64_t count) {
    if (!log_path[0]) return;
    int saved = errno;
    pthread_mutex_lock(&lock);
    if (log_fd < 0) log_fd = REAL(open)(log_path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    uint64_t data_bytes = data ? count : 0;
    uint64_t head[6] = {kind, strlen(path), strlen(other), offset, count, data_bytes};
    struct iovec parts[4] = {{head, sizeof head},
                             {(void *)path, head[1]},
                             {(void *)other, head[2]},
                             {(void *)data, data_bytes}};
    if (writev(log_fd, parts, 4) < 0) _exit(88);
    pthread_mutex_unlock(&lock);
    errno = saved;
}

/* --- writing --------------------------------------------------------------------------------- */

static ssize_t written(int fd, const char *path, const void *data, size_t count, off_t offset) {
    enum verdict verdict = fate(count, 1);
    if (verdict == FAIL) return -1;
    size_t wanted = verdict == HALF ? count / 2 : count;
    ssize_t done = offset < 0 ? REAL(write)(fd, data, wanted) : REAL(pwrite)(fd, data, wanted, offset);
    if (done > 0) {
        off_t start = offset < 0 ? lseek(fd, 0, SEEK_CUR) - done : offset;
        record(WRITE, path, "", (uint64_t)start, data, (uint64_t)done);
    }
    if (verdict == HALF) _exit(EXIT_CODE);
    return done;
}

ssize_t write(int fd, const void *data, size_t count) {
    char path[PATH_MAX];
    if (!prefix[0] || !path_of_fd(fd, path) || !is_under(path)) return REAL(write)(fd, data, count);
    return written(fd, path, data, count, -1);
}

ssize_t pwrite(int fd, const void *data, size_t count, off_t offset) {
    char path[PATH_MAX];
    if (!prefix[0] || !path_of_fd(fd, path) || !is_under(path))
        return REAL(pwrite)(fd, data, count, offset);
    return written(fd, path, data, count, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t count, off_t offset) {
    return pwrite(fd, data, count, offset);
}

/* Copies inside the kernel would go unseen: callers fall back to write(). */
#define UNSEEN(fd, call)                                                  \
    char path[PATH_MAX];                                                  \
    if (!prefix[0] || !path_of_fd(fd, path) || !is_under(path)) return call; \
    errno = ENOSYS;                                                       \
    return -1

ssize_t writev(int fd, const struct iovec *parts, int count) {
    UNSEEN(fd, REAL(writev)(fd, parts, count));
}

ssize_t sendfile(int out, int in, off_t *offset, size_t count);
ssize_t sendfile(int out, int in, off_t *offset, size_t count) {
    UNSEEN(out, REAL(sendfile)(out, in, offset, count));
}

ssize_t sendfile64(int out, int in, off_t *offset, size_t count);
ssize_t sendfile64(int out, int in, off_t *offset, size_t count) {
    UNSEEN(out, REAL(sendfile)(out, in, offset, count));
}

ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t count, unsigned flags) {
    UNSEEN(out, REAL(copy_file_range)(in, in_at, out, out_at, count, flags));
}

/* --- opening, cutting ------------------------------------------------------------------------- */

static int opened(int folder, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    struct stat before;
    if (!prefix[0] || !(flags & (O_CREAT | O_TRUNC))) return REAL(openat)(folder, name, flags, mode);
    absolute(folder, name, path);
    if (!is_under(path)) return REAL(openat)(folder, name, flags, mode);
    int existed = stat(path, &before) == 0;
    int cuts = existed && (flags & O_TRUNC) && before.st_size > 0;
    if (existed && !cuts) return REAL(openat)(folder, name, flags, mode);
    enum verdict verdict = fate(0, !existed);
    if (verdict == FAIL) return -1;
    int fd = REAL(openat)(folder, name, flags, mode);
    if (fd >= 0) record(existed ? TRUNCATE : CREATE, path, "", 0, NULL, 0);
    if (verdict == HALF) _exit(EXIT_CODE);
    return fd;
}

#define MODE_OF(flags)                         \
    mode_t mode = 0;                           \
    if ((flags) & (O_CREAT | O_TMPFILE)) {     \
        va_list rest;                          \
        va_start(rest, flags);                 \
        mode = (mode_t)va_arg(rest, unsigned); \
        va_end(rest);                          \
    }

int open(const char *name, int flags, ...) {
    MODE_OF(flags)
    return opened(AT_FDCWD, name, flags, mode);
}

int open64(const char *name, int flags, ...) {
    MODE_OF(flags)
    return opened(AT_FDCWD, name, flags, mode);
}

int openat(int folder, const char *name, int flags, ...) {
    MODE_OF(flags)
    return opened(folder, name, flags, mode);
}

int openat64(int folder, const char *name, int flags, ...) {
    MODE_OF(flags)
    return opened(folder, name, flags, mode);
}

int creat(const char *name, mode_t mode) {
    return opened(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

int ftruncate(int fd, off_t length) {
    char path[PATH_MAX];
    if (!prefix[0] || !path_of_fd(fd, path) || !is_under(path)) return REAL(ftruncate)(fd, length);
    enum verdict verdict = fate(0, 1);
    if (verdict == FAIL) return -1;
    int result = REAL(ftruncate)(fd, length);
    if (!result) record(TRUNCATE, path, "", (uint64_t)length, NULL, 0);
    if (verdict == HALF) _exit(EXIT_CODE);
    return result;
}

int ftruncate64(int fd, off64_t length) { return ftruncate(fd, length); }

int truncate(const char *name, off_t length) {
    int fd = REAL(open)(name, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    int result = ftruncate(fd, length), saved = errno;
    close(fd);
    errno = saved;
    return result;
}

int truncate64(const char *name, off64_t length) { return truncate(name, length); }

/* --- names ----------------------------------------------------------------------------------- */

/* An operation on one or two names: counted, done by `call`, recorded when it went well. */
#define ON_NAMES(kind, first, second, needs_room, call)              \
    enum verdict verdict = fate(0, needs_room);                      \
    if (verdict == FAIL) return -1;                                  \
    int result = call;                                               \
    if (!result) record(kind, first, second, 0, NULL, 0);            \
    if (verdict == HALF) _exit(EXIT_CODE);                           \
    return result

int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    char first[PATH_MAX], second[PATH_MAX];
    absolute(from, old, first);
    absolute(to, new, second);
    if (!prefix[0] || !(is_under(first) || is_under(second)))
        return REAL(renameat2)(from, old, to, new, flags);
    ON_NAMES(RENAME, first, second, 0, REAL(renameat2)(from, old, to, new, flags));
}

int rename(const char *old, const char *new) { return renameat2(AT_FDCWD, old, AT_FDCWD, new, 0); }

int renameat(int from, const char *old, int to, const char *new) {
    return renameat2(from, old, to, new, 0);
}

int unlinkat(int folder, const char *name, int flags) {
    char path[PATH_MAX];
    struct stat before;
    absolute(folder, name, path);
    if (!prefix[0] || !is_under(path) || lstat(path, &before))
        return REAL(unlinkat)(folder, name, flags);
    enum kind kind = flags & AT_REMOVEDIR ? RMDIR : UNLINK;
    ON_NAMES(kind, path, "", 0, REAL(unlinkat)(folder, name, flags));
}

int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }

int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int mkdirat(int folder, const char *name, mode_t mode) {
    char path[PATH_MAX];
    struct stat before;
    absolute(folder, name, path);
    if (!prefix[0] || !is_under(path) || !lstat(path, &before))
        return REAL(mkdirat)(folder, name, mode);
    ON_NAMES(MKDIR, path, "", 1, REAL(mkdirat)(folder, name, mode));
}

int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

/* --- making durable ---------------------------------------------------------------------------- */

static int synced(int fd, int (*call)(int)) {
    char path[PATH_MAX];
    if (!prefix[0] || !path_of_fd(fd, path) || !is_under(path)) return call(fd);
    ON_NAMES(FSYNC, path, "", 0, call(fd));
}

int fsync(int fd) { return synced(fd, REAL(fsync)); }

int fdatasync(int fd) { return synced(fd, REAL(fdatasync)); }
