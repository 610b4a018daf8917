// CUDA C as C++ for kernels without barriers: the threads of a block are a loop, and images are
// divided among the threads of the CPU.
#pragma once
#include <cmath>
#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static thread_local
using std::floor; using std::fmin; using std::fmax; using std::llrint;
template <class T> static inline T min(T a, T b) { return a < b ? a : b; }
template <class T> static inline T max(T a, T b) { return a > b ? a : b; }
struct dim { unsigned x, y, z; };
static thread_local dim blockIdx, threadIdx, blockDim, gridDim;
static inline void __syncthreads() {}
static inline void __syncwarp(unsigned = 0) {}
// Never called: there is one lane per group.
template <class T> static inline T __shfl_xor_sync(unsigned, T v, int) { return v; }
// No other thread adds: each image has one thread.
template <class T, class U> static inline void atomicAdd(T *p, U v) { *p += (T)v; }
