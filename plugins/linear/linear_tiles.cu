// The linear layer, third rung of the ladder, any M, N and K. What changed against linear_shared.cu, whose tiles it has:
//   - Tensor cores: with one instruction (mma.sync, common/tensor_cores.cuh) a warp multiplies 16 x 16 by 16 x 8
//     elements of 16 bits. A warp has 64 x 32 of the 128 x 128 elements of a tile.
// Loads and products still take turns. Next: linear_tensor.cu, where they overlap, or linear_wgmma.cu.
#include "common/programmatic_dependent_launch.cuh"
#include "common/reduce.cuh"
#include "common/tensor_cores.cuh"
#include "linear/linear_gelu.cuh"
#include "linear/linear_ladder.h"

namespace bert
{
namespace
{
constexpr int kTILE = 128;
constexpr int kDEPTH = 32;          // of k in shared memory
constexpr int kPITCH = kDEPTH + 8;  // so that the 8 rows of a load lie in different banks
constexpr int kTHREADS = 8 * kWARP; // 2 x 4 warps, each with 64 x 32 of the tile

// Rows firstRow.. and columns depth.. of a matrix (rows, in); zeros beyond its end.
template <typename T>
__device__ void loadTile(
    T (&tile)[kTILE][kPITCH], void const* matrix, int64_t firstRow, int64_t rows, int32_t depth, int32_t in)
{
    for (int i = static_cast<int>(threadIdx.x); i < kTILE * kDEPTH; i += kTHREADS)
    {
        int64_t const row = firstRow + i / kDEPTH;
        int32_t const k = depth + i % kDEPTH;
        bool const exists = row < rows && k < in;
        tile[i / kDEPTH][i % kDEPTH] = exists ? static_cast<T const*>(matrix)[row * in + k] : T{};
    }
}

template <typename T>
__device__ uint32_t pairAt(T const* address) // two neighbours, as the instruction takes them
{
    return *reinterpret_cast<uint32_t const*>(address);
}

template <typename T>
__global__ void __launch_bounds__(kTHREADS) linearTilesKernel(LinearArguments const a)
{
    __shared__ __align__(16) T x[kTILE][kPITCH];
    __shared__ __align__(16) T weight[kTILE][kPITCH];
    uint32_t const columnTiles = static_cast<uint32_t>(divideUp(a.out, kTILE));
    int64_t const row = int64_t{blockIdx.x / columnTiles} * kTILE;
    int64_t const column = int64_t{blockIdx.x % columnTiles} * kTILE;
    int const warpRow = static_cast<int>(threadIdx.x / kWARP / 4) * 64;
    int const warpColumn = static_cast<int>(threadIdx.x / kWARP % 4) * 32;
    int const g = static_cast<int>(threadIdx.x % kWARP) / 4; // of 8 rows, and of 8 columns
    int const t = static_cast<int>(threadIdx.x % 4) * 2;     // of 8: the first of two neighbours
    float sums[4][4][4]{};                                   // 4 x 4 results of 16 x 8
    for (int32_t depth = 0; depth < a.in; depth += kDEPTH)
    {
        loadTile(x, a.x, row, a.rows, depth, a.in);
        loadTile(weight, a.weight, column, a.out, depth, a.in);
        __syncthreads(); // the tiles are there
        for (int k = 0; k < kDEPTH; k += 16)
        {
            for (int m = 0; m < 4; ++m)
            {
                T const* const low = &x[warpRow + 16 * m + g][k + t];
                T const* const high = low + 8 * kPITCH;
                uint32_t const left[4] = {pairAt(low), pairAt(high), pairAt(low + 8), pairAt(high + 8)};
                for (int n = 0; n < 4; ++n)
                {
                    T const* const right = &weight[warpColumn + 8 * n + g][k + t];
                    multiply(sums[m][n], left, pairAt(right), pairAt(right + 8), T{});
                }
            }
        }
        __syncthreads(); // and have been read
    }
#pragma unroll
    for (int i = 0; i < 64; ++i) // the epilogue: element i % 4 of result (m, n)
    {
        int const m = i / 16;
        int const n = i / 4 % 4;
        int64_t const ownRow = row + warpRow + 16 * m + g + i % 4 / 2 * 8;
        int64_t const ownColumn = column + warpColumn + 8 * n + t + i % 2;
        if (ownRow < a.rows && ownColumn < a.out)
        {
            float const bias = a.bias != nullptr ? toFloat(static_cast<T const*>(a.bias)[ownColumn]) : 0.0F;
            static_cast<T*>(a.y)[ownRow * a.out + ownColumn]
                = fromFloat<T>(activate(sums[m][n][i % 4] + bias, a.gelu));
        }
    }
}
} // namespace

cudaError_t launchLinearTiles(LinearArguments const& a, cudaStream_t stream)
{
    auto const blocks = static_cast<unsigned int>(divideUp(a.rows, kTILE) * divideUp(a.out, kTILE));
    bool const half = a.type == ElementType::kHALF;
    auto* const kernel = half ? linearTilesKernel<__half> : linearTilesKernel<__nv_bfloat16>;
    kernel<<<blocks, kTHREADS, 0, stream>>>(a);
    return cudaGetLastError();
}
} // namespace bert
