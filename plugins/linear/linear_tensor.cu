// The linear layer with the tensor cores of any GPU from Turing on (mma.sync). A block computes a tile of y. x and
// the weight pass through shared memory in chunks of k, in a pipeline with several chunks in flight. The epilogue
// adds the bias and applies the activation to the sums while they are in registers.
#include "common/capability.h"
#include "common/programmatic_dependent_launch.cuh"
#include "common/reduce.cuh"
#include "common/tensor_cores.cuh"
#include "linear/linear_gelu.cuh"
#include "linear/linear_kernels.h"

#include <climits>

namespace bert
{

// ---------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------

namespace
{

// Four warps, 2 x 2, share a tile of y. 48 KB of shared memory at most: Turing has 64.
template <int kROWS_>
struct LinearTile
{
    static constexpr int kROWS = kROWS_;
    static constexpr int kCOLUMNS = 64;
    static constexpr int kDEPTH = 32; // elements of k in a chunk
    static constexpr int kSTAGES = 4; // chunk c is in stage c % kSTAGES
    static constexpr int kIN_FLIGHT = kSTAGES - 1;
    static constexpr int kTHREADS = 4 * kWARP;
    static constexpr int kWARP_ROWS = kROWS / 2;
    static constexpr int kWARP_COLUMNS = kCOLUMNS / 2;
    using X = SharedTile<kROWS, kDEPTH>;
    using Weight = SharedTile<kCOLUMNS, kDEPTH>;
    static constexpr int kSTAGE_BYTES = X::kBYTES + Weight::kBYTES;
    static constexpr int kBYTES = kSTAGES * kSTAGE_BYTES;
};

template <typename T>
struct Matrix
{
    T const* data; // (rows, columns)
    int64_t rows;
    int32_t columns;
};

// Loads 8 elements of a row one by one; elements outside the matrix are zeros.
template <typename T>
__device__ uint4 gatherPiece(Matrix<T> const& matrix, int64_t row, int32_t column)
{
    Vector<T, 8> piece{};
    if (row < matrix.rows)
    {
        T const* const source = matrix.data + row * matrix.columns + column;
#pragma unroll
        for (int i = 0; i < 8; ++i)
        {
            piece.values[i] = i < matrix.columns - column ? source[i] : T{};
        }
    }
    return *reinterpret_cast<uint4 const*>(&piece);
}

// Copies a part of a matrix to shared memory; elements outside the matrix become zeros. kALIGNED: its rows begin at
// multiples of 16 bytes, so that each piece is inside or outside as a whole and can be copied with cp.async.
template <bool kALIGNED, int kROWS, int kCOLUMNS, int kTHREADS, typename T>
__device__ void loadTile(Matrix<T> const& matrix, int64_t firstRow, int32_t firstColumn, uint32_t tile)
{
    constexpr int kPIECES = kCOLUMNS / 8; // of a row
    static_assert(kROWS * kPIECES % kTHREADS == 0);
#pragma unroll
    for (int i = 0; i < kROWS * kPIECES / kTHREADS; ++i)
    {
        int const index = i * kTHREADS + static_cast<int>(threadIdx.x);
        int const row = index / kPIECES;
        int const piece = index % kPIECES;
        uint32_t const target = tile + SharedTile<kROWS, kCOLUMNS>::offset(row, piece);
        int64_t const sourceRow = firstRow + row;
        int32_t const sourceColumn = firstColumn + piece * 8;
        if constexpr (kALIGNED)
        {
            bool const exists = sourceRow < matrix.rows && sourceColumn < matrix.columns;
            copyPiece(target, matrix.data + (exists ? sourceRow * matrix.columns + sourceColumn : 0), exists);
        }
        else
        {
            storePiece(target, gatherPiece(matrix, sourceRow, sourceColumn));
        }
    }
}

// sums (kWARP_ROWS, kWARP_COLUMNS) += x weight^T for one chunk and the warp's part of the tile
template <typename T, typename Tile>
__device__ void multiplyChunk(float (&sums)[Tile::kWARP_ROWS / 16][Tile::kWARP_COLUMNS / 8][4], uint32_t x,
    uint32_t weight, uint32_t warpRow, uint32_t warpColumn)
{
    uint32_t const lane = threadIdx.x % kWARP;
#pragma unroll
    for (int k = 0; k < Tile::kDEPTH / 16; ++k)
    {
        uint32_t a[Tile::kWARP_ROWS / 16][4];
#pragma unroll
        for (int m = 0; m < Tile::kWARP_ROWS / 16; ++m)
        {
            loadMatrices(a[m], x + Tile::X::offset(warpRow + 16 * m + lane % 16, 2 * k + lane / 16));
        }
#pragma unroll
        for (int n = 0; n < Tile::kWARP_COLUMNS / 8; n += 2)
        {
            uint32_t b[4];
            loadMatrices(b, weight
                                + Tile::Weight::offset(
                                    warpColumn + 8 * n + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
#pragma unroll
            for (int m = 0; m < Tile::kWARP_ROWS / 16; ++m)
            {
                multiply(sums[m][n], a[m], b[0], b[1], T{});
                multiply(sums[m][n + 1], a[m], b[2], b[3], T{});
            }
        }
    }
}

__device__ float activate(float value, bool withGelu)
{
    return withGelu ? gelu(value) : value;
}

// Stores two neighbouring elements of y; the second may be outside y.
template <bool kALIGNED, typename T>
__device__ void storePair(T* target, float first, float second, bool secondExists)
{
    if constexpr (kALIGNED)
    {
        uint32_t pair;
        packPair(pair, first, second, T{});
        *reinterpret_cast<uint32_t*>(target) = pair;
    }
    else
    {
        target[0] = fromFloat<T>(first);
        if (secondExists)
        {
            target[1] = fromFloat<T>(second);
        }
    }
}

// The epilogue of the warp's part of the tile: bias, activation, store. `row` and `column` are its first in y.
template <typename T, bool kALIGNED, int kROW_TILES, int kCOLUMN_TILES>
__device__ void storeSums(
    LinearArguments const& a, int64_t row, int32_t column, float const (&sums)[kROW_TILES][kCOLUMN_TILES][4])
{
    int32_t const lane = static_cast<int32_t>(threadIdx.x % kWARP);
    auto const* const bias = static_cast<T const*>(a.bias);
#pragma unroll
    for (int n = 0; n < kCOLUMN_TILES; ++n)
    {
        int32_t const ownColumn = column + 8 * n + lane % 4 * 2;
        if (ownColumn >= a.out)
        {
            return;
        }
        bool const secondExists = kALIGNED || ownColumn + 1 < a.out;
        float const firstBias = bias != nullptr ? toFloat(bias[ownColumn]) : 0.0F;
        float const secondBias = bias != nullptr && secondExists ? toFloat(bias[ownColumn + 1]) : 0.0F;
#pragma unroll
        for (int m = 0; m < kROW_TILES; ++m)
        {
#pragma unroll
            for (int half = 0; half < 2; ++half)
            {
                int64_t const ownRow = row + 16 * m + 8 * half + lane / 4;
                if (ownRow < a.rows)
                {
                    float const first = activate(sums[m][n][2 * half] + firstBias, a.gelu);
                    float const second = activate(sums[m][n][2 * half + 1] + secondBias, a.gelu);
                    storePair<kALIGNED>(
                        static_cast<T*>(a.y) + ownRow * a.out + ownColumn, first, second, secondExists);
                }
            }
        }
    }
}

template <typename T, bool kALIGNED, typename Tile>
__global__ void __launch_bounds__(Tile::kTHREADS) linearTensorKernel(LinearArguments const a)
{
    extern __shared__ __align__(128) unsigned char memory[];
    uint32_t const stages = sharedAddress(memory);
    uint32_t const columnTiles = static_cast<uint32_t>(divideUp(a.out, Tile::kCOLUMNS));
    int64_t const row = int64_t{blockIdx.x / columnTiles} * Tile::kROWS;
    int32_t const column = static_cast<int32_t>(blockIdx.x % columnTiles) * Tile::kCOLUMNS;
    Matrix<T> const x{static_cast<T const*>(a.x), a.rows, a.in};
    Matrix<T> const weight{static_cast<T const*>(a.weight), a.out, a.in};
    int32_t const chunks = static_cast<int32_t>(divideUp(a.in, Tile::kDEPTH));

    // Commits one copy group in any case; it may be empty.
    auto const load = [&](int32_t chunk)
    {
        if (chunk < chunks)
        {
            uint32_t const stage = stages + chunk % Tile::kSTAGES * Tile::kSTAGE_BYTES;
            int32_t const depth = chunk * Tile::kDEPTH;
            loadTile<kALIGNED, Tile::kROWS, Tile::kDEPTH, Tile::kTHREADS>(x, row, depth, stage);
            loadTile<kALIGNED, Tile::kCOLUMNS, Tile::kDEPTH, Tile::kTHREADS>(
                weight, column, depth, stage + Tile::X::kBYTES);
        }
        commitCopyGroup();
    };

    waitForPreviousKernel();
#pragma unroll
    for (int chunk = 0; chunk < Tile::kIN_FLIGHT; ++chunk)
    {
        load(chunk);
    }
    uint32_t const warp = threadIdx.x / kWARP;
    uint32_t const warpRow = warp / 2 * Tile::kWARP_ROWS;
    uint32_t const warpColumn = warp % 2 * Tile::kWARP_COLUMNS;
    float sums[Tile::kWARP_ROWS / 16][Tile::kWARP_COLUMNS / 8][4]{};
    for (int32_t chunk = 0; chunk < chunks; ++chunk)
    {
        waitForCopyGroups<Tile::kIN_FLIGHT - 1>();
        __syncthreads(); // the chunk has arrived, and no warp reads the previous one any more
        load(chunk + Tile::kIN_FLIGHT);
        uint32_t const stage = stages + chunk % Tile::kSTAGES * Tile::kSTAGE_BYTES;
        multiplyChunk<T, Tile>(sums, stage, stage + Tile::X::kBYTES, warpRow, warpColumn);
    }
    waitForCopyGroups<0>();
    storeSums<T, kALIGNED>(a, row + warpRow, column + static_cast<int32_t>(warpColumn), sums);
}

constexpr int kPLAIN_BLOCK = 128;

// bf16 on Turing, whose tensor cores do not support it: one thread computes one element of y.
__global__ void linearPlainKernel(LinearArguments const a)
{
    uint32_t const columnBlocks = static_cast<uint32_t>(divideUp(a.out, kPLAIN_BLOCK));
    int64_t const row = blockIdx.x / columnBlocks;
    int64_t const column = int64_t{blockIdx.x % columnBlocks} * kPLAIN_BLOCK + threadIdx.x;
    if (column >= a.out)
    {
        return;
    }
    auto const* const x = static_cast<__nv_bfloat16 const*>(a.x) + row * a.in;
    auto const* const weight = static_cast<__nv_bfloat16 const*>(a.weight) + column * a.in;
    auto const* const bias = static_cast<__nv_bfloat16 const*>(a.bias);
    float sum = 0.0F;
    for (int32_t k = 0; k < a.in; ++k)
    {
        sum = fmaf(toFloat(x[k]), toFloat(weight[k]), sum);
    }
    sum += bias != nullptr ? toFloat(bias[column]) : 0.0F;
    static_cast<__nv_bfloat16*>(a.y)[row * a.out + column] = fromFloat<__nv_bfloat16>(activate(sum, a.gelu));
}

// ---------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------

cudaError_t launchPlain(LinearArguments const& a, cudaStream_t stream)
{
    int64_t const blocks = a.rows * divideUp(a.out, kPLAIN_BLOCK);
    if (blocks > INT_MAX)
    {
        return cudaErrorInvalidConfiguration;
    }
    linearPlainKernel<<<static_cast<unsigned int>(blocks), kPLAIN_BLOCK, 0, stream>>>(a);
    return cudaGetLastError();
}

template <typename Tile>
int64_t countTiles(LinearArguments const& a)
{
    return divideUp(a.rows, Tile::kROWS) * divideUp(a.out, Tile::kCOLUMNS);
}

template <typename T, bool kALIGNED, int kROWS>
cudaError_t launchTile(LinearArguments const& a, cudaStream_t stream)
{
    using Tile = LinearTile<kROWS>;
    int64_t const blocks = countTiles<Tile>(a);
    if (blocks > INT_MAX)
    {
        return cudaErrorInvalidConfiguration;
    }
    LaunchSize const size{static_cast<unsigned int>(blocks), Tile::kTHREADS, Tile::kBYTES};
    return launchDependent(linearTensorKernel<T, kALIGNED, Tile>, size, stream, a);
}

// Large tiles read x and the weight fewer times; they are chosen if there is one for each multiprocessor.
template <typename T>
cudaError_t launchTyped(LinearArguments const& a, cudaStream_t stream)
{
    bool aligned = a.in % 8 == 0 && a.out % 8 == 0;
    for (void const* tensor : {a.x, a.weight, static_cast<void const*>(a.y)})
    {
        aligned = aligned && isAligned16(tensor);
    }
    if (!aligned)
    {
        return launchTile<T, false, 64>(a, stream);
    }
    int multiprocessors = 0;
    cudaError_t const status = countMultiprocessors(multiprocessors);
    if (status != cudaSuccess)
    {
        return status;
    }
    bool const many = countTiles<LinearTile<128>>(a) >= multiprocessors;
    return many ? launchTile<T, true, 128>(a, stream) : launchTile<T, true, 64>(a, stream);
}

} // namespace

cudaError_t launchLinearTensor(LinearArguments const& arguments, cudaStream_t stream)
{
    if (arguments.type == ElementType::kHALF)
    {
        return launchTyped<__half>(arguments, stream);
    }
    if (arguments.type != ElementType::kBF16)
    {
        return cudaErrorInvalidValue;
    }
    Capability capability;
    cudaError_t const status = currentCapability(capability);
    if (status != cudaSuccess)
    {
        return status;
    }
    return capability.major < 8 ? launchPlain(arguments, stream)
                                : launchTyped<__nv_bfloat16>(arguments, stream);
}

} // namespace bert
