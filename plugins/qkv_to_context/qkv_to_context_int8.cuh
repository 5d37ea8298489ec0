// The parts of Hopper's int8 attention kernel: scores that are floats without a conversion, their softmax, the
// widening of values to fp16, and the store of contexts. Needs sm_90a.
#pragma once

#include "common/hopper_tma.cuh"
#include "qkv_to_context/qkv_to_context_wgmma.cuh"

#include <cstdint>

namespace bert
{

// ---------------------------------------------------------------------------------------------------------------
// Scores
// ---------------------------------------------------------------------------------------------------------------

// The conversion from int32 to float has the low throughput of an exponential. But in a float between 2^23 and 2^24
// the last bit has the value 1: the bits of 1.5 * 2^23 plus an integer are the bits of the float 1.5 * 2^23 +
// integer. The int32 accumulators of the tensor cores start with these bits, so that their results are floats. A
// score is at most 128 * 128 * 128 = 2^21.
constexpr float kINTEGER_BIAS = 12582912.0F;

template <int kTILES>
__device__ void biasScores(uint32_t (&scores)[kTILES][4])
{
#pragma unroll
    for (int n = 0; n < kTILES; ++n)
    {
#pragma unroll
        for (int i = 0; i < 4; ++i)
        {
            // asm volatile, one for each register: otherwise the compiler keeps the constant in one register and
            // copies it, and waits for wgmma before it writes the others.
            asm volatile("mov.b32 %0, 0x4B400000;" : "=r"(scores[n][i]));
        }
    }
}

// scores (64, kKEYS) = bias + queries (64, kSIZE) keys^T, both operands in shared memory
template <int kKEYS, int kSIZE>
__device__ void multiplyKeysBiased(uint32_t (&scores)[kKEYS / 8][4], uint32_t queries, uint32_t keys)
{
    biasScores(scores);
    wgmmaFence();
#pragma unroll
    for (int k = 0; k < kSIZE / 32; ++k)
    {
        multiplyAsync(scores, matrixDescriptor<kSIZE, 16>(queries + k * 32),
            matrixDescriptor<kSIZE, 16>(keys + k * 32), 1);
    }
    wgmmaCommit();
}

// Reads the same bits as floats; scores of masked keys become -infinity.
template <int kKEYS>
__device__ void readBiased(
    float (&floats)[kKEYS / 8][4], uint32_t const (&scores)[kKEYS / 8][4], KeyMask<kKEYS> const& bits)
{
#pragma unroll
    for (int n = 0; n < kKEYS / 8; ++n)
    {
#pragma unroll
        for (int i = 0; i < 4; ++i)
        {
            floats[n][i] = __uint_as_float(scores[n][i]);
        }
    }
    if (!bits.all())
    {
        maskScores(floats, bits);
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Softmax
// ---------------------------------------------------------------------------------------------------------------

// This lane's largest biased scores in its two rows, 0 if all are masked. Biased scores are positive or -infinity, so
// an integer comparison, three operands at a time, gives the same result.
template <int kTILES>
__device__ void findLargestBiased(float (&largest)[2], float const (&scores)[kTILES][4])
{
    static_assert(kTILES % 2 == 0);
    int columns[4]{};
#pragma unroll
    for (int n = 0; n < kTILES; n += 2)
    {
#pragma unroll
        for (int i = 0; i < 4; ++i)
        {
            columns[i]
                = __vimax3_s32(columns[i], __float_as_int(scores[n][i]), __float_as_int(scores[n + 1][i]));
        }
    }
    largest[0] = __int_as_float(max(columns[0], columns[1]));
    largest[1] = __int_as_float(max(columns[2], columns[3]));
}

// `exponentiate` for biased scores. score * scale - shift is one instruction, and only the shift is rounded: by at
// most 2, since scales are at most kMAX_SCORE_SCALE. That error is the same for all weights of a row, so it cancels.
template <int kTILES, typename Between>
__device__ void exponentiateBiased(
    float (&sums)[2], float (&scores)[kTILES][4], float const (&maximum)[2], float scale, Between&& between)
{
    float const shift[2] = {__fmul_rn(maximum[0], scale), __fmul_rn(maximum[1], scale)};
    exponentiate(
        sums, scores, [&](float score, int row) { return fmaf(score, scale, -shift[row]); }, between);
}

// OnlineSoftmax for biased scores.
class BiasedSoftmax
{
public:
    explicit __device__ BiasedSoftmax(float scale)
        : mScale(scale)
        , mSlack(kSLACK / scale)
    {
    }
    // Replaces scores by weights. Returns whether the weighted sums of values must be rescaled.
    template <int kTILES, typename Between = NoOp>
    __device__ bool weigh(float (&scores)[kTILES][4], Between&& between = {})
    {
        float largest[2];
        findLargestBiased(largest, scores);
        bool const grown = largest[0] > mMaximum[0] + mSlack || largest[1] > mMaximum[1] + mSlack;
        bool const rescale = __any_sync(kALL_LANES, grown);
        if (rescale)
        {
            grow(largest);
        }
        exponentiateBiased(mSum, scores, mMaximum, mScale, between);
        return rescale;
    }
    template <int kTILES>
    __device__ void rescale(float (&sums)[kTILES][4]) const
    {
        scaleRows(sums, mFactor);
    }
    __device__ void finish(float (&factors)[2]) const
    {
        factors[0] = invertSum(mSum[0]);
        factors[1] = invertSum(mSum[1]);
    }

private:
    __device__ void grow(float const (&largest)[2])
    {
#pragma unroll
        for (int row = 0; row < 2; ++row)
        {
            float const ofRow = largestOfRow(largest[row]);
            float const maximum
                = ofRow > mMaximum[row] + mSlack ? ofRow : mMaximum[row]; // as in OnlineSoftmax
            // Rounded in the same way as the shifts, so that weights before and after are consistent.
            mFactor[row] = exponential2(__fmul_rn(mMaximum[row], mScale) - __fmul_rn(maximum, mScale));
            mMaximum[row] = maximum;
            mSum[row] *= mFactor[row];
        }
    }

    float mScale;
    float mSlack;        // in units of scores
    float mMaximum[2]{}; // below all biased scores
    float mSum[2]{};
    float mFactor[2]{};
};

// ---------------------------------------------------------------------------------------------------------------
// Values
// ---------------------------------------------------------------------------------------------------------------

constexpr int kBOX_ROWS = 64;

// A warpgroup widens kROWS rows of values from int8 to fp16, which is exact. The tensor cores could multiply int8
// values only if their columns were contiguous in memory, and values are stored row by row.
template <int kROWS, int kSIZE>
class Widener
{
public:
    __device__ Widener(uint32_t target, uint32_t source)
    {
        uint32_t const thread = threadIdx.x % kWARPGROUP;
        uint32_t const row = thread / kPIECES;
        uint32_t const piece = thread % kPIECES;
        mSource = source + Bytes::offset(row, piece);
        mTarget = target + Values::offset(row, 2 * piece);
        mNeighbour = mTarget ^ 16; // the neighbouring piece
    }
    // Widens all rows.
    __device__ void run() const
    {
#pragma unroll
        for (int part = 0; part < kPARTS; ++part)
        {
            runPart(part);
        }
    }
    // Widens a part of the rows for some n, so that the calls for all n below kROWS / 8 widen all rows.
    __device__ void operator()(int n) const
    {
        constexpr int kINTERVAL = kROWS / 8 / kPARTS;
        static_assert(kINTERVAL * kPARTS * 8 == kROWS);
        if (n % kINTERVAL == kINTERVAL / 2)
        {
            runPart(n / kINTERVAL);
        }
    }

private:
    using Bytes = SharedTile<kROWS, kSIZE / 2>;
    using Values = SharedTile<kROWS, kSIZE>;
    static constexpr int kPIECES = kSIZE / 16; // of a row
    static constexpr int kROWS_AT_ONCE = kWARPGROUP / kPIECES;
    static_assert(kROWS_AT_ONCE % 8 == 0, "rows this far apart have the same swizzle");
    static constexpr int kPARTS = kROWS / kROWS_AT_ONCE;

    __device__ void runPart(int part) const
    {
        uint4 const bytes = loadPiece(mSource + part * kROWS_AT_ONCE * Bytes::kROW_BYTES);
        uint2 const a = widen(bytes.x);
        uint2 const b = widen(bytes.y);
        uint2 const c = widen(bytes.z);
        uint2 const d = widen(bytes.w);
        storePiece(mTarget + part * kROWS_AT_ONCE * Values::kROW_BYTES, {a.x, a.y, b.x, b.y});
        storePiece(mNeighbour + part * kROWS_AT_ONCE * Values::kROW_BYTES, {c.x, c.y, d.x, d.y});
    }

    uint32_t mSource;
    uint32_t mTarget;
    uint32_t mNeighbour;
};

// ---------------------------------------------------------------------------------------------------------------
// Store
// ---------------------------------------------------------------------------------------------------------------

// value * factor, rounded half to even. Its magnitude must be less than 2^22, which kMAX_OUTPUT_FACTOR guarantees.
inline __device__ int32_t roundToInteger(float value, float factor)
{
    return __float_as_int(fmaf(value, factor, kINTEGER_BIAS)) - __float_as_int(kINTEGER_BIAS);
}
// Packs four integers as int8, saturated; a is the first byte.
inline __device__ uint32_t packBytes(int32_t a, int32_t b, int32_t c, int32_t d)
{
    uint32_t high;
    uint32_t word;
    asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(high) : "r"(d), "r"(c), "r"(0));
    asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(word) : "r"(b), "r"(a), "r"(high));
    return word;
}

// Writes the warp's 16 rows of an int8 context to shared memory, as a SharedTile of 16 rows at `tile`. Lanes 2i and
// 2i + 1 exchange pairs of both rows first, so that each has four neighbouring elements.
template <int kSIZE>
__device__ void stageInt8(uint32_t tile, float const (&sums)[kSIZE / 8][4], float const (&factors)[2])
{
    using Rows = SharedTile<16, kSIZE / 2>;
    uint32_t const lane = threadIdx.x % kWARP;
    bool const odd = lane % 2 != 0;
    uint32_t const inPiece = (odd ? 8 : 0) + lane % 4 / 2 * 4;
#pragma unroll
    for (int n = 0; n < kSIZE / 8; n += 2)
    {
        uint32_t words[2]; // of groups n and n + 1: one pair of each row
#pragma unroll
        for (int i = 0; i < 2; ++i)
        {
            float const(&group)[4] = sums[n + i];
            words[i] = packBytes(roundToInteger(group[0], factors[0]), roundToInteger(group[1], factors[0]),
                roundToInteger(group[2], factors[1]), roundToInteger(group[3], factors[1]));
        }
        uint32_t const received = __shfl_xor_sync(kALL_LANES, odd ? words[0] : words[1], 1);
        uint32_t const low = odd ? received : words[0];
        uint32_t const high = odd ? words[1] : received;
        storeWord(tile + Rows::offset(lane / 4, n / 2) + inPiece, __byte_perm(low, high, 0x5410));
        storeWord(tile + Rows::offset(lane / 4 + 8, n / 2) + inPiece, __byte_perm(low, high, 0x7632));
    }
}

// TMA coordinates of a tile's rows. In the tensor map each sequence is a matrix of its own; packed sequences are one
// matrix.
struct Coordinates
{
    int32_t matrix;
    int32_t firstQuery; // row
    int32_t firstKey;   // row
};
template <bool kPACKED>
__device__ Coordinates coordinatesOf(QueryTile const& tile)
{
    return kPACKED
               ? Coordinates{0, static_cast<int32_t>(tile.firstQuery), static_cast<int32_t>(tile.firstKey)}
               : Coordinates{tile.sequence, static_cast<int32_t>(tile.firstQuery - tile.firstKey), 0};
}

// Stores the warp's 16 rows of the context, from row `ofWarp` of the tile on. int8 rows pass through shared memory,
// `staging`, and a TMA copy writes them. It writes nothing beyond the end of a matrix, but the tensor map does not
// have the ends of packed sequences: a tile that one of them cuts is stored from registers.
template <int kSIZE, bool kPACKED>
__device__ void storeWarpRows(AttentionProblem const& p, CUtensorMap const& map, QueryTile const& tile,
    uint32_t head, int32_t ofWarp, uint32_t staging, float const (&sums)[kSIZE / 8][4],
    float const (&factors)[2])
{
    bool const whole = !kPACKED || ofWarp + 16 <= tile.queries;
    if (p.outputType == ElementType::kINT8 && whole)
    {
        float const scaled[2] = {factors[0] * p.outputFactor, factors[1] * p.outputFactor};
        stageInt8<kSIZE>(staging, sums, scaled);
        fenceAsyncProxy();
        __syncwarp();
        if (threadIdx.x % kWARP == 0)
        {
            Coordinates const coordinates = coordinatesOf<kPACKED>(tile);
            storeBox(map, static_cast<int32_t>(head) * kSIZE, coordinates.firstQuery + ofWarp,
                coordinates.matrix, staging);
        }
    }
    else
    {
        storeContext<kSIZE>(p, tile.firstQuery + ofWarp, tile.queries - ofWarp, head, sums, factors);
    }
}

// ---------------------------------------------------------------------------------------------------------------
// On the host
// ---------------------------------------------------------------------------------------------------------------

// The tensor maps of qkv (B, S, 3H), with boxes of kBOX_ROWS rows of a head, and of context (B, S, H), which is used
// for int8 only, with boxes of 16 rows of a head. Packed sequences are one sequence of T tokens.
template <int kSIZE>
cudaError_t describeInt8(CUtensorMap& qkvMap, CUtensorMap& contextMap, QkvToContextArguments const& a)
{
    auto const width = static_cast<cuuint64_t>(a.heads) * kSIZE;
    auto const length = static_cast<cuuint64_t>(a.length);
    auto const matrices = static_cast<cuuint64_t>(a.cuSeqlens != nullptr ? 1 : a.sequences);
    cudaError_t const status
        = describeTensor<int8_t>(qkvMap, a.qkv, {3 * width, length, matrices}, {kSIZE, kBOX_ROWS, 1});
    return status == cudaSuccess
               ? describeTensor<int8_t>(contextMap, a.context, {width, length, matrices}, {kSIZE, 16, 1})
               : status;
}

} // namespace bert
