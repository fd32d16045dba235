/* The keeper: PID 1 of every task's container. It claims the attempt, runs the command once, keeps
 * its log and writes its start and end. Its one argument is the mounted claim directory.
 *
 * It runs as the task's user and holds no right; the command is hostile. Whatever it holds open or
 * in memory is out of the command's reach only because it is not dumpable and unlinks what it opens.
 * No call is interrupted: every signal
 * is blocked and read from a descriptor. Nothing that Docker does better belongs here: no limits but the file size, no user, no directory.
 *
 * `run`, one line each:  started unix_ns= monotonic_ns= boot_id=
 *                        failed errno=                  (the command could not be executed)
 *                        ended unix_ns= monotonic_ns= code= signal= max_rss_bytes= ...
 * An empty `run` means that the command never ran. After `failed` comes an `ended` with 126 or 127.
 * `log`: records as shared/tasklog.py reads them. `start`: as procs/executor/claim.py writes it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef KEEPER_DIGEST
#define KEEPER_DIGEST "unknown"
#endif

#define REFUSED 125 /* as `docker run` has it: the container's machinery failed, not the command */
#define CANNOT_EXECUTE 126
#define NOT_FOUND 127

#define HEADER 24
#define RECORD_MOST 65536
#define MIB (1 << 20) /* no record crosses one: a reader finds record n with one look a MiB */
#define BATCH (4 * (HEADER + RECORD_MOST))
#define MAGIC 0x4d48 /* "HM" */
#define VERSION 1
#define PIPE_BYTES (256 * 1024) /* two for each of 100 tasks stay below a user's soft limit, 64 MiB */
#define START_MOST (8 * MIB)
#define SMALL_RECORD 4096         /* below it headers and writes would cost more than the data */
#define COALESCE_NS 1000000LL     /* so after a batch of such records wait 1 ms for more */
#define LAST_REAP_NS 5000000000LL /* what can't be killed in this time keeps no task from ending */
#define LAST_DRAIN_NS 5000000000LL
#define RETRY_NS 10000000LL
#define BLOCK 512 /* of getrusage */
#define OOM_SCORE_RAISE 100 /* the kernel takes the command before its keeper */

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

enum stream { STDOUT = 1, STDERR = 2, WORKER = 3 };

struct start {
    char *content;
    size_t size;
    char **argv;
    char **environment;
    uint64_t log_limit;
    uint64_t file_limit;
};

struct log {
    int fd;
    uint64_t end;      /* whole records up to here are in the file */
    uint64_t limit;    /* headers count */
    uint64_t sequence; /* of the next record */
    uint64_t dropped;  /* bytes past the limit */
    uint64_t lost;     /* bytes that could not be written */
    int cut;           /* the limit was reached: nothing more is kept */
    int small;         /* the last batch held small records */
    int64_t written_ns;
    size_t used; /* of the batch */
    size_t data; /* bytes of the command's in it */
    size_t records;
    char batch[BATCH];
};

struct run {
    int fd;
    off_t end;
};

struct figures {
    int cpu, peak, events, blocks, network;
    int cpu_is_v2, blocks_is_v2;
    int64_t cpu_at_start_ns;
};

struct keeper {
    struct run run;
    struct figures figures;
    int signals;
    int output[2]; /* of the command: stdout, stderr; -1 when closed */
    int failure;   /* errno of the child's exec; -1 when it has been read */
    int failed_errno;
    pid_t command; /* 0 when it has ended */
    int status;
    int64_t hard_stop_ns; /* when to give up on a command that does not die; 0: not asked for */
};

static struct log task_log; /* static: 256 KiB are too much for a stack */

static void refuse(const char *what) {
    dprintf(2, "keeper: %s: %s\n", what, errno ? strerror(errno) : "refused");
    _exit(REFUSED);
}

