// Functions that are compiled twice.

#pragma once

// A second copy for AVX2, chosen when the library is loaded. Not under a sanitizer, which is
// not ready by then.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define COLLAMO_ALSO_AVX2 [[gnu::target_clones("avx2", "default")]]
#else
#define COLLAMO_ALSO_AVX2
#endif
