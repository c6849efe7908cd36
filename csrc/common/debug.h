// Debug mode: whole indices are checked before they are walked, and scratch holds NaN. A debug build is
// always in it, any other build where SPARSEKERN_DEBUG=1 is set when it is loaded (checked by
// sparsekern/_extension.py). Torch-free.
#pragma once
#include <cstdlib>
#include <cstring>

namespace sparsekern {

inline bool is_debugging() {
#if defined(SPARSEKERN_DEBUG)
  return true;
#else
  static const bool is_set = [] {
    const char* wanted = std::getenv("SPARSEKERN_DEBUG");
    return wanted != nullptr && std::strcmp(wanted, "1") == 0;
  }();
  return is_set;
#endif
}

}  // namespace sparsekern
