/* Stands in for NVIDIA's libnvidia-ml.so.1: the calls that the monitor makes, answered from the file
 * that HIVEMIND_FAKE_NVML names, which is read again whenever it was replaced. One line each, fields
 * separated by tabs:
 *
 *   driver VERSION
 *   card   UUID NAME TOTAL_MIB USED_MIB USE_PCT CELSIUS MILLIWATTS SPLIT
 *   mig    CARD_UUID UUID NAME TOTAL_MIB USED_MIB
 *   proc   CARD_UUID PID MIB          (MIB -1: not told)
 *   xid    CARD_UUID XID NUMBER       (NUMBER grows: each is told once to each process)
 *   fault  FUNCTION UUID FAULT        (FUNCTION and UUID may be *, the first that fits counts)
 *
 * FAULT is an error code of NVML's; hang (sleeps until the line is gone); hang_d (the same, in a sleep
 * that the kernel shows as uninterruptible, until the file with .d after its name is gone); segv.
 * As with the real one, cards are found by nvmlInit alone: one that comes later is not seen, one that
 * goes is lost.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MOST 64
#define TEXT 96
#define EXPORT __attribute__((visibility("default")))

enum { OK, UNINITIALIZED, INVALID, NOT_SUPPORTED, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, TIMEOUT = 10,
       LOST = 15 };
enum { HANG = -1, HANG_D = -2, SEGV = -3 };

struct card {
    char uuid[TEXT], name[TEXT], of[TEXT]; /* of: the card that this is an instance of */
    unsigned long long total, used;
    unsigned int use, celsius, milliwatts, split;
};
struct process { char of[TEXT]; unsigned int pid; long long mib; };
struct error { char of[TEXT]; unsigned long long xid; long number; };
struct fault { char function[TEXT], uuid[TEXT]; int code; };

struct machine {
    char driver[TEXT];
    struct card cards[MOST];
    struct process processes[MOST];
    struct error errors[MOST];
    struct fault faults[MOST];
    int card_count, process_count, error_count, fault_count;
};

