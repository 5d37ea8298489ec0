// The linear layer with Hopper's tensor cores: y = activation(x W^T * scales + bias), one kernel for fp16, bf16, E4M3
// (fp8) and int8.
//
//   - Warp-specialised: a producer warp fetches tiles of x and W (TMA) into a ring of pipeline stages in shared memory;
//     consumer warpgroups multiply them (wgmma), 64 rows each, and keep the sums in registers.
//   - A stage has panels of 128 bytes of k, whatever the type: 64 elements of 16 bits or 128 of 8. So all types have the
//     same tiles, the same shared memory and the same number of instructions for a stage.
//   - Split-K, where there are few tiles: the blocks of a cluster share one, each takes a part of k, has a part of the
//     columns in the end, and sends what it has of the others' to their shared memory. They add it up always in the same
//     order.
//   - Persistent, where there are many: blocks take tile after tile. Where a block has several, its two consumer
//     warpgroups have tiles of their own, in turn (ping-pong): the epilogue of one (scales, bias, GELU, store) is hidden
//     behind the products of the other.
//   - Either operand can be the first of wgmma, x or W: its tile has a multiple of 64 rows, while that of the second has
//     any multiple of 16. With W first, the height of a tile of y is chosen so finely that the last round of tiles is full.
//     The transpose of y is computed then, and turned around on its way to shared memory.
//   - Blocks of a cluster can have neighbouring tiles: those with the same rows of y share x, those with the same columns
//     share W, and each fetches a part for all that share it (multicast).
//   - Constant weights and bias are fetched while the kernel before this one still runs; other weights are asked for
//     then: into the L2 cache, where that harms nothing, whoever writes them.
//   - What multiplies waits for the kernel before by waiting for x.
//
// Compiled for sm_90a only (CMakeLists.txt).
#pragma once

#include "common/capability.h"
#include "common/cluster.cuh"
#include "common/element.cuh"
#include "common/hopper_tma.cuh"
#include "common/hopper_wgmma.cuh"
#include "common/programmatic_dependent_launch.cuh"
#include "common/tensor_cores.cuh"
#include "linear/linear_gelu.cuh"
#include "linear/linear_kernels.h"
#include "linear/linear_wgmma_instructions.cuh"

#include <algorithm>

