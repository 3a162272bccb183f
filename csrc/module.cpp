// The Python module collamo_kernels._C. Importing it registers the operators of every op.cpp;
// build_info() says how it was built and what this processor can do.

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "capability.h"

namespace py = pybind11;

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#elif defined(_MSC_VER)
  return "msvc " + std::to_string(_MSC_VER);
#else
  return "unknown";
#endif
}

// The newest stable ABI of torch whose functions this binary may use, e.g. "2.11".
std::string abi_target() {
  constexpr uint64_t version = TORCH_TARGET_VERSION;
  return std::to_string(version >> 56) + "." + std::to_string((version >> 48) & 0xff);
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = compiler();
  info["abi_target"] = abi_target();
  info["cpu_capability"] = collamo::cpu::capabilities().front();
#ifdef COLLAMO_WITH_CUDA
  info["cuda"] = true;
#else
  info["cuda"] = false;
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled kernels of collamo_kernels";
  module.def("build_info", &build_info, "How this extension was built, and this CPU's capability.");
}
