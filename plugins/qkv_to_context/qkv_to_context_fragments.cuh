// What the tensor core kernels share: loads of tiles into shared memory, the softmax, and the store of results, in
// the register layout of the tensor cores (common/tensor_cores.cuh describes it).
#pragma once

#include "common/exponential.cuh"
#include "common/tensor_cores.cuh"
#include "qkv_to_context/qkv_to_context_common.cuh"

#include <cfloat>

namespace bert
{

// The operand type of the tensor cores: int8 becomes fp16, which represents its numbers exactly.
template <typename In>
using Operand = std::conditional_t<std::is_same_v<In, int8_t>, __half, In>;

// ---------------------------------------------------------------------------------------------------------------
// Tiles in shared memory
// ---------------------------------------------------------------------------------------------------------------

// Converts four int8 to four fp16 without a conversion instruction: for 0 <= u < 256, the bits 0x6400 + u are the
// fp16 number 1024 + u.
inline __device__ uint2 widen(uint32_t bytes)
{
    uint32_t const shifted = bytes ^ 0x80808080U; // value + 128
    uint32_t const low = __byte_perm(shifted, 0x64646464U, 0x4140);
    uint32_t const high = __byte_perm(shifted, 0x64646464U, 0x4342);
    __half2 const offset = __half2half2(__ushort_as_half(0x6480)); // 1024 + 128
    __half2 const a = __hsub2(*reinterpret_cast<__half2 const*>(&low), offset);
    __half2 const b = __hsub2(*reinterpret_cast<__half2 const*>(&high), offset);
    return {*reinterpret_cast<uint32_t const*>(&a), *reinterpret_cast<uint32_t const*>(&b)};
}

// Converts 16 int8 of a row to fp16 and stores two pieces.
template <int kROWS, int kSIZE>
__device__ void storeWidened(uint32_t tile, int row, int piece, uint4 const& bytes)
{
    uint2 const a = widen(bytes.x);
    uint2 const b = widen(bytes.y);
    uint2 const c = widen(bytes.z);
    uint2 const d = widen(bytes.w);
    storePiece(tile + SharedTile<kROWS, kSIZE>::offset(row, 2 * piece), {a.x, a.y, b.x, b.y});
    storePiece(tile + SharedTile<kROWS, kSIZE>::offset(row, 2 * piece + 1), {c.x, c.y, d.x, d.y});
}

// Copies kROWS rows from global memory into a SharedTile, with kTHREADS threads of a block or a warp; rows beyond
// `count` become zeros. Two-byte elements are copied asynchronously by start. int8 elements are loaded into registers
// by start, and finish widens and stores them.
template <typename In, int kROWS, int kSIZE, int kTHREADS>
class TileLoader
{
public:
    __device__ void start(In const* rows, int64_t stride, int32_t count, uint32_t tile)
    {
        forPieces(
            [&](int i, int row, int piece)
            {
                bool const exists = row < count;
                In const* const source = rows + (exists ? row * stride : 0) + piece * kPER_PIECE;
                if constexpr (kWIDEN)
                {
                    mPieces[i] = exists ? *reinterpret_cast<uint4 const*>(source) : uint4{};
                }
                else
                {
                    copyPiece(tile + Tile::offset(row, piece), source, exists);
                }
            });
    }
    __device__ void finish(uint32_t tile)
    {
        if constexpr (kWIDEN)
        {
            forPieces(
                [&](int i, int row, int piece) { storeWidened<kROWS, kSIZE>(tile, row, piece, mPieces[i]); });
        }
    }

private:
    using Tile = SharedTile<kROWS, kSIZE>;
    static constexpr bool kWIDEN = sizeof(In) == 1;
    static constexpr int kPER_PIECE = 16 / sizeof(In);
    static constexpr int kPIECES_OF_ROW = kSIZE / kPER_PIECE;
    static constexpr int kPIECES = kROWS * kPIECES_OF_ROW;
    static constexpr int kEACH = (kPIECES + kTHREADS - 1) / kTHREADS;
    static constexpr int kMAX_AT_ONCE = 4; // with more unrolling, addresses take too many registers

