// What Hopper's kernels for attention on int8 share: scores that are floats without a conversion, their softmax, values
// that are widened to fp16, and the store of contexts. Needs code for sm_90a.
#pragma once

#include "common/hopper_copies.cuh"
#include "qkv_to_context/qkv_to_context_wgmma.cuh"

#include <cstdint>

namespace bert
{

// ---------------------------------------------------------------------------------------------------------------
// Scores
// ---------------------------------------------------------------------------------------------------------------

// A conversion from int32 to float is an instruction of which a multiprocessor does few, as few as exponentials. But
// in a float between 2^23 and 2^24 the last bit counts 1: the bits of 1.5 * 2^23, with an integer added to them, are
// those of 1.5 * 2^23 + integer. The tensor cores add to these bits, so that what they leave is a float. A score is at
// most 128 * 128 * 128 = 2^21.
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
            // One by one, by instructions that the compiler cannot merge: it would keep the constant in one of these
            // registers for the others, and wait for products before it writes them.
            asm volatile("mov.b32 %0, 0x4B400000;" : "=r"(scores[n][i]));
        }
    }
}

// scores (64, kKEYS) = bias + queries (64, kSIZE) keys^T, both in shared memory
template <int kKEYS, int kSIZE>
__device__ void multiplyKeysBiased(uint32_t (&scores)[kKEYS / 8][4], uint32_t queries, uint32_t keys)
{
    biasScores(scores);
    beginProducts();
#pragma unroll
    for (int k = 0; k < kSIZE / 32; ++k)
    {
        multiplyAsync(
            scores, describeMatrix<kSIZE, 16>(queries + k * 32), describeMatrix<kSIZE, 16>(keys + k * 32), 1);
    }
    endProducts();
}

// The same bits as floats; -infinity where a key does not count.
template <int kKEYS>
__device__ void readBiased(
    float (&floats)[kKEYS / 8][4], uint32_t const (&scores)[kKEYS / 8][4], KeyBits<kKEYS> const& bits)
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
        hide(floats, bits);
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Softmax
// ---------------------------------------------------------------------------------------------------------------

// This lane's largest biased scores of its two rows, 0 where it has none. They are positive or -infinity: compared as
// integers, three at a time, they give the same.
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
// Of the rows: the same in the four lanes that share them.
template <int kTILES>
__device__ void findLargestOfRows(float (&largest)[2], float const (&scores)[kTILES][4])
{
    findLargestBiased(largest, scores);
    largest[0] = largestOfRow(largest[0]);
    largest[1] = largestOfRow(largest[1]);
}

// Biased scores become powers of 2, relative to a maximum, and are added to the sums of their rows as `exponentiate`
// does it. score * scale - shift is one instruction, in which the shift alone is rounded: by at most 2, since scales
// are at most kMOST_SCORE_SCALE, and the same for all weights of a row, which therefore does not matter.
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
    // Scores become weights. Returns whether sums of weighted values must be rescaled.
    template <int kTILES, typename Between = Nothing>
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
            float const ofRow = largestOfRow(fmaxf(largest[row], mMaximum[row]));
            // As rounded as the shifts are, so that weights before and after fit together.
            mFactor[row] = exponential2(__fmul_rn(mMaximum[row], mScale) - __fmul_rn(ofRow, mScale));
            mMaximum[row] = ofRow;
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

// A warpgroup widens kROWS rows of values from int8 to fp16, in which they are exact: the tensor cores want the int8 of
// one column one after the other in memory, and values lie row by row.
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
        mNeighbour = mTarget ^ 16; // the piece beside it
    }
    // All of it.
    __device__ void run() const
    {
#pragma unroll
        for (int turn = 0; turn < kTURNS; ++turn)
        {
            runTurn(turn);
        }
    }
    // A turn now and then: called for each n below kROWS / 8, it is all of it.
    __device__ void operator()(int n) const
    {
        constexpr int kEVERY = kROWS / 8 / kTURNS;
        static_assert(kEVERY * kTURNS * 8 == kROWS);
        if (n % kEVERY == kEVERY / 2)
        {
            runTurn(n / kEVERY);
        }
    }

