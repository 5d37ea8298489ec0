// Hopper's asynchronous copies of whole tiles (TMA), and the barriers in shared memory that signal their completion.
// See mbarrier and cp.async.bulk.tensor in the PTX ISA.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cuda.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <type_traits>

namespace bert
{

// A phase of a barrier completes, and the next one begins, when all expected arrivals and all expected bytes have
// come. Phases are distinguished by their parity, 0 for the first.
inline __device__ void initBarrier(uint32_t barrier, int arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes the barriers that this thread has initialised visible to its TMA copies, and after __syncthreads to all
// threads.
inline __device__ void fenceBarrierInit()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
inline __device__ void arrive(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// At the barrier of a block of the cluster: an address that addressInPeerBlock (cluster.cuh) gives. It orders what this
// block does, not what others see of its ordinary stores: release at cluster scope would wait for all of them at every
// arrival (a matmul with multicast takes twice as long then).
inline __device__ void arriveInBlock(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.release.cta.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// The same, after which others of the cluster may overwrite what this block has read.
inline __device__ void arriveInCluster(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives, and adds bytes that TMA copies will bring to what the phase expects.
inline __device__ void arriveAndExpect(uint32_t barrier, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
        : "memory");
}
// Waits until the phase of this parity is complete.
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

// The same, for what other blocks of the cluster have sent.
inline __device__ void waitForClusterBarrier(uint32_t barrier, uint32_t parity)
{
    uint32_t complete = 0;
    while (complete == 0)
    {
        asm volatile("{\n.reg .pred p;\n"
                     "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;\n}"
            : "=r"(complete)
            : "r"(barrier), "r"(parity)
            : "memory");
    }
}

// The stage of a pipeline that is next, of kSTAGES that are used in a ring, and the parity of its barriers, which
// changes with every round.
template <int kSTAGES>
struct PipelineState
{
    int stage{0};
    uint32_t parity{0};

    __device__ void advance()
    {
        ++stage;
        if (stage == kSTAGES)
        {
            stage = 0;
            parity ^= 1U;
        }
    }
    __device__ void skip(int32_t count)
    {
        for (int32_t i = 0; i < count; ++i)
        {
            advance();
        }
    }
};

// Copies the box at (column, row) to shared memory; the barrier counts its bytes. Elements outside the tensor become
// zeros.
inline __device__ void copyBox(
    uint32_t target, CUtensorMap const& map, int32_t column, int32_t row, uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, "
                 "{%2, %3}], [%4];" ::"r"(target),
        "l"(&map), "r"(column), "r"(row), "r"(barrier)
        : "memory");
}
// The same for a tensor with three dimensions: the box at (column, row, matrix).
inline __device__ void copyBox(
    uint32_t target, CUtensorMap const& map, int32_t column, int32_t row, int32_t matrix, uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, "
                 "{%2, %3, %4}], [%5];" ::"r"(target),
        "l"(&map), "r"(column), "r"(row), "r"(matrix), "r"(barrier)
        : "memory");
}
// The same, and arriveAndExpect, called by all lanes of a warp; one of them executes it. The instruction takes its
// operands from uniform registers. In code that only one thread reaches, the compiler cannot prove that the operands
// are uniform, and generates a loop over lanes.
inline __device__ void copyBoxByWarp(
    uint32_t target, CUtensorMap const& map, int32_t column, int32_t row, int32_t matrix, uint32_t barrier)
{
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\n"
                 "@p cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, "
                 "{%2, %3, %4}], [%5];\n}" ::"r"(target),
        "l"(&map), "r"(column), "r"(row), "r"(matrix), "r"(barrier)
        : "memory");
}
// The same to this place in the shared memory of all blocks of the cluster whose bits `blocks` has; the barrier at this
// place in each of them counts the bytes that it receives. (Multicast: read once from the L2 cache.)
inline __device__ void copyBoxToBlocksByWarp(uint32_t target, CUtensorMap const& map, int32_t column,
    int32_t row, int32_t matrix, uint32_t barrier, uint16_t blocks)
{
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\n"
                 "@p cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%2, %3, %4}], [%5], %6;\n}" ::"r"(target),
        "l"(&map), "r"(column), "r"(row), "r"(matrix), "r"(barrier), "h"(blocks)
        : "memory");
}
inline __device__ void arriveAndExpectByWarp(uint32_t barrier, int bytes)
{
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\n"
                 "@p mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n}" ::"r"(barrier),
        "r"(bytes)
        : "memory");
}
// Copies kROWS rows of a matrix in boxes of kBOX_ROWS, one after the other in shared memory.
template <int kROWS, int kBOX_ROWS, int kROW_BYTES>
__device__ void copyBoxes(
    uint32_t target, CUtensorMap const& map, int32_t column, int32_t row, int32_t matrix, uint32_t barrier)
{
#pragma unroll
    for (int first = 0; first < kROWS; first += kBOX_ROWS)
    {
        copyBox(target + first * kROW_BYTES, map, column, row + first, matrix, barrier);
    }
}
// The same for a barrier that expects nothing else: arrives and announces the bytes first.
template <int kROWS, int kBOX_ROWS, int kROW_BYTES>
__device__ void fetchRows(
    uint32_t target, CUtensorMap const& map, int32_t column, int32_t row, int32_t matrix, uint32_t barrier)
{
    arriveAndExpect(barrier, kROWS * kROW_BYTES);
    copyBoxes<kROWS, kBOX_ROWS, kROW_BYTES>(target, map, column, row, matrix, barrier);
}
// Copies from shared memory to the box at (column, row). Elements outside the tensor are not written.
inline __device__ void storeBox(CUtensorMap const& map, int32_t column, int32_t row, uint32_t source)
{
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map),
        "r"(column), "r"(row), "r"(source)
        : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
