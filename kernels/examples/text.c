/* Text in and text out through the C ABI.
 *
 *   cmake -S kernels -B build && cmake --build build && cmake --install build --prefix PLACE
 *   cc -I PLACE/include kernels/examples/text.c -L PLACE/lib -ledgeqat -o text
 *   LD_LIBRARY_PATH=PLACE/lib ./text FOLDER "Once upon a time"      prints how it goes on
 */
#include <stdio.h>
#include <stdlib.h>

#include "edgeqat.h"

enum { kTokens = 32 };

static int failed(void) {
  fprintf(stderr, "error: %s\n", edgeqat_error());
  return 1;
}

int main(int argc, char **argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: text FOLDER TEXT\n");
    return 2;
  }
  edgeqat_engine *engine = edgeqat_open(argv[1], 0, 0, 0);
  edgeqat_tokenizer *tokenizer = engine ? edgeqat_tokenizer_open(argv[1]) : NULL;
  edgeqat_stream *stream = tokenizer ? edgeqat_stream_new(tokenizer, 0) : NULL;
  if (!stream) return failed();
  edgeqat_info info;
  edgeqat_get_info(engine, &info);
  int32_t *ids = malloc(info.context * sizeof(int32_t));
  float *logits = malloc(info.vocabulary * sizeof(float));
  int64_t count = edgeqat_encode(tokenizer, argv[2], -1, 1, ids, info.context);
  if (count < 1 || count > info.context - kTokens) {
    fprintf(stderr, "error: the text holds %d tokens\n", (int)count);
    return 1;
  }
  edgeqat_sampler *greedy = edgeqat_sampler_new(0, 0, 1, 0);
  for (int made = 0; made < kTokens; ++made) {
    if (edgeqat_forward(engine, ids, count, logits, 0) != EDGEQAT_OK) return failed();
    ids[0] = edgeqat_sample(greedy, logits, info.vocabulary);
    if (ids[0] < 0) return failed();
    if (edgeqat_is_stop(engine, ids[0])) break;
    printf("%s", edgeqat_stream_next(stream, ids[0], NULL));
    count = 1;
  }
  printf("%s\n", edgeqat_stream_end(stream, NULL));
  free(ids);
  free(logits);
  edgeqat_sampler_free(greedy);
  edgeqat_stream_free(stream);
  edgeqat_tokenizer_close(tokenizer);
  edgeqat_close(engine);
  return 0;
}
