/* One answer of a chat model through the C ABI.
 *
 *   cmake -S kernels -B build && cmake --build build && cmake --install build --prefix PLACE
 *   cc -I PLACE/include kernels/examples/chat.c -L PLACE/lib -ledgeqat -o chat
 *   LD_LIBRARY_PATH=PLACE/lib ./chat FOLDER '[{"role": "user", "content": "Hello"}]'
 */
#include <stdio.h>
#include <stdlib.h>

#include "edgeqat.h"

enum { kTokens = 256, kMostBytes = 1 << 16 };

static int shown(const char *text) {
  return text && printf("%s", text) >= 0;
}

static int failed(void) {
  fprintf(stderr, "error: %s\n", edgeqat_error());
  return 1;
}

int main(int argc, char **argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: chat FOLDER MESSAGES\n");
    return 2;
  }
  edgeqat_engine *engine = edgeqat_open(argv[1], 0, 0, 0);
  edgeqat_tokenizer *tokenizer = engine ? edgeqat_tokenizer_open(argv[1]) : NULL;
  edgeqat_stream *stream = tokenizer ? edgeqat_stream_new(tokenizer, 0) : NULL;
  edgeqat_chat *chat = stream ? edgeqat_chat_open(argv[1]) : NULL;
  if (!chat) return failed();
  static char prompt[kMostBytes];
  const int64_t bytes = edgeqat_chat_apply(chat, argv[2], 1, prompt, kMostBytes);
  if (bytes < 0) return failed();
  edgeqat_info info;
  edgeqat_get_info(engine, &info);
  int32_t *ids = malloc(info.context * sizeof(int32_t));
  if (!ids) return 1;
  /* without special ids: the template writes them */
  const int64_t count = bytes < kMostBytes
                            ? edgeqat_encode(tokenizer, prompt, bytes, 0, ids, info.context)
                            : info.context;
  if (count < 0) return failed();
  if (count < 1 || count >= info.context) {
    fprintf(stderr, "error: the messages do not fit the context\n");
    return 1;
  }
  const int64_t room = info.context - count;
  edgeqat_sampler *greedy = edgeqat_sampler_new(0, 0, 1, 0);
  edgeqat_generator *generator = edgeqat_generator_new(
      engine, greedy, NULL, 0, ids, count, room < kTokens ? room : kTokens, 1);
  if (!generator) return failed();
  int32_t id;
  while ((id = edgeqat_generator_next(generator)) >= 0)
    if (!shown(edgeqat_stream_next(stream, id, NULL))) return failed();
  if (id == EDGEQAT_ERROR) return failed();
  if (!shown(edgeqat_stream_end(stream, NULL))) return failed();
  printf("\n");
  edgeqat_generator_free(generator);
  edgeqat_sampler_free(greedy);
  free(ids);
  edgeqat_chat_close(chat);
  edgeqat_stream_free(stream);
  edgeqat_tokenizer_close(tokenizer);
  edgeqat_close(engine);
  return 0;
}