namespace bert
{

// ---------------------------------------------------------------------------------------------------------------
// Shape of a block's work
// ---------------------------------------------------------------------------------------------------------------

constexpr int kROW_BYTES = 128; // of a panel of x or W: as wide as the swizzle
template <typename T>
constexpr int kPANEL = kROW_BYTES / static_cast<int>(sizeof(T)); // elements of k
constexpr int kY_COLUMNS = 64;                                   // of a panel of y, on its way to memory
constexpr int kWARP_ROWS = 16;                                   // of y, that a warp has
constexpr int kY_PANEL_BYTES = kWARP_ROWS * kY_COLUMNS * 2;

// How the consumer warpgroups of a block, and the blocks of a cluster, share the work.
enum class Sharing
{
    kROWS,    // each warpgroup has 64 rows of every tile of its block
    kTILES,   // two warpgroups have tiles of their own, in turn (ping-pong)
    kSPLIT_K, // as kROWS, and each block of a cluster has a part of k
};

// Which operand is the first of wgmma. The first has 64 rows an instruction, the second up to 256.
enum class First
{
    kX,      // the sums are y
    kWEIGHT, // the sums are the transpose of y
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

// Of `number`, not above `limit`.
constexpr int largestDivisor(int number, int limit)
{
    int divisor = std::min(number, limit);
    while (number % divisor != 0)
    {
        --divisor;
    }
    return divisor;
}

// A tile of kROWS rows and kCOLUMNS columns of y; kSTAGES pipeline stages with kPANELS panels of k each; kY_PANELS panels
// of 64 columns of y that each warp can have on their way from shared memory to y, or 0 where threads write 4 columns at
// a time themselves: where a tile has no whole panels, or that memory is better used for a stage; clusters of
// kBLOCK_ROWS x kBLOCK_COLUMNS neighbouring tiles, a tile for each block; kSPLITS blocks that share k of a tile, at most.
template <Sharing kSHARING_, First kFIRST_, int kROWS_, int kCOLUMNS_, int kPANELS_, int kSTAGES_,
    int kY_PANELS_ = 0, int kBLOCK_ROWS_ = 1, int kBLOCK_COLUMNS_ = 1, int kSPLITS_ = 1>
struct LinearShape
{
    static constexpr Sharing kSHARING = kSHARING_;
    static constexpr int kROWS = kROWS_;
    static constexpr int kCOLUMNS = kCOLUMNS_;
    static constexpr int kPANELS = kPANELS_;
    static constexpr int kSTAGES = kSTAGES_;
    static constexpr int kSPLITS = kSPLITS_;
    static constexpr int kBLOCK_ROWS = kBLOCK_ROWS_;
    static constexpr int kBLOCK_COLUMNS = kBLOCK_COLUMNS_;
    static constexpr int kCLUSTER = kBLOCK_ROWS * kBLOCK_COLUMNS;
    static constexpr int kWRITERS = kBLOCK_ROWS + kBLOCK_COLUMNS - 1; // blocks that write to a stage
    static constexpr bool kPING_PONG = kSHARING == Sharing::kTILES;
    static constexpr bool kSPLITS_K = kSHARING == Sharing::kSPLIT_K;
    static constexpr bool kWEIGHT_FIRST = kFIRST_ == First::kWEIGHT;
    static constexpr int kFIRST = kWEIGHT_FIRST ? kCOLUMNS : kROWS; // of the tile, in rows of the operand
    static constexpr int kSECOND = kWEIGHT_FIRST ? kROWS : kCOLUMNS;
    static_assert(kFIRST % 64 == 0 && kSECOND % 16 == 0);
    // Of 64 rows of the first operand, that a warpgroup has of a tile.
    static constexpr int kPARTS = kPING_PONG ? kFIRST / 64 : (kFIRST > 192 ? 2 : 1);
    static constexpr int kGROUPS = kPING_PONG ? 2 : kFIRST / 64 / kPARTS;
    static constexpr int kREADERS = kPING_PONG ? 4 : kGROUPS * 4; // warps of a block that read a stage
    static constexpr int kCONSUMERS = kGROUPS * kWARPGROUP;       // threads
    // One warp would do as producer; where sums need many registers it is a warpgroup, which can hand its own over.
    static constexpr bool kHANDS_OVER = kPARTS * kSECOND >= 256 || kGROUPS > 2;
    static constexpr int kCONSUMER_REGISTERS = kGROUPS == 2 ? 240 : 160;
    static constexpr int kPRODUCER_REGISTERS = kGROUPS == 2 ? 24 : 32;
    static_assert(!kHANDS_OVER || kGROUPS == 2 || kGROUPS == 3);
    static constexpr int kTHREADS = kCONSUMERS + (kHANDS_OVER ? kWARPGROUP : kWARP);
    static constexpr int kX_PANEL_BYTES = kROWS * kROW_BYTES;
    static constexpr int kX_BYTES = kPANELS * kX_PANEL_BYTES;
    static constexpr int kWEIGHT_PANEL_BYTES = kCOLUMNS * kROW_BYTES;
    static constexpr int kSTAGE_BYTES = kX_BYTES + kPANELS * kWEIGHT_PANEL_BYTES;
    static constexpr int kY_PANELS = kY_PANELS_;
    static constexpr bool kSTORES_PAIRS = kY_PANELS == 0;
    static_assert(kSTORES_PAIRS || (kCOLUMNS % kY_COLUMNS == 0 && !kSPLITS_K));
    static_assert(!kWEIGHT_FIRST || !kSTORES_PAIRS);
    static_assert(kCLUSTER == 1 || !kSPLITS_K);
    static_assert(kROWS % (8 * kBLOCK_COLUMNS) == 0 && kCOLUMNS % (8 * kBLOCK_ROWS) == 0);
    static_assert(!kPING_PONG || !kSTORES_PAIRS);
    // Whether the next kernel is let in when the products are computed, and not at once: its small blocks would get their
    // places on the few multiprocessors that have none of these, and wait there on top of each other (H200, BERT-base, 8
    // sentences: 484 to 480 us). Where blocks are small, or stay for many tiles, at once is better.
    static constexpr bool kTRIGGERS_LATE = kSHARING == Sharing::kROWS && kGROUPS == 2;
    // For a warp's panels of y, which take turns, tile after tile: so a tile has as many, or a multiple.
    template <typename Out>
    static constexpr int kY_BUFFERS
        = largestDivisor(kCOLUMNS / kY_COLUMNS, kY_PANELS * 2 / static_cast<int>(sizeof(Out)));
    // Sums of 8 columns that the other blocks of the cluster have for this one, at most.
    static constexpr int kSUMS_BYTES = kCONSUMERS * 16;
    static constexpr int kRECEIVED = mostReceived(kCOLUMNS / 16, kSPLITS);
    // Where the parts of shared memory begin: stages, panels of y of each warp, sums, scale and bias of the columns for
    // each warpgroup, and what y in 8 bits is multiplied with there, barriers.
    static constexpr int kY = kSTAGES * kSTAGE_BYTES;
    static constexpr int kSUMS = kY + kGROUPS * 4 * kY_PANELS * kY_PANEL_BYTES;
    static constexpr int kFACTORS = kSUMS + kRECEIVED * kSUMS_BYTES;
    static constexpr int kOUTPUT_FACTORS = kFACTORS + kGROUPS * kCOLUMNS * 8;
    static constexpr int kBARRIERS = kOUTPUT_FACTORS + kGROUPS * kCOLUMNS * 4;
    static constexpr int kBYTES = kBARRIERS + kSTAGES * 16 + (kSPLITS_K ? 8 : 0);
    static_assert(kBYTES <= 227 * 1024);
};

// Division by a number that the host knows, as a product: for dividends below 2^31.
class Divisor
{
public:
    Divisor() = default;
    explicit Divisor(uint32_t divisor)
    {
        while ((uint64_t{1} << mShift) < divisor)
        {
            ++mShift;
        }
        mShift += 31;
        mMultiplier = static_cast<uint32_t>(((uint64_t{1} << mShift) + divisor - 1) / divisor);
    }
    __device__ uint32_t quotient(uint32_t dividend) const
    {
        return static_cast<uint32_t>(static_cast<uint64_t>(dividend) * mMultiplier >> mShift);
    }

private:
    uint32_t mMultiplier{0};
    uint32_t mShift{0};
};

// The order in which tiles are computed (rasterisation). What runs at the same time should read few different rows of x
// and of W, which then come from the L2 cache: so tiles are taken in bands of kBAND rows of tiles, and in a band column
// by column. x is then read once from memory, and W once for each band, from the cache. A row here has the row tiles of
// the blocks of a cluster.
class Raster
{
public:
    static constexpr uint32_t kBAND = 16;
    Raster(uint32_t rows, uint32_t columns)
        : mRows(rows)
        , mColumns(columns)
        , mBandTiles(kBAND * columns)
        , mByBand(mBandTiles)
        , mByRows(std::min(rows, kBAND))
        , mByLastRows(rows % kBAND == 0 ? kBAND : rows % kBAND)
    {
    }
    __host__ __device__ uint32_t rows() const
    {
        return mRows;
    }
    __host__ __device__ uint32_t tiles() const
    {
        return mRows * mColumns;
    }
    __device__ void find(uint32_t number, uint32_t& row, uint32_t& column) const
    {
        uint32_t const band = mByBand.quotient(number);
        uint32_t const first = band * kBAND;
        uint32_t const inBand = number - band * mBandTiles;
        bool const last = mRows - first <= kBAND;
        column = last ? mByLastRows.quotient(inBand) : mByRows.quotient(inBand);
        row = first + inBand - column * (last ? mRows - first : kBAND);
    }

private:
    uint32_t mRows;
    uint32_t mColumns;
    uint32_t mBandTiles;
    Divisor mByBand;
    Divisor mByRows;
    Divisor mByLastRows;
};

struct LinearProblem
{
    void const* weight;
    void const* bias;          // or null; of the type of y where that is x's, else fp32
    float const* weightScales; // of each column of y, with 8-bit types
    void* y;
    float xScale;
    float inverseOutputScale;   // for y in 8 bits
    float const* outputFactors; // of each column of y in 8 bits, or null
    Raster raster;
    int32_t rows;
    int32_t in;
    int32_t out;
    int32_t steps; // of a stage along k, of a block
    bool gelu;
    bool constantWeight;
};

template <typename T>
constexpr bool kSCALED = sizeof(T) == 1;

template <typename Shape>
struct LinearMemory
{
    uint32_t begin;

