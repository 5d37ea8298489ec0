// A linear layer with residual sum and layer normalisation as one kernel with Hopper's tensor cores, for fp16, bf16, E4M3
// (fp8) and int8.
//
//   - The products are Linear's (linear/linear_hopper.cuh): a producer warp fetches x and W, two consumer warpgroups have
//     tiles of their own, in turn, so that what one does after its products is hidden behind the products of the other.
//   - A row of y is as wide as a cluster of blocks: each block has some of the columns, and always the same.
//   - skip comes to shared memory while the products are computed, and from there y leaves, 16 rows and 64 columns of a warp
//     at a time.
//   - Each block computes mean and sum of squared deviations of its part of a row and sends them to the others' shared
//     memory. All combine them in the same order (Chan, Golub, LeVeque: Updating formulae and a pairwise algorithm for
//     computing sample variances, 1979), so nothing is lost where the mean is large.
//
// Compiled for sm_90a only (CMakeLists.txt).
#pragma once

#include "linear/linear_hopper.cuh"
#include "linear_skip_layer_norm/linear_skip_layer_norm_kernels.h"

#include <array>
#include <atomic>

namespace bert
{

// Of 16 rows and 64 columns: panels that a warp has of skip or y in shared memory, in turn; of y in 8 bits it has as many.
constexpr int kNORM_BUFFERS = 2;

// Tiles of kROWS x kCOLUMNS, kSTAGES pipeline stages of one panel of k, clusters of kBLOCK_ROWS x kBLOCK_COLUMNS tiles.
template <int kROWS_, int kCOLUMNS_, int kSTAGES_, int kBLOCK_ROWS_, int kBLOCK_COLUMNS_>
struct NormShape : LinearShape<Sharing::kTILES, First::kX, kROWS_, kCOLUMNS_, 1, kSTAGES_,
                       kNORM_BUFFERS + kNORM_BUFFERS / 2, kBLOCK_ROWS_, kBLOCK_COLUMNS_>
{
    using Base = LinearShape<Sharing::kTILES, First::kX, kROWS_, kCOLUMNS_, 1, kSTAGES_,
        kNORM_BUFFERS + kNORM_BUFFERS / 2, kBLOCK_ROWS_, kBLOCK_COLUMNS_>;
    static constexpr bool kHANDS_OVER = true;
    static constexpr int kTHREADS = Base::kCONSUMERS + kWARPGROUP;
    static constexpr int kOUT = kCOLUMNS_ * kBLOCK_COLUMNS_;
    static constexpr int kWARP_PANELS = Base::kPARTS * (kCOLUMNS_ / kY_COLUMNS); // of a tile
    static constexpr int kOTHERS = kBLOCK_COLUMNS_ - 1; // blocks that have other columns of the same rows
    // Of each row, from each of the other blocks, for each warpgroup.
    static constexpr int kSTATISTICS = Base::kBYTES;
    static constexpr int kSTATISTICS_BYTES = kOTHERS * kROWS_ * 8;
    static constexpr int kNORM_BARRIERS = kSTATISTICS + 2 * kSTATISTICS_BYTES;
    static constexpr int kNORM_BYTES = kNORM_BARRIERS + 8 * kWARP_PANELS * 8 + 2 * 16;
    static_assert(kNORM_BYTES <= 227 * 1024);
};

// Which 8-bit form of y there is.
enum class Quantized
{
    kNONE,
    kINT8,
    kE4M3,
};

struct NormProblem
{
    LinearProblem linear; // its bias is of the type of gamma and beta
    void const* gamma;
    void const* beta;
    float epsilon;
    bool wideNorm; // gamma, beta and bias are fp32
    Quantized quantized;
};

template <typename Shape>
struct NormMemory : LinearMemory<Shape>
{
    // Of two columns: their scales and biases, gammas and betas, and factors of y in 8 bits.
    __device__ uint32_t scales(int column) const
    {
        return this->begin + Shape::kFACTORS + column * 8;
    }
    __device__ uint32_t norms(int column) const
    {
        return this->begin + Shape::kFACTORS + (Shape::kCOLUMNS + column) * 8;
    }
    __device__ uint32_t quantizations(int column) const
    {
        return this->begin + Shape::kOUTPUT_FACTORS + column * 4;
    }
    // 16 rows and 64 columns of skip or y.
    __device__ uint32_t panel(int warp, int number) const
    {
        return this->y(warp) + number % kNORM_BUFFERS * kY_PANEL_BYTES;
    }
    __device__ uint32_t quantized(int warp, int number) const
    {
        return this->y(warp) + kNORM_BUFFERS * kY_PANEL_BYTES + number % kNORM_BUFFERS * (kY_PANEL_BYTES / 2);
    }
    __device__ uint32_t statistics(int group, int other, int row) const
    {
        return this->begin + Shape::kSTATISTICS + group * Shape::kSTATISTICS_BYTES
               + (other * Shape::kROWS + row) * 8;
    }
    // skip is in a panel.
    __device__ uint32_t skipThere(int warp, int number) const
    {
        return this->begin + Shape::kNORM_BARRIERS + (warp * Shape::kWARP_PANELS + number) * 8;
    }
    // The statistics of the other blocks are there; the other blocks have read those of this one.
    __device__ uint32_t statisticsThere(int group) const
    {
        return this->begin + Shape::kNORM_BARRIERS + 8 * Shape::kWARP_PANELS * 8 + group * 16;
    }
    __device__ uint32_t statisticsRead(int group) const
    {
        return statisticsThere(group) + 8;
    }
};

inline __device__ float4 loadFour(uint32_t source)
{
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
        : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
        : "r"(source)
        : "memory");
    return v;
}
inline __device__ float2 loadTwo(uint32_t source)
{
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(source) : "memory");
    return v;
}
inline __device__ void storeFour(uint32_t target, float2 low, float2 high)
{
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(target), "f"(low.x), "f"(low.y),
        "f"(high.x), "f"(high.y)
        : "memory");
}
inline __device__ float2 unpackPair(uint32_t word, __half /*type*/)
{
    return __half22float2(*reinterpret_cast<__half2 const*>(&word));
}
inline __device__ float2 unpackPair(uint32_t word, __nv_bfloat16 /*type*/)
{
    return {__uint_as_float(word << 16), __uint_as_float(word & 0xFFFF0000U)};
}
// Two neighbours of gamma, beta or the bias.
template <typename Out>
__device__ float2 loadNormPair(void const* values, int32_t column, bool wide)
{
    if (wide)
    {
        return *reinterpret_cast<float2 const*>(static_cast<float const*>(values) + column);
    }
    return unpackPair(*reinterpret_cast<uint32_t const*>(static_cast<Out const*>(values) + column), Out{});
}