static int64_t clock_ns(clockid_t clock) {
    struct timespec at;
    clock_gettime(clock, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

/* ---- The log ---- */

static size_t room_in_mib(uint64_t position) { return MIB - position % MIB; }

static void put_header(char *at, uint32_t length, enum stream stream, uint64_t sequence) {
    uint64_t time_ns = (uint64_t)clock_ns(CLOCK_REALTIME);
    unsigned char *to = (unsigned char *)at;
    for (int i = 0; i < 4; i++) to[i] = (unsigned char)(length >> 8 * i);
    to[4] = (unsigned char)stream;
    to[5] = VERSION;
    to[6] = MAGIC & 0xff;
    to[7] = MAGIC >> 8;
    for (int i = 0; i < 8; i++) to[8 + i] = (unsigned char)(sequence >> 8 * i);
    for (int i = 0; i < 8; i++) to[16 + i] = (unsigned char)(time_ns >> 8 * i);
}

static uint32_t length_of(const char *header) {
    const unsigned char *from = (const unsigned char *)header;
    return from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
}

/* Less than a header and a byte is left in this MiB: the next record begins with the next one. */
static size_t padding(const struct log *log) {
    size_t room = room_in_mib(log->end + log->used);
    return room <= HEADER ? room : 0;
}

/* A batch was written up to `done`: keep its whole records, count the rest as lost. */
static void keep_whole_records(struct log *log, size_t done) {
    size_t at = 0, kept = 0;
    uint64_t records = 0, data = 0;
    for (;;) {
        size_t room = room_in_mib(log->end + at);
        if (room <= HEADER) at += room;
        if (at + HEADER > done) break;
        uint32_t length = length_of(log->batch + at);
        if (at + HEADER + length > done) break;
        at += HEADER + length;
        kept = at;
        data += length;
        records++;
    }
    log->lost += log->data - data;
    log->sequence -= log->records - records;
    log->end += kept;
    /* Half a record must not stay: the command chose its bytes, a reader could take them for records. */
    if (ftruncate(log->fd, (off_t)log->end) != 0) return;
}

static void write_batch(struct log *log) {
    size_t done = 0;
    if (!log->used) return;
    while (done < log->used) {
        ssize_t n = pwrite(log->fd, log->batch + done, log->used - done, (off_t)(log->end + done));
        if (n <= 0) break;
        done += (size_t)n;
    }
    if (done == log->used)
        log->end += done;
    else
        keep_whole_records(log, done);
    log->small = log->data < log->records * SMALL_RECORD;
    log->written_ns = clock_ns(CLOCK_MONOTONIC);
    log->used = log->data = log->records = 0;
}

/* One read of a pipe into the batch. Returns what read() did; 0: end of file. */
static ssize_t take(struct log *log, int fd, enum stream stream) {
    size_t pad = padding(log);
    uint64_t position = log->end + log->used + pad;
    if (!log->cut && position + HEADER >= log->limit) log->cut = 1;
    if (log->cut) {
        static char scratch[RECORD_MOST];
        ssize_t n = read(fd, scratch, sizeof scratch);
        if (n > 0) log->dropped += (size_t)n;
        return n;
    }
    char *header = log->batch + log->used + pad;
    size_t most = room_in_mib(position) - HEADER;
    if (most > RECORD_MOST) most = RECORD_MOST;
    ssize_t n = read(fd, header + HEADER, most);
    if (n <= 0) return n;
    size_t length = (size_t)n;
    if (position + HEADER + length > log->limit) {
        length = (size_t)(log->limit - position - HEADER);
        log->dropped += (size_t)n - length;
        log->cut = 1;
    }
    memset(log->batch + log->used, 0, pad);
    put_header(header, (uint32_t)length, stream, log->sequence++);
    log->used += pad + HEADER + length;
    log->data += length;
    log->records++;
    return n;
}

/* A record of any size and the padding before it fit. */
static int batch_has_room(const struct log *log) {
    return log->used + HEADER + HEADER + RECORD_MOST <= sizeof log->batch;
}

/* Moves what the pipes hold, at most a batch, to the log. Returns whether there was anything.
 * A pipe that gave less than was asked is empty for now: asking again at once would only make
 * records of one byte. */
static int move_output(struct log *log, int output[2]) {
    int moved = 0, going = 1;
    for (int turns = 0; going && turns < 2 * BATCH / RECORD_MOST; turns++) {
        going = 0;
        for (int i = 0; i < 2 && batch_has_room(log); i++) {
            if (output[i] < 0) continue;
            ssize_t n = take(log, output[i], i == 0 ? STDOUT : STDERR);
            if (n > 0) {
                moved = 1;
                if (n == RECORD_MOST) going = 1;
            } else if (n == 0 || errno != EAGAIN) {
                close(output[i]);
                output[i] = -1;
            }
        }
    }
    write_batch(log);
    return moved;
}

/* What is missing in the log, in its last record: beyond the limit, which is the command's. */
static void write_note(struct log *log) {
    if (!log->dropped && !log->lost) return;
    char text[256];
    int length = 0;
    if (log->dropped)
        length = snprintf(text, sizeof text,
                          "hivemind: %llu bytes of output were dropped: the log's limit is %llu bytes\n",
                          (unsigned long long)log->dropped, (unsigned long long)log->limit);
    if (log->lost)
        length += snprintf(text + length, sizeof text - (size_t)length,
                           "hivemind: %llu bytes of output were lost: the log could not be written\n",
                           (unsigned long long)log->lost);
    uint64_t lost = log->lost; /* the note itself is no output */
    for (int done = 0; done < length;) { /* two records where a MiB ends within it */
        size_t pad = padding(log);
        size_t part = room_in_mib(log->end + log->used + pad) - HEADER;
        if (part > (size_t)(length - done)) part = (size_t)(length - done);
        char *header = log->batch + log->used + pad;
        memset(log->batch + log->used, 0, pad);
        put_header(header, (uint32_t)part, WORKER, log->sequence++);
        memcpy(header + HEADER, text + done, part);
        log->used += pad + HEADER + part;
        log->data += part;
        log->records++;
        done += (int)part;
    }
    write_batch(log);
    log->lost = lost;
}

/* ---- The record of the run ---- */

/* Appends one line and syncs it. Returns 0, or -1 with the record as it was. */
static int write_run(struct run *run, const char *line, size_t length) {
    size_t done = 0;
    while (done < length) {
        ssize_t n = pwrite(run->fd, line + done, length - done, run->end + (off_t)done);
        if (n <= 0) break;
        done += (size_t)n;
    }
    if (done == length && fdatasync(run->fd) == 0) {
        run->end += (off_t)length;
        return 0;
    }
    int saved = errno;
    if (ftruncate(run->fd, run->end) != 0) errno = saved;
    errno = saved;
    return -1;
}

static void read_boot_id(char to[64]) {
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, to, 63);
    if (fd >= 0) close(fd);
    to[n > 0 ? n : 0] = 0;
    to[strcspn(to, "\n")] = 0;
    if (!to[0]) strcpy(to, "unknown"); /* gVisor has none */
}

static int write_started(struct run *run) {
    char boot_id[64], line[256];
    read_boot_id(boot_id);
    int length = snprintf(line, sizeof line, "started unix_ns=%lld monotonic_ns=%lld boot_id=%s\n",
                          (long long)clock_ns(CLOCK_REALTIME), (long long)clock_ns(CLOCK_MONOTONIC),
                          boot_id);
    return write_run(run, line, (size_t)length);
}

static void write_failed(struct run *run, int failed_errno) {
    char line[64];
    int length = snprintf(line, sizeof line, "failed errno=%d\n", failed_errno);
    write_run(run, line, (size_t)length);
}

/* ---- The cgroup's figures ---- */

static int open_figure(const char *path) { return open(path, O_RDONLY | O_CLOEXEC); }

static void open_figures(struct figures *figures) {
    figures->peak = open_figure("/sys/fs/cgroup/memory.peak");
    if (figures->peak < 0)
        figures->peak = open_figure("/sys/fs/cgroup/memory/memory.max_usage_in_bytes");
    figures->events = open_figure("/sys/fs/cgroup/memory.events");
    if (figures->events < 0)
        figures->events = open_figure("/sys/fs/cgroup/memory/memory.oom_control");
    figures->cpu = open_figure("/sys/fs/cgroup/cpu.stat");
    figures->cpu_is_v2 = figures->cpu >= 0;
    if (figures->cpu < 0) figures->cpu = open_figure("/sys/fs/cgroup/cpuacct/cpuacct.usage");
    if (figures->cpu < 0) figures->cpu = open_figure("/sys/fs/cgroup/cpu,cpuacct/cpuacct.usage");
    figures->blocks = open_figure("/sys/fs/cgroup/io.stat");
    figures->blocks_is_v2 = figures->blocks >= 0;
    if (figures->blocks < 0)
        figures->blocks =
            open_figure("/sys/fs/cgroup/blkio/blkio.throttle.io_service_bytes_recursive");
    figures->network = open_figure("/proc/self/net/dev");
}

/* The number in a file of the cgroup: its first, or the one on the line of `key`. -1: unknown. */
static int64_t figure(int fd, const char *key) {
    char text[4096];
    ssize_t n = fd < 0 ? -1 : pread(fd, text, sizeof text - 1, 0);
    if (n <= 0) return -1;
    text[n] = 0;
    const char *at = text;
    if (key) {
        size_t length = strlen(key);
        while (strncmp(at, key, length) != 0 || at[length] != ' ') {
            at = strchr(at, '\n');
            if (!at) return -1;
            at++;
        }
        at += length + 1;
    }
    char *end;
    errno = 0;
    long long value = strtoll(at, &end, 10);
    return end == at || errno || value < 0 ? -1 : value;
}

static int64_t cpu_ns(const struct figures *figures) {
    if (!figures->cpu_is_v2) return figure(figures->cpu, NULL);
    int64_t usage_us = figure(figures->cpu, "usage_usec");
    return usage_us < 0 ? -1 : usage_us * 1000;
}

/* A file with a line for each device. Returns its length; -1: unknown. */
static ssize_t read_devices(int fd, char *text, size_t size) {
    size_t done = 0;
    while (fd >= 0 && done < size - 1) { /* the kernel gives it in parts */
        ssize_t n = pread(fd, text + done, size - 1 - done, (off_t)done);
        if (n < 0) return -1;
        if (n == 0) break;
        done += (size_t)n;
    }
    text[done] = 0;
    return fd < 0 ? -1 : (ssize_t)done;
}

static char devices[65536]; /* static: too much for a stack */

/* The sum over the devices of the number that follows `word`. -1: unknown. */
static int64_t sum_of_blocks(int fd, const char *word) {
    int64_t sum = 0;
    if (read_devices(fd, devices, sizeof devices) < 0) return -1;
    for (const char *at = devices; (at = strstr(at, word));) {
        at += strlen(word);
        sum += strtoll(at, NULL, 10);
    }
    return sum < 0 ? -1 : sum;
}

/* Newer kernels count nothing in a v1 cgroup that has no limit: then what all reaped children did. */
static int64_t larger(int64_t one, int64_t other) { return one > other ? one : other; }

/* The sum of a column of /proc/net/dev, without the loopback's. -1: unknown. */
static int64_t sum_of_network(int fd, int column) {
    int64_t sum = 0;
    if (read_devices(fd, devices, sizeof devices) < 0) return -1;
    for (char *line = strtok(devices, "\n"); line; line = strtok(NULL, "\n")) {
        char *colon = strchr(line, ':');
        if (!colon) continue; /* the head */
        *colon = 0;
        line += strspn(line, " ");
        char *at = colon + 1;
        int64_t value = 0;
        for (int i = 0; i <= column; i++) value = strtoll(at, &at, 10);
        if (strcmp(line, "lo") != 0) sum += value;
    }
    return sum < 0 ? -1 : sum;
}

/* ` name=value`, or unknown. Returns its length. */
static int put_figure(char *to, size_t size, const char *name, int64_t value) {
    if (value < 0) return snprintf(to, size, " %s=unknown", name);
    return snprintf(to, size, " %s=%lld", name, (long long)value);
}

static int write_ended(struct run *run, const struct figures *figures, int code, int signal) {
    char line[1024];
    struct rusage usage;
    int has_usage = getrusage(RUSAGE_CHILDREN, &usage) == 0;
    int64_t rss = has_usage ? (int64_t)usage.ru_maxrss * 1024 : -1;
    int64_t read = has_usage ? (int64_t)usage.ru_inblock * BLOCK : -1;
    int64_t written = has_usage ? (int64_t)usage.ru_oublock * BLOCK : -1;
    int64_t cpu = cpu_ns(figures);
    int v2 = figures->blocks_is_v2;
    if (cpu >= 0 && figures->cpu_at_start_ns >= 0) cpu -= figures->cpu_at_start_ns;
    size_t at = (size_t)snprintf(line, sizeof line,
                                 "ended unix_ns=%lld monotonic_ns=%lld code=%d signal=%d",
                                 (long long)clock_ns(CLOCK_REALTIME),
                                 (long long)clock_ns(CLOCK_MONOTONIC), code, signal);
    const struct {
        const char *name;
        int64_t value;
    } rest[] = {
        {"max_rss_bytes", rss},
        {"memory_peak_bytes", figure(figures->peak, NULL)},
        {"cpu_ns", cpu},
        {"oom_kills", figure(figures->events, "oom_kill")},
        {"log_dropped_bytes", (int64_t)task_log.dropped},
        {"log_lost_bytes", (int64_t)task_log.lost},
        {"block_read_bytes", larger(sum_of_blocks(figures->blocks, v2 ? "rbytes=" : " Read "), read)},
        {"block_written_bytes",
         larger(sum_of_blocks(figures->blocks, v2 ? "wbytes=" : " Write "), written)},
        {"network_received_bytes", sum_of_network(figures->network, 0)},
        {"network_sent_bytes", sum_of_network(figures->network, 8)},
    };
    for (size_t i = 0; i < sizeof rest / sizeof *rest; i++)
        at += (size_t)put_figure(line + at, sizeof line - at, rest[i].name, rest[i].value);
    line[at++] = '\n';
    return write_run(run, line, at);
}

/* ---- The start ---- */

/* The next NUL-terminated string of `start`, or NULL at its end. */
static char *next_string(struct start *start, size_t *at) {
    char *string = start->content + *at;
    char *end = *at < start->size ? memchr(string, 0, start->size - *at) : NULL;
    if (!end) return NULL;
    *at += (size_t)(end - string) + 1;
    return string;
}

static int next_number(struct start *start, size_t *at, uint64_t *value) {
    char *string = next_string(start, at);
    if (!string || !*string || strlen(string) > 18) return -1;
    *value = 0;
    for (; *string; string++) {
        if (*string < '0' || *string > '9') return -1;
        *value = *value * 10 + (uint64_t)(*string - '0');
    }
    return 0;
}

static char **next_strings(struct start *start, size_t *at, uint64_t count) {
    if (count > start->size) return NULL;
    char **strings = calloc(count + 1, sizeof *strings);
    if (!strings) return NULL;
    for (uint64_t i = 0; i < count; i++)
        if (!(strings[i] = next_string(start, at))) return NULL;
    return strings;
}

static int parse_start(struct start *start) {
    size_t at = 0;
    uint64_t arguments, variables;
    char *magic = next_string(start, &at);
    if (!magic || strcmp(magic, "hivemind-start 1") != 0) return -1;
    if (next_number(start, &at, &start->log_limit)) return -1;
    if (next_number(start, &at, &start->file_limit)) return -1;
    if (next_number(start, &at, &arguments) || arguments == 0) return -1;
    if (next_number(start, &at, &variables)) return -1;
    start->argv = next_strings(start, &at, arguments);
    start->environment = next_strings(start, &at, variables);
    return start->argv && start->environment && at == start->size ? 0 : -1;
}

static void read_start(struct start *start, int fd, off_t size) {
    errno = 0;
    if (size <= 0 || size > START_MOST) refuse("start: its size");
    start->size = (size_t)size;
    start->content = malloc(start->size);
    if (!start->content) refuse("start");
    for (size_t done = 0; done < start->size;) {
        ssize_t n = read(fd, start->content + done, start->size - done);
        if (n <= 0) refuse("start");
        done += (size_t)n;
    }
    errno = 0;
    if (parse_start(start)) refuse("start: its content");
}

/* The secrets are the command's; the keeper needs them no longer. */
static void forget(struct start *start) {
    explicit_bzero(start->content, start->size);
    free(start->content);
    free(start->argv);
    free(start->environment);
}

/* A regular file of the host's; one of our own uid is the command's forgery. Returns its size. */
static off_t open_host_file(int directory, const char *name, int flags, int *fd) {
    struct stat file;
    *fd = openat(directory, name, flags | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (*fd < 0 || fstat(*fd, &file) != 0) refuse(name);
    errno = 0;
    if (!S_ISREG(file.st_mode) || file.st_uid == getuid()) refuse(name);
    return file.st_size;
}

/* Whoever unlinks `run` owns the start: a second keeper, or the host, finds nothing. What the
 * winner's command may since have put in its place is told by our `run` no longer being empty. */
static void claim(const char *path, struct run *run, struct log *log, struct start *start) {
    struct stat file;
    int fd, directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) refuse(path);
    off_t run_size = open_host_file(directory, "run", O_RDWR, &run->fd);
    off_t log_size = open_host_file(directory, "log", O_RDWR, &log->fd);
    off_t start_size = open_host_file(directory, "start", O_RDONLY, &fd);
    errno = 0;
    if (run_size != 0 || log_size != 0) refuse("it ran before");
    read_start(start, fd, start_size);
    close(fd);
    log->limit = start->log_limit;
    if (unlinkat(directory, "run", 0) != 0 || fstat(run->fd, &file) != 0) refuse("claim");
    errno = 0;
    if (file.st_size != 0) refuse("it ran before");
    if (unlinkat(directory, "log", 0) != 0 || unlinkat(directory, "start", 0) != 0) refuse("claim");
    close(directory);
}

/* ---- The command ---- */

static const char *search_path(char *const environment[]) {
    for (; *environment; environment++)
        if (strncmp(*environment, "PATH=", 5) == 0) return *environment + 5;
    return DEFAULT_PATH;
}

/* As execvp, but in the given environment's PATH, and a script without #! is not run by a shell. */
static int execute(char *const argv[], char *const environment[]) {
    char candidate[PATH_MAX];
    const char *name = argv[0];
    int denied = 0;
    if (!*name) return ENOENT;
    if (strchr(name, '/')) {
        execve(name, argv, environment);
        return errno;
    }
    for (const char *path = search_path(environment);; path++) {
        int length = (int)strcspn(path, ":");
        int size = length == 0 ? snprintf(candidate, sizeof candidate, "./%s", name)
                               : snprintf(candidate, sizeof candidate, "%.*s/%s", length, path, name);
        if (size < (int)sizeof candidate) {
            execve(candidate, argv, environment);
            if (errno == EACCES)
                denied = 1;
            else if (errno != ENOENT && errno != ENOTDIR && errno != ELOOP && errno != ENAMETOOLONG)
                return errno;
        }
        path += length;
        if (!*path) return denied ? EACCES : ENOENT;
    }
}

static void raise_oom_score(void) {
    char text[16] = {0};
    int fd = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
    if (fd < 0) return; /* no /proc: then the kernel picks the largest, which is not the keeper */
    if (read(fd, text, sizeof text - 1) > 0) {
        int score = atoi(text) + OOM_SCORE_RAISE;
        int length = snprintf(text, sizeof text, "%d", score > 1000 ? 1000 : score);
        if (pwrite(fd, text, (size_t)length, 0) < 0) length = 0;
    }
    close(fd);
}

static void limit_file_size(uint64_t bytes) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) != 0) return;
    if (limit.rlim_max == RLIM_INFINITY || limit.rlim_max > bytes) limit.rlim_max = bytes;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_FSIZE, &limit);
}

