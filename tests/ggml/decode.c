/* SPDX-License-Identifier: Apache-2.0
 * Stock llama.cpp, driven by lines on the standard input, for the tests of the ggml backend:
 *
 *     decode MODEL THREADS LOAD_MODE [BUFFER_TYPE]
 *
 * LOAD_MODE is llama.cpp's: mmap, none (read into memory), ... With BUFFER_TYPE, all weights go
 * there (--override-tensor '.*=BUFFER_TYPE'). Commands:
 *
 *     tokens N N N ...   evaluates these from an empty cache; prints the logits after the last
 *     flip TENSOR        changes one bit of the tensor's ciphertext, or changes it back
 *     both N N N ...     the same as tokens, in two contexts and two threads at once, five times
 *     fork N N N ...     the same as tokens, in a forked child
 *     free               frees the model, and ends
 *
 * Each answer is one line; "failed N" if llama_decode() returned N. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ggml-backend.h"
#include "llama.h"

enum { MOST = 512 };

typedef uint8_t *(*ciphertext_of)(const char *name, uint64_t *nbytes);

static int die(const char *what) {
    fprintf(stderr, "decode: %s\n", what);
    exit(2);
}

static ggml_backend_buffer_type_t buffer_type(const char *name) {
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        ggml_backend_buffer_type_t type = ggml_backend_dev_buffer_type(ggml_backend_dev_get(i));
        if (type && strcmp(ggml_backend_buft_name(type), name) == 0)
            return type;
    }
    return NULL;
}

typedef struct request {
    struct llama_context *context;
    llama_token tokens[MOST];
    int count, outputs, status;
    float *logits;
} request;

static void parse(char *text, request *r) {
    r->count = 0;
    for (char *word = strtok(text, " "); word && r->count < MOST; word = strtok(NULL, " "))
        r->tokens[r->count++] = atoi(word);
}

static void evaluate(request *r) {
    llama_memory_clear(llama_get_memory(r->context), true);
    r->status = llama_decode(r->context, llama_batch_get_one(r->tokens, r->count));
    if (r->status == 0)
        memcpy(r->logits, llama_get_logits_ith(r->context, -1), (size_t)r->outputs * sizeof(float));
}

static void print(const request *r) {
    if (r->status)
        printf("failed %d", r->status);
    else
        for (int i = 0; i < r->outputs; i++)
            printf("%.9g ", (double)r->logits[i]);
    printf("\n");
    fflush(stdout);
}

static void *evaluate_often(void *arg) {
    request *r = arg, again = *r;
    again.logits = malloc((size_t)r->outputs * sizeof(float));
    evaluate(r);
    for (int i = 0; i < 4 && !r->status; i++) {
        evaluate(&again);
        if (again.status ||
            memcmp(again.logits, r->logits, (size_t)r->outputs * sizeof(float)) != 0)
            r->status = -99; /* not the same again */
    }
    free(again.logits);
    return NULL;
}

static struct llama_context *new_context(struct llama_model *model, int threads) {
    struct llama_context_params parameters = llama_context_default_params();
    parameters.n_ctx = MOST;
    parameters.n_batch = parameters.n_ubatch = MOST;
    parameters.n_threads = parameters.n_threads_batch = threads;
    struct llama_context *context = llama_init_from_model(model, parameters);
    return context ? context : (die("no context"), NULL);
}

static void quiet(enum ggml_log_level level, const char *text, void *data) {
    (void)data;
    if (level == GGML_LOG_LEVEL_ERROR || level == GGML_LOG_LEVEL_WARN)
        fputs(text, stderr);
}

int main(int argc, char **argv) {
    if (argc < 4)
        die("usage: decode MODEL THREADS LOAD_MODE [BUFFER_TYPE]");
    llama_log_set(quiet, NULL);
    ggml_backend_load_all();
    llama_backend_init();
    struct llama_model_params parameters = llama_model_default_params();
    struct llama_model_tensor_buft_override overrides[2] = {{".*", NULL}, {NULL, NULL}};
    parameters.load_mode = llama_load_mode_from_str(argv[3]);
    if (argc > 4) {
        overrides[0].buft = buffer_type(argv[4]);
        if (!overrides[0].buft)
            die("there is no such buffer type");
        parameters.tensor_buft_overrides = overrides;
    }
    parameters.use_extra_bufts = false; /* no copies in other orders, which would not be found */
    struct llama_model *model = llama_model_load_from_file(argv[1], parameters);
    if (!model)
        die("the model cannot be loaded");
    const int outputs = llama_vocab_n_tokens(llama_model_get_vocab(model)), threads = atoi(argv[2]);
    request requests[2];
    for (int i = 0; i < 2; i++) {
        requests[i].context = new_context(model, threads);
        requests[i].outputs = outputs;
        requests[i].logits = malloc((size_t)outputs * sizeof(float));
    }
    printf("ready\n");
    fflush(stdout);
    static char line[1 << 14];
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        char *rest = strchr(line, ' ');
        if (rest)
            *rest++ = 0;
        if (strcmp(line, "free") == 0)
            break;
        if (!rest)
            die("what?");
        if (strcmp(line, "flip") == 0) {
            ggml_backend_reg_t reg = ggml_backend_reg_by_name("pyccmem");
            ciphertext_of find =
                reg ? (ciphertext_of)ggml_backend_reg_get_proc_address(reg, "pyccmem_ciphertext")
                    : NULL;
            uint64_t nbytes = 0;
            uint8_t *ciphertext = find ? find(rest, &nbytes) : NULL;
            if (ciphertext)
                ciphertext[nbytes / 2] ^= 4;
            printf("%s\n", ciphertext ? "flipped" : "none");
            fflush(stdout);
        } else if (strcmp(line, "tokens") == 0) {
            parse(rest, &requests[0]);
            evaluate(&requests[0]);
            print(&requests[0]);
        } else if (strcmp(line, "both") == 0) {
            pthread_t threads_of[2];
            parse(rest, &requests[0]);
            requests[1].count = requests[0].count;
            memcpy(requests[1].tokens, requests[0].tokens, sizeof requests[0].tokens);
            for (int i = 0; i < 2; i++)
                pthread_create(&threads_of[i], NULL, evaluate_often, &requests[i]);
            for (int i = 0; i < 2; i++)
                pthread_join(threads_of[i], NULL);
            if (!requests[0].status && memcmp(requests[0].logits, requests[1].logits,
                                              (size_t)outputs * sizeof(float)) != 0)
                requests[0].status = -98; /* the two differ */
            if (!requests[0].status)
                requests[0].status = requests[1].status;
            print(&requests[0]);
        } else if (strcmp(line, "fork") == 0) {
            parse(rest, &requests[0]);
            fflush(stdout);
            pid_t child = fork();
            if (child == 0) {
                evaluate(&requests[0]);
                print(&requests[0]);
                _exit(0);
            }
            int status;
            waitpid(child, &status, 0);
            if (status) {
                printf("ended by %d\n", status);
                fflush(stdout);
            }
        } else {
            die("what?");
        }
    }
    for (int i = 0; i < 2; i++) {
        llama_free(requests[i].context);
        free(requests[i].logits);
    }
    llama_model_free(model);
    llama_backend_free();
    return 0;
}
