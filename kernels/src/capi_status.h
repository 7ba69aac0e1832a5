// Exceptions become a status and a line of text, which the calling thread keeps.
#pragma once

#include <new>
#include <stdexcept>
#include <string>

#include "edgeqat.h"
#include "error.h"

namespace edgeqat {

int failed(int status, const std::string& message);  // gives the status back
void succeeded();

template <class Work>
int guarded(const Work& work) {
  succeeded();
  try {
    work();
    return EDGEQAT_OK;
  } catch (const Unsupported& error) {
    return failed(EDGEQAT_UNSUPPORTED, error.what());
  } catch (const std::bad_alloc&) {
    return failed(EDGEQAT_FAILED, "memory: not enough of it; choose a smaller context");
  } catch (const std::exception& error) {
    return failed(EDGEQAT_FAILED, error.what());
  }
}

}  // namespace edgeqat