    __device__ uint32_t x(int stage) const
    {
        return begin + stage * Shape::kSTAGE_BYTES;
    }
    __device__ uint32_t weight(int stage) const
    {
        return x(stage) + Shape::kX_BYTES;
    }
    __device__ uint32_t y(int warp) const
    {
        return begin + Shape::kY + warp * Shape::kY_PANELS * kY_PANEL_BYTES;
    }
    // What a column's sums are multiplied with and what is added: for a pair of columns two scales, with 8-bit types,
    // and two biases. This warpgroup's.
    template <typename T>
    __device__ uint32_t factors(int column) const
    {
        constexpr int kBYTES = kSCALED<T> ? 8 : 4;
        return begin + Shape::kFACTORS
               + (static_cast<int>(threadIdx.x / kWARPGROUP) * Shape::kCOLUMNS + column) * kBYTES;
    }
    // What columns of y in 8 bits are multiplied with: the inverse of the scale, with the column's factor. A thread's two of
    // 8 columns and its two of the next 8 are next to each other, so that it reads four at once.
    __device__ uint32_t outputFactors(int column) const
    {
        int const place = column / 16 * 16 + column % 8 / 2 * 4 + column / 8 % 2 * 2;
        return begin + Shape::kOUTPUT_FACTORS
               + (static_cast<int>(threadIdx.x / kWARPGROUP) * Shape::kCOLUMNS + place) * 4;
    }
    __device__ uint32_t full(int stage) const
    {
        return begin + Shape::kBARRIERS + 16 * stage;
    }
    __device__ uint32_t empty(int stage) const
    {
        return full(stage) + 8;
    }
    // Of a cluster that shares k: all sums of the other blocks are there.
    __device__ uint32_t sumsThere() const
    {
        return full(Shape::kSTAGES);
    }
    // This thread's four sums of `which` of the groups of 8 columns that are this block's, from another block.
    __device__ uint32_t received(int which) const
    {
        return begin + Shape::kSUMS + which * Shape::kSUMS_BYTES + static_cast<int>(threadIdx.x) * 16;
    }
};

// A tile of y, and the steps along k that are this block's.
struct LinearTile
{
    int32_t row;
    int32_t column;
    int32_t firstStep;
    int32_t endStep;
};

// The last tiles of rows and of columns end where y ends, and share rows or columns with those before, for which both
// store the same: rows that do not exist would come as zeros, but slowly (450 rows, 4096 to 1024, where the last tile of
// 64 rows has 2: 14.0 us instead of the 10.2 of 512 rows).
template <typename T, typename Shape>
__device__ LinearTile findLinearTile(LinearProblem const& p, uint32_t number)
{
    uint32_t rowTile = 0;
    uint32_t columnTile = 0;
    p.raster.find(number, rowTile, columnTile);
    if (Shape::kCLUSTER > 1)
    {
        rowTile = rowTile * Shape::kBLOCK_ROWS + clusterRank() % Shape::kBLOCK_ROWS;
        columnTile = columnTile * Shape::kBLOCK_COLUMNS + clusterRank() / Shape::kBLOCK_ROWS;
    }
    int32_t const row = min(static_cast<int32_t>(rowTile) * Shape::kROWS, max(p.rows - Shape::kROWS, 0));
    int32_t const column
        = min(static_cast<int32_t>(columnTile) * Shape::kCOLUMNS, max(p.out - Shape::kCOLUMNS, 0));
    if (!Shape::kSPLITS_K)
    {
        return {row, column, 0, p.steps};
    }
    constexpr int kDEPTH = Shape::kPANELS * kPANEL<T>;
    int32_t const first = static_cast<int32_t>(clusterRank()) * p.steps;
    return {row, column, first, min(first + p.steps, (p.in + kDEPTH - 1) / kDEPTH)};
}

// Calls function(tile) for all tiles of this block.
template <typename T, typename Shape, typename Function>
__device__ void forLinearTiles(LinearProblem const& p, Function&& function)
{
    for (uint32_t number = clusterNumber(); number < p.raster.tiles(); number += clusterCount())
    {
        function(findLinearTile<T, Shape>(p, number));
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Producer
// ---------------------------------------------------------------------------------------------------------------

// Has the 128 bytes at an address brought to the L2 cache. Nothing is read by that: it may come before the wait for the
// kernel that writes them.
inline __device__ void prefetchLine(void const* address)
{
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

// Asks for the first tile's weights, where few other blocks do: a line of 128 bytes by a thread at a time.
template <typename T, typename Shape>
__device__ void prefetchWeights(LinearProblem const& p)
{
    constexpr uint32_t kMOST_BLOCKS = 4;
    if (p.raster.rows() > kMOST_BLOCKS)
    {
        return;
    }
    LinearTile const tile = findLinearTile<T, Shape>(p, clusterNumber());
    constexpr int kDEPTH = Shape::kPANELS * kPANEL<T>;
    int32_t const first = tile.firstStep * kDEPTH;
    int32_t const lines = (min(tile.endStep * kDEPTH, p.in) - first) / kPANEL<T>; // of each column of y
    for (auto i = static_cast<int32_t>(threadIdx.x); i < lines * Shape::kCOLUMNS; i += Shape::kCONSUMERS)
    {
        int32_t const column = tile.column + i % Shape::kCOLUMNS;
        if (column < p.out)
        {
            prefetchLine(static_cast<T const*>(p.weight) + static_cast<int64_t>(column) * p.in + first
                         + i / Shape::kCOLUMNS * kPANEL<T>);
        }
    }
}

// What brings x and W into the stages; a warp does.
template <typename T, typename Shape>
class LinearProducer
{
public:
    __device__ LinearProducer(
        CUtensorMap const& x, CUtensorMap const& weight, LinearMemory<Shape> const& memory)
        : mX(x)
        , mWeight(weight)
        , mMemory(memory)
    {
    }
    // The weights of the first tile, as far as there are stages for them.
    __device__ void fetchWeightsAhead(LinearTile const& tile)
    {
        mAhead = min(Shape::kSTAGES, tile.endStep - tile.firstStep);
        for (int32_t stage = 0; stage < mAhead; ++stage)
        {
            fetchWeights(tile, tile.firstStep + stage, stage);
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
                waitForBarrier(mMemory.empty(mTurn.stage), mTurn.parity ^ 1U);
                fetchWeights(tile, step, mTurn.stage);
            }
            fetchX(tile, step, mTurn.stage);
            mTurn.advance();
        }
    }

private:
    __device__ void fetchX(LinearTile const& tile, int32_t step, int stage)
    {
        fetchOperand<Shape::kROWS, Shape::kBLOCK_COLUMNS, Shape::kBLOCK_ROWS>(
            mMemory.x(stage), mX, step, tile.row, stage, clusterRank() / Shape::kBLOCK_ROWS);
    }
    // Announces x as well.
    __device__ void fetchWeights(LinearTile const& tile, int32_t step, int stage)
    {
        arriveAndExpectByWarp(mMemory.full(stage), Shape::kSTAGE_BYTES);
        fetchOperand<Shape::kCOLUMNS, Shape::kBLOCK_ROWS, 1>(
            mMemory.weight(stage), mWeight, step, tile.column, stage, clusterRank() % Shape::kBLOCK_ROWS);
    }
    // The kHEIGHT rows of an operand, from `row` on. kBLOCKS blocks share them, whose ranks in the cluster are kSTRIDE
    // apart: this one, which is number `part` of them, fetches its part for all.
    template <int kHEIGHT, int kBLOCKS, int kSTRIDE>
    __device__ void fetchOperand(
        uint32_t target, CUtensorMap const& map, int32_t step, int32_t row, int stage, uint32_t part)
    {
        if constexpr (kBLOCKS == 1)
        {
            fetchBox(target, map, step * Shape::kPANELS, row, stage, 0); // one copy brings all panels
        }
        else
        {
            uint32_t blocks = 0;
#pragma unroll
            for (int i = 0; i < kBLOCKS; ++i)
            {
                blocks |= 1U << i * kSTRIDE;
            }
            uint32_t const first = clusterRank() - part * kSTRIDE;
            auto const fromRow = static_cast<int32_t>(part) * (kHEIGHT / kBLOCKS);
#pragma unroll
            for (int i = 0; i < Shape::kPANELS; ++i) // parts of panels are not next to each other
            {
                fetchBox(target + (i * kHEIGHT + fromRow) * kROW_BYTES, map, step * Shape::kPANELS + i,
                    row + fromRow, stage, blocks << first);
            }
        }
    }
    // To this block alone, or to those of the cluster whose bits `blocks` has.
    __device__ void fetchBox(
        uint32_t target, CUtensorMap const& map, int32_t panel, int32_t row, int stage, uint32_t blocks)
    {
        // describeOperand says how panels are found.
        int32_t const k = Shape::kPANELS == 1 ? panel * kPANEL<T> : 0;
        int32_t const outer = Shape::kPANELS == 1 ? 0 : panel;
        if (blocks == 0)
        {
            copyBoxByWarp(target, map, k, row, outer, mMemory.full(stage));
        }
        else
        {
            copyBoxToBlocksByWarp(
                target, map, k, row, outer, mMemory.full(stage), static_cast<uint16_t>(blocks));
        }
    }

    CUtensorMap const& mX;
    CUtensorMap const& mWeight;
    LinearMemory<Shape> const& mMemory;
    PipelineState<Shape::kSTAGES> mTurn;
    int32_t mAhead{0};
};

// ---------------------------------------------------------------------------------------------------------------
// Consumers: products
// ---------------------------------------------------------------------------------------------------------------

// Named barriers of a block: of a warpgroup; of the two that alternate.
constexpr int kGROUP_BARRIER = 1;
constexpr int kTURN_BARRIER = 4;

template <int kTHREADS>
__device__ void waitAtNamed(int barrier)
{
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(kTHREADS) : "memory");
}
template <int kTHREADS>
__device__ void arriveAtNamed(int barrier)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "n"(kTHREADS) : "memory");
}

// This warp has read a stage; with multicast, all blocks that write to it must know.
template <typename Shape>
__device__ void releaseStage(LinearMemory<Shape> const& memory, int stage)
{
    uint32_t const lane = threadIdx.x % kWARP;
    if constexpr (Shape::kCLUSTER == 1)
    {
        if (lane == 0)
        {
            arrive(memory.empty(stage));
        }
    }
    else if (lane < Shape::kWRITERS)
    {
        // The blocks with the same columns, then the others with the same rows.
        uint32_t const rank = clusterRank();
        uint32_t const ofRow = rank % Shape::kBLOCK_ROWS;
        uint32_t const column
            = (rank / Shape::kBLOCK_ROWS + 1 + lane - Shape::kBLOCK_ROWS) % Shape::kBLOCK_COLUMNS;
        uint32_t const peer
            = lane < Shape::kBLOCK_ROWS ? rank - ofRow + lane : ofRow + column * Shape::kBLOCK_ROWS;
        arriveInBlock(addressInPeerBlock(memory.empty(stage), peer));
    }
}

// sums (kPARTS * 64, kSECOND) = the first operand (as many rows, k of this block) times the second transposed, by a
// warpgroup.
template <typename T, typename Shape>
__device__ void multiplyTile(Accumulator<T> (&sums)[Shape::kPARTS][Shape::kSECOND / 8][4],
    LinearTile const& tile, LinearMemory<Shape> const& memory, PipelineState<Shape::kSTAGES>& turn,
    int32_t group)
{
    int32_t const rows = Shape::kPING_PONG ? 0 : group * Shape::kPARTS * 64 * kROW_BYTES;
    int previous = -1;
    for (int32_t step = tile.firstStep; step < tile.endStep; ++step)
    {
        waitForBarrier(memory.full(turn.stage), turn.parity);
        wgmmaFence();
        uint32_t const first = Shape::kWEIGHT_FIRST ? memory.weight(turn.stage) : memory.x(turn.stage);
        uint32_t const second = Shape::kWEIGHT_FIRST ? memory.x(turn.stage) : memory.weight(turn.stage);
#pragma unroll
        for (int k = 0; k < Shape::kPANELS * kROW_BYTES / 32; ++k)
        {
#pragma unroll
            for (int part = 0; part < Shape::kPARTS; ++part)
            {
                uint64_t const a = matrixDescriptor<kROW_BYTES, 16>(
                    first + k / 4 * Shape::kFIRST * kROW_BYTES + rows + part * 64 * kROW_BYTES + k % 4 * 32);
                uint64_t const b = matrixDescriptor<kROW_BYTES, 16>(
                    second + k / 4 * Shape::kSECOND * kROW_BYTES + k % 4 * 32);
                multiplyShared(sums[part], a, b, step > tile.firstStep || k > 0 ? 1 : 0, T{});
            }
        }
        wgmmaCommit();
        wgmmaWait<1>(); // those of the stage before are done
        if (previous >= 0)
        {
            releaseStage(memory, previous);
        }
        previous = turn.stage;
        turn.advance();
    }
    wgmmaWait<0>();
#pragma unroll
    for (int part = 0; part < Shape::kPARTS; ++part)
    {
        settleSums(sums[part]);
    }
    if (previous >= 0)
    {
        releaseStage(memory, previous);
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Consumers: epilogue
// ---------------------------------------------------------------------------------------------------------------

// Scale and bias of two columns, and the factors of y in 8 bits, loaded before the products and needed after them.
template <typename T, typename Out, typename Shape>
class ColumnFactors
{
public:
    __device__ ColumnFactors(LinearProblem const& p, LinearTile const& tile)
    {
        if (!mine())
        {
            return;
        }
        int32_t const column = tile.column + this->column();
        if (column >= p.out)
        {
            return;
        }
        if constexpr (kSCALED<T>)
        {
            float2 const scales = *reinterpret_cast<float2 const*>(p.weightScales + column);
            mScales = {scales.x * p.xScale, scales.y * p.xScale};
        }
        // Of the blocks that share a tile one adds the bias.
        if (p.bias != nullptr && (!Shape::kSPLITS_K || clusterRank() == 0))
        {
            if constexpr (kSCALED<T>)
            {
                mBiases = *reinterpret_cast<float2 const*>(static_cast<float const*>(p.bias) + column);
            }
            else
            {
                auto const pair
                    = *reinterpret_cast<Vector<T, 2> const*>(static_cast<T const*>(p.bias) + column);
                mBiases = {toFloat(pair, 0), toFloat(pair, 1)};
            }
        }
        if (sizeof(Out) == 1 && p.outputFactors != nullptr)
        {
            float2 const factors = *reinterpret_cast<float2 const*>(p.outputFactors + column);
            if (p.gelu)
            {
                mOutputFactors = {factors.x * p.inverseOutputScale, factors.y * p.inverseOutputScale};
            }
            else // the same as with the sums and the bias
            {
                mScales = {mScales.x * factors.x, mScales.y * factors.y};
                mBiases = {mBiases.x * factors.x, mBiases.y * factors.y};
            }
        }
    }
    // To shared memory, for all threads of this warpgroup.
    __device__ void share(LinearMemory<Shape> const& memory) const
    {
        int const barrier = kGROUP_BARRIER + static_cast<int>(threadIdx.x / kWARPGROUP);
        waitAtNamed<kWARPGROUP>(barrier); // all have read the last tile's
        if (mine())
        {
            uint32_t const target = memory.template factors<T>(column());
            if constexpr (kSCALED<T>)
            {
                asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(target), "f"(mScales.x),
                    "f"(mScales.y), "f"(mBiases.x), "f"(mBiases.y)
                    : "memory");
            }
            else
            {
                asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(target), "f"(mBiases.x), "f"(mBiases.y)
                    : "memory");
            }
            if constexpr (sizeof(Out) == 1)
            {
                asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(memory.outputFactors(column())),
                    "f"(mOutputFactors.x), "f"(mOutputFactors.y)
                    : "memory");
            }
        }
        waitAtNamed<kWARPGROUP>(barrier);
    }

private:
    __device__ static int column()
    {
        return static_cast<int>(threadIdx.x % kWARPGROUP) * 2;
    }
    __device__ static bool mine()
    {
        static_assert(Shape::kCOLUMNS <= 2 * kWARPGROUP);
        return column() < Shape::kCOLUMNS;
    }

