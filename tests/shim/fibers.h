// CUDA C as C++: every thread of a block is a fiber, and a barrier passes the CPU on to the next.
// Blocks run one after the other. A thread that meets more or fewer barriers than the others is
// an error.
#pragma once
#include <ucontext.h>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
using std::floor; using std::fmin; using std::fmax; using std::llrint;
template <class T> static inline T min(T a, T b) { return a < b ? a : b; }
template <class T> static inline T max(T a, T b) { return a > b ? a : b; }
struct dim { unsigned x, y, z; };
static dim blockIdx, threadIdx, blockDim, gridDim;

namespace fiber {
    constexpr size_t STACK = 256 * 1024;
    static std::vector<ucontext_t> context;
    static std::vector<std::vector<char>> stack;
    static std::vector<int> running, barriers;
    static std::vector<double> mail;
    static ucontext_t scheduler;
    static int me;
    static std::function<void()> body;

    static void entry() {
        body();
        running[me] = 0;
        swapcontext(&context[me], &scheduler);
    }

    static void yield() {
        const int i = me;
        ++barriers[i];
        swapcontext(&context[i], &scheduler);
    }

    // One block. Returns false if its threads met different numbers of barriers.
    static bool block(int threads, std::function<void()> f) {
        body = f;
        context.resize(threads);
        stack.resize(threads);
        mail.resize(threads);
        running.assign(threads, 1);
        barriers.assign(threads, 0);
        for (int i = 0; i < threads; ++i) {
            stack[i].resize(STACK);
            getcontext(&context[i]);
            context[i].uc_stack.ss_sp = stack[i].data();
            context[i].uc_stack.ss_size = STACK;
            context[i].uc_link = nullptr;
            makecontext(&context[i], entry, 0);
        }
        for (bool any = true; any;) {
            any = false;
            for (int i = 0; i < threads; ++i) {
                if (!running[i]) continue;
                any = true;
                me = i;
                threadIdx = {(unsigned)i, 0, 0};
                swapcontext(&scheduler, &context[i]);
            }
        }
        for (int i = 1; i < threads; ++i) if (barriers[i] != barriers[0]) return false;
        return true;
    }
}
static inline void __syncthreads() { fiber::yield(); }
static inline void __syncwarp(unsigned = 0) { fiber::yield(); }
template <class T> static inline T __shfl_xor_sync(unsigned, T v, int far) {
    const int i = fiber::me;
    fiber::mail[i] = (double)v;
    fiber::yield();
    const T other = (T)fiber::mail[i ^ far];
    fiber::yield();
    return other;
}
template <class T, class U> static inline void atomicAdd(T *p, U v) { *p += (T)v; }
