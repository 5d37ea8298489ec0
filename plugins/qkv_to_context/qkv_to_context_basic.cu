// Attention with ordinary fp32 arithmetic: for fp32, whose accuracy the tensor cores do not have, and for bf16 on
// GPUs whose tensor cores do not support it. Read this kernel first: it shows online softmax without tensor cores. A
// block takes a tile of queries and iterates over the keys in chunks. Each thread computes 4 x 4 scores of a chunk,
// and 4 rows of the weighted sums of values; threads exchange weights through shared memory.
#include "qkv_to_context/qkv_to_context_common.cuh"

#include <cfloat>

namespace bert
{

// ---------------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------------

namespace
{

// kTILE queries and chunks of kTILE keys, as large as Turing's 64 KB of shared memory allow.
template <int kSIZE>
struct BasicShape
{
    static constexpr int kTILE = kSIZE == 32 ? 64 : 32;
    static constexpr int kACROSS = kTILE / 4; // threads that share 4 queries, in one warp
    static constexpr int kTHREADS = kACROSS * kACROSS;
    static constexpr int kPITCH = kTILE + 4; // of rows in shared memory; a multiple of 16 bytes
};

template <typename In, int kSIZE>
struct BasicMemory
{
    using Shape = BasicShape<kSIZE>;
    float queries[kSIZE][Shape::kPITCH];        // transposed: (D, queries)
    float keys[kSIZE][Shape::kPITCH];           // (D, keys)
    float values[Shape::kTILE][kSIZE];          // (keys, D)
    float weights[Shape::kTILE][Shape::kPITCH]; // transposed: (keys, queries)
};

// Loads rows of D elements and transposes them; rows beyond `count` become zeros.
template <typename In, int kSIZE>
__device__ void loadTransposed(
    float (&target)[kSIZE][BasicShape<kSIZE>::kPITCH], In const* rows, int64_t stride, int32_t count)
{
    using Shape = BasicShape<kSIZE>;
    for (int i = static_cast<int>(threadIdx.x); i < Shape::kTILE * kSIZE; i += Shape::kTHREADS)
    {
        int const row = i / kSIZE;
        int const column = i % kSIZE;
        target[column][row] = row < count ? toFloat(rows[row * stride + column]) : 0.0F;
    }
}

inline __device__ float4 load4(float const* address)
{
    return *reinterpret_cast<float4 const*>(address);
}

// sums[i][j] += a[i] * b[j]
inline __device__ void multiplyAdd(float (&sums)[4][4], float4 const& a, float4 const& b)
{
    float const as[4] = {a.x, a.y, a.z, a.w};
    float const bs[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
    {
#pragma unroll
        for (int j = 0; j < 4; ++j)
        {
            sums[i][j] = fmaf(as[i], bs[j], sums[i][j]);
        }
    }
}

template <typename In, int kSIZE>
__global__ void __launch_bounds__(BasicShape<kSIZE>::kTHREADS)
    qkvToContextBasicKernel(AttentionProblem const p)
{
    using Shape = BasicShape<kSIZE>;
    constexpr int kTILE = Shape::kTILE;
    constexpr int kACROSS = Shape::kACROSS;
    constexpr int kCOLUMNS = kSIZE / kACROSS; // of a thread's sums: 2, 8 or 16
    extern __shared__ __align__(16) unsigned char bytes[];
    auto& memory = *reinterpret_cast<BasicMemory<In, kSIZE>*>(bytes);
    uint32_t const head = blockIdx.x % p.heads;
    int const x = static_cast<int>(threadIdx.x) % kACROSS;
    int const y = static_cast<int>(threadIdx.x) / kACROSS;

    waitForPreviousKernel();
    QueryTile const tile = findTile<kTILE>(p, blockIdx.x / p.heads);
    if (tile.invalid)
    {
        poison<kSIZE>(p, tile, head, Shape::kTHREADS);
        return;
    }
    if (tile.queries <= 0)
    {
        return;
    }

    int64_t const hidden = int64_t{p.heads} * kSIZE;
    int64_t const stride = 3 * hidden; // elements of a token
    In const* const ofHead = static_cast<In const*>(p.qkv) + head * kSIZE;
    In const* const keys = ofHead + tile.firstKey * stride + hidden;
    loadTransposed<In, kSIZE>(memory.queries, ofHead + tile.firstQuery * stride, stride, tile.queries);

    float maximum[4] = {-FLT_MAX, -FLT_MAX, -FLT_MAX, -FLT_MAX};
    float sum[4]{};
    float sums[4][kCOLUMNS]{};
    KeyMask<kTILE> bits{p, tile};
    for (int32_t firstKey = 0; firstKey < tile.keys; firstKey += kTILE)
    {
        bits.fetch(firstKey / kTILE);
        bits.gather(firstKey / kTILE);
        __syncthreads(); // no thread reads the previous chunk any more
        int32_t const count = tile.keys - firstKey;
        loadTransposed<In, kSIZE>(memory.keys, keys + firstKey * stride, stride, count);
        for (int i = static_cast<int>(threadIdx.x); i < kTILE * kSIZE; i += Shape::kTHREADS)
        {
            int64_t const source = (firstKey + i / kSIZE) * stride + hidden + i % kSIZE;
            memory.values[i / kSIZE][i % kSIZE] = i / kSIZE < count ? toFloat(keys[source]) : 0.0F;
        }
        __syncthreads();

        // In parts of 16 elements: a sum of partial sums rounds less than one long chain, which matters for large
        // scores.
        float scores[4][4]{}; // queries 4y.., keys 4x..
        constexpr int kPART = 16;
        for (int first = 0; first < kSIZE; first += kPART)
        {
            float part[4][4]{};
#pragma unroll
            for (int d = first; d < first + kPART; ++d)
            {
                multiplyAdd(part, load4(&memory.queries[d][4 * y]), load4(&memory.keys[d][4 * x]));
            }
#pragma unroll
            for (int i = 0; i < 4; ++i)
            {
#pragma unroll
                for (int j = 0; j < 4; ++j)
                {
                    scores[i][j] += part[i][j];
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
        {
            float largest = maximum[i];
#pragma unroll
            for (int j = 0; j < 4; ++j)
            {
                scores[i][j] = bits[4 * x + j] ? scores[i][j] : kNEGATIVE_INFINITY;
                largest = fmaxf(largest, scores[i][j]);
            }
#pragma unroll
            for (int distance = kACROSS / 2; distance > 0; distance /= 2)
            {
                largest = fmaxf(largest, shuffleXor(largest, distance));
            }
            float const factor = exp2f((maximum[i] - largest) * p.scale);
            maximum[i] = largest;
            sum[i] *= factor;
#pragma unroll
            for (int j = 0; j < 4; ++j)
            {
                scores[i][j] = exp2f((scores[i][j] - largest) * p.scale);
                sum[i] += scores[i][j];
                memory.weights[4 * x + j][4 * y + i] = scores[i][j];
            }
#pragma unroll
            for (int j = 0; j < kCOLUMNS; ++j)
            {
                sums[i][j] *= factor;
            }
        }
        __syncthreads();
#pragma unroll 4
        for (int key = 0; key < kTILE; ++key)
        {
            float4 const weights = load4(&memory.weights[key][4 * y]);
            float const ofRows[4] = {weights.x, weights.y, weights.z, weights.w};
#pragma unroll
            for (int j = 0; j < kCOLUMNS; ++j)
            {
                float const value = memory.values[key][x + j * kACROSS];
#pragma unroll
                for (int i = 0; i < 4; ++i)
                {
                    sums[i][j] = fmaf(ofRows[i], value, sums[i][j]);
                }
            }
        }
    }

#pragma unroll
    for (int i = 0; i < 4; ++i)
    {
        float const total = warpSum<kACROSS>(sum[i]);
        float const factor = total == 0.0F ? 0.0F : p.outputFactor / total;
        if (4 * y + i < tile.queries)
        {
            dispatchOutput(p.outputType,
                [&](auto element)
                {
                    using Out = decltype(element);
                    Out* const row = contextRow<Out, kSIZE>(p, tile.firstQuery + 4 * y + i, head);
#pragma unroll
                    for (int j = 0; j < kCOLUMNS; ++j)
                    {
                        row[x + j * kACROSS] = fromFloat<Out>(sums[i][j] * factor);
                    }
                });
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------

template <typename In, int kSIZE>
cudaError_t launchSize(QkvToContextArguments const& a, cudaStream_t stream)
{
    using Shape = BasicShape<kSIZE>;
    LaunchSize const size{static_cast<unsigned int>(countBlocks<Shape::kTILE>(a)), Shape::kTHREADS,
        sizeof(BasicMemory<In, kSIZE>)};
    return launchDependent(qkvToContextBasicKernel<In, kSIZE>, size, stream, makeProblem<Shape::kTILE>(a));
}

template <typename In>
cudaError_t launchTyped(QkvToContextArguments const& a, cudaStream_t stream)
{
    switch (a.headSize)
    {
    case 32:
        return launchSize<In, 32>(a, stream);
    case 64:
        return launchSize<In, 64>(a, stream);
    default:
        return launchSize<In, 128>(a, stream);
    }
}

} // namespace

cudaError_t launchQkvToContextBasic(QkvToContextArguments const& arguments, cudaStream_t stream)
{
    return arguments.type == ElementType::kBF16 ? launchTyped<__nv_bfloat16>(arguments, stream)
                                                : launchTyped<float>(arguments, stream);
}

} // namespace bert
