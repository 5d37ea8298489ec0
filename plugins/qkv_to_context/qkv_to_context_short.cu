// Attention with Hopper's tensor cores for sequences of at most 128 tokens. What changed against the hopper kernel:
//
//   - A block takes up to 128 queries of one head of one sequence, and loads them and all keys and values at once.
//     While it waits, the other blocks of the multiprocessor compute, so it needs no pipeline and no producer warp.
//   - All keys are one chunk: the softmax knows the maximum before the first exponential.
//   - In the tensor map each sequence is a matrix of its own: TMA reads rows beyond the end of a sequence as zeros
//     and does not write them.
//   - The tensor cores read queries from shared memory, too.
//   - Packed sequences that the host expects to be short: a block belongs to a sequence, so it searches no tile. It
//     reads where its sequence lies before the wait for the previous kernel already, and starts the copies from there
//     right after it. Before it stores it reads again, and repeats everything if that was another place.
//
// Compiled for sm_90a only (CMakeLists.txt).
#include "common/hopper_tma.cuh"
#include "qkv_to_context/qkv_to_context_wgmma.cuh"

#include <algorithm>

namespace bert
{

// ---------------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------------

namespace
{

// A block is one warpgroup, which computes kTILES tiles of 64 queries.
template <int kSIZE, int kKEYS, int kTILES>
struct ShortShape
{
    static constexpr int kROWS = kTILES * kQUERIES;
    static constexpr int kBOX_ROWS = kROWS < kKEYS ? kROWS : kKEYS;
    using Queries = SharedTile<kROWS, kSIZE>;
    using Keys = SharedTile<kKEYS, kSIZE>; // and values
    using Rows = SharedTile<16, kSIZE>;    // of a warp
    // Offsets in shared memory. Contexts have memory of their own instead of that of the queries, so that no warp
    // waits until all warps have read theirs.
    static constexpr int kKEYS_BEGIN = Queries::kBYTES;
    static constexpr int kVALUES_BEGIN = kKEYS_BEGIN + Keys::kBYTES;
    static constexpr int kCONTEXTS_BEGIN = kVALUES_BEGIN + Keys::kBYTES;
    static constexpr int kBARRIERS = kCONTEXTS_BEGIN + Queries::kBYTES;
    static constexpr int kBYTES = kBARRIERS + 16;
};

// Computes the warpgroup's tiles one after the other and calls store(sums, factors, i) for each. While the softmax of
// one tile is computed, the tensor cores compute the scores of the next tile and the context of the previous one.
// waitForValues() returns when the values have arrived.
template <typename T, int kKEYS, int kSIZE, int kTILES, typename Wait, typename Store>
__device__ void attendTiles(uint32_t queries, uint32_t keys, uint32_t values, KeyMask<kKEYS> const& bits,
    float scale, Wait&& waitForValues, Store&& store)
{
    float scores[kTILES][kKEYS / 8][4];
    uint32_t weights[kTILES][kKEYS / 16][4];
    float sums[kTILES][kSIZE / 8][4];
    float factors[kTILES][2];
    auto const startTile = [&](int i)
    {
        fenceRegisters(scores[i]);
        multiplyKeys<T, kKEYS, kSIZE>(scores[i], queries + i * SharedTile<kQUERIES, kSIZE>::kBYTES, keys);
    };
    auto const finishTile = [&](int i)
    {
        wgmmaWait<0>();
        fenceRegisters(sums[i]);
        fenceRegisters(weights[i]);
    };
    startTile(0);
#pragma unroll
    for (int i = 0; i < kTILES; ++i)
    {
        if (i + 1 < kTILES)
        {
            startTile(i + 1);
        }
        wgmmaWait<(kTILES > 1 ? 1 : 0)>(); // in flight: scores of the next tile, sums of the previous one
        fenceRegisters(scores[i]);
        if (!bits.all())
        {
            maskScores(scores[i], bits);
        }
        float largest[2];
        findLargest(largest, scores[i]);
        PlainSoftmax softmax{largest, scale};
        softmax.weigh(scores[i]);
        if (i > 0)
        {
            finishTile(i - 1);
        }
        packWeights<T>(weights[i], scores[i]);
        if (i == 0)
        {
            waitForValues();
        }
        fenceRegisters(weights[i]);
        fenceRegisters(sums[i]);
        multiplyValues<T, kKEYS, kSIZE, false>(sums[i], weights[i], values);
        softmax.finish(factors[i]);
        if (i > 0)
        {
            store(sums[i - 1], factors[i - 1], i - 1);
        }
    }
    finishTile(kTILES - 1);
    store(sums[kTILES - 1], factors[kTILES - 1], kTILES - 1);
}

// Occupancy: kBLOCKS blocks per multiprocessor. kEIGHT_BITS: the context is int8 or E4M3, stored from registers.
template <typename T, int kSIZE, int kKEYS, int kTILES, int kBLOCKS, bool kEIGHT_BITS>
__global__ void __launch_bounds__(kWARPGROUP, kBLOCKS) qkvToContextShortKernel(AttentionProblem const p,
    __grid_constant__ CUtensorMap const qkvMap, __grid_constant__ CUtensorMap const contextMap)
{
    using Shape = ShortShape<kSIZE, kKEYS, kTILES>;
    extern __shared__ __align__(1024) unsigned char bytes[]; // the swizzle repeats every 1024 bytes
    uint32_t const queries = sharedAddress(bytes);
    uint32_t const keys = queries + Shape::kKEYS_BEGIN;
    uint32_t const values = queries + Shape::kVALUES_BEGIN;
    uint32_t const contexts = queries + Shape::kCONTEXTS_BEGIN;
    uint32_t const keysFull = queries + Shape::kBARRIERS; // and queries
    uint32_t const valuesFull = keysFull + 8;
    uint32_t const head = blockIdx.x % p.heads;
    QueryTile const tile = findEqualTile<Shape::kROWS>(p, blockIdx.x / p.heads);
    int32_t const firstRow = Shape::kROWS < kKEYS ? static_cast<int32_t>(tile.firstQuery - tile.firstKey) : 0;
    int32_t const column = static_cast<int32_t>(head) * kSIZE;
    if (threadIdx.x == 0)
    {
        prefetchMap(qkvMap);
        if constexpr (!kEIGHT_BITS)
        {
            prefetchMap(contextMap);
        }
        initBarrier(keysFull, 1);
        initBarrier(valuesFull, 1);
        fenceBarrierInit();
    }
    waitForPreviousKernel();
    if (threadIdx.x == 0)
    {
        constexpr int kBOX_ROWS = Shape::kBOX_ROWS;
        int32_t const hidden = p.heads * kSIZE;
        arriveAndExpect(keysFull, Shape::kVALUES_BEGIN);
        copyBoxes<Shape::kROWS, kBOX_ROWS, Shape::Keys::kROW_BYTES>(
            queries, qkvMap, column, firstRow, tile.sequence, keysFull);
        copyBoxes<kKEYS, kBOX_ROWS, Shape::Keys::kROW_BYTES>(
            keys, qkvMap, column + hidden, 0, tile.sequence, keysFull);
        fetchRows<kKEYS, kBOX_ROWS, Shape::Keys::kROW_BYTES>(
            values, qkvMap, column + 2 * hidden, 0, tile.sequence, valuesFull);
    }
    __syncwarp();
    KeyMask<kKEYS> bits{p, tile};
    bits.fetch(0);
    __syncthreads(); // all threads see initialised barriers; the copies are in flight
    bits.gather(0);

    int const warp = static_cast<int>(threadIdx.x / kWARP);
    bool const first = threadIdx.x % kWARP == 0;
    auto const storeTile = [&](float const(&sums)[kSIZE / 8][4], float const(&factors)[2], int i)
    {
        int32_t const row = i * kQUERIES + warp * 16; // within the block
        if constexpr (kEIGHT_BITS)
        {
            storeContextInEightBits<kSIZE>(p, tile.firstQuery + row, tile.queries - row, head, sums, factors);
            return;
        }
        uint32_t const rows = contexts + row * Shape::Rows::kROW_BYTES;
        stageContext<T, kSIZE>(rows, sums, factors);
        fenceAsyncProxy();
        __syncwarp();
        if (first)
        {
            storeBox(contextMap, column, firstRow + row, tile.sequence, rows);
        }
    };
    waitForBarrier(keysFull, 0);
    triggerDependentLaunch();
    attendTiles<T, kKEYS, kSIZE, kTILES>(
        queries, keys, values, bits, p.scale, [&] { waitForBarrier(valuesFull, 0); }, storeTile);
    if constexpr (!kEIGHT_BITS)
    {
        waitForStores();
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Kernel for packed sequences
// ---------------------------------------------------------------------------------------------------------------

constexpr int kHALF = 64; // rows of a copy: sequences of up to 64 tokens need half of the keys

// The tokens of a sequence.
struct Bounds
{
    int32_t begin;
    int32_t end;

    __device__ int32_t length() const
    {
        return end - begin;
    }
    __device__ bool operator!=(Bounds const& other) const
    {
        return begin != other.begin || end != other.end;
    }
};

// What a block reads of cuSeqlens, in shared memory.
struct Lengths
{
    Bounds guess;                 // of the block's sequence, before the wait for the previous kernel
    Bounds actual;                // the same after it
    int32_t end;                  // of the last sequence
    Bounds ofThreads[kWARPGROUP]; // of the first sequences, one for each thread to check
};

// Where a sequence lies according to cuSeqlens before the wait for the previous kernel, which may still write it: the
// copies may start there, and nothing may be stored before cuSeqlens has been read again. Of a single sequence the
// place is clear.
__device__ Bounds guessBounds(AttentionProblem const& p, int32_t sequence)
{
    if (p.sequences == 1)
    {
        return {0, p.length};
    }
    auto const* const bounds = static_cast<int32_t const volatile*>(p.cuSeqlens) + sequence;
    return {min(max(bounds[0], 0), p.length), min(max(bounds[1], 0), p.length)};
}

// Copies a word to shared memory without waiting for it.
__device__ void copyWordAsync(int32_t& target, int32_t const* source)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(sharedAddress(&target)), "l"(source)
        : "memory");
}
// Waits for the words that this thread has copied.
__device__ void waitForWords()
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}

__device__ bool isInvalidSequence(AttentionProblem const& p, int32_t sequence, Bounds const& bounds)
{
    return bounds.begin < 0 || bounds.end < bounds.begin || bounds.end > p.length
           || (sequence == 0 && bounds.begin != 0);
}

// A block of the kernel for packed sequences. kKEYS: the tokens of the longest sequence that it computes at once; a
// longer one is computed in chunks, one after the other.
template <typename T, int kSIZE, int kKEYS, bool kEIGHT_BITS>
class PackedBlock
{
public:
    using Shape = ShortShape<kSIZE, kKEYS, 1>;
    static constexpr int kPARTS = kKEYS / Shape::kROWS; // blocks of a sequence and head