struct memory { unsigned long long total, free, used; };
struct memory_2 { unsigned int version; unsigned long long total, reserved, free, used; };
struct utilization { unsigned int gpu, memory; };
struct process_info { unsigned int pid; unsigned long long used; unsigned int gi, ci; };
struct event { void *device; unsigned long long type, data; unsigned int gi, ci; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct machine now;
static struct stat seen;
static char handles[MOST][TEXT]; /* what a device's handle points to: its UUID; made by nvmlInit */
static int handle_count, card_handles, sessions;
static long told; /* the highest number of an XID that was told */
static int watched;

static void read_line(char *line)
{
    char *word[9] = {0};
    int n = 0;
    for (char *rest = line, *field; n < 9 && (field = strsep(&rest, "\t\n")) && *field;) word[n++] = field;
    struct card *card = &now.cards[now.card_count];
    if (n == 2 && !strcmp(word[0], "driver")) strcpy(now.driver, word[1]);
    if (n == 9 && !strcmp(word[0], "card")) {
        strcpy(card->uuid, word[1]), strcpy(card->name, word[2]);
        card->total = strtoull(word[3], 0, 10) << 20, card->used = strtoull(word[4], 0, 10) << 20;
        card->use = atoi(word[5]), card->celsius = atoi(word[6]), card->milliwatts = atoi(word[7]);
        card->split = atoi(word[8]), now.card_count++;
    }
    if (n == 6 && !strcmp(word[0], "mig")) {
        strcpy(card->of, word[1]), strcpy(card->uuid, word[2]), strcpy(card->name, word[3]);
        card->total = strtoull(word[4], 0, 10) << 20, card->used = strtoull(word[5], 0, 10) << 20;
        now.card_count++;
    }
    if (n == 4 && !strcmp(word[0], "proc")) {
        struct process *one = &now.processes[now.process_count++];
        strcpy(one->of, word[1]), one->pid = atoi(word[2]), one->mib = atoll(word[3]);
    }
    if (n == 4 && !strcmp(word[0], "xid")) {
        struct error *one = &now.errors[now.error_count++];
        strcpy(one->of, word[1]), one->xid = atoi(word[2]), one->number = atol(word[3]);
    }
    if (n == 4 && !strcmp(word[0], "fault")) {
        struct fault *one = &now.faults[now.fault_count++];
        strcpy(one->function, word[1]), strcpy(one->uuid, word[2]);
        one->code = !strcmp(word[3], "hang") ? HANG : !strcmp(word[3], "hang_d") ? HANG_D
                  : !strcmp(word[3], "segv") ? SEGV : atoi(word[3]);
    }
}

static void refresh(void)
{
    const char *path = getenv("HIVEMIND_FAKE_NVML");
    struct stat found;
    char line[1024];
    if (!path || stat(path, &found) || (found.st_ino == seen.st_ino
        && found.st_mtim.tv_nsec == seen.st_mtim.tv_nsec && found.st_mtim.tv_sec == seen.st_mtim.tv_sec))
        return;
    FILE *file = fopen(path, "r");
    if (!file) return;
    memset(&now, 0, sizeof now);
    while (fgets(line, sizeof line, file)) read_line(line);
    fclose(file);
    seen = found;
}

static int fault_of(const char *function, const char *uuid)
{
    for (int i = 0; i < now.fault_count; i++) {
        struct fault *one = &now.faults[i];
        if ((!strcmp(one->function, "*") || !strcmp(one->function, function))
            && (!strcmp(one->uuid, "*") || (uuid && !strcmp(one->uuid, uuid)))) return one->code;
    }
    return OK;
}

static void sleep_uninterruptibly(void)
{
    char held[1024];
    snprintf(held, sizeof held, "%s.d", getenv("HIVEMIND_FAKE_NVML"));
    if (vfork() == 0) { /* who forked so waits for the child, in state D */
        while (access(held, F_OK) == 0) usleep(10000);
        _exit(0);
    }
}

/* What goes wrong with this call, after all waiting. `card` is its card, found anew, if it has one. */
static int enter(const char *function, const void *handle, struct card *card)
{
    for (;;) {
        pthread_mutex_lock(&lock);
        refresh();
        int code = fault_of(function, handle);
        if (code == OK && !sessions && strncmp(function, "nvmlInit", 8)) code = UNINITIALIZED;
        if (code == OK && handle) {
            code = LOST;
            for (int i = 0; i < now.card_count; i++)
                if (!strcmp(now.cards[i].uuid, handle)) code = OK, *card = now.cards[i];
        }
        pthread_mutex_unlock(&lock);
        if (code == SEGV) *(volatile int *)0 = 0;
        if (code == HANG_D) sleep_uninterruptibly();
        else if (code == HANG) usleep(10000);
        else return code;
    }
}

#define ENTER(handle)                                                        \
    struct card card = {0};                                                  \
    int code = enter(__func__, handle, &card);                               \
    if (code != OK) return code;

static void list(int instances)
{
    for (int i = 0; i < now.card_count; i++)
        if (!!*now.cards[i].of == instances) strcpy(handles[handle_count++], now.cards[i].uuid);
}

static int start(const char *function)
{
    struct card card;
    int code = enter(function, 0, &card);
    if (code != OK) return code;
    pthread_mutex_lock(&lock);
    if (!sessions++) handle_count = 0, list(0), card_handles = handle_count, list(1);
    pthread_mutex_unlock(&lock);
    return OK;
}

EXPORT int nvmlInit_v2(void) { return start(__func__); }
EXPORT int nvmlInitWithFlags(unsigned int flags) { (void)flags; return start(__func__); }

EXPORT int nvmlShutdown(void)
{
    ENTER(0)
    sessions--;
    return OK;
}

EXPORT const char *nvmlErrorString(int code) { (void)code; return "as the fake has it"; }

EXPORT int nvmlSystemGetDriverVersion(char *version, unsigned int size)
{
    ENTER(0)
    snprintf(version, size, "%s", now.driver);
    return OK;
}

EXPORT int nvmlDeviceGetCount_v2(unsigned int *count)
{
    ENTER(0)
    *count = card_handles;
    return OK;
}

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device)
{
    ENTER((int)index < card_handles ? handles[index] : 0)
    if ((int)index >= card_handles) return INVALID;
    *device = handles[index];
    return OK;
}

#define TELL(type, value)        \
    ENTER(device)                \
    *result = (type)(value);     \
    return OK;

