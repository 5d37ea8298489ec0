// The linear layer with Hopper's tensor cores: y = activation(x W^T + bias).
//
//   - A block computes a tile of y. One warp does nothing but fetch tiles of x and W (TMA) into a ring of slots in
//     shared memory; warpgroups multiply them (wgmma), 64 rows each, and keep the sums in registers.
//   - Where there are few tiles, the blocks of a cluster share one: each takes a part of k, has a part of the columns in
//     the end, and sends what it has of the others' to their shared memory. They add it up always in the same order.
//   - Where there are many, blocks stay and take tile after tile. Their two warpgroups can have tiles of their own: one
//     adds bias, takes GELU and stores while the tensor cores work for the other.
//   - Constant weights and bias are fetched while the kernel before this one still runs; other weights are asked for
//     then: into the L2 cache, where that harms nothing, whoever writes them.
//   - What multiplies waits for the kernel before by waiting for x.
//
// Compiled for sm_90a only (CMakeLists.txt).
#include "common/capability.h"
#include "common/cluster.cuh"
#include "common/element.cuh"
#include "common/hopper_tma.cuh"
#include "common/hopper_wgmma.cuh"
#include "common/programmatic_dependent_launch.cuh"
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

// A slot holds panels of 64 elements of k: of x with all rows of a tile, of W with all its columns of y. They are as wide
// as the swizzle, and so are those of y, 64 columns.
constexpr int kPANEL = 64;
constexpr int kROW_BYTES = kPANEL * 2;
constexpr int kWARP_ROWS = 16; // of y, that a warp has
constexpr int kPANEL_BYTES = kWARP_ROWS * kROW_BYTES;

// How y gets to memory.
enum class Store
{
    kPANELS, // each warp puts a panel into shared memory, and a copy takes it from there
    kPAIRS, // threads write pairs of columns: where a tile has no whole panels, or that memory is better used for a slot
};

// How the warpgroups of a block, and the blocks of a cluster, share the work.
enum class Sharing
{
    kROWS,  // each warpgroup has 64 rows of every tile of its block
    kTILES, // two warpgroups have tiles of their own, in turn
    kDEPTH, // as kROWS, and each block of a cluster has a part of k
};

// How many groups of 8 columns a block of a cluster receives from the others, at most: of `pairs` of such groups each
// block gets the same share, the last ones perhaps less.
constexpr int mostReceived(int pairs, int mostBlocks)
{
    int most = 0;
    for (int blocks = 2; blocks <= mostBlocks; ++blocks)
    {
        most = std::max(most, (blocks - 1) * 2 * static_cast<int>(divideUp(pairs, blocks)));
    }
    return most;
}

// A tile of kROWS rows and kCOLUMNS columns, kSLOTS slots with kDEPTH elements of k each, and kMOST_BLOCKS of a cluster
// that share a tile.
template <Sharing kSHARING_, Store kSTORE_, int kROWS_, int kCOLUMNS_, int kDEPTH_, int kSLOTS_,
    int kMOST_BLOCKS_ = 1>