    // `bytes` of shared memory: those of the shape, then Lengths.
    __device__ PackedBlock(AttentionProblem const& p, CUtensorMap const& qkvMap,
        CUtensorMap const& contextMap, unsigned char* bytes)
        : mProblem(p)
        , mQkvMap(qkvMap)
        , mContextMap(contextMap)
        , mLengths(*reinterpret_cast<Lengths*>(bytes + Shape::kBYTES))
        , mQueries(sharedAddress(bytes))
        , mHead(blockIdx.x % p.heads)
        , mNumber(blockIdx.x / p.heads)
    {
    }
    __device__ void run()
    {
        start();
        attend();
#pragma unroll(1)
        while (mState == State::kWRONG_PLACE)
        {
            mState = State::kNOT_CHECKED;
            mPlace = mLengths.actual;
            mParity ^= 1U;
            __syncthreads(); // all warps have read what the copies overwrite
            if (isFirst())
            {
                copy();
            }
            __syncwarp();
            attend();
        }
        fillRest();
        if constexpr (!kEIGHT_BITS)
        {
            waitForStores();
        }
    }

private:
    using Half = SharedTile<kHALF, kSIZE>;
    static constexpr int kWARPS = kWARPGROUP / kWARP;
    enum class State
    {
        kNOT_CHECKED,
        kRIGHT,
        kWRONG_PLACE,
        kINVALID // cuSeqlens
    };