/* The command inherits 0, 1 and 2 and nothing else, whatever the runtime left open. */
static void close_rest_at_exec(void) {
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
    if (syscall(SYS_close_range, 3U, ~0U, 4U /* CLOSE_RANGE_CLOEXEC */) == 0) return;
    struct rlimit open_files;
    int most = getrlimit(RLIMIT_NOFILE, &open_files) == 0 && open_files.rlim_cur < 65536
                   ? (int)open_files.rlim_cur
                   : 65536;
    for (int fd = 3; fd < most; fd++) fcntl(fd, F_SETFD, FD_CLOEXEC);
}

/* ---- The filter ----
 * What Docker's own profile lets through, and no namespace or control group divides. The C library
 * may come without the kernel's headers, so their few structures stand here. */

#if defined(__x86_64__)
#define OUR_ABI 0xC000003EU
#elif defined(__aarch64__)
#define OUR_ABI 0xC00000B7U
#else
#error "add this machine's AUDIT_ARCH"
#endif

struct instruction {
    uint16_t code;
    uint8_t if_true, if_false;
    uint32_t value;
};

struct program {
    uint16_t length;
    const struct instruction *instructions;
};

enum { NUMBER_AT = 0, ABI_AT = 4, FAMILY_AT = 16 /* of a socket: its first argument */ };