struct LinearShape
{
    static constexpr Sharing kSHARING = kSHARING_;
    static constexpr int kROWS = kROWS_;
    static constexpr int kCOLUMNS = kCOLUMNS_;
    static constexpr int kDEPTH = kDEPTH_;
    static constexpr int kSLOTS = kSLOTS_;
    static constexpr int kMOST_BLOCKS = kMOST_BLOCKS_;
    static constexpr bool kALTERNATES = kSHARING == Sharing::kTILES;
    static constexpr bool kSPLITS_DEPTH = kSHARING == Sharing::kDEPTH;
    static constexpr int kGROUPS = kALTERNATES ? 2 : kROWS / 64;
    static constexpr int kPARTS = kALTERNATES ? kROWS / 64 : 1; // of 64 rows, that a warpgroup has of a tile
    static constexpr int kREADERS = kALTERNATES ? 4 : kGROUPS * 4; // warps that read a slot
    static constexpr int kCOMPUTING = kGROUPS * kWARPGROUP;        // threads
    // One warp would do for fetching; a warpgroup can hand its registers over.
    static constexpr int kTHREADS = kCOMPUTING + (kALTERNATES ? kWARPGROUP : kWARP);
    static constexpr int kPANELS = kDEPTH / kPANEL;
    static constexpr int kX_PANEL_BYTES = kROWS * kROW_BYTES;
    static constexpr int kX_BYTES = kPANELS * kX_PANEL_BYTES;
    static constexpr int kWEIGHT_PANEL_BYTES = kCOLUMNS * kROW_BYTES;
    static constexpr int kSLOT_BYTES = kX_BYTES + kPANELS * kWEIGHT_PANEL_BYTES;
    static constexpr bool kSTORES_PAIRS = kSTORE_ == Store::kPAIRS;
    static_assert(kSTORES_PAIRS || (kCOLUMNS % kPANEL == 0 && !kSPLITS_DEPTH));
    // Whether the next kernel is let in when the products are computed, and not at once: its small blocks would get their
    // places on the few multiprocessors that have none of these, and wait there on top of each other (H200, BERT-base, 8
    // sentences: 484 to 480 us). Where blocks are small, or stay for many tiles, at once is better.
    static constexpr bool kLETS_IN_LATE = kSHARING == Sharing::kROWS && kROWS == 128;
    // Panels of y that a warp can have on the way to memory. One, where the other warpgroup multiplies meanwhile.
    static constexpr int kY_PANELS = kSTORES_PAIRS ? 0 : kALTERNATES ? 1 : kCOLUMNS / kPANEL;
    // Sums of 8 columns that the other blocks of the cluster have for this one, at most.
    static constexpr int kSUMS_BYTES = kCOMPUTING * 16;
    static constexpr int kRECEIVED = mostReceived(kCOLUMNS / 16, kMOST_BLOCKS);
    // Where the parts of shared memory begin: slots, panels of y of each warp, sums, bias of each warp, barriers.
    static constexpr int kY = kSLOTS * kSLOT_BYTES;
    static constexpr int kSUMS = kY + kGROUPS * 4 * kY_PANELS * kPANEL_BYTES;
    static constexpr int kBIASES = kSUMS + kRECEIVED * kSUMS_BYTES;
    static constexpr int kBARRIERS = kBIASES + kGROUPS * 4 * kCOLUMNS * 2;
    static constexpr int kBYTES = kBARRIERS + kSLOTS * 16;
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
    int32_t steps; // of Shape::kDEPTH along k, of a block
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
    __device__ uint32_t y(int warp, int panel) const
    {
        return begin + Shape::kY + (warp * Shape::kY_PANELS + panel % Shape::kY_PANELS) * kPANEL_BYTES;
    }
    __device__ uint32_t bias(int column) const // this warp's
    {
        return begin + Shape::kBIASES
               + (static_cast<int>(threadIdx.x / kWARP) * Shape::kCOLUMNS + column) * 2;
    }
    __device__ uint32_t there(int slot) const
    {
        return begin + Shape::kBARRIERS + 16 * slot;
    }
    __device__ uint32_t read(int slot) const
    {
        return there(slot) + 8;
    }
    // This thread's four sums of `which` of the groups of 8 columns that are this block's, from another block.
    __device__ uint32_t received(int which) const
    {
        return begin + Shape::kSUMS + which * Shape::kSUMS_BYTES + static_cast<int>(threadIdx.x) * 16;
    }
};

// A tile of y, and the steps of Shape::kDEPTH along k that are this block's.
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
    return {rowTile * Shape::kROWS, column, first,
        min(first + p.steps, (p.in + Shape::kDEPTH - 1) / Shape::kDEPTH)};
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
    int32_t const first = tile.firstStep * Shape::kDEPTH;
    int32_t const lines = (min(tile.endStep * Shape::kDEPTH, p.in) - first) / kPANEL; // of each column of y
    for (auto i = static_cast<int32_t>(threadIdx.x); i < lines * Shape::kCOLUMNS; i += Shape::kCOMPUTING)
    {
        int32_t const column = tile.column + i % Shape::kCOLUMNS;
        if (column < p.out)
        {
            prefetchLine(static_cast<T const*>(p.weight) + static_cast<int64_t>(column) * p.in + first
                         + i / Shape::kCOLUMNS * kPANEL);
        }
    }
}

// What brings x and W into the slots; a warp does.
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
                waitForBarrier(mMemory.read(mTurn.stage), mTurn.parity ^ 1U);
                fetchWeights(tile, step, mTurn.stage);
            }
            fetchX(tile, step, mTurn.stage);
            mTurn.advance();
        }
    }