// What belongs to two columns of this block, loaded while the pipeline starts.
template <typename T, typename Out, typename Shape>
class NormColumns
{
public:
    __device__ explicit NormColumns(NormProblem const& p)
    {
        if (!mine())
        {
            return;
        }
        int32_t const column = firstColumn() + this->column();
        if constexpr (kSCALED<T>)
        {
            float2 const scales = *reinterpret_cast<float2 const*>(p.linear.weightScales + column);
            mScales = {scales.x * p.linear.xScale, scales.y * p.linear.xScale};
        }
        if (p.linear.bias != nullptr)
        {
            mBiases = loadNormPair<Out>(p.linear.bias, column, p.wideNorm);
        }
        mGammas = loadNormPair<Out>(p.gamma, column, p.wideNorm);
        mBetas = loadNormPair<Out>(p.beta, column, p.wideNorm);
        if (p.linear.outputFactors != nullptr)
        {
            mFactors = *reinterpret_cast<float2 const*>(p.linear.outputFactors + column);
        }
        mFactors = {mFactors.x * p.linear.inverseOutputScale, mFactors.y * p.linear.inverseOutputScale};
    }
    __device__ void share(NormMemory<Shape> const& memory) const
    {
        if (mine())
        {
            storeFour(memory.scales(column()), mScales, mBiases);
            storeFour(memory.norms(column()), mGammas, mBetas);
            asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(memory.quantizations(column())),
                "f"(mFactors.x), "f"(mFactors.y)
                : "memory");
        }
    }
    static __device__ int32_t firstColumn()
    {
        return static_cast<int32_t>(clusterRank()) / Shape::kBLOCK_ROWS * Shape::kCOLUMNS;
    }

