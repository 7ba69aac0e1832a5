// edgeqat-check [FOLDER]: the rows of the registry against the scalar one, threads, prompt lookup;
// engines on a folder.

#include "expect.h"
#include "registry.h"

int main(int count, char** arguments) {
  edgeqat::Expect expect;
  std::string names;
  for (const edgeqat::Isa* isa : edgeqat::registry())
    if (isa->available()) names += std::string(" ") + isa->name;
  if (count > 1) edgeqat::check_engine(expect, arguments[1]);
  else edgeqat::check_rows(expect), edgeqat::check_pool(expect), edgeqat::check_lookup(expect);
  std::printf("%d checks, %d failed; available:%s\n", expect.checks, expect.failures,
              names.c_str());
  return expect.failures ? 1 : 0;
}
