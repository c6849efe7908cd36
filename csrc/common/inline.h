// Portable spelling of three compiler hints. Torch-free.
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
#if defined(__clang__)
#define SPARSEKERN_UNROLL(count) _Pragma("unroll")
#elif defined(__GNUC__)
#define SPARSEKERN_PRAGMA(text) _Pragma(#text)
#define SPARSEKERN_UNROLL(count) SPARSEKERN_PRAGMA(GCC unroll count)
#else
#define SPARSEKERN_UNROLL(count)
#endif
