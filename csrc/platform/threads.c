/* SPDX-License-Identifier: Apache-2.0 */
#include "platform/threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "platform/cpu.h"
#include "platform/fork.h"

/* Before it sleeps, a worker looks this many times whether more work has come: about 20 us, so that
 * bulk calls in quick succession do not pay the 5 to 50 us of a wake-up each. */
enum { SPINS = 4000, PIECES = 4, AWAY = 16 };

/* One thread's part of the range; on a cache line of its own, since others only peek at it. */
typedef struct part {
    _Alignas(64) uint64_t next; /* atomic */
    uint64_t end;
} part;

typedef struct job {
    parallel_body body;
    void *arg;
    uint64_t piece;
    unsigned parts;
    unsigned joined; /* atomic; threads of an OpenMP team so far */
    part part[CCMEM_MAX_THREADS];
} job;

/* Where a worker may run; see keep_away(). */
typedef struct place {
    pid_t thread;
    int away;               /* the processor it is kept from; -1: none yet */
    cpu_set_t allowed, now; /* without that, and with */
} place;

static struct pool {
    pthread_mutex_t busy; /* held by the one caller that uses the workers */
    pthread_mutex_t lock; /* guards round, open, joining and place */
    pthread_cond_t wake;
    uint64_t generation; /* atomic; of the process the workers live in */
    unsigned workers;    /* started; numbered from 1, the caller is part 0 */
    unsigned round;      /* atomic for spinners; grows by one with every job */
    int open;            /* the job may still be joined */
    unsigned active;     /* atomic; workers inside the job */
    place place[CCMEM_MAX_THREADS];
    job job;
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER};

static unsigned threads_set; /* atomic; 0: by affinity */

static struct openmp {
    gomp_parallel run;   /* atomic */
    uint64_t generation; /* of the process whose library it is: its threads do not outlive a fork */
} openmp;

void ccmem_set_openmp(void *run) {
    openmp.generation = fork_generation();
    __atomic_store_n(&openmp.run, (gomp_parallel)run, __ATOMIC_RELEASE);
}

ccmem_status ccmem_set_threads(unsigned threads) {
    if (threads < 1 || threads > CCMEM_MAX_THREADS)
        return CCMEM_ERR_ARGUMENT;
    __atomic_store_n(&threads_set, threads, __ATOMIC_RELAXED);
    return CCMEM_OK;
}

unsigned ccmem_threads(void) {
    unsigned n = __atomic_load_n(&threads_set, __ATOMIC_RELAXED);
    if (n)
        return n;
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set))
        return 1;
    n = (unsigned)CPU_COUNT(&set);
    n = n < 1 ? 1 : n > CCMEM_MAX_THREADS ? CCMEM_MAX_THREADS : n;
    return n;
}

static void run_part(job *j, part *p) {
    for (;;) {
        uint64_t begin = __atomic_load_n(&p->next, __ATOMIC_RELAXED);
        if (begin >= p->end)
            return;
        begin = __atomic_fetch_add(&p->next, j->piece, __ATOMIC_RELAXED);
        if (begin >= p->end)
            return;
        uint64_t left = p->end - begin;
        j->body(j->arg, begin, begin + (left < j->piece ? left : j->piece));
    }
}

static void run_job(job *j, unsigned self) {
    for (unsigned i = 0; i < j->parts; i++)
        run_part(j, &j->part[(self + i) % j->parts]);
}

/* Keeps the workers of a job from the processor that its caller keeps busy. Linux may wake a thread
 * beside the one that wakes it when it sees no idle processor; and it does not see one in a virtual
 * machine, where a processor that idles counts as taken away by the host (vcpu_is_preempted() in
 * available_idle_cpu(), kernel/sched), nor where the machine was busy a moment ago (SIS_UTIL). A
 * product of some milliseconds is over before it balances: its second thread would wait for the
 * first. Nothing is done while the caller stays where it is. */
static void keep_away(unsigned parts) {
    const int cpu = sched_getcpu();
    for (unsigned i = 1; i < parts && i <= AWAY && cpu >= 0; i++) {
        place *p = &pool.place[i];
        cpu_set_t now;
        if (p->away == cpu || !p->thread || sched_getaffinity(p->thread, sizeof now, &now))
            continue;
        if (p->away < 0 || !CPU_EQUAL(&now, &p->now)) /* new, or somebody else has moved it */
            p->allowed = now;
        p->now = p->allowed;
        CPU_CLR((size_t)cpu, &p->now);
        if (CPU_COUNT(&p->now) && !sched_setaffinity(p->thread, sizeof p->now, &p->now))
            p->away = cpu;
    }
}

static void *worker(void *arg) {
    unsigned self = (unsigned)(uintptr_t)arg, seen = 0;
    pthread_mutex_lock(&pool.lock);
    pool.place[self] = (place){.thread = (pid_t)syscall(SYS_gettid), .away = -1};
    pthread_mutex_unlock(&pool.lock);
    for (;;) {
        for (int i = 0; i < SPINS; i++) {
            if (__atomic_load_n(&pool.round, __ATOMIC_ACQUIRE) != seen)
                break;
            cpu_relax();
        }
        /* A worker that wakes after the caller has finished the job alone does not hold it up. */
        pthread_mutex_lock(&pool.lock);
        while (!pool.open || pool.round == seen || self >= pool.job.parts)
            pthread_cond_wait(&pool.wake, &pool.lock);
        seen = pool.round;
        __atomic_fetch_add(&pool.active, 1, __ATOMIC_RELAXED);
        pthread_mutex_unlock(&pool.lock);
        run_job(&pool.job, self);
        __atomic_fetch_sub(&pool.active, 1, __ATOMIC_RELEASE);
    }
    return NULL;
}