#define LOAD(at) {0x20, 0, 0, at}
#define SKIP_IF_EQUAL(value, count) {0x15, count, 0, value}
#define SKIP_IF_AT_LEAST(value, count) {0x35, count, 0, value}
#define SKIP_IF_OVER(value, count) {0x25, count, 0, value}
#define ANSWER(value) {0x06, 0, 0, value}
#define ALLOW ANSWER(0x7fff0000U)
#define REFUSE(number) ANSWER(0x00050000U | (number))
#define KILL ANSWER(0x80000000U)
#define X32 0x40000000U

/* A 32-bit program could ask for the same by other numbers: it is killed. io_uring does in the
 * kernel what no filter sees; slots for asynchronous I/O are few for the whole machine; sockets to
 * the hypervisor and of rare families know no network namespace, or are seldom looked after.
 * fallocate() takes a whole disk in less time than any look at it; programs know file systems
 * without it, and write instead. */
static int wall_in(void) {
    static const struct instruction filter[] = {
        LOAD(ABI_AT),
        SKIP_IF_EQUAL(OUR_ABI, 1),
        KILL,
        LOAD(NUMBER_AT),
        SKIP_IF_EQUAL(SYS_socket, 8),
        SKIP_IF_EQUAL(SYS_socketpair, 7),
        SKIP_IF_EQUAL(SYS_fallocate, 5),
        SKIP_IF_EQUAL(SYS_io_setup, 3),
        SKIP_IF_AT_LEAST(X32, 2),
        SKIP_IF_OVER(427 /* io_uring_register */, 7),
        {0x35, 0, 6, 425 /* io_uring_setup */},
        REFUSE(ENOSYS),
        REFUSE(EOPNOTSUPP),
        LOAD(FAMILY_AT),
        SKIP_IF_EQUAL(AF_UNIX, 2),
        SKIP_IF_EQUAL(AF_INET, 1),
        {0x15, 0, 1, AF_INET6},
        ALLOW,
        SKIP_IF_EQUAL(AF_NETLINK, 1), /* getifaddrs() */
        REFUSE(EAFNOSUPPORT),
        ALLOW,
    };
    const struct program program = {sizeof filter / sizeof *filter, filter};
    return prctl(PR_SET_NO_NEW_PRIVS, 1L, 0L, 0L, 0L) == 0 &&
                   prctl(PR_SET_SECCOMP, 2L /* SECCOMP_MODE_FILTER */, &program) == 0
               ? 0
               : -1;
}