private:
    __device__ void fetchX(LinearTile const& tile, int32_t step, int slot)
    {
        copyBoxByWarp(mMemory.x(slot), mX, 0, tile.row, step * Shape::kPANELS, mMemory.there(slot));
    }
    // Announces x as well.
    __device__ void fetchWeights(LinearTile const& tile, int32_t step, int slot)
    {
        uint32_t const there = mMemory.there(slot);
        arriveAndExpectByWarp(there, Shape::kSLOT_BYTES);
        copyBoxByWarp(mMemory.weight(slot), mWeight, 0, tile.column, step * Shape::kPANELS, there);
    }

    CUtensorMap const& mX;
    CUtensorMap const& mWeight;
    LinearMemory<Shape> const& mMemory;
    PipelineState<Shape::kSLOTS> mTurn;
    int32_t mAhead{0};
};

// The bias of a tile's columns to shared memory, for this warp; zeros where another block of the cluster adds it.
template <typename T, typename Shape>
__device__ void keepBias(LinearProblem const& p, LinearTile const& tile, LinearMemory<Shape> const& memory)
{
    bool const exists = p.bias != nullptr && (!Shape::kSPLITS_DEPTH || clusterRank() == 0);
    __syncwarp(); // all lanes have read the last tile's
    for (int i = static_cast<int>(threadIdx.x % kWARP) * 2; i < Shape::kCOLUMNS; i += 2 * kWARP)
    {
        int32_t const column = tile.column + i;
        storeWord(memory.bias(i), exists && column < p.out ? *reinterpret_cast<uint32_t const*>(
                                                                 static_cast<T const*>(p.bias) + column)
                                                           : 0U);
    }
    __syncwarp();
}

// sums += the bias of columns 8 n to 8 n + 7 of the tile.
template <typename T, typename Shape>
__device__ void addBias(float (&sums)[4], LinearMemory<Shape> const& memory, int n)
{
    uint32_t const word = loadWord(memory.bias(n * 8 + static_cast<int>(threadIdx.x % 4 * 2)));
    auto const bias = *reinterpret_cast<Vector<T, 2> const*>(&word);
    sums[0] += toFloat(bias, 0);
    sums[1] += toFloat(bias, 1);
    sums[2] += toFloat(bias, 0);
    sums[3] += toFloat(bias, 1);
}

// sums (kPARTS * 64, kCOLUMNS) = x (as many rows, k of this block) W^T, by a warpgroup.
template <typename T, typename Shape>
__device__ void multiplyTile(float (&sums)[Shape::kPARTS][Shape::kCOLUMNS / 8][4], LinearTile const& tile,
    LinearMemory<Shape> const& memory, PipelineState<Shape::kSLOTS>& turn)
{
    bool const first = threadIdx.x % kWARP == 0;
    uint32_t const rows = Shape::kALTERNATES ? 0 : threadIdx.x / kWARPGROUP * 64 * kROW_BYTES;
    int previous = -1;
    for (int32_t step = tile.firstStep; step < tile.endStep; ++step)
    {
        waitForBarrier(memory.there(turn.stage), turn.parity);
        wgmmaFence();
#pragma unroll
        for (int k = 0; k < Shape::kDEPTH / 16; ++k)
        {
#pragma unroll
            for (int part = 0; part < Shape::kPARTS; ++part)
            {
                // 16 elements of k are 32 bytes of a row.
                uint64_t const a
                    = matrixDescriptor<kROW_BYTES, 16>(memory.x(turn.stage) + k / 4 * Shape::kX_PANEL_BYTES
                                                       + rows + part * 64 * kROW_BYTES + k % 4 * 32);
                uint64_t const b = matrixDescriptor<kROW_BYTES, 16>(
                    memory.weight(turn.stage) + k / 4 * Shape::kWEIGHT_PANEL_BYTES + k % 4 * 32);
                multiplyAsync<0>(sums[part], a, b, step > tile.firstStep || k > 0 ? 1 : 0, T{});
            }
        }
        wgmmaCommit();
        wgmmaWait<1>(); // those of the slot before are done
        if (first && previous >= 0)
        {
            arrive(memory.read(previous));
        }
        previous = turn.stage;
        turn.advance();
    }
    wgmmaWait<0>();
#pragma unroll
    for (int part = 0; part < Shape::kPARTS; ++part)
    {
        fenceRegisters(sums[part]);
    }
    if (first && previous >= 0)
    {
        arrive(memory.read(previous));
    }
}