private:
    static __device__ int column()
    {
        return static_cast<int>(threadIdx.x) * 2;
    }
    static __device__ bool mine()
    {
        static_assert(Shape::kCOLUMNS <= 2 * Shape::kCONSUMERS);
        return column() < Shape::kCOLUMNS;
    }

    float2 mScales{1.0F, 1.0F};
    float2 mBiases{};
    float2 mGammas{};
    float2 mBetas{};
    float2 mFactors{1.0F, 1.0F};
};

// What a warp does with a tile of its warpgroup after the products.
template <typename T, typename Out, typename Shape>
class NormEpilogue
{
public:
    // Of a tile, 64 rows after the other. They become the values whose statistics are wanted, in the same registers: fp32,
    // as bits where sums are integers.
    using Sums = Accumulator<T>[Shape::kPARTS][Shape::kCOLUMNS / 8][4];

    __device__ NormEpilogue(NormProblem const& p, NormMemory<Shape> const& memory, int32_t group)
        : mProblem(p)
        , mMemory(memory)
        , mGroup(group)
        , mWarp(static_cast<int>(threadIdx.x / kWARP))
        , mLane(threadIdx.x % kWARP)
    {
    }
    // Before the products: the first panels of skip, to where those of y have left.
    __device__ void fetchSkip(CUtensorMap const& skip, LinearTile const& tile) const
    {
        if (mLane == 0)
        {
            waitForStores<0>();
#pragma unroll
            for (int number = 0; number < kNORM_BUFFERS; ++number)
            {
                fetchPanel(skip, tile, number);
            }
#pragma unroll
            for (int number = kNORM_BUFFERS; number < Shape::kWARP_PANELS; ++number)
            {
                prefetchBox(skip, firstColumn(tile, number), firstRow(tile, number)); // to the L2 cache
            }
        }
    }
    __device__ void finish(CUtensorMap const& skip, CUtensorMap const& y, CUtensorMap const& quantized,
        LinearTile const& tile, Sums& values)
    {
        Statistics rows[Shape::kPARTS][2];
        addSkip(skip, tile, rows, values);
        combine(rows);
        mRound ^= 1U;
        switch (mProblem.quantized)
        {
        case Quantized::kINT8:
            return store<int8_t>(y, quantized, tile, rows, values);
        case Quantized::kE4M3:
            return store<E4m3>(y, quantized, tile, rows, values);
        default:
            return store<void>(y, quantized, tile, rows, values);
        }
    }

private:
    using Panel = SharedTile<kWARP_ROWS, kY_COLUMNS>;
    // Of a part of a row: its mean, and the sum of the squared deviations from it. At last of the whole row: what
    // is added to a value, and what it is multiplied with before, to normalise it.
    using Statistics = float2;

    static __device__ float valueOf(float sum)
    {
        return sum;
    }
    static __device__ float valueOf(int32_t sum)
    {
        return __int_as_float(sum);
    }
    static __device__ void keep(float& sum, float value)
    {
        sum = value;
    }
    static __device__ void keep(int32_t& sum, float value)
    {
        sum = __float_as_int(value);
    }

