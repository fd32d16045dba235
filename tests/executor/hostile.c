/* What a hostile or odd command does to its keeper. Static: runs in any image. Prints what worked. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void attack_keeper(void) {
    char path[64];
    int opened = 0;
    if (ptrace(PTRACE_ATTACH, 1, 0, 0) == 0) puts("ptrace");
    if (open("/proc/1/mem", O_RDWR) >= 0) puts("mem");
    for (int fd = 0; fd < 64; fd++) {
        snprintf(path, sizeof path, "/proc/1/fd/%d", fd);
        opened += open(path, O_RDWR) >= 0 || truncate(path, 0) == 0;
    }
    if (opened) puts("descriptors");
    kill(1, SIGKILL);
    kill(1, SIGSTOP);
    puts("alive");
}

static void attack_files(const char *directory) {
    const char *names[] = {"run", "log", "start"};
    if (chdir(directory)) puts("no claim");
    for (int i = 0; i < 3; i++) {
        int fd = open(names[i], O_RDWR);
        if (fd < 0) continue;
        printf("%s\n", names[i]);
        flock(fd, LOCK_EX);
        fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096);
        if (ftruncate(fd, 1LL << 40)) perror("truncate");
    }
    puts("looked");
}

static void put(const char *name, const char *content, size_t size) {
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0666);
    if (fd < 0 || write(fd, content, size) != (ssize_t)size) puts("can't forge");
    close(fd);
}

/* A whole new claim, as the host would lay it out. */
static void forge(const char *directory) {
    static const char start[] = "hivemind-start 1\0" "9999\0" "9999\0" "2\0" "0\0" "/bin/echo\0" "forged";
    if (chdir(directory)) puts("no claim");
    put("run", "", 0);
    put("log", "", 0);
    put("start", start, sizeof start);
    puts("forged");
}

static void list_descriptors(void) {
    for (int fd = 0; fd < 1024; fd++)
        if (fcntl(fd, F_GETFD) >= 0) printf("%d ", fd);
    printf("%s\n", getsid(0) == getpid() ? "leader" : "follower");
}

static void leave_orphans(int count) {
    for (int i = 0; i < count; i++) {
        if (fork() != 0) continue;
        signal(SIGTERM, SIG_IGN);
        setsid();
        for (;;) pause();
    }
    puts("left");
}

/* Raw: the C libraries keep two or three signals to themselves. */
static void name_signals(void) {
    uint64_t all = ~0ULL;
    siginfo_t info;
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, NULL, sizeof all);
    puts("ready");
    for (;;) {
        long got = syscall(SYS_rt_sigtimedwait, &all, &info, NULL, sizeof all);
        printf("%ld\n", got);
        if (got == SIGUSR1) exit(9);
    }
}

/* A daemon with the command's pipes open, that nothing but SIGKILL ends. */
static void ignore_all(void) {
    for (int i = 1; i <= 64; i++) signal(i, SIG_IGN);
    puts("ready");
    for (;;) pause();
}

static void eat_memory(void) {
    for (;;) memset(malloc(1 << 20), 1, 1 << 20);
}

/* Half, then the other half when the host says so. */
static void count(void) {
    for (int i = 0; i < 20000; i++) {
        printf("%d\n", i);
        while (i == 10000 && access("/.hivemind/go", F_OK)) usleep(1000);
    }
}

/* Asks for a socket by the number that it has for 32-bit programs. */
static void call_as_32_bits(void) {
#ifdef __x86_64__
    long answer = 359, family = 40;
    __asm__ volatile("int $0x80" : "+a"(answer) : "b"(family), "c"(1), "d"(0) : "memory");
    printf("answered %ld\n", answer);
#else
    kill(getpid(), SIGSYS);
#endif
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    const char *what = argc > 1 ? argv[1] : "";
    if (strcmp(what, "keeper") == 0) attack_keeper();
    if (strcmp(what, "files") == 0) attack_files(argv[2]);
    if (strcmp(what, "forge") == 0) forge(argv[2]);
    if (strcmp(what, "descriptors") == 0) list_descriptors();
    if (strcmp(what, "orphans") == 0) leave_orphans(atoi(argv[2]));
    if (strcmp(what, "signals") == 0) name_signals();
    if (strcmp(what, "ignore") == 0) ignore_all();
    if (strcmp(what, "eat") == 0) eat_memory();
    if (strcmp(what, "count") == 0) count();
    if (strcmp(what, "32") == 0) call_as_32_bits();
    if (strcmp(what, "segv") == 0) kill(getpid(), SIGSEGV);
    return 0;
}
