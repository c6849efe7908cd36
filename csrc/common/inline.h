// Portable spelling of compiler hints, and of functions that run on GPUs as well. Torch-free.
#pragma once

#if defined(__GNUC__)
#define SPARSEKERN_INLINE inline __attribute__((always_inline))
#define SPARSEKERN_PREFETCH(address) __builtin_prefetch(address)
#else
#define SPARSEKERN_INLINE inline
#define SPARSEKERN_PREFETCH(address) ((void)(address))
#endif

// Unrolls the next loop `count` times (register arrays are only kept in registers when the loop
// over them disappears).
#if defined(__clang__) || defined(__CUDACC__)
#define SPARSEKERN_UNROLL(count) _Pragma("unroll")
#elif defined(__GNUC__)
#define SPARSEKERN_PRAGMA(text) _Pragma(#text)
#define SPARSEKERN_UNROLL(count) SPARSEKERN_PRAGMA(GCC unroll count)
#else
#define SPARSEKERN_UNROLL(count)
#endif

// What kernels compute and how they find their work compiles for the host too, where it is tested.
#if defined(__CUDACC__)
#define SPARSEKERN_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SPARSEKERN_HOST_DEVICE inline
#endif