    // Panels are numbered so that those with the same columns follow each other.
    __device__ int32_t firstRow(LinearTile const& tile, int number) const
    {
        return tile.row + number % Shape::kPARTS * 64 + mWarp % 4 * kWARP_ROWS;
    }
    __device__ static int32_t firstColumn(LinearTile const& tile, int number)
    {
        return tile.column + number / Shape::kPARTS * kY_COLUMNS;
    }
    __device__ void fetchPanel(CUtensorMap const& skip, LinearTile const& tile, int number) const
    {
        uint32_t const barrier = mMemory.skipThere(mWarp, number);
        arriveAndExpect(barrier, kY_PANEL_BYTES);
        copyBox(
            mMemory.panel(mWarp, number), skip, firstColumn(tile, number), firstRow(tile, number), barrier);
    }
    __device__ int columnInGroup() const
    {
        return static_cast<int>(mLane % 4 * 2);
    }
    // values = sums * scales + bias + skip, and their statistics in this block. Deviations are taken from the thread's first
    // value of a row: no value is further from the mean than sqrt(kOUT) standard deviations, so squares do not cancel.
    __device__ void addSkip(CUtensorMap const& skip, LinearTile const& tile,
        Statistics (&rows)[Shape::kPARTS][2], Sums& values) const
    {
        constexpr int kROWS = Shape::kPARTS * 2; // of a thread
        float origin[kROWS];
        float sum[kROWS]{};
        float squares[kROWS]{};
#pragma unroll
        for (int n = 0; n < Shape::kCOLUMNS / 8; n += 2)
        {
            int const number = n / 8 * Shape::kPARTS;
            if (n % 8 == 0)
            {
#pragma unroll
                for (int part = 0; part < Shape::kPARTS; ++part)
                {
                    waitForBarrier(mMemory.skipThere(mWarp, number + part), mRound);
                }
            }
            if (mProblem.linear.rows < 0)
            {
                return; // Never. Over a branch the compiler moves no loads, which would need registers that it has not.
            }
            float4 const factors[2] = {loadFour(mMemory.scales(n * 8 + columnInGroup())),
                loadFour(mMemory.scales(n * 8 + 8 + columnInGroup()))};
#pragma unroll
            for (int part = 0; part < Shape::kPARTS; ++part)
            {
                uint32_t words[4]; // rows 0 to 7 and 8 to 15 of 8 columns, then of the next 8
                loadMatrices(words, mMemory.panel(mWarp, number + part)
                                        + Panel::offset(mLane % kWARP_ROWS, n % 8 + mLane / kWARP_ROWS));
#pragma unroll
                for (int i = 0; i < 4; ++i)
                {
                    float2 const two = unpackPair(words[i], Out{});
                    float4 const f = factors[i / 2];
                    int const row = part * 2 + i % 2;
                    Accumulator<T>& low = values[part][n + i / 2][i % 2 * 2];
                    Accumulator<T>& high = values[part][n + i / 2][i % 2 * 2 + 1];
                    float const first = fmaf(static_cast<float>(low), f.x, f.z) + two.x;
                    float const second = fmaf(static_cast<float>(high), f.y, f.w) + two.y;
                    keep(low, first);
                    keep(high, second);
                    if (n + i / 2 == 0)
                    {
                        origin[row] = first;
                    }
                    else
                    {
                        float const difference = first - origin[row];
                        sum[row] += difference;
                        squares[row] = fmaf(difference, difference, squares[row]);
                    }
                    float const difference = second - origin[row];
                    sum[row] += difference;
                    squares[row] = fmaf(difference, difference, squares[row]);
                }
            }
            if (n % 8 == 6 && number + kNORM_BUFFERS < Shape::kWARP_PANELS)
            {
                __syncwarp(); // all have read
                if (mLane == 0)
                {
#pragma unroll
                    for (int part = 0; part < Shape::kPARTS; ++part)
                    {
                        fetchPanel(skip, tile, number + part + kNORM_BUFFERS);
                    }
                }
            }
        }
#pragma unroll
        for (int i = 0; i < kROWS; ++i)
        {
            constexpr float kCOUNT = Shape::kCOLUMNS / 4; // of a thread
            float const mean = sum[i] * (1.0F / kCOUNT);
            Statistics row{origin[i] + mean, fmaf(-mean, sum[i], squares[i])};
            // With the lane beside, then the other two: two parts of as many values become one.
#pragma unroll
            for (int distance = 1; distance <= 2; distance *= 2)
            {
                float const otherMean = __shfl_xor_sync(kALL_LANES, row.x, distance);
                float const otherSquares = __shfl_xor_sync(kALL_LANES, row.y, distance);
                float const difference = otherMean - row.x;
                row = {0.5F * (row.x + otherMean),
                    fmaf(difference * difference, kCOUNT * 0.5F * static_cast<float>(distance),
                        row.y + otherSquares)};
            }
            rows[i / 2][i % 2] = row;
        }
    }
    // From parts of rows to whole rows.
    __device__ void combine(Statistics (&rows)[Shape::kPARTS][2]) const
    {
        auto const rank = static_cast<int>(clusterRank());
        int const ofRow = rank % Shape::kBLOCK_ROWS;
        int const own = rank / Shape::kBLOCK_ROWS;
        // The four lanes that share rows have one each, or two of them one.
        constexpr int kROWS = Shape::kPARTS * 2;
        auto const ofRows = static_cast<int>(mLane % 4);
        int const which = ofRows % kROWS;
        int const row = which / 2 * 64 + mWarp % 4 * kWARP_ROWS + static_cast<int>(mLane / 4) + which % 2 * 8;
        Statistics mine = rows[0][0];
#pragma unroll
        for (int i = 1; i < kROWS; ++i)
        {
            mine = which == i ? rows[i / 2][i % 2] : mine;
        }
        if (threadIdx.x % kWARPGROUP == 0)
        {
            arriveAndExpect(mMemory.statisticsThere(mGroup), Shape::kSTATISTICS_BYTES);
        }
        waitForClusterBarrier(
            mMemory.statisticsRead(mGroup), mRound ^ 1U); // of the last tile; at first there is none
#pragma unroll
        for (int first = 0; first < Shape::kBLOCK_COLUMNS; first += 4 / kROWS)
        {
            int const other = first + ofRows / kROWS;
            if (other != own)
            {
                uint32_t const peer = ofRow + other * Shape::kBLOCK_ROWS;
                int const place = own < other ? own : own - 1;
                sendToCluster(addressInPeerBlock(mMemory.statistics(mGroup, place, row), peer), mine,
                    addressInPeerBlock(mMemory.statisticsThere(mGroup), peer));
            }
        }
        waitForClusterBarrier(mMemory.statisticsThere(mGroup), mRound);
        Statistics whole{};
#pragma unroll
        for (int block = 0; block < Shape::kBLOCK_COLUMNS; ++block)
        {
            int const place = block < own ? block : max(block - 1, 0);
            float2 const received = loadTwo(mMemory.statistics(mGroup, place, row));
            float2 const part = block == own ? mine : received;
            float const difference = part.x - whole.x;
            constexpr float kCOUNT = Shape::kCOLUMNS;
            whole.x = fmaf(difference, 1.0F / static_cast<float>(block + 1), whole.x);
            whole.y += fmaf(difference * difference,
                kCOUNT * static_cast<float>(block) / static_cast<float>(block + 1), part.y);
        }
        whole.y = rsqrtf(fmaf(whole.y, 1.0F / Shape::kOUT, mProblem.epsilon));
        whole.x *= -whole.y;
#pragma unroll
        for (int i = 0; i < kROWS; ++i)
        {
            rows[i / 2][i % 2] = {__shfl_sync(kALL_LANES, whole.x, mLane / 4 * 4 + i),
                __shfl_sync(kALL_LANES, whole.y, mLane / 4 * 4 + i)};
        }
        __syncwarp();
        if (mLane < Shape::kBLOCK_COLUMNS && static_cast<int>(mLane) != own)
        {
            arriveInCluster(
                addressInPeerBlock(mMemory.statisticsRead(mGroup), ofRow + mLane * Shape::kBLOCK_ROWS));
        }
    }
    // Q: the type of y in 8 bits, or void.
    template <typename Q>
    __device__ void store(CUtensorMap const& y, CUtensorMap const& quantized, LinearTile const& tile,
        Statistics const (&rows)[Shape::kPARTS][2], Sums const& values) const
    {
        constexpr bool kQUANTIZES = !std::is_void_v<Q>;
        using QuantizedPanel = SharedTile<kWARP_ROWS, kY_COLUMNS / 2>;
#pragma unroll
        for (int number = 0; number < Shape::kWARP_PANELS; ++number)
        {
            int const part = number % Shape::kPARTS;
            uint32_t const wide = mMemory.panel(mWarp, number);
            uint32_t const narrow = mMemory.quantized(mWarp, number);
            if (number >= kNORM_BUFFERS && mLane == 0)
            {
                // The copies of what this replaces are done.
                waitForStores<(kNORM_BUFFERS - 1) * (kQUANTIZES ? 2 : 1)>();
            }
            __syncwarp();
#pragma unroll
            for (int n = 0; n < kY_COLUMNS / 8; n += 2)
            {
                uint32_t words[4];
                uint32_t bytes[4];
#pragma unroll
                for (int j = 0; j < 2; ++j)
                {
                    int const column = number / Shape::kPARTS * kY_COLUMNS + (n + j) * 8;
                    float4 const norm = loadFour(mMemory.norms(column + columnInGroup()));
                    float2 const factors
                        = kQUANTIZES ? loadTwo(mMemory.quantizations(column + columnInGroup())) : float2{};
#pragma unroll
                    for (int half = 0; half < 2; ++half)
                    {
                        float2 const row = rows[part][half];
                        float const low = fmaf(
                            fmaf(valueOf(values[part][column / 8][half * 2]), row.y, row.x), norm.x, norm.z);
                        float const high
                            = fmaf(fmaf(valueOf(values[part][column / 8][half * 2 + 1]), row.y, row.x),
                                norm.y, norm.w);
                        packPair(words[j * 2 + half], low, high, Out{});
                        if constexpr (kQUANTIZES)
                        {
                            packPair(bytes[j * 2 + half], low * factors.x, high * factors.y, Q{});
                        }
                    }
                }
                storeMatrices(wide + Panel::offset(mLane % kWARP_ROWS, n + mLane / kWARP_ROWS), words);
                if constexpr (kQUANTIZES)
                {
                    // A piece of 16 bytes has two groups of 8 columns; a thread has two bytes of each.
#pragma unroll
                    for (int j = 0; j < 4; ++j)
                    {
                        uint32_t const target = narrow + QuantizedPanel::offset(mLane / 4 + j % 2 * 8, n / 2)
                                                + j / 2 * 8 + mLane % 4 * 2;
                        asm volatile(
                            "st.shared.b16 [%0], %1;" ::"r"(target), "h"(static_cast<uint16_t>(bytes[j]))
                            : "memory");
                    }
                }
            }
            fenceAsyncProxy();
            __syncwarp();
            if (mLane == 0)
            {
                storeBox(y, firstColumn(tile, number), firstRow(tile, number), wide);
                if (kQUANTIZES)
                {
                    storeBox(quantized, firstColumn(tile, number), firstRow(tile, number), narrow);
                }
            }
        }
    }

