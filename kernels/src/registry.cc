#include "registry.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>

#include "error.h"

namespace edgeqat {
namespace {

std::atomic<const Isa*> active{nullptr};

const Isa& wanted_isa() {
  const char* wanted = std::getenv("EDGEQAT_ISA");
  if (wanted && *wanted) return isa_named(wanted);
  for (const Isa* isa : registry())
    if (isa->available()) return *isa;
  return kScalar;
}

}  // namespace

const std::vector<const Isa*>& registry() {
  static const std::vector<const Isa*> rows = {
#if defined(EDGEQAT_AMX)
      &kAmx,
#endif
#if defined(__x86_64__)
      &kAvx512Vnni, &kAvx2,
#elif defined(__aarch64__) && defined(__linux__)
      &kNeonI8mm, &kNeonDotprod,
#endif
      &kScalar};
  return rows;
}

const Isa& isa_named(const char* name) {
  std::string usable;
  for (const Isa* isa : registry()) {
    if (isa->available()) usable += std::string(usable.empty() ? "" : ", ") + isa->name;
    if (std::strcmp(isa->name, name) == 0 && isa->available()) return *isa;
  }
  throw Error(std::string("EDGEQAT_ISA: '") + name + "' is not available here; choose from " +
              usable);
}

const Isa& active_isa() {
  const Isa* isa = active.load();
  if (!isa) active = isa = &wanted_isa();  // threads that come at once choose the same row
  return *isa;
}

void choose_isa(const char* name) { active = name ? &isa_named(name) : nullptr; }

}  // namespace edgeqat
