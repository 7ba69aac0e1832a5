/* The C ABI of the EdgeQAT engine: packed folders in, logits out. No C++, no exception crosses it.
 *
 * Functions that can fail return EDGEQAT_OK or another status (pointers: NULL); the reason is then
 * in edgeqat_error(), one line, valid on the calling thread until its next call. An engine may be
 * used by one thread at a time; different engines by different threads.
 */
#ifndef EDGEQAT_H
#define EDGEQAT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EDGEQAT_API __attribute__((visibility("default")))

enum edgeqat_status {
  EDGEQAT_OK = 0,
  EDGEQAT_FAILED = 1,      /* wrong arguments, a damaged folder, no memory */
  EDGEQAT_UNSUPPORTED = 2  /* a sound folder that this engine does not run */
};

typedef struct edgeqat_engine edgeqat_engine;

typedef struct edgeqat_info {
  int64_t vocabulary;
  int64_t context;       /* longest sequence */
  int64_t position;      /* tokens so far */
  int64_t matrix_bytes;  /* read by one decoding step */
  int32_t threads;
  const char *isa;       /* static */
  int64_t layers, hidden;
  int64_t embedding_bytes;  /* on top of matrix_bytes; 0 where it is the head's matrix */
} edgeqat_info;

EDGEQAT_API const char *edgeqat_error(void);
EDGEQAT_API int edgeqat_last_status(void);

/* Instruction sets of this build, best first: name i, NULL behind the last; *available says whether
 * this machine has it. */
EDGEQAT_API const char *edgeqat_isa(int index, int *available);
/* The one that engines and training use: EDGEQAT_ISA, or the best, as the first use finds it. */
EDGEQAT_API const char *edgeqat_active_isa(void);
/* Another one for later calls and engines; NULL: the next use looks at EDGEQAT_ISA again. */
EDGEQAT_API int edgeqat_choose_isa(const char *name);

/* A packed folder, or random weights of a named shape at a scheme such as w4a8kv4. threads 0:
 * physical cores; context 0: the model's. half: expand the weights to fp16, the float baseline. */
EDGEQAT_API edgeqat_engine *edgeqat_open(const char *folder, int threads, int64_t context,
                                         int half);
EDGEQAT_API edgeqat_engine *edgeqat_open_random(const char *shape, const char *scheme,
                                                int threads, int64_t context, int half);
EDGEQAT_API void edgeqat_close(edgeqat_engine *engine);
EDGEQAT_API int edgeqat_get_info(const edgeqat_engine *engine, edgeqat_info *info);
/* Whether a token ends a text, by generation_config.json or config.json: 1 or 0. */
EDGEQAT_API int edgeqat_is_stop(const edgeqat_engine *engine, int32_t id);

/* Appends tokens; logits [vocabulary] of the last one, with `all` [count][vocabulary]. */
EDGEQAT_API int edgeqat_forward(edgeqat_engine *engine, const int32_t *ids, int64_t count,
                                float *logits, int all);
/* The same with all logits; outputs [layers][count][hidden]: what each decoder layer leaves. */
EDGEQAT_API int edgeqat_trace(edgeqat_engine *engine, const int32_t *ids, int64_t count,
                              float *logits, float *outputs);
/* Forgets the tokens from `position` on, or all of them. */
EDGEQAT_API int edgeqat_rewind(edgeqat_engine *engine, int64_t position);
EDGEQAT_API int edgeqat_reset(edgeqat_engine *engine);

/* More sequences on an engine, each with a cache of its own; context 0: that of the engine. The
 * engine outlives them. All calls here, and those of generators, use their engine: one thread at a
 * time. A sequence may be NULL in edgeqat_part and in edgeqat_sequence_free alone. */
typedef struct edgeqat_sequence edgeqat_sequence;
EDGEQAT_API edgeqat_sequence *edgeqat_sequence_new(const edgeqat_engine *engine, int64_t context);
EDGEQAT_API void edgeqat_sequence_free(edgeqat_sequence *sequence);
EDGEQAT_API int64_t edgeqat_sequence_position(const edgeqat_sequence *sequence);
EDGEQAT_API int edgeqat_sequence_rewind(edgeqat_sequence *sequence, int64_t position);

/* Appends the tokens of each part, weights read once for all; logits [sum of wanted][vocabulary] of
 * each part's last `wanted` tokens, in order. No number depends on the other parts. A failed call
 * appends nothing. */
typedef struct edgeqat_part {
  edgeqat_sequence *sequence; /* they differ; NULL: the one that the engine begins with */
  const int32_t *ids;
  int64_t count;
  int64_t wanted; /* 0 to count */
} edgeqat_part;
EDGEQAT_API int edgeqat_forward_parts(edgeqat_engine *engine, const edgeqat_part *parts,
                                      int64_t count, float *logits);