// Activation on a pair of sums, rounded once.
template <typename T, bool kGELU>
__device__ uint32_t finishPair(float low, float high)
{
    uint32_t word;
    packPair(word, kGELU ? gelu(low) : low, kGELU ? gelu(high) : high, T{});
    return word;
}

// A warpgroup's sums of 64 rows to y, each warp its 16, one panel of columns after the other: to shared memory, and from
// there by a copy that knows where y ends and goes on while the next panel is computed.
template <typename T, bool kGELU, typename Shape>
__device__ void storeRows(CUtensorMap const& y, int32_t row, int32_t firstColumn,
    LinearMemory<Shape> const& memory, float (&sums)[Shape::kCOLUMNS / 8][4])
{
    using Panel = SharedTile<kWARP_ROWS, kPANEL>;
    auto const ofBlock = static_cast<int>(threadIdx.x / kWARP);
    uint32_t const lane = threadIdx.x % kWARP;
#pragma unroll
    for (int panel = 0; panel < Shape::kCOLUMNS / kPANEL; ++panel)
    {
        uint32_t const rows = memory.y(ofBlock, panel);
        if (panel % Shape::kY_PANELS == 0)
        {
            if (lane == 0)
            {
                waitForStores(); // they have read what is written next
            }
            __syncwarp();
        }
#pragma unroll
        for (int n = 0; n < kPANEL / 8; n += 2)
        {
            uint32_t words[4];
#pragma unroll
            for (int i = 0; i < 2; ++i)
            {
                int const tile = panel * kPANEL / 8 + n + i;
                float (&four)[4] = sums[tile];
                addBias<T>(four, memory, tile);
                words[2 * i] = finishPair<T, kGELU>(four[0], four[1]);
                words[2 * i + 1] = finishPair<T, kGELU>(four[2], four[3]);
            }
            storeMatrices(rows + Panel::offset(lane % kWARP_ROWS, n + lane / kWARP_ROWS), words);
        }
        fenceAsyncProxy(); // and to copies
        __syncwarp();
        if (lane == 0)
        {
            storeBox(y, firstColumn + panel * kPANEL, row + ofBlock % 4 * kWARP_ROWS, rows);
        }
    }
}