    NormProblem const& mProblem;
    NormMemory<Shape> const& mMemory;
    int32_t mGroup;
    int mWarp;
    uint32_t mLane;
    uint32_t mRound{0}; // parity of this warpgroup's tile
};

constexpr int kCOLUMNS_BARRIER = 3; // a named barrier of all consumers

// What a consumer warpgroup does.
template <typename T, typename Out, typename Shape>
__device__ void consumeNormTiles(NormProblem const& p, CUtensorMap const& skip, CUtensorMap const& y,
    CUtensorMap const& quantized, NormMemory<Shape> const& memory)
{
    // The compiler is told that it is the same for all lanes.
    auto const group = static_cast<int32_t>(__shfl_sync(kALL_LANES, threadIdx.x / kWARPGROUP, 0));
    PipelineState<Shape::kSTAGES> turn;
    NormEpilogue<T, Out, Shape> epilogue{p, memory, group};
    int32_t ofGroup = 0; // whose turn it is
    if (group == 1)
    {
        arriveAtNamed<2 * kWARPGROUP>(kTURN_BARRIER);
    }
    forLinearTiles<T, Shape>(p.linear,
        [&](LinearTile const& tile)
        {
            bool const mine = ofGroup == group;
            ofGroup ^= 1;
            if (!mine)
            {
                turn.skip(p.linear.steps);
                return;
            }
            epilogue.fetchSkip(skip, tile);
            Accumulator<T> sums[Shape::kPARTS][Shape::kCOLUMNS / 8][4];
            waitAtNamed<2 * kWARPGROUP>(kTURN_BARRIER + group);
            multiplyTile<T, Shape>(sums, tile, memory, turn, group);
            arriveAtNamed<2 * kWARPGROUP>(kTURN_BARRIER + 1 - group);
            epilogue.finish(skip, y, quantized, tile, sums);
        });
    if (threadIdx.x % kWARP == 0)
    {
        waitForStores<0>();
    }
}