static void become_command(const struct start *start, int run, const int child[3], int failure,
                           uint64_t const *mask) {
    close(run); /* out of reach before this process is dumpable */
    close(task_log.fd);
    for (int i = 0; i < 3; i++)
        if (dup2(child[i], i) < 0) goto failed;
    setsid();
    prctl(PR_SET_DUMPABLE, 1); /* its own /proc files are its own: /dev/stdout can be opened */
    raise_oom_score();
    limit_file_size(start->file_limit);
    if (wall_in() != 0) goto failed;
    close_rest_at_exec();
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, mask, NULL, sizeof *mask);
    errno = execute(start->argv, start->environment);
failed:;
    int reason = errno;
    ssize_t told = write(failure, &reason, sizeof reason);
    _exit(told == sizeof reason && reason == ENOENT ? NOT_FOUND : CANNOT_EXECUTE);
}

/* The pipes and /dev/null: made before the claim, so that a lack of them costs no attempt. */
static void make_pipes(int output[2], int child[3], int failure[2]) {
    child[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (child[0] < 0) refuse("/dev/null");
    for (int i = 0; i < 2; i++) {
        int ends[2];
        if (pipe2(ends, O_CLOEXEC) != 0) refuse("pipe");
        fcntl(ends[0], F_SETPIPE_SZ, PIPE_BYTES); /* or what the kernel gives */
        if (fcntl(ends[0], F_SETFL, O_NONBLOCK) != 0) refuse("pipe");
        output[i] = ends[0];
        child[i + 1] = ends[1];
    }
    if (pipe2(failure, O_CLOEXEC) != 0) refuse("pipe");
    if (fcntl(failure[0], F_SETFL, O_NONBLOCK) != 0) refuse("pipe");
}

/* ---- The run ---- */

static void read_failure(struct keeper *keeper) {
    if (keeper->failure < 0) return;
    ssize_t n = read(keeper->failure, &keeper->failed_errno, sizeof keeper->failed_errno);
    if (n < 0 && errno == EAGAIN) return;
    close(keeper->failure);
    keeper->failure = -1;
}

/* Returns 1 when there is no child left. */
static int reap(struct keeper *keeper) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        if (pid != keeper->command) continue;
        keeper->command = 0;
        keeper->status = status;
    }
    return pid < 0 && errno == ECHILD;
}