/* The child of a fork has no workers, and may have been forked while a lock was held. */
static void after_fork(void) {
    pthread_mutex_init(&pool.busy, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pool.workers = 0;
    pool.round = 0;
    pool.open = 0;
    pool.active = 0;
    pool.generation = 0;
    for (unsigned i = 0; i < CCMEM_MAX_THREADS; i++)
        pool.place[i].thread = 0;
}

static void register_after_fork(void) {
    fork_handle(FORK_THREADS, (fork_handlers){.in_child = after_fork});
}

/* Brings the pool to n - 1 workers if it can; returns how many threads there are with the caller.
 */
static unsigned start_workers(unsigned n) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, register_after_fork);
    if (!__atomic_load_n(&pool.generation, __ATOMIC_RELAXED))
        __atomic_store_n(&pool.generation, fork_generation(), __ATOMIC_RELAXED);
    while (pool.workers + 1 < n) {
        pthread_attr_t attr;
        pthread_t thread;
        sigset_t all, old;
        if (pthread_attr_init(&attr))
            break;
        /* Signals are for the application's own threads; but not those that a thread raises itself
         * by an access to the caller's memory: blocked, they would kill the process past its
         * handlers. */
        sigfillset(&all);
        sigdelset(&all, SIGSEGV);
        sigdelset(&all, SIGBUS);
        sigdelset(&all, SIGFPE);
        sigdelset(&all, SIGILL);
        sigdelset(&all, SIGTRAP);
        sigdelset(&all, SIGSYS);
        int failed = pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED) ||
                     pthread_sigmask(SIG_SETMASK, &all, &old);
        if (!failed) {
            failed = pthread_create(&thread, &attr, worker, (void *)(uintptr_t)(pool.workers + 1));
            pthread_sigmask(SIG_SETMASK, &old, NULL);
        }
        pthread_attr_destroy(&attr);
        if (failed)
            break;
        pool.workers++;
    }
    return pool.workers + 1 < n ? pool.workers + 1 : n;
}

/* Shares [0, n) out among so many threads, in smaller pieces than a thread's worth, so that one
 * that finishes early finds something to take. */
static void share_out(job *j, unsigned threads, uint64_t n, uint64_t grain, parallel_body body,
                      void *arg) {
    uint64_t piece = grain / PIECES ? grain / PIECES : 1, pieces = (n + piece - 1) / piece;
    j->body = body;
    j->arg = arg;
    j->piece = piece;
    j->parts = threads;
    for (unsigned i = 0; i < threads; i++) {
        j->part[i].next = pieces * i / threads * piece;
        j->part[i].end = i + 1 == threads ? n : pieces * (i + 1) / threads * piece;
    }
}

void wait_for_byte(const uint8_t *byte, uint8_t value) {
    for (unsigned spin = 0; __atomic_load_n(byte, __ATOMIC_ACQUIRE) != value; spin++) {
        if (spin < SPINS)
            cpu_relax();
        else
            sched_yield();
    }
}

static void run_in_own_threads(job *j) {
    pthread_mutex_lock(&pool.lock);
    keep_away(j->parts);
    pool.open = 1;
    __atomic_fetch_add(&pool.round, 1, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    run_job(j, 0);
    pthread_mutex_lock(&pool.lock);
    pool.open = 0;
    pthread_mutex_unlock(&pool.lock);
    /* Workers may still be inside their last piece; it is short, so spin before yielding. */
    for (unsigned spin = 0; __atomic_load_n(&pool.active, __ATOMIC_ACQUIRE); spin++) {
        if (spin < SPINS)
            cpu_relax();
        else
            sched_yield();
    }
}

/* In each thread of an OpenMP team. */
static void join_team(void *data) {
    job *j = data;
    run_job(j, __atomic_fetch_add(&j->joined, 1, __ATOMIC_RELAXED) % j->parts);
}

void parallel_for(uint64_t n, uint64_t grain, parallel_body body, void *arg) {
    job *j = &pool.job;
    uint64_t worth = n / grain;
    unsigned threads = worth > 1 ? ccmem_threads() : 1;
    uint64_t home = __atomic_load_n(&pool.generation, __ATOMIC_RELAXED);
    gomp_parallel team = __atomic_load_n(&openmp.run, __ATOMIC_ACQUIRE);

    if (threads < 2 || (home && fork_alien(home)) || pthread_mutex_trylock(&pool.busy)) {
        if (n)
            body(arg, 0, n);
        return;
    }
    if (threads > worth)
        threads = (unsigned)worth;
    if (team && !fork_alien(openmp.generation)) {
        share_out(j, threads, n, grain, body, arg);
        j->joined = 0;
        team(join_team, j, threads, 0);
    } else {
        threads = start_workers(threads);
        share_out(j, threads, n, grain, body, arg);
        run_in_own_threads(j);
    }
    pthread_mutex_unlock(&pool.busy);
}