    float2 mScales{};
    float2 mBiases{};
    float2 mOutputFactors{};
};

// values = sums of columns 8 n to 8 n + 7 of the tile, with scale and bias.
template <typename T, typename Shape>
__device__ void scaleAndBias(
    float (&values)[4], Accumulator<T> const (&sums)[4], LinearMemory<Shape> const& memory, int n)
{
    uint32_t const source = memory.template factors<T>(n * 8 + static_cast<int>(threadIdx.x % 4 * 2));
    if constexpr (kSCALED<T>)
    {
        float4 f;
        asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
            : "=f"(f.x), "=f"(f.y), "=f"(f.z), "=f"(f.w)
            : "r"(source)
            : "memory");
        values[0] = fmaf(static_cast<float>(sums[0]), f.x, f.z);
        values[1] = fmaf(static_cast<float>(sums[1]), f.y, f.w);
        values[2] = fmaf(static_cast<float>(sums[2]), f.x, f.z);
        values[3] = fmaf(static_cast<float>(sums[3]), f.y, f.w);
    }
    else
    {
        float2 b;
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(b.x), "=f"(b.y) : "r"(source) : "memory");
        values[0] = sums[0] + b.x;
        values[1] = sums[1] + b.y;
        values[2] = sums[2] + b.x;
        values[3] = sums[3] + b.y;
    }
}

