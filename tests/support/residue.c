/* SPDX-License-Identifier: Apache-2.0
 * Calls a function on a stack that the caller can look at afterwards. */
#include <stdint.h>
#include <ucontext.h>

enum { ARGUMENTS = 16 };

typedef uint64_t function(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                          uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                          uint64_t, uint64_t);

static ucontext_t caller, callee;
static function *called;
static uint64_t argument[ARGUMENTS], result;

/* More arguments than the function takes do no harm: whoever calls takes them away again. */
static void run(void) {
    const uint64_t *a = argument;
    result = called(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12],
                    a[13], a[14], a[15]);
}

/* What the function returns when it is called with these arguments on `size` bytes of stack. */
uint64_t residue_call(function *f, const uint64_t *arguments, uint8_t *stack, uint64_t size) {
    called = f;
    for (int i = 0; i < ARGUMENTS; i++)
        argument[i] = arguments[i];
    getcontext(&callee);
    callee.uc_stack.ss_sp = stack;
    callee.uc_stack.ss_size = size;
    callee.uc_link = &caller;
    makecontext(&callee, run, 0);
    swapcontext(&caller, &callee);
    return result;
}