    __device__ uint32_t keys() const
    {
        return mQueries + Shape::kKEYS_BEGIN;
    }
    __device__ uint32_t values() const
    {
        return mQueries + Shape::kVALUES_BEGIN;
    }
    __device__ uint32_t keysFull() const // and queries
    {
        return mQueries + Shape::kBARRIERS;
    }
    __device__ uint32_t valuesFull() const
    {
        return keysFull() + 8;
    }
    __device__ int32_t firstRow() const // of the sequence's
    {
        return static_cast<int32_t>(mNumber) % kPARTS * Shape::kROWS;
    }
    static __device__ bool isFirst()
    {
        return threadIdx.x == 0;
    }
    static __device__ bool isLast()
    {
        return threadIdx.x == kWARPGROUP - 1;
    }
    __device__ bool needsHalf() const
    {
        return kKEYS == kHALF || mPlace.length() <= kHALF;
    }

    // Starts the copies, from where the sequence is expected, and those of the lengths.
    __device__ void start()
    {
        AttentionProblem const& p = mProblem;
        auto const sequence = static_cast<int32_t>(mNumber) / kPARTS;
        if (isFirst())
        {
            mPlace = guessBounds(p, sequence);
            mLengths.guess = mPlace;
            prefetchMap(mQkvMap);
            if constexpr (!kEIGHT_BITS)
            {
                prefetchMap(mContextMap);
            }
            initBarrier(keysFull(), 1);
            initBarrier(valuesFull(), 1);
            fenceBarrierInit();
        }
        waitForPreviousKernel();
        if (isFirst())
        {
            copy();
        }
        __syncwarp();
        auto const thread = static_cast<int32_t>(threadIdx.x);
        if (thread < p.sequences)
        {
            copyWordAsync(mLengths.ofThreads[thread].begin, p.cuSeqlens + thread);
            copyWordAsync(mLengths.ofThreads[thread].end, p.cuSeqlens + thread + 1);
        }
        if (isLast())
        {
            copyWordAsync(mLengths.actual.begin, p.cuSeqlens + sequence);
            copyWordAsync(mLengths.actual.end, p.cuSeqlens + sequence + 1);
            copyWordAsync(mLengths.end, p.cuSeqlens + p.sequences);
        }
        __syncthreads(); // all threads see initialised barriers; the copies are in flight
        mPlace = mLengths.guess;
    }
    // Starts the copies of this block's queries and all keys and values, all of one sequence. One thread calls it.
    __device__ void copy() const
    {
        bool const half = needsHalf();
        int32_t const column = static_cast<int32_t>(mHead) * kSIZE;
        int32_t const hidden = mProblem.heads * kSIZE;
        constexpr int kBOX = Half::kBYTES;
        arriveAndExpect(keysFull(), half ? 2 * kBOX : Shape::kVALUES_BEGIN);
        copyBox(mQueries, mQkvMap, column, mPlace.begin + firstRow(), keysFull());
        copyKeys(keys(), column + hidden, keysFull(), half);
        arriveAndExpect(valuesFull(), half ? kBOX : 2 * kBOX);
        copyKeys(values(), column + 2 * hidden, valuesFull(), half);
    }
    __device__ void copyKeys(uint32_t target, int32_t column, uint32_t barrier, bool half) const // or values
    {
        copyBox(target, mQkvMap, column, mPlace.begin, barrier);
        if (!half)
        {
            copyBox(target + Half::kBYTES, mQkvMap, column, mPlace.begin + kHALF, barrier);
        }
    }
    // Whether the copies came from the right place. The lengths are looked at only now, when they have long arrived.
    // All threads call it.
    __device__ bool isRight()
    {
        if (mState == State::kNOT_CHECKED)
        {
            AttentionProblem const& p = mProblem;
            auto const thread = static_cast<int32_t>(threadIdx.x);
            waitForWords();
            bool invalid = thread < p.sequences && isInvalidSequence(p, thread, mLengths.ofThreads[thread]);
#pragma unroll(1)
            for (int32_t i = thread + kWARPGROUP; i < p.sequences; i += kWARPGROUP)
            {
                invalid |= isInvalidSequence(p, i, {p.cuSeqlens[i], p.cuSeqlens[i + 1]});
            }
            bool const elsewhere = isLast() && mPlace != mLengths.actual;
            mState = State::kRIGHT;
            if (__syncthreads_or(invalid || elsewhere ? 1 : 0) != 0)
            {
                mState = __syncthreads_or(invalid ? 1 : 0) != 0 ? State::kINVALID : State::kWRONG_PLACE;
            }
        }
        return mState == State::kRIGHT;
    }
    // Computes the context, and stores it if the copies came from the right place.
    __device__ void attend()
    {
        int32_t const length = mPlace.length();
        waitForBarrier(keysFull(), mParity); // also if nothing is left to do: no copy may outlive the block
        triggerDependentLaunch();
        if (length > firstRow() && length <= kKEYS)
        {
            if (kKEYS > kHALF && length <= kHALF)
            {
                attendAtOnce<kHALF>();
            }
            else
            {
                attendAtOnce<kKEYS>();
            }
            return;
        }
        waitForBarrier(valuesFull(), mParity);
        if (isRight() && length > kKEYS)
        {
            mParity ^= 1U;
            attendInChunks();
        }
    }
    // Copies rows of the head's queries (which = 0), keys or values.
    __device__ void copyRows(uint32_t target, int which, int32_t row, int rows, uint32_t barrier) const
    {
        int32_t const column = static_cast<int32_t>(which * mProblem.heads + mHead) * kSIZE;
        for (int first = 0; first < rows; first += kHALF)
        {
            copyBox(target + first * Half::kROW_BYTES, mQkvMap, column, row + first, barrier);
        }
    }
    // Fills this block's share of the context of the tokens after the last sequence with zeros; or of all tokens with
    // NaN, or -128, if cuSeqlens is invalid.
    __device__ void fillRest() const
    {
        using Bits = std::conditional_t<kEIGHT_BITS, uint8_t, uint16_t>;
        AttentionProblem const& p = mProblem;
        bool const invalid = mState == State::kINVALID;
        constexpr unsigned int kNAN_OF_16_BITS = 0x7FFF;
        constexpr unsigned int kNAN_OF_E4M3 = 0x7F;
        unsigned int const ofEightBits = p.outputType == ElementType::kINT8 ? 0x80 : kNAN_OF_E4M3;
        auto const bits = static_cast<Bits>(invalid ? (kEIGHT_BITS ? ofEightBits : kNAN_OF_16_BITS) : 0);
        int32_t const first = invalid ? 0 : mLengths.end;
        if (first >= p.length)
        {
            return;
        }
        int32_t const row
            = static_cast<int32_t>(mNumber) * kWARPS + static_cast<int32_t>(threadIdx.x / kWARP);
        auto const step = static_cast<int32_t>(gridDim.x / p.heads) * kWARPS;
#pragma unroll(1)
        for (int64_t token = int64_t{first} + row; token < p.length; token += step)
        {
            for (int i = static_cast<int>(threadIdx.x % kWARP); i < kSIZE; i += kWARP)
            {
                contextRow<Bits, kSIZE>(p, token, mHead)[i] = bits;
            }
        }
    }
    // TMA has loaded other tokens to the rows beyond the end of the sequence (clearRows).
    template <int kLOADED>
    __device__ void clearValues(int32_t left) const
    {
        if (left < kLOADED)
        {
            clearRows<kLOADED, kSIZE, kWARPGROUP>(values(), left);
            __syncthreads();
        }
    }
    // Stores the warp's 16 rows of a tile that begins with row `first` of the sequence; through shared memory if the
    // context has 16 bits.
    __device__ void store(
        int32_t first, uint32_t memory, float const (&sums)[kSIZE / 8][4], float const (&factors)[2]) const
    {
        int32_t const row = first + static_cast<int32_t>(threadIdx.x / kWARP) * 16;
        int64_t const token = mPlace.begin + row;
        int32_t const rows = mPlace.length() - row;
        if constexpr (kEIGHT_BITS)
        {
            storeContextInEightBits<kSIZE>(mProblem, token, rows, mHead, sums, factors);
        }
        else
        {
            storeRows<T, kSIZE>(mProblem, mContextMap, memory, token, rows, mHead, sums, factors);
        }
    }
    __device__ uint32_t contextRows() const // of this warp
    {
        uint32_t const row = threadIdx.x / kWARP * 16;
        return mQueries + Shape::kCONTEXTS_BEGIN + row * Shape::Rows::kROW_BYTES;
    }
    // A sequence of at most kCHUNK tokens.
    template <int kCHUNK>
    __device__ void attendAtOnce()
    {
        int32_t const length = mPlace.length();
        KeyMask<kCHUNK> bits{mProblem, QueryTile{0, 0, 0, length, 0, false}};
        bits.gather(0);
        auto const waitForValues = [&]
        {
            waitForBarrier(valuesFull(), mParity);
            clearValues<kCHUNK>(length);
        };
        attendTiles<T, kCHUNK, kSIZE, 1>(mQueries, keys(), values(), bits, mProblem.scale, waitForValues,
            [&](float const(&sums)[kSIZE / 8][4], float const(&factors)[2], int /*tile*/)
            {
                if (isRight())
                {
                    store(firstRow(), contextRows(), sums, factors);
                }
            });
    }
    // A longer sequence: tiles of 64 queries and chunks of 64 keys, which are loaded when those before have been read.
    __device__ void attendInChunks()
    {
        int32_t const length = mPlace.length();
        KeyMask<kHALF> bits{mProblem, QueryTile{0, 0, 0, length, 0, false}};
        for (int32_t row = static_cast<int32_t>(mNumber % kPARTS) * kQUERIES; row < length;
            row += kPARTS * kQUERIES)
        {
            float scores[kHALF / 8][4];
            uint32_t weights[kHALF / 16][4];
            float sums[kSIZE / 8][4]{};
            OnlineSoftmax softmax{mProblem.scale};
            for (int32_t key = 0; key < length; key += kHALF)
            {
                if (isFirst())
                {
                    arriveAndExpect(keysFull(), 3 * Half::kBYTES);
                    copyRows(mQueries, 0, mPlace.begin + row, kHALF, keysFull());
                    copyRows(keys(), 1, mPlace.begin + key, kHALF, keysFull());
                    copyRows(values(), 2, mPlace.begin + key, kHALF, keysFull());
                }
                __syncwarp();
                waitForBarrier(keysFull(), mParity);
                mParity ^= 1U;
                clearValues<kHALF>(length - key);
                fenceRegisters(scores);
                multiplyKeys<T, kHALF, kSIZE>(scores, mQueries, keys());
                wgmmaWait<0>();
                fenceRegisters(scores);
                bits.gather(key / kHALF);
                maskScores(scores, bits);
                if (softmax.weigh(scores))
                {
                    softmax.rescale(sums);
                }
                packWeights<T>(weights, scores);
                fenceRegisters(weights);
                fenceRegisters(sums);
                multiplyValues<T, kHALF, kSIZE>(sums, weights, values());
                wgmmaWait<0>();
                fenceRegisters(sums);
                __syncthreads(); // all warps have read what the next copies overwrite
            }
            float factors[2];
            softmax.finish(factors);
            if (threadIdx.x % kWARP == 0)
            {
                waitForStores(); // of the previous tile
            }
            __syncwarp();
            store(row, contextRows(), sums, factors);
        }
    }

