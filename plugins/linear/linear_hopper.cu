// The linear layer with Hopper's tensor cores: y = activation(x W + bias).
//
//   - A block computes a tile of y. One warp does nothing but fetch tiles of x and W (TMA) into a ring of slots in
//     shared memory; warpgroups multiply them (wgmma), 64 rows each, and keep the sums in registers.
//   - Where there are few tiles, the blocks of a cluster share one: each takes a part of k, and they add up what they
//     have through each other's shared memory, always in the same order.
//   - Where there are many, blocks stay and take tile after tile. Their two warpgroups can have tiles of their own: one
//     adds bias, takes GELU and stores while the tensor cores work for the other.
//   - Constant weights are fetched while the kernel before this one still runs; others are asked for then: into the L2
//     cache, where that harms nothing, whoever writes them.
//
// Compiled for sm_90a only (CMakeLists.txt).
#include "common/capability.h"
#include "common/cluster.cuh"
#include "common/early_launch.cuh"
#include "common/element.cuh"
#include "common/hopper_copies.cuh"
#include "common/hopper_products.cuh"
#include "common/tensor_cores.cuh"
#include "linear/linear_gelu.cuh"
#include "linear/linear_kernels.h"

#include <algorithm>
#include <limits>

namespace bert
{

namespace
{

// ---------------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------------

constexpr int kDEPTH = 64;             // of k, in a slot
constexpr int kROW_BYTES = kDEPTH * 2; // of a row of x in a slot: as wide as the swizzle
constexpr int kPANEL = 64;             // columns of W and y that are as wide
constexpr int kPANEL_BYTES = 64 * kPANEL * 2;

// How the warpgroups of a block, and the blocks of a cluster, share the work.
enum class Sharing
{
    kROWS,  // each warpgroup has 64 rows of every tile of its block
    kTILES, // two warpgroups have tiles of their own, in turn
    kDEPTH, // as kROWS, and each block of a cluster has a part of k
};

// A tile of kROWS rows and kCOLUMNS columns, and kSLOTS slots.
template <Sharing kSHARING_, int kROWS_, int kCOLUMNS_, int kSLOTS_>
struct LinearShape
{
    static constexpr Sharing kSHARING = kSHARING_;
    static constexpr int kROWS = kROWS_;
    static constexpr int kCOLUMNS = kCOLUMNS_;
    static constexpr int kSLOTS = kSLOTS_;
    static constexpr bool kALTERNATES = kSHARING == Sharing::kTILES;
    static constexpr bool kSPLITS_DEPTH = kSHARING == Sharing::kDEPTH;
    static constexpr int kGROUPS = kALTERNATES ? 2 : kROWS / 64;
    static constexpr int kPARTS = kALTERNATES ? kROWS / 64 : 1; // of 64 rows, that a warpgroup has of a tile
    static constexpr int kREADERS = kALTERNATES ? 4 : kGROUPS * 4; // warps that read a slot
    static constexpr int kCOMPUTING = kGROUPS * kWARPGROUP;        // threads
    // One warp would do for fetching; a warpgroup can hand its registers over.
    static constexpr int kTHREADS = kCOMPUTING + (kALTERNATES ? kWARPGROUP : kWARP);
    static constexpr int kX_BYTES = kROWS * kROW_BYTES;
    static constexpr int kPANELS = kCOLUMNS / kPANEL;
    static constexpr int kSLOT_BYTES = kX_BYTES + kPANELS * kPANEL_BYTES;
    // Panels of y, 64 rows each, that a warpgroup can have on the way to memory. One, where the other one multiplies
    // meanwhile; none, where y is stored when partial sums are combined.
    static constexpr int kY_PANELS = kSPLITS_DEPTH ? 0 : kALTERNATES ? 1 : kPANELS;
    // Where the parts of shared memory begin: slots, panels of y and bias of each warpgroup, barriers.
    static constexpr int kY = kSLOTS * kSLOT_BYTES;
    static constexpr int kBIASES = kY + kGROUPS * kY_PANELS * kPANEL_BYTES;
    static constexpr int kBARRIERS = kBIASES + (kSPLITS_DEPTH ? 0 : kGROUPS * kCOLUMNS * 2);
    static constexpr int kBYTES = kBARRIERS + kSLOTS * 16;
    // Partial sums take the place of the slots. Eight columns more, so that the rows of a warp lie in other banks.
    static constexpr int kPARTIAL_STRIDE = kCOLUMNS + 8;
    static_assert(!kSPLITS_DEPTH || kROWS * kPARTIAL_STRIDE * 4 <= kY);
    static_assert(kBYTES <= 227 * 1024);
};

struct LinearProblem
{
    void const* weight;
    void const* bias; // or null
    void* y;
    int32_t rows;
    int32_t in;
    int32_t out;
    uint32_t rowTiles;
    uint32_t tiles;
    int32_t steps; // of kDEPTH along k, of a block
    bool constantWeight;
};

template <typename Shape>
struct LinearMemory
{
    uint32_t begin;

