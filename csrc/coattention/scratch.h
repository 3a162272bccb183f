// Scratch memory of one task.

#pragma once

#include "../simd.h"

namespace collamo::cpu {
namespace {

// Hands memory out from front to back, in whole vectors.
class Scratch {
 public:
  explicit Scratch(float* data) : next_(data) {}
  float* floats(int64_t count) {
    float* here = next_;
    next_ += (count + W - 1) / W * W;
    return here;
  }

 private:
  float* next_;
};

}  // namespace
}  // namespace collamo::cpu
