// How this library was built, for `sparsekern info`.

extern "C" __attribute__((visibility("default"))) const char* sparsekern_cuda_build() {
  return SPARSEKERN_CUDA_BUILD;
}
