#include "capability.h"

#include <cstdlib>

namespace collamo::cpu {
namespace {

std::vector<std::string> capabilities_of_this_processor() {
  std::vector<std::string> names;
#ifdef COLLAMO_WITH_X86
  __builtin_cpu_init();
  const bool fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    names.push_back("avx512");
  }
  if (fma) names.insert(names.end(), {"avx2", "avx2_narrow"});
#endif
  names.push_back("baseline");
  return names;
}

std::vector<std::string> allowed_capabilities() {
  std::vector<std::string> names = capabilities_of_this_processor();
  const char* requested = std::getenv("COLLAMO_CPU_CAPABILITY");
  const auto first = std::find(names.begin(), names.end(), requested ? requested : "");
  if (first != names.end()) names.erase(names.begin(), first);
  return names;
}

}  // namespace

const std::vector<std::string>& capabilities() {
  static const std::vector<std::string> names = allowed_capabilities();
  return names;
}

}  // namespace collamo::cpu