template <typename T, typename Out, typename Shape>
__global__ void __launch_bounds__(Shape::kTHREADS, 1) linearSkipLayerNormHopperKernel(
    __grid_constant__ NormProblem const p, __grid_constant__ CUtensorMap const x,
    __grid_constant__ CUtensorMap const weight, __grid_constant__ CUtensorMap const skip,
    __grid_constant__ CUtensorMap const y, __grid_constant__ CUtensorMap const quantized)
{
    extern __shared__ __align__(1024) unsigned char bytes[]; // as the swizzle wants it
    NormMemory<Shape> const memory{{sharedAddress(bytes)}};
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
        for (int i = 0; i < Shape::kCONSUMERS / kWARP * Shape::kWARP_PANELS; ++i)
        {
            initBarrier(memory.skipThere(0, i), 1);
        }
        for (int group = 0; group < Shape::kGROUPS; ++group)
        {
            initBarrier(memory.statisticsThere(group), 1);
            initBarrier(memory.statisticsRead(group), Shape::kOTHERS * 4); // warps
        }
        fenceBarrierInit();
    }
    if (threadIdx.x == Shape::kCONSUMERS)
    {
        prefetchMap(x);
        prefetchMap(weight);
        prefetchMap(skip);
        prefetchMap(y);
    }
    if (!p.linear.constantWeight)
    {
        waitForPreviousKernel();
    }
    NormColumns<T, Out, Shape> const columns{p};
    __syncthreads();
    clusterArrive(); // this block has its barriers
    clusterWait();   // and the others have
    triggerDependentLaunch();
    LinearProducer<T, Shape> producer{x, weight, memory};
    if (p.linear.constantWeight && produces)
    {
        producer.fetchWeightsAhead(findLinearTile<T, Shape>(p.linear, clusterNumber()));
    }
    if (consumes)
    {
        if (Shape::kHANDS_OVER)
        {
            asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Shape::kCONSUMER_REGISTERS));
        }
        columns.share(memory);
        waitAtNamed<Shape::kCONSUMERS>(kCOLUMNS_BARRIER);
        waitForPreviousKernel(); // which skip needs
        consumeNormTiles<T, Out, Shape>(p, skip, y, quantized, memory);
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
            forLinearTiles<T, Shape>(p.linear, [&](LinearTile const& tile) { producer.fetch(tile); });
        }
    }
    // A block must not end while another writes to its shared memory.
    __syncwarp();
    clusterArrive();
    clusterWait();
}

