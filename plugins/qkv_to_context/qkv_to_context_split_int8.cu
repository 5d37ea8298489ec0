// Attention on int8 with Hopper's tensor cores for few sequences of at most 512 tokens, where there is a
// multiprocessor for every 64 queries. What changed against short_int8:
//
//   - The keys are split: a block computes 64 queries, and each of its warpgroups takes 128 of the keys, up to 512 in
//     total. All warpgroups work at the same time; no chunk waits for the previous one.
//   - Warpgroups exchange the maxima of their scores through shared memory, so that all weights are relative to the
//     same maximum, and at the end add up their sums.
//   - Each warpgroup widens its own values, between its exponentials.
//
// Compiled for sm_90a only (CMakeLists.txt).
#include "qkv_to_context/qkv_to_context_int8.cuh"

namespace bert
{

// ---------------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------------

namespace
{

constexpr int kKEYS = 128; // of a warpgroup

template <int kSIZE, int kGROUPS>
struct SplitShape
{
    static constexpr int kTHREADS = kGROUPS * kWARPGROUP;
    static constexpr int kCHUNK = kKEYS * kSIZE; // bytes
    // Offsets in shared memory, and the size of each warpgroup's partial context.
    static constexpr int kKEYS_BEGIN = kQUERIES * kSIZE;
    static constexpr int kNARROW_VALUES = kKEYS_BEGIN + kGROUPS * kCHUNK;
    static constexpr int kVALUES = kNARROW_VALUES + kGROUPS * kCHUNK;
    static constexpr int kSTRIDE = kSIZE + 8; // of fp32 rows: 8 rows are in different banks
    static constexpr int kCONTEXT_BYTES = kQUERIES * kSTRIDE * 4;
    static constexpr int kCONTEXTS = kVALUES + kGROUPS * 2 * kCHUNK;
    static constexpr int kMAXIMA = kCONTEXTS + kGROUPS * kCONTEXT_BYTES;
    static constexpr int kSUMS = kMAXIMA + kGROUPS * kQUERIES * 4;
    static constexpr int kBARRIERS = kSUMS + kGROUPS * kQUERIES * 4;
    static constexpr int kBYTES = kBARRIERS + 8 + kGROUPS * 16;
};

// Addresses in shared memory, by the number of a warpgroup and of a query.
template <typename Shape>
struct SplitMemory
{
    uint32_t begin;

