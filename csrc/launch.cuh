// Launching a kernel in plain C++, so that the same source also compiles for the host.

#pragma once

#include <cuda_runtime.h>

namespace collamo::cuda {

// Does nothing where the grid is empty.
template <typename... Parameters, typename... Arguments>
inline cudaError_t launch(dim3 grid, int threads, cudaStream_t stream,
                          void (*kernel)(Parameters...), Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0) return cudaSuccess;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace collamo::cuda