static int is_fault(uint32_t signal) {
    return signal == SIGSEGV || signal == SIGBUS || signal == SIGILL || signal == SIGFPE ||
           signal == SIGTRAP || signal == SIGSYS || signal == SIGABRT;
}

/* The kernel's word on what the keeper itself did: a limit that the command put on it. */
static int is_our_own(const struct signalfd_siginfo *info) {
    return info->ssi_code > 0 || (info->ssi_code == SI_USER && info->ssi_pid == 1);
}

static void handle_signal(struct keeper *keeper, const struct signalfd_siginfo *info) {
    /* kill() from outside our pid namespace shows pid 0; sigqueue() could forge it, not SI_USER. */
    int outside = info->ssi_code == SI_USER && info->ssi_pid == 0;
    if (info->ssi_signo == SIGCHLD && !outside) return; /* reap() follows */
    if (info->ssi_signo == SIGPWR && outside) {
        if (!keeper->hard_stop_ns) keeper->hard_stop_ns = clock_ns(CLOCK_MONOTONIC) + LAST_REAP_NS;
        kill(-1, SIGKILL);
    } else if (keeper->command && (outside || (!is_our_own(info) && !is_fault(info->ssi_signo)))) {
        kill(keeper->command, (int)info->ssi_signo);
    }
}