    AttentionProblem const& mProblem;
    CUtensorMap const& mQkvMap;
    CUtensorMap const& mContextMap;
    Lengths& mLengths;
    uint32_t mQueries;
    uint32_t mHead;
    uint32_t mNumber; // of the block among those of its head
    Bounds mPlace{};  // where the copies come from
    State mState{State::kNOT_CHECKED};
    uint32_t mParity{}; // of the barriers' phase in which the copies arrive
};

template <typename T, int kSIZE, int kKEYS, int kBLOCKS, bool kEIGHT_BITS>
__global__ void __launch_bounds__(kWARPGROUP, kBLOCKS) qkvToContextShortPackedKernel(AttentionProblem const p,
    __grid_constant__ CUtensorMap const qkvMap, __grid_constant__ CUtensorMap const contextMap)
{
    extern __shared__ __align__(1024) unsigned char bytes[]; // the swizzle repeats every 1024 bytes
    PackedBlock<T, kSIZE, kKEYS, kEIGHT_BITS>{p, qkvMap, contextMap, bytes}.run();
}

// ---------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------

// The shared memory to request, at least `least`, so that the occupancy is no higher than with an even distribution
// of blocks over multiprocessors. While the previous kernel still runs, few multiprocessors have room, and blocks
// that are launched early would otherwise crowd on those.
size_t sharedMemoryToSpread(int64_t blocks, int multiprocessors, size_t least)
{
    constexpr size_t kOF_MULTIPROCESSOR = 228 * 1024;
    auto const atATime = static_cast<size_t>(divideUp(blocks, multiprocessors));
    // atATime + 1 blocks do not fit, since each block needs 1 KB in addition to what it requests.
    return std::max(least, kOF_MULTIPROCESSOR / (atATime + 1));
}

// Launches one of the two kernels. qkvMap and contextMap are the maps of qkv and, unless it has 8 bits, of the context.
template <typename Shape, typename Kernel>
cudaError_t launchOn(QkvToContextArguments const& a, int multiprocessors, cudaStream_t stream, Kernel* kernel,
    int64_t blocks, size_t bytes, CUtensorMap const& qkvMap, CUtensorMap const& contextMap)
{
    LaunchSize const size{
        static_cast<unsigned int>(blocks), kWARPGROUP, sharedMemoryToSpread(blocks, multiprocessors, bytes)};
    return launchDependent(kernel, size, stream, makeProblem<Shape::kROWS>(a), qkvMap, contextMap);
}

template <typename T, int kSIZE, int kKEYS, int kTILES, int kBLOCKS>
cudaError_t launchEqual(QkvToContextArguments const& a, int multiprocessors, cudaStream_t stream)
{
    using Shape = ShortShape<kSIZE, kKEYS, kTILES>;
    auto const width = static_cast<cuuint64_t>(a.heads) * kSIZE;
    auto const length = static_cast<cuuint64_t>(a.length);
    auto const sequences = static_cast<cuuint64_t>(a.sequences);
    CUtensorMap qkvMap{};
    CUtensorMap contextMap{};
    cudaError_t status = describeTensor<T>(
        qkvMap, a.qkv, {3 * width, length, sequences}, {kSIZE, Shape::kBOX_ROWS, 1}); // (B, S, 3H)
    bool const eightBits = a.outputType != a.type;
    if (status == cudaSuccess && !eightBits)
    {
        // (B, S, H); TMA does not write rows beyond the end of a sequence
        status = describeTensor<T>(contextMap, a.context, {width, length, sequences}, {kSIZE, 16, 1});
    }
    if (status != cudaSuccess)
    {
        return status;
    }
    auto* const kernel = eightBits ? qkvToContextShortKernel<T, kSIZE, kKEYS, kTILES, kBLOCKS, true>
                                   : qkvToContextShortKernel<T, kSIZE, kKEYS, kTILES, kBLOCKS, false>;
    return launchOn<Shape>(
        a, multiprocessors, stream, kernel, countBlocks<Shape::kROWS>(a), Shape::kBYTES, qkvMap, contextMap);
}

template <typename T, int kSIZE, int kKEYS, int kBLOCKS>
cudaError_t launchPacked(QkvToContextArguments const& a, int multiprocessors, cudaStream_t stream)
{
    using Block = PackedBlock<T, kSIZE, kKEYS, false>;
    auto const width = static_cast<cuuint64_t>(a.heads) * kSIZE;
    auto const tokens = static_cast<cuuint64_t>(a.length);
    CUtensorMap qkvMap{};
    CUtensorMap contextMap{};
    cudaError_t status = describeTensor<T>(qkvMap, a.qkv, {3 * width, tokens}, {kSIZE, kHALF}); // (T, 3H)
    bool const eightBits = a.outputType != a.type;
    if (status == cudaSuccess && !eightBits)
    {
        status = describeTensor<T>(contextMap, a.context, {width, tokens}, {kSIZE, 16}); // (T, H)
    }
    if (status != cudaSuccess)
    {
        return status;
    }
    auto* const kernel = eightBits ? qkvToContextShortPackedKernel<T, kSIZE, kKEYS, kBLOCKS, true>
                                   : qkvToContextShortPackedKernel<T, kSIZE, kKEYS, kBLOCKS, false>;
    return launchOn<typename Block::Shape>(a, multiprocessors, stream, kernel,
        int64_t{a.sequences} * a.heads * Block::kPARTS, Block::Shape::kBYTES + sizeof(Lengths), qkvMap,
        contextMap);
}

// Chooses the number of queries and keys of a block (docs/kernels/attention.md has the measurements).
template <typename T, int kSIZE>
cudaError_t launchSuitable(QkvToContextArguments const& a, int multiprocessors, cudaStream_t stream)
{
    if (a.cuSeqlens != nullptr)
    {
        return longestSequence(a) <= 64 ? launchPacked<T, kSIZE, 64, 5>(a, multiprocessors, stream)
                                        : launchPacked<T, kSIZE, 128, 4>(a, multiprocessors, stream);
    }
    if (a.length <= 64)
    {
        return launchEqual<T, kSIZE, 64, 1, 6>(a, multiprocessors, stream);
    }
    if (int64_t{a.sequences} * a.heads <= 2 * multiprocessors) // all blocks are resident at the same time
    {
        return launchEqual<T, kSIZE, 128, 1, 4>(a, multiprocessors, stream);
    }
    return launchEqual<T, kSIZE, 128, 2, 3>(a, multiprocessors, stream);
}

} // namespace

cudaError_t launchQkvToContextShort(QkvToContextArguments const& arguments, cudaStream_t stream)
{
    int multiprocessors = 0;
    cudaError_t const status = countMultiprocessors(multiprocessors);
    if (status != cudaSuccess)
    {
        return status;
    }
    if (!suitsShortKernel(arguments))
    {
        return cudaErrorNotSupported;
    }
    return dispatchTensor(arguments,
        [&](auto element, auto size)
        {
            using T = decltype(element);
            if constexpr (sizeof(T) == 2 && size() <= 64)
            {
                return launchSuitable<T, size()>(arguments, multiprocessors, stream);
            }
            else
            {
                return cudaErrorNotSupported;
            }
        });
}

} // namespace bert