    __device__ uint32_t queries() const
    {
        return begin;
    }
    __device__ uint32_t keys(uint32_t group) const
    {
        return begin + Shape::kKEYS_BEGIN + group * Shape::kCHUNK;
    }
    __device__ uint32_t narrowValues(uint32_t group) const
    {
        return begin + Shape::kNARROW_VALUES + group * Shape::kCHUNK;
    }
    __device__ uint32_t values(uint32_t group) const
    {
        return begin + Shape::kVALUES + group * 2 * Shape::kCHUNK;
    }
    __device__ uint32_t context(uint32_t group, uint32_t row, uint32_t column) const
    {
        return begin + Shape::kCONTEXTS + group * Shape::kCONTEXT_BYTES + (row * Shape::kSTRIDE + column) * 4;
    }
    __device__ uint32_t maximum(uint32_t group, uint32_t row) const
    {
        return begin + Shape::kMAXIMA + (group * kQUERIES + row) * 4;
    }
    __device__ uint32_t sum(uint32_t group, uint32_t row) const
    {
        return begin + Shape::kSUMS + (group * kQUERIES + row) * 4;
    }
    __device__ uint32_t queriesFull() const
    {
        return begin + Shape::kBARRIERS;
    }
    __device__ uint32_t keysFull(uint32_t group) const
    {
        return begin + Shape::kBARRIERS + 8 + group * 16;
    }
    __device__ uint32_t valuesFull(uint32_t group) const
    {
        return keysFull(group) + 8;
    }
};

inline __device__ float loadFloat(uint32_t source)
{
    return __uint_as_float(loadWord(source));
}
inline __device__ float4 loadFloats(uint32_t source)
{
    uint4 const bits = loadPiece(source);
    return make_float4(
        __uint_as_float(bits.x), __uint_as_float(bits.y), __uint_as_float(bits.z), __uint_as_float(bits.w));
}
inline __device__ void storeFloats(uint32_t target, float a, float b)
{
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(target), "f"(a), "f"(b) : "memory");
}
// A barrier of the threads of one warpgroup.
inline __device__ void syncWarpgroup(uint32_t group)
{
    asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"(kWARPGROUP) : "memory");
}

// The row of this lane's first two values within a tile; the other two are 8 rows further.
inline __device__ uint32_t rowOfLane()
{
    return threadIdx.x / kWARP % 4 * 16 + threadIdx.x % kWARP / 4;
}

// Replaces the maxima of this lane's rows by the largest of all warpgroups.
template <typename Shape, int kGROUPS>
__device__ void exchangeMaxima(float (&maximum)[2], SplitMemory<Shape> const& memory, uint32_t group)
{
    uint32_t const row = rowOfLane();
    if (threadIdx.x % 4 == 0)
    {
        storeWord(memory.maximum(group, row), __float_as_uint(maximum[0]));
        storeWord(memory.maximum(group, row + 8), __float_as_uint(maximum[1]));
    }
    __syncthreads();
#pragma unroll
    for (int other = 0; other < kGROUPS; ++other)
    {
        maximum[0] = fmaxf(maximum[0], loadFloat(memory.maximum(other, row)));
        maximum[1] = fmaxf(maximum[1], loadFloat(memory.maximum(other, row + 8)));
    }
}

// Writes a warpgroup's partial context to shared memory.
template <typename Shape, int kSIZE>
__device__ void storePartialContext(
    SplitMemory<Shape> const& memory, uint32_t group, float const (&sums)[kSIZE / 8][4])
{
    uint32_t const target = memory.context(group, rowOfLane(), threadIdx.x % 4 * 2);
#pragma unroll
    for (int n = 0; n < kSIZE / 8; ++n)
    {
        storeFloats(target + n * 32, sums[n][0], sums[n][1]);
        storeFloats(target + n * 32 + 8 * Shape::kSTRIDE * 4, sums[n][2], sums[n][3]);
    }
}

// Stores 16 neighbouring elements of a context, from fp32.
template <typename Out>
__device__ void storeElements(Out* target, float const (&values)[16], float factor)
{
    if constexpr (std::is_same_v<Out, int8_t>)
    {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
        {
            words[i]
                = packBytes(roundToInteger(values[4 * i], factor), roundToInteger(values[4 * i + 1], factor),
                    roundToInteger(values[4 * i + 2], factor), roundToInteger(values[4 * i + 3], factor));
        }
        *reinterpret_cast<uint4*>(target) = make_uint4(words[0], words[1], words[2], words[3]);
    }
    else
    {
        Vector<Out, 16> vector;
#pragma unroll
        for (int i = 0; i < 16; ++i)
        {
            vector.values[i] = fromFloat<Out>(values[i] * factor);
        }
        *reinterpret_cast<Vector<Out, 16>*>(target) = vector;
    }
}

// Adds up the partial contexts of the warpgroups and stores the result, 16 columns of a row at a time.
template <typename Shape, int kSIZE, int kGROUPS>
__device__ void storeMerged(
    AttentionProblem const& p, QueryTile const& tile, uint32_t head, SplitMemory<Shape> const& memory)
{
    constexpr int kPIECES = kSIZE / 16; // of a row
    for (int i = static_cast<int>(threadIdx.x); i < tile.queries * kPIECES; i += Shape::kTHREADS)
    {
        int const row = i / kPIECES;
        int const column = i % kPIECES * 16;
        float sum = 0.0F;
        float values[16]{};
#pragma unroll
        for (int group = 0; group < kGROUPS; ++group)
        {
            sum += loadFloat(memory.sum(group, row));
#pragma unroll
            for (int j = 0; j < 16; j += 4)
            {
                float4 const four = loadFloats(memory.context(group, row, column + j));
                values[j] += four.x;
                values[j + 1] += four.y;
                values[j + 2] += four.z;
                values[j + 3] += four.w;
            }
        }
        float const factor = (sum == 0.0F ? 0.0F : __fdividef(1.0F, sum)) * p.outputFactor;
        dispatchOutput(p.outputType,
            [&](auto element)
            {
                using Out = decltype(element);
                storeElements(
                    contextRow<Out, kSIZE>(p, tile.firstQuery + row, head) + column, values, factor);
            });
    }
}

template <int kSIZE, int kGROUPS>
__global__ void __launch_bounds__(kGROUPS* kWARPGROUP, 1)
    qkvToContextSplitInt8Kernel(AttentionProblem const p, __grid_constant__ CUtensorMap const map)
{
    using Shape = SplitShape<kSIZE, kGROUPS>;
    extern __shared__ __align__(1024) unsigned char bytes[]; // the swizzle repeats every 1024 bytes
    SplitMemory<Shape> const memory{sharedAddress(bytes)};
    uint32_t const group = threadIdx.x / kWARPGROUP;
    if (threadIdx.x == 0)
    {
        prefetchMap(map);
        initBarrier(memory.queriesFull(), 1);
        for (int i = 0; i < kGROUPS; ++i)
        {
            initBarrier(memory.keysFull(i), 1);
            initBarrier(memory.valuesFull(i), 1);
        }
        fenceBarrierInit();
    }
    uint32_t const head = blockIdx.x % p.heads;
    QueryTile const tile = findEqualTile<kQUERIES>(p, blockIdx.x / p.heads);
    __syncthreads();
    waitForPreviousKernel();
    if (threadIdx.x % kWARPGROUP == 0)
    {
        Coordinates const coordinates = coordinatesOf<false>(tile);
        int32_t const column = static_cast<int32_t>(head) * kSIZE;
        int32_t const hidden = p.heads * kSIZE;
        int32_t const firstKey = static_cast<int32_t>(group) * kKEYS;
        if (group == 0)
        {
            fetchRows<kQUERIES, kBOX_ROWS, kSIZE>(memory.queries(), map, column, coordinates.firstQuery,
                coordinates.matrix, memory.queriesFull());
        }
        fetchRows<kKEYS, kBOX_ROWS, kSIZE>(
            memory.keys(group), map, column + hidden, firstKey, coordinates.matrix, memory.keysFull(group));
        fetchRows<kKEYS, kBOX_ROWS, kSIZE>(memory.narrowValues(group), map, column + 2 * hidden, firstKey,
            coordinates.matrix, memory.valuesFull(group));
    }
    __syncwarp();
    KeyMask<kKEYS> bits{p, tile};
    bits.fetch(static_cast<int32_t>(group));
    bits.gather(static_cast<int32_t>(group));

    uint32_t products[kKEYS / 8][4];
    float scores[kKEYS / 8][4];
    waitForBarrier(memory.queriesFull(), 0);
    waitForBarrier(memory.keysFull(group), 0);
    triggerDependentLaunch();
    multiplyKeysBiased<kKEYS, kSIZE>(products, memory.queries(), memory.keys(group));
    wgmmaWait<0>();
    fenceRegisters(products);
    readBiased(scores, products, bits);
    float maximum[2];
    findLargestOfRows(maximum, scores);
    exchangeMaxima<Shape, kGROUPS>(maximum, memory, group);
    waitForBarrier(memory.valuesFull(group), 0);
    float ofLane[2]{};
    exponentiateBiased(ofLane, scores, maximum, p.scale,
        Widener<kKEYS, kSIZE>{memory.values(group), memory.narrowValues(group)});
    fenceAsyncProxy();
    syncWarpgroup(group); // a warpgroup reads only its own values

    uint32_t weights[kKEYS / 16][4];
    float sums[kSIZE / 8][4];
    packWeights<__half>(weights, scores);
    fenceRegisters(weights);
    fenceRegisters(sums);
    multiplyValues<__half, kKEYS, kSIZE, false>(sums, weights, memory.values(group));
    float const ofRow[2] = {warpSum<4>(ofLane[0]), warpSum<4>(ofLane[1])};
    if (threadIdx.x % 4 == 0)
    {
        storeWord(memory.sum(group, rowOfLane()), __float_as_uint(ofRow[0]));
        storeWord(memory.sum(group, rowOfLane() + 8), __float_as_uint(ofRow[1]));
    }
    wgmmaWait<0>();
    fenceRegisters(sums);
    storePartialContext<Shape, kSIZE>(memory, group, sums);
    __syncthreads();
    storeMerged<Shape, kSIZE, kGROUPS>(p, tile, head, memory);
}

// ---------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------

template <int kSIZE, int kGROUPS>
cudaError_t launchShape(QkvToContextArguments const& a, cudaStream_t stream)
{
    using Shape = SplitShape<kSIZE, kGROUPS>;
    CUtensorMap qkvMap{};
    CUtensorMap contextMap{}; // unused: threads store contexts from registers
    cudaError_t const status = describeInt8<kSIZE>(qkvMap, contextMap, a);
    if (status != cudaSuccess)
    {
        return status;
    }
    return launchDependent(qkvToContextSplitInt8Kernel<kSIZE, kGROUPS>,
        LaunchSize{static_cast<unsigned int>(countBlocks<kQUERIES>(a)), Shape::kTHREADS, Shape::kBYTES},
        stream, makeProblem<kQUERIES>(a), qkvMap);
}

template <int kSIZE>
cudaError_t launchSuitable(QkvToContextArguments const& a, cudaStream_t stream)
{
    switch ((a.length + kKEYS - 1) / kKEYS)
    {
    case 1:
    case 2:
        return launchShape<kSIZE, 2>(a, stream);
    case 3:
        return launchShape<kSIZE, 3>(a, stream);
    default:
        return launchShape<kSIZE, 4>(a, stream);
    }
}

} // namespace

cudaError_t launchQkvToContextSplitInt8(QkvToContextArguments const& arguments, cudaStream_t stream)
{
    if (!suitsSplitInt8Kernel(arguments))
    {
        return cudaErrorNotSupported;
    }
    return arguments.headSize == 32 ? launchSuitable<32>(arguments, stream)
                                    : launchSuitable<64>(arguments, stream);
}

} // namespace bert
