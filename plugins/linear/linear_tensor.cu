// The linear layer with the tensor cores of any GPU from Turing on (mma.sync): fp16 and int8, bf16 from Ampere, E4M3
// from Ada on. A block computes a tile of y. x and the weight pass through shared memory in chunks of 64 bytes of k, in
// a pipeline with several chunks in flight: 32 elements of 16 bits or 64 of 8. What is loaded and where it lies is the
// same for all types; only the instruction that multiplies differs. The epilogue applies scales, bias and activation to
// the sums while they are in registers.
#include "common/capability.h"
#include "common/programmatic_dependent_launch.cuh"
#include "common/reduce.cuh"
#include "common/tensor_cores.cuh"
#include "linear/linear_gelu.cuh"
#include "linear/linear_kernels.h"

#include <climits>
#include <cstring>
#include <type_traits>

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
    static constexpr int kROW_BYTES = 64; // of k in a chunk
    static constexpr int kSTAGES = 4;     // chunk c is in stage c % kSTAGES
    static constexpr int kIN_FLIGHT = kSTAGES - 1;
    static constexpr int kTHREADS = 4 * kWARP;
    static constexpr int kWARP_ROWS = kROWS / 2;
    static constexpr int kWARP_COLUMNS = kCOLUMNS / 2;
    using X = SharedTile<kROWS, kROW_BYTES / 2>;
    using Weight = SharedTile<kCOLUMNS, kROW_BYTES / 2>;
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

// Elements in a piece of 16 bytes.
template <typename T>
constexpr int kPIECE = 16 / static_cast<int>(sizeof(T));

// Loads the elements of a piece one by one; elements outside the matrix are zeros.
template <typename T>
__device__ uint4 gatherPiece(Matrix<T> const& matrix, int64_t row, int32_t column)
{
    Vector<T, kPIECE<T>> piece{};
    if (row < matrix.rows)
    {
        T const* const source = matrix.data + row * matrix.columns + column;
#pragma unroll
        for (int i = 0; i < kPIECE<T>; ++i)
        {
            piece.values[i] = i < matrix.columns - column ? source[i] : T{};
        }
    }
    return *reinterpret_cast<uint4 const*>(&piece);
}