static void read_signals(struct keeper *keeper) {
    struct signalfd_siginfo infos[16];
    ssize_t n = read(keeper->signals, infos, sizeof infos);
    for (size_t i = 0; n > 0 && i < (size_t)n / sizeof *infos; i++) handle_signal(keeper, &infos[i]);
}

static void wait_for(struct pollfd *polled, nfds_t count, int64_t wait_ns) {
    struct timespec wait = {.tv_sec = wait_ns / 1000000000LL, .tv_nsec = wait_ns % 1000000000LL};
    ppoll(polled, count, wait_ns < 0 ? NULL : &wait, NULL);
}

/* Until the command has ended, or does not die of a hard stop. */
static void run_to_the_end(struct keeper *keeper) {
    while (keeper->command) {
        int64_t now = clock_ns(CLOCK_MONOTONIC), wait = -1;
        int64_t quiet = task_log.small ? task_log.written_ns + COALESCE_NS - now : 0;
        if (quiet > 0) wait = quiet;
        if (keeper->hard_stop_ns) {
            if (now >= keeper->hard_stop_ns) return;
            if (wait < 0 || wait > RETRY_NS) wait = RETRY_NS;
            kill(-1, SIGKILL); /* what was forked meanwhile */
        }
        struct pollfd polled[4] = {
            {.fd = keeper->signals, .events = POLLIN},
            {.fd = keeper->failure, .events = POLLIN},
            {.fd = quiet > 0 ? -1 : keeper->output[0], .events = POLLIN},
            {.fd = quiet > 0 ? -1 : keeper->output[1], .events = POLLIN},
        };
        wait_for(polled, 4, wait);
        if (polled[1].revents) read_failure(keeper);
        if (polled[2].revents || polled[3].revents) move_output(&task_log, keeper->output);
        if (polled[0].revents) {
            read_signals(keeper);
            reap(keeper);
        }
    }
}