// ---------------------------------------------------------------------------------------------------------------
// Launch
// ---------------------------------------------------------------------------------------------------------------

// How many clusters of a kernel run at the same time: not every multiprocessor finds as many others near it. Asked once for
// each device.
template <typename Kernel>
cudaError_t countClusters(Kernel* kernel, LaunchSize const& size, int& count)
{
    static std::array<std::atomic<int>, 64> known{};
    int device = 0;
    cudaError_t status = cudaGetDevice(&device);
    if (status != cudaSuccess)
    {
        return status;
    }
    std::atomic<int>* const cached
        = device < static_cast<int>(known.size()) ? &known[static_cast<size_t>(device)] : nullptr;
    count = cached == nullptr ? 0 : cached->load();
    if (count > 0)
    {
        return cudaSuccess;
    }
    status = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(size.sharedMemory));
    if (status != cudaSuccess)
    {
        return status;
    }
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {size.cluster, 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(size.cluster);
    config.blockDim = dim3(static_cast<unsigned int>(size.threads));
    config.dynamicSmemBytes = size.sharedMemory;
    config.attrs = &attribute;
    config.numAttrs = 1;
    status = cudaOccupancyMaxActiveClusters(&count, kernel, &config);
    if (status == cudaSuccess && count == 0)
    {
        return cudaErrorLaunchOutOfResources;
    }
    if (status == cudaSuccess && cached != nullptr)
    {
        cached->store(count);
    }
    return status;
}

