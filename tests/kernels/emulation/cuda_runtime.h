// A GPU for tests that have none: just enough of CUDA for our kernels to run on the host,
// unchanged.
//
// The threads of a block are fibers. One runs until it waits, at a barrier or for the other lanes
// of its warp, and then the next of a shuffled list runs: whoever relies on an order that no
// barrier gives gets a different answer for a different EMULATION_SEED. A barrier opens when every
// thread that has not ended waits at it; a warp's exchange when all its lanes do. If nobody can run
// and threads still wait, at different places, the program ends with a message, as do the mistakes
// that CUDA would leave undefined: a lane missing from an exchange, a trap. Blocks run one after
// the other, from the last to the first.

#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr unsigned kLanes = 32;

enum class State { kReady, kAtBarrier, kInWarp, kEnded };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state;
  uint64_t given;     // to the others of the block or the warp
  const void* place;  // which exchange of the warp it waits in
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<uint64_t> taken;  // what every fiber gave at the last exchange that opened
  ucontext_t scheduler;
  unsigned current = 0;
  std::mt19937 random;
  std::function<void()> kernel;
};

inline Block block;

[[noreturn]] inline void stop(const char* why) {
  std::fprintf(stderr, "emulated GPU: block %u, thread %u: %s\n", blockIdx.x, threadIdx.x, why);
  std::abort();
}

inline void entry() {
  block.kernel();
  block.fibers[block.current].state = State::kEnded;
  swapcontext(&block.fibers[block.current].context, &block.scheduler);
}

inline void wait(State state, const void* place, uint64_t given) {
  Fiber& fiber = block.fibers[block.current];
  fiber.state = state;
  fiber.place = place;
  fiber.given = given;
  swapcontext(&fiber.context, &block.scheduler);
}

// Opens what all of these fibers wait at; returns whether it did.
inline bool open(unsigned first, unsigned last, State state) {
  const void* place = nullptr;
  bool any = false;
  for (unsigned i = first; i < last; ++i) {
    const Fiber& fiber = block.fibers[i];
    if (fiber.state == State::kEnded) {
      if (state == State::kInWarp) return false;  // an exchange of all lanes needs all lanes
      continue;
    }
    if (fiber.state != state || (any && fiber.place != place)) return false;
    place = fiber.place;
    any = true;
  }
  if (!any) return false;
  for (unsigned i = first; i < last; ++i) {
    if (block.fibers[i].state == State::kEnded) continue;
    block.taken[i] = block.fibers[i].given;
    block.fibers[i].state = State::kReady;
  }
  return true;
}

// Runs the lanes of a warp, each until it waits.
inline void run_warp(unsigned first) {
  const unsigned turn = block.random(), up = block.random() % 2;
  for (unsigned i = 0; i < kLanes; ++i) {
    const unsigned thread = first + (turn + (up ? i : kLanes - i)) % kLanes;
    if (block.fibers[thread].state != State::kReady) continue;
    block.current = thread;
    threadIdx = dim3(thread);
    swapcontext(&block.scheduler, &block.fibers[thread].context);
  }
}

// Some warps run ahead of the others, through their exchanges to the next barrier.
inline void run_block(unsigned threads) {
  if (threads % kLanes) stop("the emulation needs whole warps");
  if (block.fibers.size() < threads) block.fibers.resize(threads);
  block.taken.resize(block.fibers.size());
  constexpr size_t kStack = 1 << 16;
  std::vector<unsigned> warps;
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = block.fibers[i];
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    makecontext(&fiber.context, entry, 0);
    fiber.state = State::kReady;
    if (i % kLanes == 0) warps.push_back(i);
  }
  bool opened = true;
  while (opened) {
    std::shuffle(warps.begin(), warps.end(), block.random);
    opened = false;
    for (unsigned first : warps) {
      run_warp(first);
      bool ahead = block.random() % 2;
      while (open(first, first + kLanes, State::kInWarp)) {
        opened = true;
        if (!ahead) break;
        run_warp(first);
      }
    }
    opened |= open(0, threads, State::kAtBarrier);
  }
  for (unsigned i = 0; i < threads; ++i) {
    if (block.fibers[i].state != State::kEnded) {
      threadIdx = dim3(i);
      stop("waits for threads that have ended or wait elsewhere");
    }
  }
}