    __device__ uint32_t x(int slot) const
    {
        return begin + slot * Shape::kSLOT_BYTES;
    }
    __device__ uint32_t weight(int slot) const
    {
        return x(slot) + Shape::kX_BYTES;
    }
    __device__ uint32_t y(int group, int panel) const
    {
        return begin + Shape::kY + (group * Shape::kY_PANELS + panel % Shape::kY_PANELS) * kPANEL_BYTES;
    }
    __device__ uint32_t bias(int group, int column) const
    {
        return begin + Shape::kBIASES + (group * Shape::kCOLUMNS + column) * 2;
    }
    __device__ uint32_t there(int slot) const
    {
        return begin + Shape::kBARRIERS + 16 * slot;
    }
    __device__ uint32_t read(int slot) const
    {
        return there(slot) + 8;
    }
    __device__ uint32_t partial(int row, int column) const
    {
        return begin + (row * Shape::kPARTIAL_STRIDE + column) * 4;
    }
};

// A tile of y, and the steps of kDEPTH along k that are this block's.
struct LinearTile
{
    int32_t row;
    int32_t column;
    int32_t firstStep;
    int32_t endStep;
};

template <typename Shape>
__device__ LinearTile findLinearTile(LinearProblem const& p, uint32_t number)
{
    uint32_t const columnTile = number / p.rowTiles;
    auto const rowTile = static_cast<int32_t>(number - columnTile * p.rowTiles);
    int32_t const column = static_cast<int32_t>(columnTile) * Shape::kCOLUMNS;
    if (!Shape::kSPLITS_DEPTH)
    {
        return {rowTile * Shape::kROWS, column, 0, p.steps};
    }
    int32_t const first = static_cast<int32_t>(clusterRank()) * p.steps;
    return {rowTile * Shape::kROWS, column, first, min(first + p.steps, (p.in + kDEPTH - 1) / kDEPTH)};
}

// Calls function(tile) for all tiles of this block.
template <typename Shape, typename Function>
__device__ void forLinearTiles(LinearProblem const& p, Function&& function)
{
    for (uint32_t number = clusterNumber(); number < p.tiles; number += clusterCount())
    {
        function(findLinearTile<Shape>(p, number));
    }
}

// Has the 128 bytes at an address brought to the L2 cache. Nothing is read by that: it may come before the wait for the
// kernel that writes them.
__device__ void prefetchLine(void const* address)
{
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

// Asks for the first tile's weights, where few other blocks do: a line of 128 bytes by a thread at a time.
template <typename T, typename Shape>
__device__ void prefetchWeights(LinearProblem const& p)
{
    constexpr uint32_t kMOST_BLOCKS = 4;
    if (p.rowTiles > kMOST_BLOCKS)
    {
        return;
    }
    LinearTile const tile = findLinearTile<Shape>(p, clusterNumber());
    int32_t const end = min(tile.endStep * kDEPTH, p.in) * Shape::kPANELS;
    for (int32_t i = tile.firstStep * kDEPTH * Shape::kPANELS + static_cast<int32_t>(threadIdx.x); i < end;
        i += Shape::kCOMPUTING)
    {
        int32_t const column = tile.column + i % Shape::kPANELS * kPANEL;
        if (column < p.out)
        {
            prefetchLine(
                static_cast<T const*>(p.weight) + static_cast<int64_t>(i / Shape::kPANELS) * p.out + column);
        }
    }
}

// What brings x and W into the slots; one thread does.
template <typename Shape>
class LinearFetcher
{
public:
    __device__ LinearFetcher(
        CUtensorMap const& x, CUtensorMap const& weight, LinearMemory<Shape> const& memory)
        : mX(x)
        , mWeight(weight)
        , mMemory(memory)
    {
    }
    // The weights of the first tile, as far as there are slots for them.
    __device__ void fetchWeightsAhead(LinearTile const& tile)
    {
        mAhead = min(Shape::kSLOTS, tile.endStep - tile.firstStep);
        for (int32_t slot = 0; slot < mAhead; ++slot)
        {
            fetchWeights(tile, tile.firstStep + slot, slot);
        }
    }
    __device__ void fetch(LinearTile const& tile)
    {
        for (int32_t step = tile.firstStep; step < tile.endStep; ++step)
        {
            if (mAhead > 0)
            {
                --mAhead;
            }
            else
            {
                // The parity that is complete before the first phase: what was never used needs no waiting.
                waitForBarrier(mMemory.read(mTurn.slot), mTurn.parity ^ 1U);
                fetchWeights(tile, step, mTurn.slot);
            }
            copyBox(mMemory.x(mTurn.slot), mX, step * kDEPTH, tile.row, mMemory.there(mTurn.slot));
            mTurn.next();
        }
    }

private:
    // Announces x as well.
    __device__ void fetchWeights(LinearTile const& tile, int32_t step, int slot)
    {
        uint32_t const there = mMemory.there(slot);
        arriveAndExpect(there, Shape::kSLOT_BYTES);
#pragma unroll
        for (int panel = 0; panel < Shape::kPANELS; ++panel)
        {
            copyBox(mMemory.weight(slot) + panel * kPANEL_BYTES, mWeight, tile.column + panel * kPANEL,
                step * kDEPTH, there);
        }
    }

    CUtensorMap const& mX;
    CUtensorMap const& mWeight;
    LinearMemory<Shape> const& mMemory;
    Turn<Shape::kSLOTS> mTurn;
    int32_t mAhead{0};
};

// sums (kPARTS * 64, kCOLUMNS) = x (as many rows, k of this block) W, by a warpgroup.
template <typename T, typename Shape>
__device__ void multiplyTile(float (&sums)[Shape::kPARTS][Shape::kCOLUMNS / 8][4], LinearTile const& tile,
    LinearMemory<Shape> const& memory, Turn<Shape::kSLOTS>& turn)
{
    bool const first = threadIdx.x % kWARP == 0;
    uint32_t const rows = Shape::kALTERNATES ? 0 : threadIdx.x / kWARPGROUP * 64 * kROW_BYTES;
    int previous = -1;
    for (int32_t step = tile.firstStep; step < tile.endStep; ++step)
    {
        waitForBarrier(memory.there(turn.slot), turn.parity);
        beginProducts();
#pragma unroll
        for (int k = 0; k < kDEPTH / 16; ++k)
        {
#pragma unroll
            for (int part = 0; part < Shape::kPARTS; ++part)
            {
                // 16 elements of k are 32 bytes of a row of x, and 16 rows of W.
                uint64_t const a = describeMatrix<kROW_BYTES, 16>(
                    memory.x(turn.slot) + rows + part * 64 * kROW_BYTES + k * 32);
                uint64_t const b = describeMatrix<kROW_BYTES, kPANEL_BYTES>(
                    memory.weight(turn.slot) + k * 16 * kROW_BYTES);
                multiplyAsync<1>(sums[part], a, b, step > tile.firstStep || k > 0 ? 1 : 0, T{});
            }
        }
        endProducts();
        waitForProducts<1>(); // those of the slot before are done
        if (first && previous >= 0)
        {
            arrive(memory.read(previous));
        }
        previous = turn.slot;
        turn.next();
    }
    waitForProducts<0>();
#pragma unroll
    for (int part = 0; part < Shape::kPARTS; ++part)
    {
        settle(sums[part]);
    }
    if (first && previous >= 0)
    {
        arrive(memory.read(previous));
    }
}

// Two neighbouring elements of the bias.
template <typename T>
__device__ Vector<T, 2> loadBias(LinearProblem const& p, int32_t column)
{
    return p.bias == nullptr || column >= p.out
               ? Vector<T, 2>{}
               : *reinterpret_cast<Vector<T, 2> const*>(static_cast<T const*>(p.bias) + column);
}

// Bias and activation on a pair of sums, rounded once.
template <typename T, bool kGELU>
__device__ uint32_t finishPair(float low, float high, Vector<T, 2> const& bias)
{
    low += toFloat(bias.values[0]);
    high += toFloat(bias.values[1]);
    uint32_t word;
    packPair(word, kGELU ? gelu(low) : low, kGELU ? gelu(high) : high, T{});
    return word;
}

// All threads of this warpgroup come here.
__device__ void synchronizeGroup()
{
    asm volatile("bar.sync %0, %1;" ::"r"(2 + threadIdx.x / kWARPGROUP), "n"(kWARPGROUP) : "memory");
}

// The bias of a tile's columns to shared memory, for this warpgroup.
template <typename T, typename Shape>
__device__ void keepBias(LinearProblem const& p, int32_t firstColumn, LinearMemory<Shape> const& memory)
{
    int const column = static_cast<int>(threadIdx.x % kWARPGROUP * 2);
    if (column < Shape::kCOLUMNS)
    {
        Vector<T, 2> const pair = loadBias<T>(p, firstColumn + column);
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(memory.bias(threadIdx.x / kWARPGROUP, column)),
            "r"(*reinterpret_cast<uint32_t const*>(&pair))
            : "memory");
    }
}

// A warpgroup's sums of 64 rows to y, one panel of columns after the other: to shared memory, and from there by a copy
// that knows where y ends and goes on while the next panel is computed.
template <typename T, bool kGELU, typename Shape>
__device__ void storeRows(CUtensorMap const& y, int32_t row, int32_t firstColumn,
    LinearMemory<Shape> const& memory, float const (&sums)[Shape::kCOLUMNS / 8][4])
{
    using Panel = SharedTile<64, kPANEL>;
    auto const group = static_cast<int>(threadIdx.x / kWARPGROUP);
    uint32_t const lane = threadIdx.x % kWARP;
    uint32_t const warp = threadIdx.x / kWARP % 4;
    bool const copies = threadIdx.x % kWARPGROUP == 0;
#pragma unroll
    for (int panel = 0; panel < Shape::kPANELS; ++panel)
    {
        if (panel % Shape::kY_PANELS == 0)
        {
            if (copies)
            {
                waitForStores(); // they have read what is written next
            }
            synchronizeGroup();
        }
#pragma unroll
        for (int n = 0; n < kPANEL / 8; n += 2)
        {
            uint32_t words[4];
#pragma unroll
            for (int i = 0; i < 2; ++i)
            {
                int const tile = panel * kPANEL / 8 + n + i;
                uint32_t bits;
                asm volatile("ld.shared.b32 %0, [%1];"
                    : "=r"(bits)
                    : "r"(memory.bias(group, tile * 8 + static_cast<int>(lane % 4 * 2))));
                auto const bias = *reinterpret_cast<Vector<T, 2> const*>(&bits);
                words[2 * i] = finishPair<T, kGELU>(sums[tile][0], sums[tile][1], bias);
                words[2 * i + 1] = finishPair<T, kGELU>(sums[tile][2], sums[tile][3], bias);
            }
            storeMatrices(
                memory.y(group, panel) + Panel::offset(warp * 16 + lane % 16, n + lane / 16), words);
        }
        showToTensorCores(); // and to copies
        synchronizeGroup();
        if (copies)
        {
            storeBox(y, firstColumn + panel * kPANEL, row, memory.y(group, panel));
        }
    }
}

// A block's sums to its own shared memory, when all its warps are done with the slots.
template <typename Shape>
__device__ void keepPartial(LinearMemory<Shape> const& memory, float const (&sums)[Shape::kCOLUMNS / 8][4])
{
    asm volatile("bar.sync 1, %0;" ::"n"(Shape::kCOMPUTING) : "memory");
    int const row = static_cast<int>(threadIdx.x / kWARP * 16 + threadIdx.x % kWARP / 4);
    int const column = static_cast<int>(threadIdx.x % 4 * 2);
#pragma unroll
    for (int n = 0; n < Shape::kCOLUMNS / 8; ++n)
    {
#pragma unroll
        for (int half = 0; half < 2; ++half)
        {
            asm volatile(
                "st.shared.v2.f32 [%0], {%1, %2};" ::"r"(memory.partial(row + half * 8, column + n * 8)),
                "f"(sums[n][2 * half]), "f"(sums[n][2 * half + 1])
                : "memory");
        }
    }
}

// Adds up what the blocks of the cluster have of a share of the tile, 4 columns to a thread at a time, and stores it.
template <typename T, bool kGELU, typename Shape>
__device__ void combinePartials(
    LinearProblem const& p, LinearTile const& tile, LinearMemory<Shape> const& memory)
{
    constexpr int kMOST = 8; // blocks in a cluster
    constexpr int kOF_ROW = Shape::kCOLUMNS / 4;
    uint32_t const size = clusterSize();
    for (uint32_t piece = clusterRank() * Shape::kCOMPUTING + threadIdx.x; piece < Shape::kROWS * kOF_ROW;
        piece += size * Shape::kCOMPUTING)
    {
        int const row = static_cast<int>(piece / kOF_ROW);
        int const column = static_cast<int>(piece % kOF_ROW * 4);
        int32_t const first = tile.column + column;
        if (tile.row + row >= p.rows || first >= p.out)
        {
            continue;
        }
        Vector<T, 2> const biases[2] = {loadBias<T>(p, first), loadBias<T>(p, first + 2)};
        uint32_t const address = memory.partial(row, column);
        float4 parts[kMOST];
#pragma unroll
        for (uint32_t rank = 0; rank < kMOST; ++rank)
        {
            parts[rank] = rank < size ? loadFromCluster(addressInBlock(address, rank)) : float4{};
        }
        float4 sum = parts[0];
#pragma unroll
        for (uint32_t rank = 1; rank < kMOST; ++rank)
        {
            sum = {
                sum.x + parts[rank].x, sum.y + parts[rank].y, sum.z + parts[rank].z, sum.w + parts[rank].w};
        }
        T* const y = static_cast<T*>(p.y) + static_cast<int64_t>(tile.row + row) * p.out + first;
        *reinterpret_cast<uint2*>(y)
            = {finishPair<T, kGELU>(sum.x, sum.y, biases[0]), finishPair<T, kGELU>(sum.z, sum.w, biases[1])};
    }
}

// Two warpgroups that alternate read the ring of slots in turn: only one that saw the end of the other's tile knows
// which round of the ring it is in, since barriers tell rounds apart by their parity only.
__device__ void waitForTurn(int32_t group)
{
    asm volatile("bar.sync %0, %1;" ::"r"(4 + group), "n"(2 * kWARPGROUP) : "memory");
}
__device__ void giveTurn(int32_t group)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(4 + group), "n"(2 * kWARPGROUP) : "memory");
}