template <typename T, typename Out, typename Shape>
cudaError_t launchNormShape(LinearSkipLayerNormArguments const& a, cudaStream_t stream)
{
    CUtensorMap x{};
    CUtensorMap weight{};
    CUtensorMap skip{};
    CUtensorMap y{};
    CUtensorMap quantized{};
    auto const width = static_cast<cuuint64_t>(a.out);
    auto const height = static_cast<cuuint64_t>(a.rows);
    cudaError_t status = describeOperand<T, 1>(x, a.x, a.rows, a.in, Shape::kROWS / Shape::kBLOCK_COLUMNS, 1);
    if (status == cudaSuccess)
    {
        status
            = describeOperand<T, 1>(weight, a.weight, a.out, a.in, Shape::kCOLUMNS / Shape::kBLOCK_ROWS, 1);
    }
    if (status == cudaSuccess)
    {
        status = describeTensor<Out>(skip, a.skip, {width, height}, {kY_COLUMNS, kWARP_ROWS});
    }
    if (status == cudaSuccess)
    {
        status = describeTensor<Out>(y, a.y, {width, height}, {kY_COLUMNS, kWARP_ROWS});
    }
    if (status == cudaSuccess && a.quantized != nullptr)
    {
        status = describeTensor<int8_t>(quantized, a.quantized, {width, height}, {kY_COLUMNS, kWARP_ROWS});
    }
    LaunchSize size{0, Shape::kTHREADS, Shape::kNORM_BYTES, Shape::kCLUSTER};
    int clusters = 0;
    auto* const kernel = linearSkipLayerNormHopperKernel<T, Out, Shape>;
    if (status == cudaSuccess)
    {
        status = countClusters(kernel, size, clusters);
    }
    if (status != cudaSuccess)
    {
        return status;
    }
    Raster const raster{static_cast<uint32_t>(divideUp(a.rows, Shape::kROWS * Shape::kBLOCK_ROWS)), 1};
    size.blocks = std::min(raster.tiles(), static_cast<uint32_t>(clusters)) * size.cluster;
    LinearProblem const linear{a.weight, a.bias, a.weightScales, a.y, a.xScale, 1.0F / a.outputScale,
        a.outputFactors, raster, static_cast<int32_t>(a.rows), a.in, a.out,
        static_cast<int32_t>(divideUp(a.in, kPANEL<T>)), false, a.constantWeights};
    Quantized const kind = a.quantized == nullptr                  ? Quantized::kNONE
                           : a.quantizedType == ElementType::kINT8 ? Quantized::kINT8
                                                                   : Quantized::kE4M3;
    NormProblem const problem{linear, a.gamma, a.beta, a.epsilon, a.normType == ElementType::kFLOAT, kind};
    return launchDependent(kernel, size, stream, problem, x, weight, skip, y, quantized);
}

template <typename T, typename Out>
cudaError_t launchNormWidth(LinearSkipLayerNormArguments const& a, cudaStream_t stream)
{
    switch (a.out)
    {
    case 768:
        return launchNormShape<T, Out, NormShape<64, 192, 5, 2, 4>>(a, stream);
    case 1024:
        return launchNormShape<T, Out, NormShape<128, 128, 5, 1, 8>>(a, stream);
    default:
        return cudaErrorInvalidValue;
    }
}

} // namespace bert