// What follows the sums with scale and bias.
enum class Activation
{
    kNONE,
    kGELU,
    kGELU_AND_FACTORS, // for y in 8 bits
};

// What y in 8 bits is multiplied with, in this thread's two columns of groups 2 pair and 2 pair + 1 of 8 columns of the
// tile.
template <Activation kACTIVATION, typename Shape>
__device__ float4 outputFactors(LinearProblem const& p, LinearMemory<Shape> const& memory, int pair)
{
    float const inverse = p.inverseOutputScale;
    float4 f{inverse, inverse, inverse, inverse};
    if constexpr (kACTIVATION == Activation::kGELU_AND_FACTORS)
    {
        asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
            : "=f"(f.x), "=f"(f.y), "=f"(f.z), "=f"(f.w)
            : "r"(memory.outputFactors(pair * 16 + static_cast<int>(threadIdx.x % 4 * 2)))
            : "memory");
    }
    return f;
}

// Two neighbours of y with activation, rounded once. In 8 bits a product with the inverse of the scale stands for the
// division: it differs in the last bit of fp32, and so in what is rounded only for quotients that are halves but for it.
template <typename Out, Activation kACTIVATION>
__device__ uint32_t finishPair(float2 factors, float low, float high)
{
    constexpr bool kGELU = kACTIVATION != Activation::kNONE;
    uint32_t word;
    if constexpr (sizeof(Out) == 1)
    {
        packPair(word, kGELU ? quantizedGelu(low, factors.x) : low * factors.x,
            kGELU ? quantizedGelu(high, factors.y) : high * factors.y, Out{});
    }
    else
    {
        packPair(word, kGELU ? gelu(low) : low, kGELU ? gelu(high) : high, Out{});
    }
    return word;
}

// A warpgroup's sums of 64 rows to y, each warp its 16, one panel of columns after the other: to shared memory, and from
// there by a copy that knows where y ends and goes on while the next panel is computed.
template <typename T, typename Out, Activation kACTIVATION, typename Shape>
__device__ void storeRows(LinearProblem const& p, CUtensorMap const& y, int32_t row, int32_t firstColumn,
    LinearMemory<Shape> const& memory, Accumulator<T> const (&sums)[Shape::kCOLUMNS / 8][4])
{
    constexpr int kGROUPS = kY_COLUMNS / 8;
    using Panel = SharedTile<kWARP_ROWS, kY_COLUMNS* static_cast<int>(sizeof(Out)) / 2>;
    auto const ofBlock = static_cast<int>(threadIdx.x / kWARP);
    uint32_t const lane = threadIdx.x % kWARP;
    constexpr int kPANEL_BYTES = kY_PANEL_BYTES / (2 / static_cast<int>(sizeof(Out)));
    constexpr int kBUFFERS = Shape::template kY_BUFFERS<Out>;
#pragma unroll
    for (int panel = 0; panel < Shape::kCOLUMNS / kY_COLUMNS; ++panel)
    {
        uint32_t words[kGROUPS][2];
        float4 f{};
#pragma unroll
        for (int n = 0; n < kGROUPS; ++n)
        {
            float values[4];
            scaleAndBias<T>(values, sums[panel * kGROUPS + n], memory, panel * kGROUPS + n);
            if (n % 2 == 0)
            {
                f = outputFactors<kACTIVATION>(p, memory, (panel * kGROUPS + n) / 2);
            }
            float2 const factors = n % 2 == 0 ? make_float2(f.x, f.y) : make_float2(f.z, f.w);
            words[n][0] = finishPair<Out, kACTIVATION>(factors, values[0], values[1]);
            words[n][1] = finishPair<Out, kACTIVATION>(factors, values[2], values[3]);
        }
        uint32_t const rows = memory.y(ofBlock) + panel % kBUFFERS * kPANEL_BYTES;
        if (lane == 0)
        {
            waitForStores<kBUFFERS - 1>(); // the one that reads what is written next has done so
        }
        __syncwarp();
#pragma unroll
        for (int n = 0; n < kGROUPS; n += 2)
        {
            if constexpr (sizeof(Out) == 2)
            {
                uint32_t const four[4] = {words[n][0], words[n][1], words[n + 1][0], words[n + 1][1]};
                storeMatrices(rows + Panel::offset(lane % kWARP_ROWS, n + lane / kWARP_ROWS), four);
            }
            else
            {
                // A piece of 16 bytes has two groups; a thread has two bytes of each.
#pragma unroll
                for (int i = 0; i < 4; ++i)
                {
                    uint32_t const target
                        = rows + Panel::offset(lane / 4 + i % 2 * 8, n / 2) + i / 2 * 8 + lane % 4 * 2;
                    asm volatile("st.shared.b16 [%0], %1;" ::"r"(target),
                        "h"(static_cast<uint16_t>(words[n + i / 2][i % 2]))
                        : "memory");
                }
            }
        }
        fenceAsyncProxy(); // and to copies
        __syncwarp();
        if (lane == 0)
        {
            storeBox(y, firstColumn + panel * kY_COLUMNS, row + ofBlock % 4 * kWARP_ROWS, rows);
        }
    }
}