EXPORT int nvmlDeviceGetUUID(void *device, char *text, unsigned int size)
{
    ENTER(device)
    snprintf(text, size, "%s", card.uuid);
    return OK;
}

EXPORT int nvmlDeviceGetName(void *device, char *text, unsigned int size)
{
    ENTER(device)
    snprintf(text, size, "%s", card.name);
    return OK;
}

EXPORT int nvmlDeviceGetUtilizationRates(void *device, struct utilization *result)
{
    ENTER(device)
    if (*card.of) return NOT_SUPPORTED;
    result->gpu = card.use, result->memory = 0;
    return OK;
}

EXPORT int nvmlDeviceGetMemoryInfo(void *device, struct memory *result)
{
    ENTER(device)
    *result = (struct memory){card.total, card.total - card.used, card.used};
    return OK;
}

EXPORT int nvmlDeviceGetMemoryInfo_v2(void *device, struct memory_2 *result)
{
    ENTER(device)
    *result = (struct memory_2){result->version, card.total, 0, card.total - card.used, card.used};
    return OK;
}

EXPORT int nvmlDeviceGetTemperature(void *device, int sensor, unsigned int *result)
{
    (void)sensor;
    TELL(unsigned int, card.celsius)
}

EXPORT int nvmlDeviceGetTemperatureV(void *device, int *result) /* {version, sensor, degrees} */
{
    ENTER(device)
    result[2] = card.celsius;
    return OK;
}

EXPORT int nvmlDeviceGetPowerUsage(void *device, unsigned int *result)
{
    TELL(unsigned int, card.milliwatts)
}

EXPORT int nvmlDeviceGetClockInfo(void *device, int clock, unsigned int *result)
{
    TELL(unsigned int, clock == 2 ? 2619 : 1980)
}

EXPORT int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *result)
{
    TELL(unsigned long long, card.celsius >= 90 ? 0x41 : 0x1) /* idle; too hot */
}

EXPORT int nvmlDeviceGetTotalEccErrors(void *device, int kind, int counter, unsigned long long *result)
{
    (void)counter;
    TELL(unsigned long long, kind ? 0 : 3)
}

EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned int *count,
                                                   struct process_info *result)
{
    ENTER(device)
    unsigned int found = 0;
    for (int i = 0; i < now.process_count; i++) {
        struct process *one = &now.processes[i];
        if (strcmp(one->of, card.uuid)) continue;
        if (found < *count)
            result[found] = (struct process_info){
                one->pid, one->mib < 0 ? ~0ULL : (unsigned long long)one->mib << 20, ~0U, ~0U};
        found++;
    }
    code = found > *count ? INSUFFICIENT_SIZE : OK;
    *count = found;
    return code;
}

EXPORT int nvmlDeviceGetMigMode(void *device, unsigned int *current, unsigned int *pending)
{
    ENTER(device)
    *current = *pending = card.split;
    return OK;
}

EXPORT int nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned int *result)
{
    TELL(unsigned int, card.split ? 7 : 0)
}

EXPORT int nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned int index, void **result)
{
    ENTER(device)
    for (int i = 0; i < now.card_count; i++)
        if (!strcmp(now.cards[i].of, card.uuid) && index-- == 0)
            for (int h = card_handles; h < handle_count; h++)
                if (!strcmp(handles[h], now.cards[i].uuid)) return *result = handles[h], OK;
    return NOT_FOUND;
}

EXPORT int nvmlEventSetCreate(void **set)
{
    ENTER(0)
    *set = &watched;
    return OK;
}

EXPORT int nvmlEventSetFree(void *set)
{
    (void)set;
    ENTER(0)
    return OK;
}

EXPORT int nvmlDeviceRegisterEvents(void *device, unsigned long long types, void *set)
{
    (void)types, (void)set;
    ENTER(device)
    return OK;
}

EXPORT int nvmlEventSetWait_v2(void *set, struct event *event, unsigned int timeout_ms)
{
    (void)set, (void)timeout_ms;
    ENTER(0)
    for (int i = 0; i < now.error_count; i++)
        for (int h = 0; h < card_handles; h++)
            if (now.errors[i].number > told && !strcmp(handles[h], now.errors[i].of)) {
                told = now.errors[i].number;
                *event = (struct event){handles[h], 8, now.errors[i].xid, ~0U, ~0U};
                return OK;
            }
    return TIMEOUT;
}
