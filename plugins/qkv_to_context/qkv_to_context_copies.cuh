// Hopper's copies of whole tiles (TMA) and the barriers in shared memory that say when they are there. PTX ISA:
// mbarrier, cp.async.bulk.tensor.
#pragma once

#include <cstdint>
#include <cuda.h>

namespace bert
{

// A barrier is complete, and begins its next phase, when all arrivals and all announced bytes are there. Phases are
// told apart by their parity, 0 for the first.
inline __device__ void initBarrier(uint32_t barrier, int arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// After it and a block's barrier all threads and copies see the initialised barriers.
inline __device__ void showBarriers()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
inline __device__ void arrive(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives, and announces bytes that copies will bring.
inline __device__ void arriveAndExpect(uint32_t barrier, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
        : "memory");
}
// Until the phase of this parity is complete.
inline __device__ void waitForBarrier(uint32_t barrier, uint32_t parity)
{
    uint32_t complete = 0;
    while (complete == 0)
    {
        asm volatile("{\n.reg .pred p;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;\n}"
            : "=r"(complete)
            : "r"(barrier), "r"(parity)
            : "memory");
    }
}

// Copies the box at (column, row) to shared memory; the barrier counts its bytes. What lies outside becomes zeros.
inline __device__ void copyBox(
    uint32_t target, CUtensorMap const& map, int32_t column, int32_t row, uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, "
                 "{%2, %3}], [%4];" ::"r"(target),
        "l"(&map), "r"(column), "r"(row), "r"(barrier)
        : "memory");
}
inline __device__ void prefetchMap(CUtensorMap const& map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

} // namespace bert