inline __device__ void storeBox(
    CUtensorMap const& map, int32_t column, int32_t row, int32_t matrix, uint32_t source)
{
    asm volatile(
        "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(&map),
        "r"(column), "r"(row), "r"(matrix), "r"(source)
        : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Waits until the copies that this thread has started, except the last kPENDING, have read their shared memory, which
// may then be overwritten. Their writes to global memory are complete when the kernel has ended.
template <int kPENDING = 0>
__device__ void waitForStores()
{
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPENDING) : "memory");
}
// Has the box at (column, row) brought to the L2 cache.
inline __device__ void prefetchBox(CUtensorMap const& map, int32_t column, int32_t row)
{
    asm volatile(
        "cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];" ::"l"(&map), "r"(column), "r"(row)
        : "memory");
}
inline __device__ void prefetchMap(CUtensorMap const& map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// ---------------------------------------------------------------------------------------------------------------
// Tensor maps, on the host
// ---------------------------------------------------------------------------------------------------------------

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// The driver's function, without linking against the driver.
inline EncodeTiled findEncodeTiled()
{
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    constexpr unsigned int kSINCE = 12000;
    cudaError_t const status = cudaGetDriverEntryPointByVersion(
        "cuTensorMapEncodeTiled", &function, kSINCE, cudaEnableDefault, &found);
    return status == cudaSuccess && found == cudaDriverEntryPointSuccess
               ? reinterpret_cast<EncodeTiled>(function)
               : nullptr;
}

// Encodes the tensor map of a tensor: its sizes, innermost dimension first, its strides in bytes, and the size of the
// boxes that are copied. Rows of a box have 128, 64 or 32 bytes, and get the layout of SharedTile.
template <typename T, int kRANK>
cudaError_t describeTensor(CUtensorMap& map, void const* data, cuuint64_t const (&sizes)[kRANK],
    cuuint64_t const (&strides)[kRANK - 1], cuuint32_t const (&box)[kRANK])
{
    static EncodeTiled const encode = findEncodeTiled();
    if (encode == nullptr)
    {
        return cudaErrorNotSupported;
    }
    constexpr CUtensorMapDataType kTYPE
        = sizeof(T) == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                         : (std::is_same_v<T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                      : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16);
    size_t const rowBytes = box[0] * sizeof(T);
    CUtensorMapSwizzle const swizzle
        = rowBytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B
                          : (rowBytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_32B);
    cuuint32_t steps[kRANK];
    std::fill(steps, steps + kRANK, 1U);
    CUresult const status = encode(&map, kTYPE, kRANK, const_cast<void*>(data), sizes, strides, box, steps,
        CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return status == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}
// The same for a contiguous tensor.
template <typename T, int kRANK>
cudaError_t describeTensor(
    CUtensorMap& map, void const* data, cuuint64_t const (&sizes)[kRANK], cuuint32_t const (&box)[kRANK])
{
    cuuint64_t strides[kRANK - 1];
    cuuint64_t stride = sizeof(T);
    for (int i = 0; i < kRANK - 1; ++i)
    {
        stride *= sizes[i];
        strides[i] = stride;
    }
    return describeTensor<T>(map, data, sizes, strides, box);
}

} // namespace bert
