// Kernels of SOURCE_FILE as functions of grid, threads and the arguments of the kernel.
// -DFIBERS: with barriers.
#ifdef FIBERS
#include "fibers.h"
#else
#include "plain.h"
#endif
#include SOURCE_FILE

template <class F>
static int launch(unsigned gx, unsigned gy, unsigned gz, unsigned threads, F kernel) {
    int bad = 0;
#ifdef FIBERS
    blockDim = {threads, 1, 1}; gridDim = {gx, gy, gz};
    for (unsigned z = 0; z < gz; ++z)
        for (unsigned y = 0; y < gy; ++y)
            for (unsigned x = 0; x < gx; ++x) {
                blockIdx = {x, y, z};
                bad += !fiber::block((int)threads, kernel);
            }
#else
#pragma omp parallel for schedule(dynamic, 1)
    for (unsigned y = 0; y < gy; ++y) {
        blockDim = {threads, 1, 1}; gridDim = {gx, gy, gz};
        for (unsigned x = 0; x < gx; ++x) {
            blockIdx = {x, y, 0};
            for (unsigned t = 0; t < threads; ++t) { threadIdx = {t, 0, 0}; kernel(); }
        }
    }
#endif
    return bad;
}
#define FORWARD_ARGUMENTS \
    const number *value, const number *offset, const number *mask, number *out, GEOMETRY
#define BACKWARD_ARGUMENTS \
    const number *value, const number *offset, const number *mask, const number *grad, \
    total_t *grad_value, number *grad_offset, number *grad_mask, const double *unit, GEOMETRY
#define FORWARD_NAMES value, offset, mask, out, GIVEN
#define BACKWARD_NAMES \
    value, offset, mask, grad, grad_value, grad_offset, grad_mask, unit, GIVEN
#define RUN(name, ARGUMENTS, ...) \
    extern "C" int run_##name( \
        unsigned gx, unsigned gy, unsigned gz, unsigned threads, ARGUMENTS \
    ) { \
        return launch(gx, gy, gz, threads, [=] { name(__VA_ARGS__); }); \
    }
RUN(deform_forward, FORWARD_ARGUMENTS, FORWARD_NAMES)
RUN(deform_backward, BACKWARD_ARGUMENTS, BACKWARD_NAMES)
#ifdef FIBERS
RUN(deform_forward_tile, FORWARD_ARGUMENTS, FORWARD_NAMES)
#if DCN_OWN
RUN(deform_backward_tile, BACKWARD_ARGUMENTS, BACKWARD_NAMES)
#endif
#endif