// What a warpgroup does that multiplies.
template <typename T, typename Shape, bool kGELU>
__device__ void computeTiles(LinearProblem const& p, CUtensorMap const& y, LinearMemory<Shape> const& memory)
{
    auto const group = static_cast<int32_t>(threadIdx.x / kWARPGROUP);
    Turn<Shape::kSLOTS> turn;
    int32_t ofGroup = 0; // whose turn it is
    if (Shape::kALTERNATES && group == 1)
    {
        giveTurn(0);
    }
    forLinearTiles<Shape>(p,
        [&](LinearTile const& tile)
        {
            if (Shape::kALTERNATES)
            {
                bool const mine = ofGroup == group;
                ofGroup ^= 1;
                if (!mine)
                {
                    turn.skip(p.steps);
                    return;
                }
            }
            float sums[Shape::kPARTS][Shape::kCOLUMNS / 8][4];
            if constexpr (!Shape::kSPLITS_DEPTH)
            {
                keepBias<T>(p, tile.column, memory);
                if (Shape::kALTERNATES)
                {
                    waitForTurn(group);
                }
                multiplyTile<T, Shape>(sums, tile, memory, turn);
                if (Shape::kALTERNATES)
                {
                    giveTurn(1 - group);
                }
#pragma unroll
                for (int part = 0; part < Shape::kPARTS; ++part)
                {
                    int32_t const row = tile.row + (Shape::kALTERNATES ? part : group) * 64;
                    storeRows<T, kGELU>(y, row, tile.column, memory, sums[part]);
                }
            }
            else
            {
                multiplyTile<T, Shape>(sums, tile, memory, turn);
                keepPartial<Shape>(memory, sums[0]);
            }
        });
    if (!Shape::kSPLITS_DEPTH && threadIdx.x % kWARPGROUP == 0)
    {
        waitForStores();
    }
}