/* Sampling: temperature 0 is greedy, top_k 0 and top_p 1 keep all tokens. */
typedef struct edgeqat_sampler edgeqat_sampler;
EDGEQAT_API edgeqat_sampler *edgeqat_sampler_new(float temperature, int64_t top_k, float top_p,
                                                 uint64_t seed);
/* A token id, or -1 with edgeqat_error() set (out of memory). */
EDGEQAT_API int32_t edgeqat_sample(edgeqat_sampler *sampler, const float *logits, int64_t count);
EDGEQAT_API void edgeqat_sampler_free(edgeqat_sampler *sampler);

/* Tokens that continue the engine's first sequence by `ids` and at most `limit` more, one by one.
 * lookup: what followed the last tokens where they came before is guessed to follow again and is
 * checked in one pass, where that pays; the tokens are the same. before: what the sequence holds,
 * for lookup alone; may be NULL with 0. Engine and sampler outlive the generator; calls that change
 * the sequence end its use. */
typedef struct edgeqat_generator edgeqat_generator;
enum { EDGEQAT_END = -1, EDGEQAT_ERROR = -2 };
EDGEQAT_API edgeqat_generator *edgeqat_generator_new(edgeqat_engine *engine,
                                                     edgeqat_sampler *sampler,
                                                     const int32_t *before, int64_t before_count,
                                                     const int32_t *ids, int64_t count,
                                                     int64_t limit, int lookup);
/* The next token; EDGEQAT_END behind the limit or before a token that ends a text; EDGEQAT_ERROR
 * with edgeqat_error() set. */
EDGEQAT_API int32_t edgeqat_generator_next(edgeqat_generator *generator);
/* Between two calls the sequence may hold some right guesses beyond the tokens that were given.
 * This forgets them, where a caller stops early and goes on with the sequence; the generator is
 * over. */
EDGEQAT_API int edgeqat_generator_end(edgeqat_generator *generator);
/* How many guessed tokens were checked, and how many of them were right. */
EDGEQAT_API int edgeqat_generator_guesses(const edgeqat_generator *generator, int64_t *guessed,
                                          int64_t *right);
EDGEQAT_API void edgeqat_generator_free(edgeqat_generator *generator);

/* Text to token ids and back, by the folder's tokenizer.json, with the ids of the `tokenizers`
 * library. EDGEQAT_UNSUPPORTED: a tokenizer with a part that the engine lacks; the error names it.
 * One thread at a time. */
typedef struct edgeqat_tokenizer edgeqat_tokenizer;
EDGEQAT_API edgeqat_tokenizer *edgeqat_tokenizer_open(const char *folder);
EDGEQAT_API void edgeqat_tokenizer_close(edgeqat_tokenizer *tokenizer);
/* The count of ids, of which the first `capacity` are written; -1: edgeqat_error(). bytes -1: the
 * text ends with a NUL. special: with the ids that the tokenizer puts around a text. Bytes that are
 * not UTF-8 count as U+FFFD, as Python's errors="replace" has it. */
EDGEQAT_API int64_t edgeqat_encode(edgeqat_tokenizer *tokenizer, const char *text, int64_t bytes,
                                   int special, int32_t *ids, int64_t capacity);
/* The bytes of the text without its NUL, of which as many as fit are written; -1: edgeqat_error().
 * special: with the text of special tokens. Unknown ids have no text. */
EDGEQAT_API int64_t edgeqat_decode(const edgeqat_tokenizer *tokenizer, const int32_t *ids,
                                   int64_t count, int special, char *text, int64_t capacity);

/* The text of ids that come one by one, in whole characters. A text and its count of bytes (or
 * NULL: edgeqat_error()) are valid until the stream's next call. The tokenizer outlives it. */
typedef struct edgeqat_stream edgeqat_stream;
EDGEQAT_API edgeqat_stream *edgeqat_stream_new(const edgeqat_tokenizer *tokenizer, int special);
EDGEQAT_API const char *edgeqat_stream_next(edgeqat_stream *stream, int32_t id, int64_t *bytes);
/* What was held back; the stream begins anew. */
EDGEQAT_API const char *edgeqat_stream_end(edgeqat_stream *stream, int64_t *bytes);
EDGEQAT_API void edgeqat_stream_free(edgeqat_stream *stream);

/* The folder's chat template: chat_template.jinja, or that of tokenizer_config.json. A construct
 * of Jinja that the engine lacks is EDGEQAT_UNSUPPORTED; the error names it. */
typedef struct edgeqat_chat edgeqat_chat;
EDGEQAT_API edgeqat_chat *edgeqat_chat_open(const char *folder);
EDGEQAT_API void edgeqat_chat_close(edgeqat_chat *chat);
/* The text of messages, JSON such as [{"role": "user", "content": "Hello"}], with the beginning of
 * an answer or without. The bytes of the text without its NUL, of which as many as fit are
 * written; -1: edgeqat_error(). Encode it without special ids: the template writes them. */