// own = the sum over the blocks of the cluster, in the order of their ranks.
template <typename Shape>
__device__ void addReceived(
    float (&own)[4], LinearMemory<Shape> const& memory, int first, int stride, int rank, int size)
{
    float total[4]{};
    for (int from = 0; from < size; ++from)
    {
        float other[4] = {own[0], own[1], own[2], own[3]};
        if (from != rank)
        {
            asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                : "=f"(other[0]), "=f"(other[1]), "=f"(other[2]), "=f"(other[3])
                : "r"(memory.received(first + (from < rank ? from : from - 1) * stride))
                : "memory");
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
        {
            total[i] += other[i];
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
    {
        own[i] = total[i];
    }
}

// 16 columns of this warp's rows to memory: lanes 2i and 2i + 1 exchange pairs, so that each has four neighbours.
template <typename T, bool kGELU>
__device__ void storePair(
    LinearProblem const& p, LinearTile const& tile, int pair, float const (&low)[4], float const (&high)[4])
{
    auto const t = static_cast<int>(threadIdx.x % 4);
    bool const odd = t % 2 != 0;
    int32_t const column = tile.column + pair * 16 + (odd ? 8 : 0) + t / 2 * 4;
#pragma unroll
    for (int half = 0; half < 2; ++half)
    {
        uint32_t const first = finishPair<T, kGELU>(low[2 * half], low[2 * half + 1]);
        uint32_t const second = finishPair<T, kGELU>(high[2 * half], high[2 * half + 1]);
        uint32_t const received = __shfl_xor_sync(kALL_LANES, odd ? first : second, 1);
        int32_t const row
            = tile.row + static_cast<int32_t>(threadIdx.x / kWARP * 16 + threadIdx.x % kWARP / 4) + 8 * half;
        if (row < p.rows && column < p.out)
        {
            T* const y = static_cast<T*>(p.y) + static_cast<int64_t>(row) * p.out + column;
            *reinterpret_cast<uint2*>(y) = {odd ? received : first, odd ? second : received};
        }
    }
}

template <typename T, bool kGELU, typename Shape>
__device__ void storePairs(
    LinearProblem const& p, LinearTile const& tile, float const (&sums)[Shape::kCOLUMNS / 8][4])
{
#pragma unroll
    for (int pair = 0; pair < Shape::kCOLUMNS / 16; ++pair)
    {
        storePair<T, kGELU>(p, tile, pair, sums[2 * pair], sums[2 * pair + 1]);
    }
}

// Adds up what the blocks of a cluster have of a tile and stores it, 16 columns at a time; each block has some of them.
template <typename T, bool kGELU, typename Shape>
__device__ void combineSums(LinearProblem const& p, LinearTile const& tile, LinearMemory<Shape> const& memory,
    float (&sums)[Shape::kCOLUMNS / 8][4])
{
    constexpr int kPAIRS = Shape::kCOLUMNS / 16;
    auto const rank = static_cast<int>(clusterRank());
    auto const size = static_cast<int>(clusterSize());
    int const ofBlock = (kPAIRS + size - 1) / size; // pairs of groups of 8 columns
    clusterWait();                                  // all have begun
#pragma unroll
    for (int pair = 0; pair < kPAIRS; ++pair)
    {
        int const owner = pair / ofBlock;
        if (owner != rank)
        {
            int const place = 2 * ((rank < owner ? rank : rank - 1) * ofBlock + pair % ofBlock);
            storeToCluster(addressInPeerBlock(memory.received(place), owner), sums[2 * pair]);
            storeToCluster(addressInPeerBlock(memory.received(place + 1), owner), sums[2 * pair + 1]);
        }
    }
    clusterArrive();
    clusterWait();
#pragma unroll
    for (int pair = 0; pair < kPAIRS; ++pair)
    {
        if (pair / ofBlock == rank)
        {
            addReceived<Shape>(sums[2 * pair], memory, 2 * (pair % ofBlock), 2 * ofBlock, rank, size);
            addReceived<Shape>(sums[2 * pair + 1], memory, 2 * (pair % ofBlock) + 1, 2 * ofBlock, rank, size);
            storePair<T, kGELU>(p, tile, pair, sums[2 * pair], sums[2 * pair + 1]);
        }
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
    PipelineState<Shape::kSLOTS> turn;
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
            if (!p.constantWeight)
            {
                waitForPreviousKernel();
            }
            keepBias<T>(p, tile, memory);
            if (Shape::kALTERNATES)
            {
                waitForTurn(group);
            }
            multiplyTile<T, Shape>(sums, tile, memory, turn);
            if (Shape::kLETS_IN_LATE)
            {
                triggerDependentLaunch();
            }
            if (Shape::kALTERNATES)
            {
                giveTurn(1 - group);
            }
            if constexpr (Shape::kSTORES_PAIRS)
            {
#pragma unroll
                for (int n = 0; n < Shape::kCOLUMNS / 8; ++n)
                {
                    addBias<T>(sums[0][n], memory, n);
                }
                if constexpr (Shape::kSPLITS_DEPTH)
                {
                    combineSums<T, kGELU, Shape>(p, tile, memory, sums[0]);
                }
                else
                {
                    storePairs<T, kGELU, Shape>(p, tile, sums[0]);
                }
            }
            else
            {
#pragma unroll
                for (int part = 0; part < Shape::kPARTS; ++part)
                {
                    int32_t const row = tile.row + (Shape::kALTERNATES ? part : group) * 64;
                    storeRows<T, kGELU>(y, row, tile.column, memory, sums[part]);
                }
            }
        });
    if (!Shape::kSTORES_PAIRS && threadIdx.x % kWARP == 0)
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
    // The compiler is told that it is the same for all lanes.
    bool const fetches = __shfl_sync(kALL_LANES, threadIdx.x / kWARP, 0) == Shape::kCOMPUTING / kWARP;
    if (threadIdx.x == 0)
    {
        for (int slot = 0; slot < Shape::kSLOTS; ++slot)
        {
            initBarrier(memory.there(slot), 1);
            initBarrier(memory.read(slot), Shape::kREADERS);
        }
        fenceBarrierInit();
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
    if (Shape::kSPLITS_DEPTH)
    {
        clusterArrive();
    }
    if (!Shape::kLETS_IN_LATE)
    {
        triggerDependentLaunch();
    }
    LinearFetcher<Shape> fetcher{x, weight, memory};
    if (p.constantWeight && fetches)
    {
        fetcher.fetchWeightsAhead(findLinearTile<Shape>(p, clusterNumber()));
    }
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
        if (fetches)
        {
            waitForPreviousKernel();
            forLinearTiles<Shape>(p, [&](LinearTile const& tile) { fetcher.fetch(tile); });
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------

// A matrix whose rows are k as panels of 64 elements: (in / 64, rows, 64). One copy brings all panels of a slot; each
// takes about 80 cycles besides its bytes (1024 rows, 3072 to 768: 11.6 us with a copy for each panel, 10.4 with one).
template <typename T, uint32_t kBOX_ROWS, uint32_t kBOX_PANELS>
cudaError_t describePanels(CUtensorMap& map, void const* data, cuuint64_t rows, cuuint64_t in)
{
    return describeTensor<T, 3>(map, data, {kPANEL, rows, in / kPANEL}, {in * sizeof(T), kROW_BYTES},
        {kPANEL, kBOX_ROWS, kBOX_PANELS});
}

template <typename T, typename Shape, bool kGELU>
cudaError_t launchShape(LinearArguments const& a, int32_t steps, int multiprocessors, cudaStream_t stream)
{
    auto const in = static_cast<cuuint64_t>(a.in);
    auto const out = static_cast<cuuint64_t>(a.out);
    auto const rows = static_cast<cuuint64_t>(a.rows);
    CUtensorMap x{};
    CUtensorMap weight{};
    CUtensorMap y{};
    cudaError_t status = describePanels<T, Shape::kROWS, Shape::kPANELS>(x, a.x, rows, in);
    if (status == cudaSuccess)
    {
        status = describePanels<T, Shape::kCOLUMNS, Shape::kPANELS>(weight, a.weight, out, in);
    }
    if (status == cudaSuccess)
    {
        status = describeTensor<T>(y, a.y, {out, rows}, {kPANEL, kWARP_ROWS});
    }
    if (status != cudaSuccess)
    {
        return status;
    }
    auto const rowTiles = static_cast<uint32_t>(divideUp(a.rows, Shape::kROWS));
    auto const tiles = static_cast<uint32_t>(rowTiles * divideUp(a.out, Shape::kCOLUMNS));
    auto const cluster = static_cast<uint32_t>(divideUp(divideUp(a.in, Shape::kDEPTH), steps));
    uint32_t const clusters = Shape::kSPLITS_DEPTH ? tiles : std::min<uint32_t>(tiles, multiprocessors);
    LaunchSize const size{clusters * cluster, Shape::kTHREADS, Shape::kBYTES, cluster};
    LinearProblem const problem{a.weight, a.bias, a.y, static_cast<int32_t>(a.rows), a.in, a.out, rowTiles,
        tiles, steps, a.constantWeight};
    return launchDependent(linearHopperKernel<T, Shape, kGELU>, size, stream, problem, x, weight, y);
}

// What a shape takes, in microseconds: to start and end; for each tile, to begin and store it; for each slot of k, if one
// block runs and, as a share of it, how much longer if all multiprocessors are busy. Fitted to 60 products of BERT-base,
// with 16 to 8192 rows, on an H200; what is chosen by it takes 0.6 % longer than the best of eleven shapes on average.
//
// Widths of 96 and 144 give BERT-base's 1024 rows 128 tiles for 132 multiprocessors, where 128 and 192 give 96 (768 to
// 2304: 8.5 to 7.7 us; 3072 to 768: 11.4 to 10.2). Slots of 128 elements of k instead of 64 save small tiles 10 to 20 %.
// Measured, too, and no faster: larger tiles whose k two or three blocks share (1024 rows, 3072 to 768: 13.4 and 14.8;
// sums go to other blocks slowly, with stores or with copies), two warpgroups that share k of a tile of 64 rows (11.8),
// weights brought to the L2 cache by the kernel before.
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
    int32_t depth;
    int32_t mostBlocks;
    Costs costs;
};

template <typename T, typename Shape, typename GeluShape = Shape>
constexpr Choice makeChoice(Costs const& costs)
{
    auto* const launch
        = +[](LinearArguments const& a, int32_t steps, int multiprocessors, cudaStream_t stream)
    {
        return a.gelu ? launchShape<T, GeluShape, true>(a, steps, multiprocessors, stream)
                      : launchShape<T, Shape, false>(a, steps, multiprocessors, stream);
    };
    return {launch, Shape::kROWS, Shape::kCOLUMNS, Shape::kDEPTH, Shape::kMOST_BLOCKS, costs};
}

// Slots are few where that leaves room for the next kernel's first block, or for this one's beside the kernel before:
// with four of 64 x 96 and of 128 x 144 a layer of 8 sentences of 128 takes 41.4 us, with five and six 42.0. With more k
// slots count for more. GELU hides that threads store by themselves, which leaves memory for a fifth slot (41.1 us).
template <typename T>
constexpr Choice kCHOICES[] = {
    makeChoice<T, LinearShape<Sharing::kROWS, Store::kPANELS, 64, 64, 128, 6>>(
        {1.649F, 0.179F, 0.233F, 1.006F}),
    makeChoice<T, LinearShape<Sharing::kROWS, Store::kPAIRS, 64, 96, 128, 5>>(
        {0.942F, 0.565F, 0.383F, 0.357F}),
    makeChoice<T, LinearShape<Sharing::kROWS, Store::kPAIRS, 64, 96, 128, 4>>(
        {0.742F, 0.565F, 0.433F, 0.244F}),
    makeChoice<T, LinearShape<Sharing::kROWS, Store::kPAIRS, 128, 96, 128, 4>>(
        {2.295F, 1.617F, 0.322F, 0.797F}),
    makeChoice<T, LinearShape<Sharing::kROWS, Store::kPAIRS, 128, 144, 64, 4>>(
        {0.923F, 2.493F, 0.314F, 0.160F}),
    makeChoice<T, LinearShape<Sharing::kROWS, Store::kPANELS, 128, 192, 64, 4>,
        LinearShape<Sharing::kROWS, Store::kPAIRS, 128, 192, 64, 5>>({1.560F, 2.925F, 0.265F, 0.381F}),
    makeChoice<T, LinearShape<Sharing::kTILES, Store::kPANELS, 128, 192, 64, 5>>(
        {5.006F, 0.316F, 0.374F, 0.210F}),
    makeChoice<T, LinearShape<Sharing::kDEPTH, Store::kPAIRS, 64, 64, 128, 5, 6>>(
        {4.156F, 0.292F, 0.068F, 0.640F}),
};

// Of `split` blocks to a tile; infinite where that cannot be.
float estimate(LinearArguments const& a, Choice const& choice, int32_t split, int multiprocessors)
{
    int64_t const steps = divideUp(divideUp(a.in, choice.depth), split);
    int64_t const blocks = divideUp(a.rows, choice.rows) * divideUp(a.out, choice.columns) * split;
    // Clusters do not always find room on all multiprocessors; those that wait cost more than was gained.
    if (steps * (split - 1) >= divideUp(a.in, choice.depth)
        || (split > 1 && blocks > multiprocessors * 3 / 4))
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
    Choice const* best = nullptr;
    int32_t bestSplit = 1;
    float least = std::numeric_limits<float>::infinity();
    for (Choice const& choice : kCHOICES<T>)
    {
        for (int32_t split = std::min(choice.mostBlocks, 2); split <= choice.mostBlocks; ++split)
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
    auto const steps = static_cast<int32_t>(divideUp(divideUp(a.in, best->depth), bestSplit));
    return best->launch(a, steps, multiprocessors, stream);
}

} // namespace

bool suitsHopperKernel(LinearArguments const& a)
{
    constexpr int32_t kALIGNED = 8; // elements: 16 bytes
    return a.in % kPANEL == 0 && a.out % kALIGNED == 0 && a.rows <= INT32_MAX && isAligned16(a.x)
           && isAligned16(a.weight) && isAligned16(a.bias) && isAligned16(a.y);
}

cudaError_t launchLinearHopper(LinearArguments const& arguments, cudaStream_t stream)
{
    return arguments.type == ElementType::kHALF ? launchTyped<__half>(arguments, stream)
                                                : launchTyped<__nv_bfloat16>(arguments, stream);
}

} // namespace bert