    template <typename Function>
    static __device__ void forPieces(Function&& function)
    {
#pragma unroll(kWIDEN ? kEACH : kMAX_AT_ONCE)
        for (int i = 0; i < kEACH; ++i)
        {
            int const index = i * kTHREADS + static_cast<int>(threadIdx.x) % kTHREADS;
            if (kPIECES % kTHREADS == 0 || index < kPIECES)
            {
                function(i, index / kPIECES_OF_ROW, index % kPIECES_OF_ROW);
            }
        }
    }

    uint4 mPieces[kWIDEN ? kEACH : 1];
};

// The pipeline of keys and values of one sequence and head, in chunks of kKEYS, with kSTAGES stages in shared memory:
// chunk c is in stage c % kSTAGES, keys first.
template <typename In, int kKEYS, int kSIZE, int kTHREADS, int kSTAGES, int kIN_FLIGHT>
class ChunkLoader
{
public:
    static_assert(sizeof(In) == 2 || kIN_FLIGHT == 1, "registers hold one chunk of int8");
    using Tile = SharedTile<kKEYS, kSIZE>;
    static constexpr int kBYTES = kSTAGES * 2 * Tile::kBYTES;

    // `keys` is the head's first key; the values are `toValues` elements further.
    __device__ ChunkLoader(In const* keys, int64_t toValues, int64_t stride, int32_t count, uint32_t memory)
        : mSource(keys)
        , mToValues(toValues)
        , mStride(stride)
        , mCount(count)
        , mMemory(memory)
    {
    }
    // Commits one copy group in any case; it may be empty.
    __device__ void start(int32_t chunk)
    {
        int32_t const first = chunk * kKEYS;
        if (first < mCount)
        {
            In const* const source = mSource + first * mStride;
            mKeys.start(source, mStride, mCount - first, keys(chunk));
            mValues.start(source + mToValues, mStride, mCount - first, values(chunk));
        }
        commitCopyGroup();
    }
    // After it and a barrier the chunk can be read.
    __device__ void finish(int32_t chunk)
    {
        waitForCopyGroups<kIN_FLIGHT - 1>();
        mKeys.finish(keys(chunk));
        mValues.finish(values(chunk));
    }
    __device__ uint32_t keys(int32_t chunk) const
    {
        return mMemory + chunk % kSTAGES * 2 * Tile::kBYTES;
    }
    __device__ uint32_t values(int32_t chunk) const
    {
        return keys(chunk) + Tile::kBYTES;
    }

private:
    In const* mSource;
    int64_t mToValues;
    int64_t mStride;
    int32_t mCount;
    uint32_t mMemory;
    TileLoader<In, kKEYS, kSIZE, kTHREADS> mKeys;
    TileLoader<In, kKEYS, kSIZE, kTHREADS> mValues;
};

// Loads the warp's 16 rows of queries into registers, 16 columns at a time.
template <int kROWS, int kSIZE>
__device__ void loadQueries(uint32_t (&queries)[kSIZE / 16][4], uint32_t tile, uint32_t firstRow)
{
    uint32_t const lane = threadIdx.x % kWARP;
#pragma unroll
    for (int k = 0; k < kSIZE / 16; ++k)
    {
        loadMatrices(
            queries[k], tile + SharedTile<kROWS, kSIZE>::offset(firstRow + lane % 16, 2 * k + lane / 16));
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Softmax
// ---------------------------------------------------------------------------------------------------------------

// This lane's largest scores in its two rows, computed in short chains of dependent instructions.
template <int kTILES>
__device__ void findLargest(float (&largest)[2], float const (&scores)[kTILES][4])
{
    float columns[4] = {scores[0][0], scores[0][1], scores[0][2], scores[0][3]};
#pragma unroll
    for (int n = 1; n < kTILES; ++n)
    {
#pragma unroll
        for (int i = 0; i < 4; ++i)
        {
            columns[i] = fmaxf(columns[i], scores[n][i]);
        }
    }
    largest[0] = fmaxf(columns[0], columns[1]);
    largest[1] = fmaxf(columns[2], columns[3]);
}
// The maximum over the four lanes that share a row.
inline __device__ float largestOfRow(float ofLane)
{
    float const ofTwo = fmaxf(ofLane, shuffleXor(ofLane, 1));
    return fmaxf(ofTwo, shuffleXor(ofTwo, 2));
}

struct NoOp
{
    __device__ void operator()(int /*n*/) const {}
};

// Replaces scores by powers of 2 and adds them to the sums of their rows. The additions lag two steps behind, since
// exponentials have a long latency. between(n) is called after keys 8n to 8n + 7: work that overlaps with
// exponentials.
template <int kTILES, typename Exponent, typename Between = NoOp>
__device__ void exponentiate(
    float (&sums)[2], float (&scores)[kTILES][4], Exponent&& exponent, Between&& between = Between{})
{
    constexpr int kLAG = 2;
    float columns[4]{};
#pragma unroll
    for (int n = 0; n < kTILES + kLAG; ++n)
    {
#pragma unroll
        for (int i = 0; i < 4; ++i)
        {
            if (n < kTILES)
            {
                scores[n][i] = exponential2(exponent(scores[n][i], i / 2));
            }
            if (n >= kLAG)
            {
                columns[i] += scores[n - kLAG][i];
            }
        }
        if (n < kTILES)
        {
            between(n);
        }
    }
    sums[0] += columns[0] + columns[1];
    sums[1] += columns[2] + columns[3];
}

// Beyond this exponent, score * scale would be rounded to steps of more than 2^-7.
constexpr float kLARGE_EXPONENT = 65536.0F;

inline __device__ bool isLarge(float maximum, float scale)
{
    return fabsf(maximum) * scale > kLARGE_EXPONENT;
}

// `exponentiate` relative to each row's maximum. Large rows subtract before they multiply. Each row decides that for
// itself: the warp's other rows may belong to another sequence, which must not change a single bit. `someLarge` is the
// warp's vote, which only saves the decision.
template <int kTILES>
__device__ void exponentiateRows(
    float (&sums)[2], float (&scores)[kTILES][4], float const (&maximum)[2], float scale, bool someLarge)
{
    float const shift[2] = {maximum[0] * scale, maximum[1] * scale};
    if (someLarge)
    {
        bool const large[2] = {isLarge(maximum[0], scale), isLarge(maximum[1], scale)};
        exponentiate(sums, scores, [&](float score, int row)
            { return large[row] ? (score - maximum[row]) * scale : fmaf(score, scale, -shift[row]); });
    }
    else
    {
        exponentiate(sums, scores, [&](float score, int row) { return fmaf(score, scale, -shift[row]); });
    }
}

// The final factor of the weighted sums of values; 0 for a query without keys.
inline __device__ float invertSum(float ofLane)
{
    float const sum = warpSum<4>(ofLane);
    return sum == 0.0F ? 0.0F : __fdividef(1.0F, sum);
}

// Sets the scores of masked keys to -infinity. The scores begin with group `first` of 8 keys of the chunk.
template <int kTILES, int kKEYS>
__device__ void maskScores(float (&scores)[kTILES][4], KeyMask<kKEYS> const& bits, int first = 0)
{
#pragma unroll
    for (int n = 0; n < kTILES; ++n)
    {
        unsigned int const pair = bits.pairOf(first + n);
        scores[n][0] = (pair & 1U) != 0 ? scores[n][0] : kNEGATIVE_INFINITY;
        scores[n][1] = (pair & 2U) != 0 ? scores[n][1] : kNEGATIVE_INFINITY;
        scores[n][2] = (pair & 1U) != 0 ? scores[n][2] : kNEGATIVE_INFINITY;
        scores[n][3] = (pair & 2U) != 0 ? scores[n][3] : kNEGATIVE_INFINITY;
    }
}

// Softmax over scores that are all in registers: `ofLane` is the maximum of this lane's scores in each of its rows.
class PlainSoftmax
{
public:
    __device__ PlainSoftmax(float const (&ofLane)[2], float scale)
        : mScale(scale)
    {
        bool large = false;
#pragma unroll
        for (int row = 0; row < 2; ++row)
        {
            mMaximum[row] = fmaxf(largestOfRow(ofLane[row]), -FLT_MAX); // finite also without keys
            large = large || isLarge(mMaximum[row], scale);
        }
        mSomeLarge = __any_sync(kALL_LANES, large);
    }
    // Replaces scores by weights; the weights of a query have a common factor, which finish returns.
    template <int kTILES>
    __device__ void weigh(float (&scores)[kTILES][4])
    {
        exponentiateRows(mSum, scores, mMaximum, mScale, mSomeLarge);
    }
    __device__ void finish(float (&factors)[2])
    {
        factors[0] = invertSum(mSum[0]);
        factors[1] = invertSum(mSum[1]);
    }

private:
    float mScale;
    float mMaximum[2];
    float mSum[2]{};
    bool mSomeLarge;
};

// By how much, as an exponent, the running maximum may lag behind the true maximum.
constexpr float kSLACK = 8.0F;

// Multiplies each of the lane's two rows by its factor.
template <int kTILES>
__device__ void scaleRows(float (&sums)[kTILES][4], float const (&factors)[2])
{
#pragma unroll
    for (int n = 0; n < kTILES; ++n)
    {
#pragma unroll
        for (int i = 0; i < 4; ++i)
        {
            sums[n][i] *= factors[i / 2];
        }
    }
}

// Online softmax, over scores that arrive chunk by chunk. Exponents are relative to a running maximum, which may lag
// behind the maximum of all scores so far by kSLACK: only if it has grown by more are the sums rescaled, which almost
// always happens after the first chunk only. 2^kSLACK is in the range of fp16, and sums are fp32.
class OnlineSoftmax
{
public:
    explicit __device__ OnlineSoftmax(float scale)
        : mScale(scale)
        , mSlack(kSLACK / scale)
    {
    }

    // Replaces scores by weights, as PlainSoftmax does. Returns whether the weighted sums of values must be rescaled;
    // all lanes of a warp get the same result.
    template <int kTILES>
    __device__ bool weigh(float (&scores)[kTILES][4])
    {
        float largest[2];
        findLargest(largest, scores);
        bool const grown = largest[0] > mMaximum[0] + mSlack || largest[1] > mMaximum[1] + mSlack;
        bool const rescale = __any_sync(kALL_LANES, grown);
        if (rescale)
        {
            grow(largest);
        }
        exponentiateRows(mSum, scores, mMaximum, mScale, mSomeLarge);
        return rescale;
    }
    template <int kTILES>
    __device__ void rescale(float (&sums)[kTILES][4]) const
    {
        scaleRows(sums, mFactor);
    }
    __device__ void finish(float (&factors)[2])
    {
        factors[0] = invertSum(mSum[0]);
        factors[1] = invertSum(mSum[1]);
    }

private:
    // A row whose maximum has not grown by more than the slack keeps it, with a factor of 1: when other rows of the
    // warp grow must not change its roundings.
    __device__ void grow(float const (&largest)[2])
    {
        bool large = false;
#pragma unroll
        for (int row = 0; row < 2; ++row)
        {
            float const ofRow = largestOfRow(largest[row]);
            float const maximum = ofRow > mMaximum[row] + mSlack ? ofRow : mMaximum[row];
            mFactor[row] = exponential2((mMaximum[row] - maximum) * mScale);
            mMaximum[row] = maximum;
            mSum[row] *= mFactor[row];
            large = large || isLarge(maximum, mScale);
        }
        mSomeLarge = __any_sync(kALL_LANES, large);
    }

    float mScale;
    float mSlack; // in units of scores
    float mMaximum[2]{-FLT_MAX, -FLT_MAX};
    float mSum[2]{};
    float mFactor[2]{};
    bool mSomeLarge{true}; // like the initial maximum
};

// Packs weights as the left operand of the second matmul, whose register layout they already have.
template <typename T, int kTILES>
__device__ void packWeights(uint32_t (&weights)[kTILES / 2][4], float const (&scores)[kTILES][4])
{
#pragma unroll
    for (int k = 0; k < kTILES / 2; ++k)
    {
        packPair(weights[k][0], scores[2 * k][0], scores[2 * k][1], T{});
        packPair(weights[k][1], scores[2 * k][2], scores[2 * k][3], T{});
        packPair(weights[k][2], scores[2 * k + 1][0], scores[2 * k + 1][1], T{});
        packPair(weights[k][3], scores[2 * k + 1][2], scores[2 * k + 1][3], T{});
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Store
// ---------------------------------------------------------------------------------------------------------------

// Lane t of each group of four lanes gets word t of all four, in the order of the lanes.
inline __device__ void transposeWords(uint32_t (&words)[4])
{
    bool const odd = threadIdx.x % 2 != 0;
    bool const upper = threadIdx.x % 4 >= 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2)
    {
        uint32_t const received = __shfl_xor_sync(kALL_LANES, odd ? words[i] : words[i + 1], 1);
        words[i] = odd ? received : words[i];
        words[i + 1] = odd ? words[i + 1] : received;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
    {
        uint32_t const received = __shfl_xor_sync(kALL_LANES, upper ? words[i] : words[i + 2], 2);
        words[i] = upper ? received : words[i];
        words[i + 2] = upper ? words[i + 2] : received;
    }
}

// Stores 64 columns of one row of the context in 8 bits. The four lanes of a row exchange pairs first, so that each has
// 16 neighbouring elements, and a warp stores 8 rows of 64 contiguous bytes at once.
template <typename Out>
__device__ void storeEightBits(Out* row, bool exists, float const (*values)[4], int half, float factor)
{
    static_assert(sizeof(Out) == 1);
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
    {
        float const(&a)[4] = values[2 * i];
        float const(&b)[4] = values[2 * i + 1];
        uint32_t pair;
        packPair(pair, b[2 * half] * factor, b[2 * half + 1] * factor, Out{});
        packPair(words[i], a[2 * half] * factor, a[2 * half + 1] * factor, Out{}, pair);
    }
    transposeWords(words);
    if (exists)
    {
        constexpr unsigned int kLOWER = 0x5410; // halves of two words
        constexpr unsigned int kUPPER = 0x7632;
        *reinterpret_cast<uint4*>(row + threadIdx.x % 4 * 16)
            = make_uint4(__byte_perm(words[0], words[1], kLOWER), __byte_perm(words[2], words[3], kLOWER),
                __byte_perm(words[0], words[1], kUPPER), __byte_perm(words[2], words[3], kUPPER));
    }
}

// Stores one row of the context. Lanes 2i and 2i + 1 exchange pairs first, so that each has four neighbouring
// elements: fewer and wider stores.
template <typename Out, int kSIZE>
__device__ void storeRow(Out* row, bool exists, float const (&values)[kSIZE / 8][4], int half, float factor)
{
    if constexpr (sizeof(Out) == 1 && kSIZE % 64 == 0)
    {
#pragma unroll
        for (int first = 0; first < kSIZE; first += 64)
        {
            storeEightBits(row + first, exists, values + first / 8, half, factor);
        }
        return;
    }
    uint32_t const t = threadIdx.x % 4;
    bool const odd = t % 2 != 0;
#pragma unroll
    for (int n = 0; n < kSIZE / 8; n += 2)
    {
        float const(&a)[4] = values[n];
        float const(&b)[4] = values[n + 1];
        if constexpr (std::is_same_v<Out, float>)
        {
            if (exists)
            {
                *reinterpret_cast<float2*>(row + n * 8 + 2 * t)
                    = make_float2(a[2 * half] * factor, a[2 * half + 1] * factor);
                *reinterpret_cast<float2*>(row + n * 8 + 8 + 2 * t)
                    = make_float2(b[2 * half] * factor, b[2 * half + 1] * factor);
            }
        }
        else
        {
            uint32_t first;
            uint32_t second;
            packPair(first, a[2 * half] * factor, a[2 * half + 1] * factor, Out{});
            packPair(second, b[2 * half] * factor, b[2 * half + 1] * factor, Out{});
            uint32_t const received = __shfl_xor_sync(kALL_LANES, odd ? first : second, 1);
            uint32_t const low = odd ? received : first;
            uint32_t const high = odd ? second : received;
            Out* const target = row + (n + (odd ? 1 : 0)) * 8 + t / 2 * 4;
            if (exists)
            {
                if constexpr (sizeof(Out) == 2)
                {
                    *reinterpret_cast<uint2*>(target) = make_uint2(low, high);
                }
                else
                {
                    *reinterpret_cast<uint32_t*>(target) = low | high << 16;
                }
            }
        }
    }
}

// Stores the warp's 16 rows of the context, of which `rows` exist.
template <typename Out, int kSIZE>
__device__ void storeContextAs(AttentionProblem const& p, int64_t firstToken, int32_t rows, uint32_t head,
    float const (&sums)[kSIZE / 8][4], float const (&factors)[2])
{
#pragma unroll
    for (int half = 0; half < 2; ++half)
    {
        int32_t const row = static_cast<int32_t>(threadIdx.x % kWARP / 4) + 8 * half;
        bool const exists = row < rows;
        Out* const target = contextRow<Out, kSIZE>(p, firstToken + (exists ? row : 0), head);
        storeRow<Out, kSIZE>(target, exists, sums, half, factors[half] * p.outputFactor);
    }
}

// The same in the type of the output.
template <int kSIZE>
__device__ void storeContext(AttentionProblem const& p, int64_t firstToken, int32_t rows, uint32_t head,
    float const (&sums)[kSIZE / 8][4], float const (&factors)[2])
{
    dispatchOutput(p.outputType, [&](auto element)
        { storeContextAs<decltype(element), kSIZE>(p, firstToken, rows, head, sums, factors); });
}

// The same where the output has 8 bits.
template <int kSIZE>
__device__ void storeContextInEightBits(AttentionProblem const& p, int64_t firstToken, int32_t rows,
    uint32_t head, float const (&sums)[kSIZE / 8][4], float const (&factors)[2])
{
    if (p.outputType == ElementType::kE4M3)
    {
        storeContextAs<E4m3, kSIZE>(p, firstToken, rows, head, sums, factors);
    }
    else
    {
        storeContextAs<int8_t, kSIZE>(p, firstToken, rows, head, sums, factors);
    }
}

// Writes the same 16 rows to shared memory, as a SharedTile of 16 rows at `tile`.
template <typename Out, int kSIZE>
__device__ void stageContext(uint32_t tile, float const (&sums)[kSIZE / 8][4], float const (&factors)[2])
{
    using Rows = SharedTile<16, kSIZE>;
    uint32_t const lane = threadIdx.x % kWARP;
    uint32_t const address = tile + Rows::offset(lane % 16, lane / 16);
#pragma unroll
    for (int n = 0; n < kSIZE / 8; n += 2)
    {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
        {
            float const(&group)[4] = sums[n + i / 2];
            int const row = i % 2;
            packPair(words[i], group[2 * row] * factors[row], group[2 * row + 1] * factors[row], Out{});
        }
        // The address of piece n + lane / 16: the swizzle is an exclusive or, so the offset of n can be applied after
        // it.
        uint32_t const piece = n % Rows::kPIECES * 16;
        storeMatrices((address ^ piece) + n / Rows::kPIECES * Rows::kPANEL_BYTES, words);
    }
}

// Calls function(In{}, integral_constant of the head size).
template <typename Function>
cudaError_t dispatchTensor(QkvToContextArguments const& a, Function&& function)
{
    auto const withSize = [&](auto element)
    {
        switch (a.headSize)
        {
        case 32:
            return function(element, std::integral_constant<int, 32>{});
        case 64:
            return function(element, std::integral_constant<int, 64>{});
        default:
            return function(element, std::integral_constant<int, 128>{});
        }
    };
    switch (a.type)
    {
    case ElementType::kHALF:
        return withSize(__half{});
    case ElementType::kBF16:
        return withSize(__nv_bfloat16{});
    default:
        return withSize(int8_t{});
    }
}

} // namespace bert
