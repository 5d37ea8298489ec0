// The linear layer, fourth rung of the ladder: Hopper's own instructions. What changed against linear_tiles.cu:
//   - TMA: one thread asks for a tile of x and one of W, as wide as 64 elements of k; a barrier in shared memory counts
//     the bytes that arrive. What lies beyond the end of a matrix comes as zeros.
//   - wgmma: four warps (a warpgroup) multiply 64 x 16 by 16 x 256 with one instruction, both operands in shared memory.
// Four steps can be switched, so that each can be measured alone; the tile of y is 128 x 256 in all of them:
//   - kSTAGES: tiles of k in shared memory, of which all but one are on their way while one is multiplied.
//   - kSPECIALISED: a producer warp asks for tiles. Without it, a consumer does, after a barrier of all threads; with it,
//     the two consumer warpgroups never wait for each other.
//   - kIN_FLIGHT: a warpgroup issues the products of a step while those of the step before are still computed.
//   - Persistent: as many blocks as multiprocessors, each takes tile after tile of y. The producer asks for the next
//     tile's operands while the consumers store this one.
// Next: linear_hopper.cuh. Compiled for sm_90a only (CMakeLists.txt).
#include "common/hopper_tma.cuh"
#include "common/hopper_wgmma.cuh"
#include "common/programmatic_dependent_launch.cuh"
#include "common/tensor_cores.cuh"
#include "linear/linear_gelu.cuh"
#include "linear/linear_ladder.h"
#include "linear/linear_wgmma_instructions.cuh"

#include <algorithm>

namespace bert
{

// ---------------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------------

namespace
{

constexpr int kROWS = 128;      // of a tile of y; 64 for each of two warpgroups
constexpr int kCOLUMNS = 256;   // of a tile of y
constexpr int kDEPTH = 64;      // elements of k in a stage
constexpr int kROW_BYTES = 128; // that they take, as wide as the swizzle
constexpr int kX_BYTES = kROWS * kROW_BYTES;
constexpr int kSTAGE_BYTES = kX_BYTES + kCOLUMNS * kROW_BYTES;
constexpr int kCONSUMERS = 2 * kWARPGROUP;

struct Tile
{
    int32_t row;
    int32_t column;
};

// Calls function(tile) for all tiles of this block: one, unless the grid is smaller than the number of tiles.
template <typename Function>
__device__ void forTiles(LinearArguments const& a, Function&& function)
{
    auto const rowTiles = static_cast<int32_t>(divideUp(a.rows, kROWS));
    auto const tiles = rowTiles * static_cast<int32_t>(divideUp(a.out, kCOLUMNS));
    for (auto i = static_cast<int32_t>(blockIdx.x); i < tiles; i += static_cast<int32_t>(gridDim.x))
    {
        function(Tile{i % rowTiles * kROWS, i / rowTiles * kCOLUMNS});
    }
}

// The stages, then two barriers for each: it is full; it is empty.
template <int kSTAGES>
struct Memory
{
    static constexpr int kBYTES = kSTAGES * (kSTAGE_BYTES + 16);
    uint32_t begin;