private:
    using Bytes = SharedTile<kROWS, kSIZE / 2>;
    using Values = SharedTile<kROWS, kSIZE>;
    static constexpr int kPIECES = kSIZE / 16; // of a row
    static constexpr int kROWS_AT_ONCE = kWARPGROUP / kPIECES;
    static_assert(kROWS_AT_ONCE % 8 == 0, "pieces of rows so far apart are permuted in the same way");
    static constexpr int kTURNS = kROWS / kROWS_AT_ONCE;

    __device__ void runTurn(int turn) const
    {
        uint4 const bytes = loadPiece(mSource + turn * kROWS_AT_ONCE * Bytes::kROW_BYTES);
        uint2 const a = widen(bytes.x);
        uint2 const b = widen(bytes.y);
        uint2 const c = widen(bytes.z);
        uint2 const d = widen(bytes.w);
        storePiece(mTarget + turn * kROWS_AT_ONCE * Values::kROW_BYTES, {a.x, a.y, b.x, b.y});
        storePiece(mNeighbour + turn * kROWS_AT_ONCE * Values::kROW_BYTES, {c.x, c.y, d.x, d.y});
    }

    uint32_t mSource;
    uint32_t mTarget;
    uint32_t mNeighbour;
};

// ---------------------------------------------------------------------------------------------------------------
// Store
// ---------------------------------------------------------------------------------------------------------------

// value * factor rounded half to even. It must be less than 2^22 in magnitude: kMOST_OUTPUT_FACTOR sees to it.
inline __device__ int32_t roundToInteger(float value, float factor)
{
    return __float_as_int(fmaf(value, factor, kINTEGER_BIAS)) - __float_as_int(kINTEGER_BIAS);
}
// As int8, saturated; the first one in the first byte.
inline __device__ uint32_t packBytes(int32_t a, int32_t b, int32_t c, int32_t d)
{
    uint32_t high;
    uint32_t word;
    asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(high) : "r"(d), "r"(c), "r"(0));
    asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(word) : "r"(b), "r"(a), "r"(high));
    return word;
}

// The warp's 16 rows of an int8 context to shared memory, as a SharedTile of 16 rows at `tile`. Lanes 2i and 2i + 1
// exchange pairs of both rows, so that each then has four neighbouring elements.
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
        uint32_t words[2]; // of groups n and n + 1: a pair of each row
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

// Where a tile's rows lie for the copies: to them sentences are matrices of their own, packed ones all one matrix.
struct Place
{
    int32_t matrix;
    int32_t firstQuery; // row
    int32_t firstKey;   // row
};
template <bool kPACKED>
__device__ Place placeOf(QueryTile const& tile)
{
    return kPACKED ? Place{0, static_cast<int32_t>(tile.firstQuery), static_cast<int32_t>(tile.firstKey)}
                   : Place{tile.sentence, static_cast<int32_t>(tile.firstQuery - tile.firstKey), 0};
}

// The warp's 16 rows of the context, row `ofWarp` of the tile and those behind it. int8 go by way of shared memory,
// `staging`, from where a copy (TMA) writes them; it writes nothing behind a matrix' end, but knows nothing of where
// packed sentences end.
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
        showToTensorCores(); // and to copies
        __syncwarp();
        if (threadIdx.x % kWARP == 0)
        {
            Place const place = placeOf<kPACKED>(tile);
            storeBox(
                map, static_cast<int32_t>(head) * kSIZE, place.firstQuery + ofWarp, place.matrix, staging);
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

// qkv (B, S, 3H), of which boxes of a head's rows are copied, and context (B, S, H), used for int8 only, to which 16
// rows of a head are. Packed sentences are one of T tokens.
template <int kSIZE>
cudaError_t describeInt8(CUtensorMap& qkvMap, CUtensorMap& contextMap, QkvToContextArguments const& a)
{
    auto const width = static_cast<cuuint64_t>(a.heads) * kSIZE;
    auto const length = static_cast<cuuint64_t>(a.length);
    auto const matrices = static_cast<cuuint64_t>(a.cuSeqlens != nullptr ? 1 : a.sentences);
    cudaError_t const status
        = describeTensor<int8_t>(qkvMap, a.qkv, {3 * width, length, matrices}, {kSIZE, kBOX_ROWS, 1});
    return status == cudaSuccess
               ? describeTensor<int8_t>(contextMap, a.context, {width, length, matrices}, {kSIZE, 16, 1})
               : status;
}

} // namespace bert