// Copies kROWS rows of kROW_BYTES of a matrix to shared memory; elements outside the matrix become zeros. kALIGNED: its
// rows begin at multiples of 16 bytes, so that each piece is inside or outside as a whole and can be copied with
// cp.async.
template <bool kALIGNED, int kROWS, int kROW_BYTES, int kTHREADS, typename T>
__device__ void loadTile(Matrix<T> const& matrix, int64_t firstRow, int32_t firstColumn, uint32_t tile)
{
    constexpr int kPIECES = kROW_BYTES / 16; // of a row
    static_assert(kROWS * kPIECES % kTHREADS == 0);
#pragma unroll
    for (int i = 0; i < kROWS * kPIECES / kTHREADS; ++i)
    {
        int const index = i * kTHREADS + static_cast<int>(threadIdx.x);
        int const row = index / kPIECES;
        int const piece = index % kPIECES;
        uint32_t const target = tile + SharedTile<kROWS, kROW_BYTES / 2>::offset(row, piece);
        int64_t const sourceRow = firstRow + row;
        int32_t const sourceColumn = firstColumn + piece * kPIECE<T>;
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
__device__ void multiplyChunk(Accumulator<T> (&sums)[Tile::kWARP_ROWS / 16][Tile::kWARP_COLUMNS / 8][4],
    uint32_t x, uint32_t weight, uint32_t warpRow, uint32_t warpColumn)
{
    uint32_t const lane = threadIdx.x % kWARP;
#pragma unroll
    for (int k = 0; k < Tile::kROW_BYTES / 32; ++k)
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

template <typename T>
constexpr bool kSCALED = sizeof(T) == 1;

// Two neighbours of y in its type, with activation, rounded once. y in 8 bits is multiplied with `factors`: those of the
// columns, divided by the scale of y. That product and the shorter GELU are as in linear_hopper.cuh.
template <typename Out>
__device__ Vector<Out, 2> finishPair(float first, float second, bool withGelu, float2 factors)
{
    uint32_t word;
    if constexpr (sizeof(Out) == 1)
    {
        float const low = withGelu ? quantizedGelu(first, factors.x) : first * factors.x;
        float const high = withGelu ? quantizedGelu(second, factors.y) : second * factors.y;
        packPair(word, low, high, Out{});
    }
    else
    {
        packPair(word, activate(first, withGelu), activate(second, withGelu), Out{});
    }
    Vector<Out, 2> pair;
    memcpy(&pair, &word, sizeof(pair));
    return pair;
}

// What a column's sums are multiplied with, for 8-bit types, what is added, and what y in 8 bits is multiplied with.
template <typename T>
class ColumnFactors
{
public:
    __device__ ColumnFactors(LinearArguments const& a, int32_t column)
    {
        using Bias = std::conditional_t<kSCALED<T>, float, T>;
        if (column < a.out)
        {
            mScale = kSCALED<T> ? a.weightScales[column] * a.xScale : 1.0F;
            mBias = a.bias != nullptr ? toFloat(static_cast<Bias const*>(a.bias)[column]) : 0.0F;
            mOutputFactor = (a.outputFactors != nullptr ? a.outputFactors[column] : 1.0F) / a.outputScale;
        }
    }
    __device__ float apply(Accumulator<T> sum) const
    {
        return kSCALED<T> ? fmaf(static_cast<float>(sum), mScale, mBias) : static_cast<float>(sum) + mBias;
    }
    __device__ float outputFactor() const
    {
        return mOutputFactor;
    }

private:
    float mScale{};
    float mBias{};
    float mOutputFactor{};
};

// The epilogue of the warp's part of the tile: scales, bias, activation, store. `row` and `column` are its first in y.
template <typename T, typename Out, bool kALIGNED, int kROW_TILES, int kCOLUMN_TILES>
__device__ void storeSums(LinearArguments const& a, int64_t row, int32_t column,
    Accumulator<T> const (&sums)[kROW_TILES][kCOLUMN_TILES][4])
{
    int32_t const lane = static_cast<int32_t>(threadIdx.x % kWARP);
#pragma unroll
    for (int n = 0; n < kCOLUMN_TILES; ++n)
    {
        int32_t const ownColumn = column + 8 * n + lane % 4 * 2;
        if (ownColumn >= a.out)
        {
            return;
        }
        ColumnFactors<T> const first{a, ownColumn};
        ColumnFactors<T> const second{a, ownColumn + 1};
        float2 const outputFactors = make_float2(first.outputFactor(), second.outputFactor());
#pragma unroll
        for (int m = 0; m < kROW_TILES; ++m)
        {
#pragma unroll
            for (int half = 0; half < 2; ++half)
            {
                int64_t const ownRow = row + 16 * m + 8 * half + lane / 4;
                if (ownRow >= a.rows)
                {
                    continue;
                }
                Accumulator<T> const(&four)[4] = sums[m][n];
                Vector<Out, 2> const pair = finishPair<Out>(
                    first.apply(four[2 * half]), second.apply(four[2 * half + 1]), a.gelu, outputFactors);
                Out* const target = static_cast<Out*>(a.y) + ownRow * a.out + ownColumn;
                if constexpr (kALIGNED)
                {
                    *reinterpret_cast<Vector<Out, 2>*>(target) = pair;
                }
                else
                {
                    target[0] = pair.values[0];
                    if (ownColumn + 1 < a.out)
                    {
                        target[1] = pair.values[1];
                    }
                }
            }
        }
    }
}

// A block's tile of y.
template <typename T, typename Out, bool kALIGNED, typename Tile>
__device__ void computeTile(LinearArguments const& a, uint32_t stages)
{
    constexpr int kDEPTH = Tile::kROW_BYTES / static_cast<int>(sizeof(T)); // elements of k in a chunk
    uint32_t const columnTiles = static_cast<uint32_t>(divideUp(a.out, Tile::kCOLUMNS));
    int64_t const row = int64_t{blockIdx.x / columnTiles} * Tile::kROWS;
    int32_t const column = static_cast<int32_t>(blockIdx.x % columnTiles) * Tile::kCOLUMNS;
    Matrix<T> const x{static_cast<T const*>(a.x), a.rows, a.in};
    Matrix<T> const weight{static_cast<T const*>(a.weight), a.out, a.in};
    int32_t const chunks = static_cast<int32_t>(divideUp(a.in, kDEPTH));

    // Commits one copy group in any case; it may be empty.
    auto const load = [&](int32_t chunk)
    {
        if (chunk < chunks)
        {
            uint32_t const stage = stages + chunk % Tile::kSTAGES * Tile::kSTAGE_BYTES;
            int32_t const depth = chunk * kDEPTH;
            loadTile<kALIGNED, Tile::kROWS, Tile::kROW_BYTES, Tile::kTHREADS>(x, row, depth, stage);
            loadTile<kALIGNED, Tile::kCOLUMNS, Tile::kROW_BYTES, Tile::kTHREADS>(
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
    Accumulator<T> sums[Tile::kWARP_ROWS / 16][Tile::kWARP_COLUMNS / 8][4]{};
    for (int32_t chunk = 0; chunk < chunks; ++chunk)
    {
        waitForCopyGroups<Tile::kIN_FLIGHT - 1>();
        __syncthreads(); // the chunk has arrived, and no warp reads the previous one any more
        load(chunk + Tile::kIN_FLIGHT);
        uint32_t const stage = stages + chunk % Tile::kSTAGES * Tile::kSTAGE_BYTES;
        multiplyChunk<T, Tile>(sums, stage, stage + Tile::X::kBYTES, warpRow, warpColumn);
    }
    waitForCopyGroups<0>();
    storeSums<T, Out, kALIGNED>(a, row + warpRow, column + static_cast<int32_t>(warpColumn), sums);
}

// Without instructions where the tensor cores do not have T; the launchers do not launch it there.
template <typename T, typename Out, bool kALIGNED, typename Tile>
__global__ void __launch_bounds__(Tile::kTHREADS) linearTensorKernel(LinearArguments const a)
{
    if constexpr (tensorCoresMultiply<T>())
    {
        extern __shared__ __align__(128) unsigned char memory[];
        computeTile<T, Out, kALIGNED, Tile>(a, sharedAddress(memory));
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------

template <typename Tile>
int64_t countTiles(LinearArguments const& a)
{
    return divideUp(a.rows, Tile::kROWS) * divideUp(a.out, Tile::kCOLUMNS);
}

template <typename T, typename Out, bool kALIGNED, int kROWS>
cudaError_t launchTile(LinearArguments const& a, cudaStream_t stream)
{
    using Tile = LinearTile<kROWS>;
    int64_t const blocks = countTiles<Tile>(a);
    if (blocks > INT_MAX)
    {
        return cudaErrorInvalidConfiguration;
    }
    LaunchSize const size{static_cast<unsigned int>(blocks), Tile::kTHREADS, Tile::kBYTES};
    return launchDependent(linearTensorKernel<T, Out, kALIGNED, Tile>, size, stream, a);
}

// Large tiles read x and the weight fewer times; they are chosen if there is one for each multiprocessor.
template <typename T, typename Out = T>
cudaError_t launchTyped(LinearArguments const& a, cudaStream_t stream)
{
    bool aligned = a.in % kPIECE<T> == 0 && a.out % 8 == 0;
    for (void const* tensor : {a.x, a.weight, static_cast<void const*>(a.y)})
    {
        aligned = aligned && isAligned16(tensor);
    }
    if (!aligned)
    {
        return launchTile<T, Out, false, 64>(a, stream);
    }
    int multiprocessors = 0;
    cudaError_t const status = countMultiprocessors(multiprocessors);
    if (status != cudaSuccess)
    {
        return status;
    }
    bool const many = countTiles<LinearTile<128>>(a) >= multiprocessors;
    return many ? launchTile<T, Out, true, 128>(a, stream) : launchTile<T, Out, true, 64>(a, stream);
}

template <typename T>
cudaError_t launchScaled(LinearArguments const& a, cudaStream_t stream)
{
    switch (a.outputType)
    {
    case ElementType::kHALF:
        return launchTyped<T, __half>(a, stream);
    case ElementType::kBF16:
        return launchTyped<T, __nv_bfloat16>(a, stream);
    default:
        return a.outputType == a.type ? launchTyped<T>(a, stream) : cudaErrorInvalidValue;
    }
}

// Results of hasE4m3.
FunctionPropertyCache gHasE4m3;

// Whether the code that the current device runs multiplies E4M3: a GPU with such tensor cores may run the code of an
// architecture before it.
bool hasE4m3()
{
    int device = 0;
    return cudaGetDevice(&device) == cudaSuccess
           && gHasE4m3.get(linearTensorKernel<E4m3, __half, true, LinearTile<64>>, device,
               []
               {
                   int architecture = 0;
                   return findLinearTensorArchitecture(architecture) == cudaSuccess
                          && architecture >= kE4M3_ARCHITECTURE;
               });
}

} // namespace

cudaError_t findLinearTensorArchitecture(int& architecture)
{
    cudaFuncAttributes attributes{};
    cudaError_t const status
        = cudaFuncGetAttributes(&attributes, linearTensorKernel<E4m3, __half, true, LinearTile<64>>);
    architecture = status == cudaSuccess ? attributes.ptxVersion : 0;
    return status;
}

cudaError_t launchLinearTensor(LinearArguments const& arguments, cudaStream_t stream)
{
    switch (arguments.type)
    {
    case ElementType::kHALF:
        return launchTyped<__half>(arguments, stream);
    case ElementType::kBF16:
    {
        Capability capability;
        cudaError_t const status = currentCapability(capability);
        if (status != cudaSuccess)
        {
            return status;
        }
        return capability.major < 8 ? launchLinearPlain(arguments, stream)
                                    : launchTyped<__nv_bfloat16>(arguments, stream);
    }
    case ElementType::kINT8:
        return launchScaled<int8_t>(arguments, stream);
    case ElementType::kE4M3:
        return hasE4m3() ? launchScaled<E4m3>(arguments, stream) : cudaErrorNotSupported;
    default:
        return cudaErrorInvalidValue;
    }
}

} // namespace bert