// For a column of y, which is a row of its transpose: what its sums are multiplied with, what is added, and the factor of
// y in 8 bits.
template <typename T, Activation kACTIVATION>
struct ColumnOfSums
{
    float scale;
    float bias;
    float output;

    template <typename Shape>
    __device__ void load(LinearProblem const& p, LinearMemory<Shape> const& memory, int column)
    {
        uint32_t const pair = memory.template factors<T>(column / 2 * 2);
        uint32_t const ofPair = column % 2 * 4;
        scale = kSCALED<T> ? loadFloat(pair + ofPair) : 1.0F;
        bias = loadFloat(pair + (kSCALED<T> ? 8 : 0) + ofPair);
        output = kACTIVATION == Activation::kGELU_AND_FACTORS
                     ? loadFloat(memory.outputFactors(column / 2 * 2) + ofPair)
                     : p.inverseOutputScale;
    }
    // Of the column, two neighbours.
    template <typename Out>
    __device__ uint32_t finish(Accumulator<T> first, Accumulator<T> second) const
    {
        return finishPair<Out, kACTIVATION>({output, output}, fmaf(static_cast<float>(first), scale, bias),
            fmaf(static_cast<float>(second), scale, bias));
    }

private:
    static __device__ float loadFloat(uint32_t address)
    {
        float value;
        asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
        return value;
    }
};

