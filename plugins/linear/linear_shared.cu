// The linear layer, second rung of the ladder, any M, N and K. What changed against linear_plain.cu: a block computes a
// tile of 128 x 128 elements of y from tiles of x and W in shared memory, 32 elements of k at a time. What is loaded
// once is used 128 times; a thread computes 8 x 8 elements, so that it reads 16 numbers for 64 multiply-adds, and
// neighbouring threads load neighbouring elements. Next: linear_tiles.cu.
#include "common/element.cuh"
#include "common/programmatic_dependent_launch.cuh"
#include "linear/linear_gelu.cuh"
#include "linear/linear_ladder.h"

namespace bert
{

namespace
{

constexpr int kTILE = 128;
constexpr int kDEPTH = 32;         // of k in shared memory
constexpr int kPITCH = kDEPTH + 1; // so that 32 rows of one column lie in different banks
constexpr int kACROSS = 16;        // threads across a tile, and as many down
constexpr int kTHREADS = kACROSS * kACROSS;
constexpr int kOWN = kTILE / kACROSS; // rows and columns of a thread, kACROSS apart

// Rows firstRow.. and columns depth.. of a matrix (rows, in), as fp32; zeros beyond its end.
template <typename T>
__device__ void loadTile(float (&tile)[kTILE][kPITCH], void const* matrix, int64_t firstRow, int64_t rows,
    int32_t depth, int32_t in)
{
    for (int i = static_cast<int>(threadIdx.x); i < kTILE * kDEPTH; i += kTHREADS)
    {
        int64_t const row = firstRow + i / kDEPTH;
        int32_t const k = depth + i % kDEPTH;
        bool const exists = row < rows && k < in;
        tile[i / kDEPTH][i % kDEPTH] = exists ? toFloat(static_cast<T const*>(matrix)[row * in + k]) : 0.0F;
    }
}

template <typename T>
__global__ void __launch_bounds__(kTHREADS) linearSharedKernel(LinearArguments const a)
{
    __shared__ float x[kTILE][kPITCH];
    __shared__ float weight[kTILE][kPITCH];
    uint32_t const columnTiles = static_cast<uint32_t>(divideUp(a.out, kTILE));
    int64_t const row = int64_t{blockIdx.x / columnTiles} * kTILE;
    int64_t const column = int64_t{blockIdx.x % columnTiles} * kTILE;
    int const down = static_cast<int>(threadIdx.x) / kACROSS;
    int const across = static_cast<int>(threadIdx.x) % kACROSS;
    float sums[kOWN][kOWN]{};
    for (int32_t depth = 0; depth < a.in; depth += kDEPTH)
    {
        loadTile<T>(x, a.x, row, a.rows, depth, a.in);
        loadTile<T>(weight, a.weight, column, a.out, depth, a.in);
        __syncthreads(); // the tiles are there
        for (int k = 0; k < kDEPTH; ++k)
        {
            float left[kOWN];
            float right[kOWN];
#pragma unroll
            for (int i = 0; i < kOWN; ++i)
            {
                left[i] = x[down + kACROSS * i][k];
                right[i] = weight[across + kACROSS * i][k];
            }
#pragma unroll
            for (int i = 0; i < kOWN * kOWN; ++i)
            {
                float& sum = sums[i / kOWN][i % kOWN];
                sum = fmaf(left[i / kOWN], right[i % kOWN], sum);
            }
        }
        __syncthreads(); // and have been read
    }
#pragma unroll
    for (int i = 0; i < kOWN * kOWN; ++i)
    {
        int64_t const ownRow = row + down + kACROSS * (i / kOWN);
        int64_t const ownColumn = column + across + kACROSS * (i % kOWN);
        if (ownRow < a.rows && ownColumn < a.out)
        {
            float const bias = a.bias != nullptr ? toFloat(static_cast<T const*>(a.bias)[ownColumn]) : 0.0F;
            static_cast<T*>(a.y)[ownRow * a.out + ownColumn]
                = fromFloat<T>(activate(sums[i / kOWN][i % kOWN] + bias, a.gelu));
        }
    }
}

} // namespace

cudaError_t launchLinearShared(LinearArguments const& a, cudaStream_t stream)
{
    auto const blocks = static_cast<unsigned int>(divideUp(a.rows, kTILE) * divideUp(a.out, kTILE));
    bool const half = a.type == ElementType::kHALF;
    auto* const kernel = half ? linearSharedKernel<__half> : linearSharedKernel<__nv_bfloat16>;
    kernel<<<blocks, kTHREADS, 0, stream>>>(a);
    return cudaGetLastError();
}

} // namespace bert
