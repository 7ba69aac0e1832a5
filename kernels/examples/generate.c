/* Greedy generation through the C ABI.
 *
 *   cmake -S kernels -B build && cmake --build build && cmake --install build --prefix PLACE
 *   cc -I PLACE/include kernels/examples/generate.c -L PLACE/lib -ledgeqat -o generate
 *   LD_LIBRARY_PATH=PLACE/lib ./generate FOLDER 1 15 20       prints the ids that follow 1 15 20
 */
#include <stdio.h>
#include <stdlib.h>

#include "edgeqat.h"

enum { kTokens = 16 };

static int failed(void) {
  fprintf(stderr, "error: %s\n", edgeqat_error());
  return 1;
}

int main(int argc, char **argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: generate FOLDER ID...\n");
    return 2;
  }
  edgeqat_engine *engine = edgeqat_open(argv[1], 0, 0, 0);
  if (!engine) return failed();
  edgeqat_info info;
  edgeqat_get_info(engine, &info);
  edgeqat_sampler *greedy = edgeqat_sampler_new(0, 0, 1, 0);
  float *logits = malloc(info.vocabulary * sizeof(float));
  int32_t *ids = malloc(argc * sizeof(int32_t));
  int64_t count = argc - 2;
  for (int64_t i = 0; i < count; ++i) ids[i] = atoi(argv[2 + i]);
  int status = 0;
  for (int made = 0; made < kTokens; ++made) {
    if (edgeqat_forward(engine, ids, count, logits, 0) != EDGEQAT_OK) {
      status = failed();
      break;
    }
    ids[0] = edgeqat_sample(greedy, logits, info.vocabulary);
    if (ids[0] < 0) {
      status = failed();
      break;
    }
    if (edgeqat_is_stop(engine, ids[0])) break;
    printf(made ? " %d" : "%d", ids[0]);
    count = 1;
  }
  printf("\n");
  free(ids);
  free(logits);
  edgeqat_sampler_free(greedy);
  edgeqat_close(engine);
  return status;
}