template <typename T, typename Shape, bool kGELU>
__global__ void __launch_bounds__(Shape::kTHREADS, 1)
    linearHopperKernel(LinearProblem const p, __grid_constant__ CUtensorMap const x,
        __grid_constant__ CUtensorMap const weight, __grid_constant__ CUtensorMap const y)
{
    extern __shared__ __align__(1024) unsigned char bytes[]; // as the swizzle wants it
    LinearMemory<Shape> const memory{sharedAddress(bytes)};
    bool const computes = threadIdx.x < Shape::kCOMPUTING;
    if (threadIdx.x == 0)
    {
        for (int slot = 0; slot < Shape::kSLOTS; ++slot)
        {
            initBarrier(memory.there(slot), 1);
            initBarrier(memory.read(slot), Shape::kREADERS);
        }
        showBarriers();
    }
    if (threadIdx.x == Shape::kCOMPUTING)
    {
        prefetchMap(x);
        prefetchMap(weight);
        prefetchMap(y);
    }
    if (computes && !p.constantWeight)
    {
        prefetchWeights<T, Shape>(p);
    }
    __syncthreads();
    letNextKernelIn();
    LinearFetcher<Shape> fetcher{x, weight, memory};
    if (p.constantWeight && threadIdx.x == Shape::kCOMPUTING)
    {
        fetcher.fetchWeightsAhead(findLinearTile<Shape>(p, clusterNumber()));
    }
    waitForPreviousKernel();
    if (computes)
    {
        if (Shape::kALTERNATES)
        {
            asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        }
        computeTiles<T, Shape, kGELU>(p, y, memory);
    }
    else
    {
        if (Shape::kALTERNATES)
        {
            asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        }
        if (threadIdx.x == Shape::kCOMPUTING)
        {
            forLinearTiles<Shape>(p, [&](LinearTile const& tile) { fetcher.fetch(tile); });
        }
    }
    if constexpr (Shape::kSPLITS_DEPTH)
    {
        __syncwarp();
        synchronizeCluster();
        if (computes)
        {
            combinePartials<T, kGELU, Shape>(p, findLinearTile<Shape>(p, clusterNumber()), memory);
        }
        __syncwarp();
        synchronizeCluster(); // nobody leaves while the others still read its sums
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------

template <typename T, typename Shape>
cudaError_t launchShape(LinearArguments const& a, int32_t steps, int multiprocessors, cudaStream_t stream)
{
    auto const in = static_cast<cuuint64_t>(a.in);
    auto const out = static_cast<cuuint64_t>(a.out);
    auto const rows = static_cast<cuuint64_t>(a.rows);
    CUtensorMap x{};
    CUtensorMap weight{};
    CUtensorMap y{};
    cudaError_t status = describeTensor<T>(x, a.x, {in, rows}, {kDEPTH, Shape::kROWS});
    if (status == cudaSuccess)
    {
        status = describeTensor<T>(weight, a.weight, {out, in}, {kPANEL, kDEPTH});
    }
    if (status == cudaSuccess)
    {
        status = describeTensor<T>(y, a.y, {out, rows}, {kPANEL, 64});
    }
    if (status != cudaSuccess)
    {
        return status;
    }
    auto const rowTiles = static_cast<uint32_t>(divideUp(a.rows, Shape::kROWS));
    auto const tiles = static_cast<uint32_t>(rowTiles * divideUp(a.out, Shape::kCOLUMNS));
    auto const cluster = static_cast<uint32_t>(divideUp(divideUp(a.in, kDEPTH), steps));
    uint32_t const clusters = Shape::kSPLITS_DEPTH ? tiles : std::min<uint32_t>(tiles, multiprocessors);
    LaunchSize const size{clusters * cluster, Shape::kTHREADS, Shape::kBYTES, cluster};
    LinearProblem const problem{a.weight, a.bias, a.y, static_cast<int32_t>(a.rows), a.in, a.out, rowTiles,
        tiles, steps, a.constantWeight};
    return a.gelu ? launchEarly(linearHopperKernel<T, Shape, true>, size, stream, problem, x, weight, y)
                  : launchEarly(linearHopperKernel<T, Shape, false>, size, stream, problem, x, weight, y);
}

// What a shape takes, in microseconds: to start and end; for each tile, to begin and store it; for each step of kDEPTH,
// if one block runs and, as a share of it, how much longer if all multiprocessors are busy. Fitted to 40 products of
// BERT-base, with 16 to 8192 rows, on an H200; what is chosen by it takes 1.3 % longer than the best of them on average.
struct Costs
{
    float start;
    float tile;
    float step;
    float crowding;
};

struct Choice
{
    cudaError_t (*launch)(LinearArguments const&, int32_t steps, int multiprocessors, cudaStream_t);
    int32_t rows;
    int32_t columns;
    bool splitsDepth;
    Costs costs;
};

template <typename T, Sharing kSHARING, int kROWS, int kCOLUMNS, int kSLOTS>
constexpr Choice makeChoice(Costs const& costs)
{
    return {launchShape<T, LinearShape<kSHARING, kROWS, kCOLUMNS, kSLOTS>>, kROWS, kCOLUMNS,
        kSHARING == Sharing::kDEPTH, costs};
}

template <typename T>
constexpr Choice kCHOICES[] = {
    makeChoice<T, Sharing::kROWS, 64, 64, 12>({0.945F, 1.092F, 0.135F, 0.047F}),
    makeChoice<T, Sharing::kROWS, 64, 128, 8>({1.329F, 1.109F, 0.170F, 0.190F}),
    makeChoice<T, Sharing::kROWS, 64, 192, 6>({2.037F, 0.893F, 0.182F, 0.569F}),
    makeChoice<T, Sharing::kROWS, 128, 128, 5>({1.744F, 0.818F, 0.266F, 0.493F}),
    makeChoice<T, Sharing::kROWS, 128, 192, 4>({0.758F, 2.190F, 0.405F, 0.379F}),
    makeChoice<T, Sharing::kTILES, 128, 192, 5>({3.569F, 1.201F, 0.405F, 0.356F}),
    makeChoice<T, Sharing::kDEPTH, 64, 64, 12>({2.115F, 0.673F, 0.099F, 1.869F}),
};

// Of `split` blocks to a tile; infinite where that cannot be.
float estimate(LinearArguments const& a, Choice const& choice, int32_t split, int multiprocessors)
{
    int64_t const steps = divideUp(divideUp(a.in, kDEPTH), split);
    int64_t const blocks = divideUp(a.rows, choice.rows) * divideUp(a.out, choice.columns) * split;
    // Clusters do not always find room on all multiprocessors; those that wait cost more than was gained.
    if (steps * (split - 1) >= divideUp(a.in, kDEPTH) || (split > 1 && blocks > multiprocessors * 3 / 4))
    {
        return std::numeric_limits<float>::infinity();
    }
    auto const rounds = static_cast<float>(divideUp(blocks, multiprocessors));
    float const busy = std::min(1.0F, static_cast<float>(blocks) / static_cast<float>(multiprocessors));
    Costs const& costs = choice.costs;
    float const step = costs.step * (1.0F + costs.crowding * busy);
    return costs.start + rounds * (costs.tile + static_cast<float>(steps) * step);
}

template <typename T>
cudaError_t launchTyped(LinearArguments const& a, cudaStream_t stream)
{
    int multiprocessors = 0;
    cudaError_t const status = countMultiprocessors(multiprocessors);
    if (status != cudaSuccess)
    {
        return status;
    }
    constexpr int32_t kMOST_BLOCKS = 8; // of a cluster, on any GPU that has them
    Choice const* best = nullptr;
    int32_t bestSplit = 1;
    float least = std::numeric_limits<float>::infinity();
    for (Choice const& choice : kCHOICES<T>)
    {
        for (int32_t split = choice.splitsDepth ? 2 : 1; split <= (choice.splitsDepth ? kMOST_BLOCKS : 1);
            ++split)
        {
            float const time = estimate(a, choice, split, multiprocessors);
            if (time < least)
            {
                best = &choice;
                bestSplit = split;
                least = time;
            }
        }
    }
    auto const steps = static_cast<int32_t>(divideUp(divideUp(a.in, kDEPTH), bestSplit));
    return best->launch(a, steps, multiprocessors, stream);
}

} // namespace

bool hopperTakes(LinearArguments const& a)
{
    constexpr int32_t kALIGNED = 8; // elements: 16 bytes
    return a.in % kALIGNED == 0 && a.out % kALIGNED == 0 && a.rows <= INT32_MAX && isAligned16(a.x)
           && isAligned16(a.weight) && isAligned16(a.bias) && isAligned16(a.y);
}

cudaError_t launchLinearHopper(LinearArguments const& arguments, cudaStream_t stream)
{
    return arguments.type == ElementType::kHALF ? launchTyped<__half>(arguments, stream)
                                                : launchTyped<__nv_bfloat16>(arguments, stream);
}

} // namespace bert