    __device__ uint32_t x(int stage) const
    {
        return begin + stage * kSTAGE_BYTES;
    }
    __device__ uint32_t weight(int stage) const
    {
        return x(stage) + kX_BYTES;
    }
    __device__ uint32_t full(int stage) const
    {
        return begin + kSTAGES * kSTAGE_BYTES + 16 * stage;
    }
    __device__ uint32_t empty(int stage) const
    {
        return full(stage) + 8;
    }
};

// By one thread: asks for the operands of a step along k. They arrive later.
template <int kSTAGES>
__device__ void fetch(Memory<kSTAGES> const& memory, CUtensorMap const& x, CUtensorMap const& weight,
    Tile const& tile, int32_t step, int stage)
{
    arriveAndExpect(memory.full(stage), kSTAGE_BYTES);
    copyBox(memory.x(stage), x, step * kDEPTH, tile.row, memory.full(stage));
    copyBox(memory.weight(stage), weight, step * kDEPTH, tile.column, memory.full(stage));
}

// By a warpgroup: sums (64, kCOLUMNS) = x (64, kDEPTH) weight^T, added to what they hold if `accumulate`. The products
// are computed later: see wgmmaWait.
template <typename T>
__device__ void multiplyStage(
    float (&sums)[kCOLUMNS / 8][4], uint32_t x, uint32_t weight, bool accumulate, T type)
{
    wgmmaFence();
#pragma unroll
    for (int k = 0; k < kROW_BYTES; k += 32) // an instruction multiplies 32 bytes of k, 16 elements
    {
        uint64_t const a = matrixDescriptor<kROW_BYTES, 16>(x + k);
        uint64_t const b = matrixDescriptor<kROW_BYTES, 16>(weight + k);
        multiplyShared(sums, a, b, accumulate || k > 0 ? 1 : 0, type);
    }
    wgmmaCommit();
}

// The epilogue. A thread has two neighbours of y in each group of 8 columns, in two rows (common/tensor_cores.cuh). The
// biases of several groups are loaded at once: the compiler cannot move a load before a store, which might change what is
// loaded, and would wait for every bias alone.
template <typename T, bool kGELU>
__device__ void storeTile(LinearArguments const& a, Tile const& tile, float const (&sums)[kCOLUMNS / 8][4])
{
    constexpr int kAT_ONCE = 8;
    auto const warp = static_cast<int32_t>(threadIdx.x / kWARP);
    auto const lane = static_cast<int32_t>(threadIdx.x % kWARP);
    int32_t const row = tile.row + warp * 16 + lane / 4;
#pragma unroll
    for (int first = 0; first < kCOLUMNS / 8; first += kAT_ONCE)
    {
        int32_t const column = tile.column + 8 * first + lane % 4 * 2;
        Vector<T, 2> biases[kAT_ONCE]{};
#pragma unroll
        for (int n = 0; n < kAT_ONCE; ++n)
        {
            if (a.bias != nullptr && column + 8 * n < a.out)
            {
                biases[n]
                    = *reinterpret_cast<Vector<T, 2> const*>(static_cast<T const*>(a.bias) + column + 8 * n);
            }
        }
#pragma unroll
        for (int i = 0; i < 2 * kAT_ONCE; ++i)
        {
            int const n = i / 2;
            int const half = i % 2;
            float const(&four)[4] = sums[first + n];
            uint32_t pair;
            packPair(pair, activate(four[2 * half] + toFloat(biases[n].values[0]), kGELU),
                activate(four[2 * half + 1] + toFloat(biases[n].values[1]), kGELU), T{});
            if (row + 8 * half < a.rows && column + 8 * n < a.out)
            {
                T* const y = static_cast<T*>(a.y) + int64_t{row + 8 * half} * a.out + column + 8 * n;
                *reinterpret_cast<uint32_t*>(y) = pair;
            }
        }
    }
}

// By all warps of the consumers: they have read a stage.
__device__ void release(uint32_t empty)
{
    if (threadIdx.x % kWARP == 0)
    {
        arrive(empty);
    }
}

template <bool kSPECIALISED>
constexpr int kTHREADS = kSPECIALISED ? kCONSUMERS + kWARP : kCONSUMERS;

template <typename T, int kSTAGES, bool kSPECIALISED, int kIN_FLIGHT>
__global__ void __launch_bounds__(kTHREADS<kSPECIALISED>, 1)
    linearWgmmaKernel(__grid_constant__ LinearArguments const a, __grid_constant__ CUtensorMap const x,
        __grid_constant__ CUtensorMap const weight)
{
    extern __shared__ __align__(1024) unsigned char bytes[]; // as the swizzle wants it
    Memory<kSTAGES> const memory{sharedAddress(bytes)};
    auto const steps = static_cast<int32_t>(divideUp(a.in, kDEPTH));
    if (threadIdx.x == 0)
    {
        for (int stage = 0; stage < kSTAGES; ++stage)
        {
            initBarrier(memory.full(stage), 1);
            initBarrier(memory.empty(stage), kCONSUMERS / kWARP);
        }
        fenceBarrierInit();
    }
    __syncthreads();
    static_assert(kIN_FLIGHT == 0 || (kIN_FLIGHT == 1 && kSPECIALISED));
    PipelineState<kSTAGES> turn;                   // the stage that is next
    PipelineState<kSTAGES> read;                   // of consumers: the stage that is read to its end next
    if (kSPECIALISED && threadIdx.x >= kCONSUMERS) // the producer warp
    {
        if (threadIdx.x == kCONSUMERS)
        {
            forTiles(a,
                [&](Tile const& tile)
                {
                    for (int32_t step = 0; step < steps; ++step)
                    {
                        waitForBarrier(memory.empty(turn.stage), turn.parity ^ 1U); // at first they all are
                        fetch(memory, x, weight, tile, step, turn.stage);
                        turn.advance();
                    }
                });
        }
        return;
    }
    // The compiler is told that it is the same for all lanes.
    int const group = __shfl_sync(kALL_LANES, static_cast<int>(threadIdx.x) / kWARPGROUP, 0);
    forTiles(a,
        [&](Tile const& tile)
        {
            if (!kSPECIALISED && threadIdx.x == 0)
            {
                for (int step = 0; step < min(kSTAGES, steps); ++step)
                {
                    fetch(memory, x, weight, tile, step, (turn.stage + step) % kSTAGES);
                }
            }
            float sums[kCOLUMNS / 8][4];
            for (int32_t step = 0; step < steps; ++step)
            {
                waitForBarrier(memory.full(turn.stage), turn.parity);
                multiplyStage(sums, memory.x(turn.stage) + group * 64 * kROW_BYTES, memory.weight(turn.stage),
                    step > 0, T{});
                turn.advance();
                wgmmaWait<kIN_FLIGHT>();
                if (step < kIN_FLIGHT)
                {
                    continue; // nothing has been read to its end
                }
                if (kSPECIALISED)
                {
                    release(memory.empty(read.stage));
                }
                else
                {
                    __syncthreads(); // both warpgroups have read the stage
                    if (threadIdx.x == 0 && step + kSTAGES < steps)
                    {
                        fetch(memory, x, weight, tile, step + kSTAGES, read.stage);
                    }
                }
                read.advance();
            }
            wgmmaWait<0>();
            settleSums(sums);
            if (kIN_FLIGHT > 0)
            {
                release(memory.empty(read.stage));
                read.advance();
            }
            if (a.gelu)
            {
                storeTile<T, true>(a, tile, sums);
            }
            else
            {
                storeTile<T, false>(a, tile, sums);
            }
        });
}

// ---------------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------------

template <typename T, int kSTAGES, bool kSPECIALISED, int kIN_FLIGHT>
cudaError_t launchTyped(LinearArguments const& a, unsigned int blocks, cudaStream_t stream)
{
    auto const width = static_cast<cuuint64_t>(a.in);
    CUtensorMap x{};
    CUtensorMap weight{};
    cudaError_t status = describeTensor<T>(x, a.x, {width, static_cast<cuuint64_t>(a.rows)}, {kDEPTH, kROWS});
    if (status == cudaSuccess)
    {
        status = describeTensor<T>(
            weight, a.weight, {width, static_cast<cuuint64_t>(a.out)}, {kDEPTH, kCOLUMNS});
    }
    auto* const kernel = linearWgmmaKernel<T, kSTAGES, kSPECIALISED, kIN_FLIGHT>;
    constexpr int kBYTES = Memory<kSTAGES>::kBYTES;
    if (status == cudaSuccess)
    {
        status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBYTES);
    }
    if (status != cudaSuccess)
    {
        return status;
    }
    kernel<<<blocks, kTHREADS<kSPECIALISED>, kBYTES, stream>>>(a, x, weight);
    return cudaGetLastError();
}

template <int kSTAGES, bool kSPECIALISED, int kIN_FLIGHT>
cudaError_t launch(LinearArguments const& a, bool persistent, cudaStream_t stream)
{
    int multiprocessors = 0;
    cudaError_t const status = countMultiprocessors(multiprocessors);
    if (status != cudaSuccess)
    {
        return status;
    }
    int64_t const tiles = divideUp(a.rows, kROWS) * divideUp(a.out, kCOLUMNS);
    int64_t const blocks = persistent ? std::min<int64_t>(tiles, multiprocessors) : tiles;
    auto* const launcher = a.type == ElementType::kHALF
                               ? launchTyped<__half, kSTAGES, kSPECIALISED, kIN_FLIGHT>
                               : launchTyped<__nv_bfloat16, kSTAGES, kSPECIALISED, kIN_FLIGHT>;
    return launcher(a, static_cast<unsigned int>(blocks), stream);
}

} // namespace

cudaError_t launchLinearWgmmaOneStage(LinearArguments const& arguments, cudaStream_t stream)
{
    return launch<1, false, 0>(arguments, false, stream);
}

cudaError_t launchLinearWgmmaStages(LinearArguments const& arguments, cudaStream_t stream)
{
    return launch<4, false, 0>(arguments, false, stream);
}

cudaError_t launchLinearWgmmaSpecialised(LinearArguments const& arguments, cudaStream_t stream)
{
    return launch<4, true, 0>(arguments, false, stream);
}

cudaError_t launchLinearWgmmaInFlight(LinearArguments const& arguments, cudaStream_t stream)
{
    return launch<4, true, 1>(arguments, false, stream);
}

cudaError_t launchLinearWgmmaPersistent(LinearArguments const& arguments, cudaStream_t stream)
{
    return launch<4, true, 1>(arguments, true, stream);
}

} // namespace bert
