#include "capi_status.h"

namespace edgeqat {
namespace {

thread_local std::string last_error;
thread_local int last_status = EDGEQAT_OK;

}  // namespace

int failed(int status, const std::string& message) {
  last_error = message;
  for (char& c : last_error)
    if (static_cast<unsigned char>(c) < ' ') c = ' ';
  return last_status = status;
}

void succeeded() {
  last_error.clear();
  last_status = EDGEQAT_OK;
}

}  // namespace edgeqat

const char* edgeqat_error(void) { return edgeqat::last_error.c_str(); }

int edgeqat_last_status(void) { return edgeqat::last_status; }
