// Which of the kernels that are compiled once per instruction set (setup.py) run here.

#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>
#include <vector>

// Declares the tables `name` that an operation's kernel.cpp defines, one in the namespace of each
// instruction set. COLLAMO_TABLES lists them, widest first; only coattention has one for
// avx2_narrow.
#ifdef COLLAMO_WITH_X86
#define COLLAMO_DECLARE_TABLES(Kernels, name) \
  namespace avx512 {                          \
  extern const Kernels name;                  \
  }                                           \
  namespace avx2 {                            \
  extern const Kernels name;                  \
  }                                           \
  namespace avx2_narrow {                     \
  extern const Kernels name;                  \
  }                                           \
  namespace baseline {                        \
  extern const Kernels name;                  \
  }
#define COLLAMO_TABLES(name) {&avx512::name, &avx2::name, &baseline::name}
#else
#define COLLAMO_DECLARE_TABLES(Kernels, name) \
  namespace baseline {                        \
  extern const Kernels name;                  \
  }
#define COLLAMO_TABLES(name) {&baseline::name}
#endif

namespace collamo::cpu {

// The instruction sets of this processor, widest first. COLLAMO_CPU_CAPABILITY may name one of
// them; then the list starts there.
const std::vector<std::string>& capabilities();

// The tables that run here, in their order. Never none: every processor runs the baseline.
template <typename Kernels>
std::vector<const Kernels*> runnable(std::initializer_list<const Kernels*> tables) {
  const std::vector<std::string>& names = capabilities();
  std::vector<const Kernels*> kept;
  for (const Kernels* table : tables) {
    if (std::find(names.begin(), names.end(), table->name) != names.end()) kept.push_back(table);
  }
  return kept;
}

template <typename Kernels>
const Kernels& widest(std::initializer_list<const Kernels*> tables) {
  return *runnable(tables).front();
}

}  // namespace collamo::cpu