/* What the command left behind dies with it. */
static void kill_the_rest(struct keeper *keeper) {
    int64_t now, deadline = 0, next_kill = 0;
    while (!reap(keeper)) {
        now = clock_ns(CLOCK_MONOTONIC);
        if (!deadline) deadline = now + LAST_REAP_NS;
        if (now >= deadline) return;
        if (now >= next_kill) { /* not at each death: of 20,000 processes that takes minutes */
            kill(-1, SIGKILL);
            next_kill = now + RETRY_NS;
        }
        move_output(&task_log, keeper->output);
        struct pollfd polled = {.fd = keeper->signals, .events = POLLIN};
        wait_for(&polled, 1, RETRY_NS);
        if (polled.revents) read_signals(keeper);
    }
}

static void drain(struct keeper *keeper) {
    int64_t deadline = clock_ns(CLOCK_MONOTONIC) + LAST_DRAIN_NS;
    while (move_output(&task_log, keeper->output) && clock_ns(CLOCK_MONOTONIC) < deadline) continue;
    write_note(&task_log);
}

static int finish(struct keeper *keeper) {
    kill_the_rest(keeper);
    read_failure(keeper);
    drain(keeper);
    int signal = WIFSIGNALED(keeper->status) ? WTERMSIG(keeper->status) : 0;
    int code = signal ? 128 + signal : WEXITSTATUS(keeper->status);
    if (keeper->failed_errno) write_failed(&keeper->run, keeper->failed_errno);
    fdatasync(task_log.fd);
    write_ended(&keeper->run, &keeper->figures, code, signal);
    return code;
}

/* Through the kernel's own calls: the C libraries leave out two or three signals of theirs. */
static int block_signals(uint64_t *old) {
    uint64_t all = ~0ULL;
    if (syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, old, sizeof all) != 0) refuse("signals");
    for (int signal = 1; signal <= 64; signal++) { /* ignored ones would be the command's too */
        struct sigaction standard = {.sa_handler = SIG_DFL};
        sigaction(signal, &standard, NULL); /* fails for KILL, STOP and the C library's own */
    }
    int fd = (int)syscall(SYS_signalfd4, -1, &all, sizeof all, SFD_CLOEXEC | SFD_NONBLOCK);
    if (fd < 0) refuse("signals");
    return fd;
}

static void open_standard_files(void) {
    int fd;
    do fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd < 3);
    if (fd < 0) refuse("/dev/null");
    close(fd);
}

int main(int argc, char **argv) {
    struct keeper keeper = {.status = SIGKILL}; /* of a command that could not be reaped */
    struct start start = {0};
    int child[3], failure[2];
    char directory[PATH_MAX];
    uint64_t mask;
    errno = 0;
    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        puts(KEEPER_DIGEST);
        return 0;
    }
    if (argc != 2) refuse("usage: keeper DIRECTORY");
    if (getpid() != 1) refuse("it must be PID 1 of a container: it ends by killing all it can");
    if (prctl(PR_SET_DUMPABLE, 0) != 0) refuse("PR_SET_DUMPABLE");
    /* An image names it: with a runtime that leaks a descriptor of the host's, it may lie there. */
    if (!getcwd(directory, sizeof directory)) refuse("the working directory is not the container's");
    open_standard_files();
    keeper.signals = block_signals(&mask);
    make_pipes(keeper.output, child, failure);
    keeper.failure = failure[0];
    claim(argv[1], &keeper.run, &task_log, &start);
    if (write_started(&keeper.run) != 0) refuse("started");
    open_figures(&keeper.figures);
    keeper.figures.cpu_at_start_ns = cpu_ns(&keeper.figures);
    keeper.command = fork();
    if (keeper.command == 0) become_command(&start, keeper.run.fd, child, failure[1], &mask);
    if (keeper.command < 0) {
        keeper.failed_errno = errno;
        keeper.status = CANNOT_EXECUTE << 8;
        keeper.command = 0;
    }
    for (int i = 0; i < 3; i++) close(child[i]);
    close(failure[1]);
    forget(&start);
    run_to_the_end(&keeper);
    return finish(&keeper);
}