EDGEQAT_API int64_t edgeqat_chat_apply(const edgeqat_chat *chat, const char *messages,
                                       int add_generation_prompt, char *text, int64_t capacity);

/* Physical cores this process may use. */
EDGEQAT_API int edgeqat_cores(void);

/* Bytes a second at which `threads` (0: physical cores) read `bytes` of memory in a plain loop: the
 * limit of decoding. */
EDGEQAT_API int edgeqat_read_speed(int64_t bytes, int threads, double *bytes_per_second);

/* Single kernels of a named instruction set, for tests and measurements. */

/* Codes [rows][columns] of tiles as in docs/format.md. */
EDGEQAT_API int edgeqat_unpack(const uint8_t *tiles, int bits, int64_t rows, int64_t columns,
                               int8_t *codes);
/* Codes and scale of each row of x [rows][columns]. */
EDGEQAT_API int edgeqat_quantize(const char *isa, const float *x, int64_t rows, int64_t columns,
                                 int bits, float clip, int8_t *codes, float *scale);
/* Codes and fp16 scale of each row of x, at most 128 columns: keys and values of 2 to 4 bits as the
 * cache stores them. */
EDGEQAT_API int edgeqat_quantize_searched(const char *isa, const float *x, int64_t rows,
                                          int64_t columns, int bits, int8_t *codes,
                                          uint16_t *scale);
/* out [tokens][rows] of activation codes [tokens][columns] and packed weights. group_size 0: one
 * group; scales [R][G][16] may be NULL: all 1. */
EDGEQAT_API int edgeqat_product(const char *isa, const uint8_t *tiles, const uint16_t *scales,
                                int bits, int64_t rows, int64_t columns, int64_t group_size,
                                const int8_t *codes, const float *code_scale, int64_t tokens,
                                float *out);

/* Training, on the threads of the caller. Values [rows][columns] to the nearest levels and back,
 * each function one walk over them. */

/* Calls each(context) on `threads` threads and waits for all of them; libgomp's GOMP_parallel is
 * one (flags 0). NULL: the calling thread does everything. */
typedef void (*edgeqat_run_threads)(void (*each)(void *context), void *context, unsigned threads,
                                    unsigned flags);
typedef struct {
  edgeqat_run_threads run;
  int32_t threads;
} edgeqat_team;

/* Learned scales: scale [scale_rows][G], scale_rows 1 or `rows`; groups of group_size columns
 * (0: one group). `beta` is subtracted before and added after. */
EDGEQAT_API int edgeqat_lsq(edgeqat_team team, const float *x, const float *scale, float beta,
                            int64_t rows, int64_t columns, int64_t scale_rows, int64_t group_size,
                            int bits, float *out);
/* scale [rows][G] of least squared error for learned scales; importance [columns] weighs it, or
 * NULL. with_sign: the largest magnitude is at the lowest code, so that scales may be negative. */
EDGEQAT_API int edgeqat_mse_scale(edgeqat_team team, const float *x, const float *importance,
                                  int64_t rows, int64_t columns, int64_t group_size, int bits,
                                  int with_sign, float *scale);
/* From the gradient of `out` that of x, and slopes [rows][G][2]: what each row and group adds to
 * those of scale and beta. */
EDGEQAT_API int edgeqat_lsq_backward(edgeqat_team team, const float *x, const float *scale,
                                     float beta, const float *grad, int64_t rows, int64_t columns,
                                     int64_t scale_rows, int64_t group_size, int bits,
                                     float *grad_x, float *slopes);
/* One scale a row: of clip * absmax (searched 0; half_scale rounds it to fp16), or of least squared
 * error as edgeqat_quantize_searched has it. clipped [rows][columns] may be NULL. */
EDGEQAT_API int edgeqat_fake_quantize(edgeqat_team team, const float *x, int64_t rows,
                                      int64_t columns, int bits, int searched, float clip,
                                      int half_scale, float *out, uint8_t *clipped);

/* Batch norm of x [rows][channels] and the clamp to [low, high] behind it:
 * out = clamp((x - mean) / sqrt(variance + epsilon) * gain + bias); mean and variance [channels] of
 * the rows are written, the variance over `rows`. Both counts are at least 1. */
EDGEQAT_API int edgeqat_batch_norm(edgeqat_team team, const float *x, int64_t rows,
                                   int64_t channels, const float *gain, const float *bias,
                                   float epsilon, float low, float high, float *mean,
                                   float *variance, float *out);
/* From the gradient of `out` those of x, gain and bias; mean and variance as the forward call wrote
 * them. */
EDGEQAT_API int edgeqat_batch_norm_backward(edgeqat_team team, const float *x, const float *grad,
                                            int64_t rows, int64_t channels, const float *gain,
                                            const float *bias, float epsilon, float low, float high,
                                            const float *mean, const float *variance,
                                            float *grad_x, float *grad_gain, float *grad_bias);

#ifdef __cplusplus
}
#endif

#endif
