// The Python module `_C`: what was built and what this processor has. No tensor op lives here and
// nothing needs it at run time; `sparsekern info` prints what it says.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

namespace {

std::map<std::string, std::string> build_info() {
  return {{"compiler", SPARSEKERN_COMPILER},
          {"build_type", SPARSEKERN_BUILD_TYPE},
          {"torch_headers", SPARSEKERN_TORCH_HEADERS},
          {"torch_abi", "stable, 2.10 and later"},
          {"isas", SPARSEKERN_ISAS}};
}

std::map<std::string, bool> cpu_features() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return {{"avx2", __builtin_cpu_supports("avx2") != 0},
          {"fma", __builtin_cpu_supports("fma") != 0},
          {"avx512f", __builtin_cpu_supports("avx512f") != 0},
          {"avx512bw", __builtin_cpu_supports("avx512bw") != 0},
          {"avx512vl", __builtin_cpu_supports("avx512vl") != 0},
          {"avx512dq", __builtin_cpu_supports("avx512dq") != 0}};
#else
  return {};
#endif
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts about this build of sparsekern.";
  m.def("build_info", &build_info, "Compiler, build type, torch headers, compiled ISAs.");
  m.def("cpu_features", &cpu_features, "Which instruction sets this processor has.");
}