// A warpgroup's sums of the transpose of y to y, in panels of 16 rows and 64 columns of y, four after the other: to
// shared memory, where each warp has 16 of the columns, and from there by a copy for each panel.
template <typename T, typename Out, Activation kACTIVATION, typename Shape>
__device__ void storeTransposed(LinearProblem const& p, CUtensorMap const& y, int32_t row,
    int32_t firstColumn, int firstPart, LinearMemory<Shape> const& memory,
    Accumulator<T> const (&sums)[Shape::kPARTS][Shape::kSECOND / 8][4])
{
    constexpr int kOF_PART = Shape::kROWS / kWARP_ROWS; // panels
    constexpr int kTURN = 4;                            // panels, one for each warp to copy
    constexpr int kBUFFERS = Shape::kY_PANELS;          // of that many
    using Panel = SharedTile<kWARP_ROWS, kY_COLUMNS* static_cast<int>(sizeof(Out)) / 2>;
    uint32_t const lane = threadIdx.x % kWARP;
    auto const warp = static_cast<int>(threadIdx.x % kWARPGROUP / kWARP);
    auto const group = static_cast<int>(threadIdx.x / kWARPGROUP);
    ColumnOfSums<T, kACTIVATION> columns[Shape::kPARTS][2];
#pragma unroll
    for (int i = 0; i < Shape::kPARTS * 2; ++i)
    {
        columns[i / 2][i % 2].load(
            p, memory, (firstPart + i / 2) * 64 + warp * 16 + i % 2 * 8 + static_cast<int>(lane / 4));
    }
#pragma unroll
    for (int turn = 0; turn < (Shape::kPARTS * kOF_PART + kTURN - 1) / kTURN; ++turn)
    {
        uint32_t const buffer = memory.y(group * 4) + turn % kBUFFERS * kTURN * kY_PANEL_BYTES;
        if (lane == 0)
        {
            // Those that read what is written next have done so; of the last tile, all have.
            turn == 0 ? waitForStores<0>() : waitForStores<kBUFFERS - 1>();
        }
        waitAtNamed<kWARPGROUP>(kGROUP_BARRIER + group);
#pragma unroll
        for (int i = 0; i < kTURN; ++i)
        {
            int const panel = turn * kTURN + i;
            if (panel < Shape::kPARTS * kOF_PART)
            {
                int const part = panel / kOF_PART;
                uint32_t words[4]; // 8 x 8 elements: for both groups of 8 rows of y, both of 8 columns
#pragma unroll
                for (int j = 0; j < 4; ++j)
                {
                    auto const& four = sums[part][panel % kOF_PART * 2 + j / 2];
                    words[j]
                        = columns[part][j % 2].template finish<Out>(four[j % 2 * 2], four[j % 2 * 2 + 1]);
                }
                uint32_t const target = buffer + i * kY_PANEL_BYTES;
                if constexpr (sizeof(Out) == 2)
                {
                    storeTransposedMatrices(target
                                                + Panel::offset(lane / 16 * 8 + lane % 8,
                                                    static_cast<uint32_t>(warp) * 2 + lane / 8 % 2),
                        words);
                }
                else
                {
#pragma unroll
                    for (int j = 0; j < 4; ++j)
                    {
                        // As 16-bit elements, which is what can be transposed.
                        uint32_t const two = transposeMatrix(__byte_perm(words[j], 0, 0x4140));
                        uint32_t const place
                            = target + Panel::offset(j / 2 * 8 + lane / 4, static_cast<uint32_t>(warp))
                              + j % 2 * 8 + lane % 4 * 2;
                        asm volatile("st.shared.b16 [%0], %1;" ::"r"(place),
                            "h"(static_cast<uint16_t>(__byte_perm(two, 0, 0x4420)))
                            : "memory");
                    }
                }
            }
        }
        fenceAsyncProxy();
        waitAtNamed<kWARPGROUP>(kGROUP_BARRIER + group);
        int const panel = turn * kTURN + warp;
        if (lane == 0 && panel < Shape::kPARTS * kOF_PART)
        {
            storeBox(y, firstColumn + (firstPart + panel / kOF_PART) * 64,
                row + panel % kOF_PART * kWARP_ROWS, buffer + warp * kY_PANEL_BYTES);
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
template <typename Out, Activation kACTIVATION, typename Shape>
__device__ void storePair(LinearProblem const& p, LinearTile const& tile, LinearMemory<Shape> const& memory,
    int pair, float const (&low)[4], float const (&high)[4])
{
    float4 const f = outputFactors<kACTIVATION>(p, memory, pair);
    auto const t = static_cast<int>(threadIdx.x % 4);
    bool const odd = t % 2 != 0;
    int32_t const column = tile.column + pair * 16 + (odd ? 8 : 0) + t / 2 * 4;
#pragma unroll
    for (int half = 0; half < 2; ++half)
    {
        uint32_t const first = finishPair<Out, kACTIVATION>({f.x, f.y}, low[2 * half], low[2 * half + 1]);
        uint32_t const second = finishPair<Out, kACTIVATION>({f.z, f.w}, high[2 * half], high[2 * half + 1]);
        uint32_t const received = __shfl_xor_sync(kALL_LANES, odd ? first : second, 1);
        int32_t const row
            = tile.row + static_cast<int32_t>(threadIdx.x / kWARP * 16 + threadIdx.x % kWARP / 4) + 8 * half;
        if (row < p.rows && column < p.out)
        {
            Out* const y = static_cast<Out*>(p.y) + static_cast<int64_t>(row) * p.out + column;
            uint32_t const left = odd ? received : first;
            uint32_t const right = odd ? second : received;
            if constexpr (sizeof(Out) == 2)
            {
                *reinterpret_cast<uint2*>(y) = {left, right};
            }
            else
            {
                *reinterpret_cast<uint32_t*>(y) = left | right << 16;
            }
        }
    }
}

// How pairs of groups of 8 columns are shared by the blocks of a cluster: each has as many, the last ones perhaps less.
template <typename Shape>
struct SplitColumns
{
    static constexpr int kPAIRS = Shape::kCOLUMNS / 16;
    int size{static_cast<int>(clusterSize())};
    int ofBlock{(kPAIRS + size - 1) / size};

    __device__ int count(int rank) const
    {
        return max(0, min(ofBlock, kPAIRS - rank * ofBlock));
    }
};

// By one thread, before others can send: a barrier for what will come.
template <typename Shape>
__device__ void expectSums(LinearMemory<Shape> const& memory)
{
    SplitColumns<Shape> const columns;
    int const others = columns.size - 1;
    initBarrier(memory.sumsThere(), 1);
    arriveAndExpect(
        memory.sumsThere(), others * columns.count(static_cast<int>(clusterRank())) * 2 * Shape::kSUMS_BYTES);
}

// Adds up what the blocks of a cluster have of a tile and stores it, 16 columns at a time; each block has some of them.
template <typename Out, Activation kACTIVATION, typename Shape>
__device__ void combineSums(LinearProblem const& p, LinearTile const& tile, LinearMemory<Shape> const& memory,
    float (&sums)[Shape::kCOLUMNS / 8][4])
{
    SplitColumns<Shape> const columns;
    auto const rank = static_cast<int>(clusterRank());
    clusterWait(); // all have their barriers
    int owner = 0;
    int within = 0; // the pairs of a block
#pragma unroll
    for (int pair = 0; pair < columns.kPAIRS; ++pair)
    {
        if (owner != rank)
        {
            int const place = 2 * ((rank < owner ? rank : rank - 1) * columns.ofBlock + within);
            uint32_t const target = addressInPeerBlock(memory.received(place), owner);
            uint32_t const barrier = addressInPeerBlock(memory.sumsThere(), owner);
            sendToCluster(target, sums[2 * pair], barrier);
            sendToCluster(target + Shape::kSUMS_BYTES, sums[2 * pair + 1], barrier);
        }
        ++within;
        if (within == columns.ofBlock)
        {
            within = 0;
            ++owner;
        }
    }
    waitForClusterBarrier(memory.sumsThere(), 0);
#pragma unroll
    for (int pair = 0; pair < columns.kPAIRS; ++pair)
    {
        int const own = pair - rank * columns.ofBlock;
        if (own >= 0 && own < columns.ofBlock)
        {
            addReceived<Shape>(sums[2 * pair], memory, 2 * own, 2 * columns.ofBlock, rank, columns.size);
            addReceived<Shape>(
                sums[2 * pair + 1], memory, 2 * own + 1, 2 * columns.ofBlock, rank, columns.size);
            storePair<Out, kACTIVATION>(p, tile, memory, pair, sums[2 * pair], sums[2 * pair + 1]);
        }
    }
}

template <typename T, typename Out, Activation kACTIVATION, typename Shape>
__device__ void storeTile(LinearProblem const& p, CUtensorMap const& y, LinearTile const& tile,
    LinearMemory<Shape> const& memory, Accumulator<T> const (&sums)[Shape::kPARTS][Shape::kSECOND / 8][4])
{
    if constexpr (Shape::kWEIGHT_FIRST)
    {
        int const group = Shape::kPING_PONG ? 0 : static_cast<int>(threadIdx.x / kWARPGROUP);
        storeTransposed<T, Out, kACTIVATION>(
            p, y, tile.row, tile.column, group * Shape::kPARTS, memory, sums);
    }
    else if constexpr (!Shape::kSTORES_PAIRS)
    {
        auto const group = static_cast<int32_t>(threadIdx.x / kWARPGROUP);
#pragma unroll
        for (int part = 0; part < Shape::kPARTS; ++part)
        {
            int32_t const row = tile.row + (Shape::kPING_PONG ? part : group) * 64;
            storeRows<T, Out, kACTIVATION>(p, y, row, tile.column, memory, sums[part]);
        }
    }
    else if constexpr (Shape::kSPLITS_K)
    {
        float values[Shape::kCOLUMNS / 8][4];
#pragma unroll
        for (int n = 0; n < Shape::kCOLUMNS / 8; ++n)
        {
            scaleAndBias<T>(values[n], sums[0][n], memory, n);
        }
        combineSums<Out, kACTIVATION>(p, tile, memory, values);
    }
    else
    {
#pragma unroll
        for (int pair = 0; pair < Shape::kCOLUMNS / 16; ++pair)
        {
            float values[2][4];
            scaleAndBias<T>(values[0], sums[0][2 * pair], memory, 2 * pair);
            scaleAndBias<T>(values[1], sums[0][2 * pair + 1], memory, 2 * pair + 1);
            storePair<Out, kACTIVATION>(p, tile, memory, pair, values[0], values[1]);
        }
    }
}

// What a consumer warpgroup does.
template <typename T, typename Out, typename Shape>
__device__ void consumeTiles(LinearProblem const& p, CUtensorMap const& y, LinearMemory<Shape> const& memory)
{
    // The compiler is told that it is the same for all lanes.
    auto const group = static_cast<int32_t>(__shfl_sync(kALL_LANES, threadIdx.x / kWARPGROUP, 0));
    PipelineState<Shape::kSTAGES> turn;
    int32_t ofGroup = 0; // whose turn it is
    // Two warpgroups that alternate read the ring of stages in turn: only one that saw the end of the other's tile
    // knows which round of the ring it is in, since barriers tell rounds apart by their parity only.
    if (Shape::kPING_PONG && group == 1)
    {
        arriveAtNamed<2 * kWARPGROUP>(kTURN_BARRIER);
    }
    forLinearTiles<T, Shape>(p,
        [&](LinearTile const& tile)
        {
            if (Shape::kPING_PONG)
            {
                bool const mine = ofGroup == group;
                ofGroup ^= 1;
                if (!mine)
                {
                    turn.skip(p.steps);
                    return;
                }
            }
            Accumulator<T> sums[Shape::kPARTS][Shape::kSECOND / 8][4];
            if (!p.constantWeight)
            {
                waitForPreviousKernel();
            }
            ColumnFactors<T, Out, Shape> const factors{p, tile};
            if (Shape::kPING_PONG)
            {
                waitAtNamed<2 * kWARPGROUP>(kTURN_BARRIER + group);
            }
            multiplyTile<T, Shape>(sums, tile, memory, turn, group);
            if (Shape::kTRIGGERS_LATE)
            {
                triggerDependentLaunch();
            }
            if (Shape::kPING_PONG)
            {
                arriveAtNamed<2 * kWARPGROUP>(kTURN_BARRIER + 1 - group);
            }
            factors.share(memory);
            if (!p.gelu)
            {
                storeTile<T, Out, Activation::kNONE, Shape>(p, y, tile, memory, sums);
            }
            else if (sizeof(Out) == 1 && p.outputFactors != nullptr)
            {
                storeTile<T, Out, sizeof(Out) == 1 ? Activation::kGELU_AND_FACTORS : Activation::kGELU,
                    Shape>(p, y, tile, memory, sums);
            }
            else
            {
                storeTile<T, Out, Activation::kGELU, Shape>(p, y, tile, memory, sums);
            }
        });
    if (!Shape::kSTORES_PAIRS && threadIdx.x % kWARP == 0)
    {
        waitForStores<0>();
    }
}

template <typename T, typename Out, typename Shape>
__global__ void __launch_bounds__(Shape::kTHREADS, 1)
    linearHopperKernel(__grid_constant__ LinearProblem const p, __grid_constant__ CUtensorMap const x,
        __grid_constant__ CUtensorMap const weight, __grid_constant__ CUtensorMap const y)
{
    extern __shared__ __align__(1024) unsigned char bytes[]; // as the swizzle wants it
    LinearMemory<Shape> const memory{sharedAddress(bytes)};
    bool const consumes = threadIdx.x < Shape::kCONSUMERS;
    // The compiler is told that it is the same for all lanes.
    bool const produces = __shfl_sync(kALL_LANES, threadIdx.x / kWARP, 0) == Shape::kCONSUMERS / kWARP;
    if (threadIdx.x == 0)
    {
        for (int stage = 0; stage < Shape::kSTAGES; ++stage)
        {
            initBarrier(memory.full(stage), 1);
            initBarrier(memory.empty(stage), Shape::kREADERS * Shape::kWRITERS);
        }
        if constexpr (Shape::kSPLITS_K)
        {
            expectSums(memory);
        }
        fenceBarrierInit();
    }
    if (threadIdx.x == Shape::kCONSUMERS)
    {
        prefetchMap(x);
        prefetchMap(weight);
        prefetchMap(y);
    }
    if (consumes && !p.constantWeight)
    {
        prefetchWeights<T, Shape>(p);
    }
    __syncthreads();
    if (Shape::kSPLITS_K || Shape::kCLUSTER > 1)
    {
        clusterArrive(); // this block has its barriers
    }
    if (Shape::kCLUSTER > 1)
    {
        clusterWait(); // and the other has
    }
    if (!Shape::kTRIGGERS_LATE)
    {
        triggerDependentLaunch();
    }
    LinearProducer<T, Shape> producer{x, weight, memory};
    if (p.constantWeight && produces)
    {
        producer.fetchWeightsAhead(findLinearTile<T, Shape>(p, clusterNumber()));
    }
    if (consumes)
    {
        if (Shape::kHANDS_OVER)
        {
            asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Shape::kCONSUMER_REGISTERS));
        }
        consumeTiles<T, Out, Shape>(p, y, memory);
    }
    else
    {
        if (Shape::kHANDS_OVER)
        {
            asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Shape::kPRODUCER_REGISTERS));
        }
        if (produces)
        {
            waitForPreviousKernel();
            forLinearTiles<T, Shape>(p, [&](LinearTile const& tile) { producer.fetch(tile); });
        }
    }
    if (Shape::kCLUSTER > 1)
    {
        // A block must not end while another writes to its shared memory.
        __syncwarp();
        clusterArrive();
        clusterWait();
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Launch
// ---------------------------------------------------------------------------------------------------------------

// A matrix whose rows are k. Where a stage has several panels, they are a dimension of their own, (in / kPANEL, rows,
// kPANEL), so that one copy brings all of them: each copy takes about 80 cycles besides its bytes (1024 rows, 3072 to
// 768: 11.6 us with a copy for each panel, 10.4 with one). That needs rows of whole panels. Where it has one, any row of
// a multiple of 16 bytes will do, and what lies beyond its end comes as zeros: (1, rows, in).
template <typename T, int kPANELS>
cudaError_t describeOperand(
    CUtensorMap& map, void const* data, int64_t rows, int32_t in, uint32_t boxRows, uint32_t boxPanels)
{
    auto const height = static_cast<cuuint64_t>(rows);
    auto const width = static_cast<cuuint64_t>(in);
    cuuint64_t const rowBytes = width * sizeof(T);
    constexpr cuuint32_t kBOX = kPANEL<T>;
    if constexpr (kPANELS == 1)
    {
        return describeTensor<T, 3>(map, data, {width, height, 1}, {rowBytes, rowBytes}, {kBOX, boxRows, 1});
    }
    else
    {
        return describeTensor<T, 3>(
            map, data, {kBOX, height, width / kBOX}, {rowBytes, kROW_BYTES}, {kBOX, boxRows, boxPanels});
    }
}

template <typename T, typename Out, typename Shape>
cudaError_t launchShape(LinearArguments const& a, int32_t splits, int multiprocessors, cudaStream_t stream)
{
    constexpr int kDEPTH = Shape::kPANELS * kPANEL<T>;
    CUtensorMap x{};
    CUtensorMap weight{};
    CUtensorMap y{};
    // What several blocks fetch is fetched a panel at a time.
    cudaError_t status = describeOperand<T, Shape::kPANELS>(x, a.x, a.rows, a.in,
        Shape::kROWS / Shape::kBLOCK_COLUMNS, Shape::kBLOCK_COLUMNS == 1 ? Shape::kPANELS : 1);
    if (status == cudaSuccess)
    {
        status = describeOperand<T, Shape::kPANELS>(weight, a.weight, a.out, a.in,
            Shape::kCOLUMNS / Shape::kBLOCK_ROWS, Shape::kBLOCK_ROWS == 1 ? Shape::kPANELS : 1);
    }
    if (status == cudaSuccess)
    {
        status = describeTensor<Out>(y, a.y,
            {static_cast<cuuint64_t>(a.out), static_cast<cuuint64_t>(a.rows)}, {kY_COLUMNS, kWARP_ROWS});
    }
    if (status != cudaSuccess)
    {
        return status;
    }
    auto const steps = static_cast<int32_t>(divideUp(divideUp(a.in, kDEPTH), splits));
    Raster const raster{static_cast<uint32_t>(divideUp(a.rows, Shape::kROWS * Shape::kBLOCK_ROWS)),
        static_cast<uint32_t>(divideUp(a.out, Shape::kCOLUMNS * Shape::kBLOCK_COLUMNS))};
    uint32_t const cluster = Shape::kSPLITS_K ? static_cast<uint32_t>(splits) : Shape::kCLUSTER;
    // Two blocks of a cluster find room wherever two multiprocessors are free: they come in pairs.
    uint32_t const clusters = Shape::kSPLITS_K
                                  ? raster.tiles()
                                  : std::min<uint32_t>(raster.tiles(), multiprocessors / Shape::kCLUSTER);
    LaunchSize const size{clusters * cluster, Shape::kTHREADS, Shape::kBYTES, cluster};
    LinearProblem const problem{a.weight, a.bias, a.weightScales, a.y, a.xScale, 1.0F / a.outputScale,
        a.outputFactors, raster, static_cast<int32_t>(a.rows), a.in, a.out, steps, a.gelu, a.constantWeight};
    return launchDependent(linearHopperKernel<T, Out, Shape>, size, stream, problem, x, weight, y);
}

} // namespace bert