// Gives a value to the lanes of the warp and returns theirs. `place` tells exchanges apart.
inline const uint64_t* exchange(unsigned mask, uint64_t value, const void* place) {
  if (mask != 0xffffffff) stop("the emulation knows exchanges of a whole warp only");
  wait(State::kInWarp, place, value);
  return &block.taken[threadIdx.x / kLanes * kLanes];
}

}  // namespace emulation

// --- barriers and exchanges ----------------------------------------------------------------------

inline void __syncthreads() { emulation::wait(emulation::State::kAtBarrier, nullptr, 0); }

inline int __syncthreads_or(int value) {
  emulation::wait(emulation::State::kAtBarrier, nullptr, value != 0);
  for (unsigned i = 0; i < blockDim.x; ++i) {
    if (emulation::block.taken[i]) return 1;
  }
  return 0;
}

// Each use in the source is a place of its own: lanes that meet at different ones never get on.
#define EMULATION_HERE                      \
  [] {                                      \
    static char here;                       \
    return static_cast<const void*>(&here); \
  }()
#define __syncwarp() emulation::exchange(0xffffffff, 0, EMULATION_HERE)
#define __shfl_up_sync(mask, value, by) emulation::shuffle_up(mask, value, by, EMULATION_HERE)
#define __shfl_xor_sync(mask, value, by) emulation::shuffle_xor(mask, value, by, EMULATION_HERE)
#define __match_any_sync(mask, value) emulation::match_any(mask, value, EMULATION_HERE)

namespace emulation {

template <typename T>
T shuffle_up(unsigned mask, T value, unsigned by, const void* place) {
  const uint64_t* all = exchange(mask, static_cast<uint64_t>(value), place);
  const unsigned lane = threadIdx.x % kLanes;
  return static_cast<T>(all[lane < by ? lane : lane - by]);
}

template <typename T>
T shuffle_xor(unsigned mask, T value, unsigned with, const void* place) {
  const uint64_t* all = exchange(mask, static_cast<uint64_t>(value), place);
  return static_cast<T>(all[(threadIdx.x % kLanes) ^ with]);
}

inline unsigned match_any(unsigned mask, unsigned value, const void* place) {
  const uint64_t* all = exchange(mask, value, place);
  unsigned same = 0;
  for (unsigned i = 0; i < kLanes; ++i) same |= unsigned{all[i] == value} << i;
  return same;
}

}  // namespace emulation

// --- arithmetic ----------------------------------------------------------------------------------

// A fiber never loses the processor in between, so plain operations are atomic.
template <typename T, typename U>
T atomicAdd(T* to, U value) {
  const T before = *to;
  *to += value;
  return before;
}

template <typename T, typename U>
T atomicAnd(T* to, U value) {
  const T before = *to;
  *to &= value;
  return before;
}

template <typename T, typename U>
T atomicMax(T* to, U value) {
  const T before = *to;
  *to = std::max<T>(before, value);
  return before;
}

inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(x); }
template <typename T>
T min(T a, T b) {
  return std::min(a, b);
}
template <typename T>
T max(T a, T b) {
  return std::max(a, b);
}
[[noreturn]] inline void __trap() { emulation::stop("trap"); }

// --- the host's side -----------------------------------------------------------------------------

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
enum cudaMemcpyKind { cudaMemcpyDeviceToHost };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  const char* seed = std::getenv("EMULATION_SEED");
  emulation::block.random.seed(seed ? std::atoi(seed) : 0);
  emulation::block.kernel = [&] { kernel(arguments...); };
  for (unsigned i = gridDim.x * gridDim.y; i-- > 0;) {
    blockIdx = dim3(i % gridDim.x, i / gridDim.x);
    emulation::run_block(blockDim.x);
  }
  return cudaSuccess;
}

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
