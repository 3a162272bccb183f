// The caller's CUDA stream, memory for what runs on it, and the errors of the CUDA runtime.

#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <stdexcept>

namespace collamo::cuda {

using torch::stable::Tensor;

inline void check_success(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

// setup.py defines USE_CUDA, without which torch does not declare the function that this calls.
inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Whether a CUDA graph is being captured: then nobody may wait for the device.
inline bool captured(cudaStream_t stream) {
  cudaStreamCaptureStatus status;
  check_success(cudaStreamIsCapturing(stream, &status));
  return status != cudaStreamCaptureStatusNone;
}

// Memory for 64-bit words on the device of `like`.
inline Tensor new_words(const Tensor& like, int64_t words) {
  return torch::stable::new_empty(like, {words}, torch::headeronly::ScalarType::Long);
}

inline bool on_device_of(const Tensor& other, const Tensor& tensor) {
  return other.is_cuda() && other.get_device_index() == tensor.get_device_index();
}

}  // namespace collamo::cuda
