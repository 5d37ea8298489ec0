// Runs the attention kernels over shapes that reach every branch of their launchers and compares with a reference
// loop in double precision. It is small and does not use PyTorch, so that compute-sanitizer runs it in seconds:
//
//     cmake --build plugins/build --target qkv_to_context_check
//     compute-sanitizer --tool memcheck plugins/build/qkv_to_context_check     also: racecheck, initcheck, synccheck
//
// With the argument "few" it runs few small cases, for racecheck and initcheck, which are slow; with "rungs" only the
// kernels of qkv_to_context_ladder.h, and none of the plugin's.
#include "common/device_tensor.cuh"
#include "common/element.cuh"
#include "common/programmatic_dependent_launch.cuh"
#include "qkv_to_context/qkv_to_context_ladder.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <utility>
#include <vector>

using namespace bert;

namespace
{

// ---------------------------------------------------------------------------------------------------------------
// Types and values
// ---------------------------------------------------------------------------------------------------------------

template <typename T>
struct TypeOf;
template <>
struct TypeOf<float>
{
    static constexpr ElementType kVALUE = ElementType::kFLOAT;
    static constexpr double kTOLERANCE = 2e-6;
};
template <>
struct TypeOf<__half>
{
    static constexpr ElementType kVALUE = ElementType::kHALF;
    static constexpr double kTOLERANCE = 6e-4;
};
template <>
struct TypeOf<__nv_bfloat16>
{
    static constexpr ElementType kVALUE = ElementType::kBF16;
    static constexpr double kTOLERANCE = 5e-3;
};
template <>
struct TypeOf<int8_t>
{
    static constexpr ElementType kVALUE = ElementType::kINT8;
    static constexpr double kTOLERANCE = 3e-2; // half a step of 0.02 for values of about 0.3
};

template <>
struct TypeOf<E4m3>
{
    static constexpr ElementType kVALUE = ElementType::kE4M3;
    static constexpr double kTOLERANCE = 4e-2; // half a step is 3e-2 to 6e-2 of a value
};

constexpr float kSCALE = 0.02F; // of int8 and E4M3

template <typename T>
constexpr float kSCALE_OF = sizeof(T) == 1 ? kSCALE : 1.0F;

template <typename T>
double toHost(T value)
{
    return static_cast<float>(value) * kSCALE_OF<T>;
}
template <typename T>
T fromHost(float value)
{
    if constexpr (std::is_same_v<T, int8_t>)
    {
        return static_cast<int8_t>(std::clamp(std::round(value / kSCALE), -128.0F, 127.0F));
    }
    else
    {
        return static_cast<T>(value);
    }
}

template <typename T>
std::vector<T> randomValues(size_t count)
{
    static std::minstd_rand generator{1};
    std::uniform_real_distribution<float> distribution{-1.5F, 1.5F};
    std::vector<T> values(count);
    for (T& value : values)
    {
        value = fromHost<T>(distribution(generator));
    }
    return values;
}

// ---------------------------------------------------------------------------------------------------------------
// The reference loop
// ---------------------------------------------------------------------------------------------------------------

constexpr int32_t kHEADS = 2;

struct Case
{
    char const* layout;
    int32_t sequences;
    int32_t length; // of all sequences together if packed
    int32_t headSize;
    std::vector<int32_t> second; // mask or cuSeqlens

    bool isPacked() const
    {
        return layout == std::string{"packed"};
    }
    int32_t tokens() const
    {
        return isPacked() ? length : sequences * length;
    }
};

// Attention of one query and head over the tokens of [start, end) that `counts` accepts.
template <typename T, typename Counts>
std::vector<double> attend(std::vector<T> const& qkv, int32_t query, int32_t head, int32_t start, int32_t end,
    int32_t size, Counts counts)
{
    auto const at = [&](int32_t token, int32_t which, int32_t d)
    { return toHost(qkv[((static_cast<size_t>(token) * 3 + which) * kHEADS + head) * size + d]); };
    std::vector<double> scores(end - start);
    double largest = -INFINITY;
    for (int32_t key = start; key < end; ++key)
    {
        double score = 0.0;
        for (int32_t d = 0; d < size; ++d)
        {
            score += at(query, 0, d) * at(key, 1, d);
        }
        scores[key - start] = counts(key) ? score / std::sqrt(size) : -INFINITY;
        largest = std::max(largest, scores[key - start]);
    }
    std::vector<double> context(size);
    double sum = 0.0;
    for (int32_t key = start; key < end && largest > -INFINITY; ++key)
    {
        double const weight = std::exp(scores[key - start] - largest);
        sum += weight;
        for (int32_t d = 0; d < size; ++d)
        {
            context[d] += weight * at(key, 2, d);
        }
    }
    for (double& value : context)
    {
        value = sum > 0.0 ? value / sum : 0.0;
    }
    return context;
}

template <typename T>
std::vector<double> expectedRow(Case const& c, std::vector<T> const& qkv, int32_t token, int32_t head)
{
    if (c.isPacked())
    {
        for (int32_t i = 0; i < c.sequences; ++i)
        {
            if (token >= c.second[i] && token < c.second[i + 1])
            {
                return attend(
                    qkv, token, head, c.second[i], c.second[i + 1], c.headSize, [](int32_t) { return true; });
            }
        }
        return std::vector<double>(c.headSize);
    }
    int32_t const start = token / c.length * c.length;
    return attend(qkv, token, head, start, start + c.length, c.headSize,
        [&](int32_t key) { return c.second.empty() || c.second[key] != 0; });
}

// ---------------------------------------------------------------------------------------------------------------
// Cases
// ---------------------------------------------------------------------------------------------------------------

bool suitsAny(QkvToContextArguments const& /*arguments*/)
{
    return true;
}

struct Kernel
{
    char const* name;
    cudaError_t (*launch)(QkvToContextArguments const&, cudaStream_t);
    bool (*suits)(QkvToContextArguments const&){suitsAny};
};

// The plain kernels keep their scores in memory: as large as they need, so that memcheck sees accesses beyond its end.
cudaError_t launchPlain(QkvToContextArguments const& arguments, cudaStream_t stream)
{
    Tensor<float> const scores{countPlainScores(arguments)};
    return launchQkvToContextPlain(
        arguments, scores.data(), stream); // freeing the memory waits for the kernels
}
bool suitsPlain(QkvToContextArguments const& arguments)
{
    constexpr size_t kMOST_SCORES = size_t{1} << 26; // 256 MB
    return countPlainScores(arguments) <= kMOST_SCORES;
}

// The short kernel for packed sequences, told that no sequence has more than kLONGEST tokens, which may be wrong.
template <int32_t kLONGEST>
QkvToContextArguments expectShort(QkvToContextArguments arguments)
{
    arguments.maxSequenceLength = kLONGEST;
    return arguments;
}
template <int32_t kLONGEST>
bool suitsExpectedShort(QkvToContextArguments const& arguments)
{
    return arguments.cuSeqlens != nullptr && suitsShortKernel(expectShort<kLONGEST>(arguments));
}
#if defined(BERT_HOPPER)
template <int32_t kLONGEST>
cudaError_t launchExpectedShort(QkvToContextArguments const& arguments, cudaStream_t stream)
{
    return launchQkvToContextShort(expectShort<kLONGEST>(arguments), stream);
}
#endif

int gWrong = 0;
int gRuns = 0;
bool gFew = false;

template <typename In, typename Out>
void runCase(Case const& c, std::vector<Kernel> const& kernels)
{
    bool const packed = c.isPacked();
    int32_t const tokens = c.tokens();
    size_t const width = static_cast<size_t>(kHEADS) * c.headSize;
    auto const qkv = randomValues<In>(tokens * width * 3);
    Tensor<In> const qkvDevice{qkv};
    Tensor<int32_t> const second{c.second};
    for (Kernel const& kernel : kernels)
    {
        Tensor<Out> const context{tokens * width};
        poison(context.data(), tokens * width);
        QkvToContextArguments const arguments{qkvDevice.data(),
            packed || c.second.empty() ? nullptr : second.data(), packed ? second.data() : nullptr,
            context.data(), c.sequences, c.length, kHEADS, c.headSize, kSCALE_OF<In>, kSCALE_OF<Out>,
            TypeOf<In>::kVALUE, TypeOf<Out>::kVALUE};
        if (!kernel.suits(arguments))
        {
            continue;
        }
        check(kernel.launch(arguments, nullptr), kernel.name);
        check(cudaDeviceSynchronize(), kernel.name);
        auto const found = context.values();
        double error = 0.0;
        double norm = 1e-9; // for a context of zeros, which must be exact
        for (int32_t token = 0; token < tokens;
            token += std::max(1, tokens / 11)) // the reference loop is slow
        {
            for (int32_t head = 0; head < kHEADS; ++head)
            {
                auto const expected = expectedRow(c, qkv, token, head);
                for (int32_t d = 0; d < c.headSize; ++d)
                {
                    double const difference
                        = toHost(found[token * width + head * c.headSize + d]) - expected[d];
                    error += difference * difference;
                    norm += expected[d] * expected[d];
                }
            }
        }
        double const tolerance = std::max(TypeOf<Out>::kTOLERANCE,
            std::is_same_v<In, int8_t> ? TypeOf<__half>::kTOLERANCE : TypeOf<In>::kTOLERANCE);
        // Averages over many keys are small compared with a step of int8.
        double const allowed = std::is_same_v<Out, int8_t> ? 0.6 * kSCALE * std::sqrt(11.0 * width + width)
                                                           : tolerance * std::sqrt(norm);
        if (!(std::sqrt(error) <= allowed))
        {
            std::printf("wrong: %s, %s, %d x %d, head size %d, types %d to %d: error %g, allowed %g\n",
                kernel.name, c.layout, c.sequences, c.length, c.headSize,
                static_cast<int>(TypeOf<In>::kVALUE), static_cast<int>(TypeOf<Out>::kVALUE), std::sqrt(error),
                allowed);
            ++gWrong;
        }
        ++gRuns;
    }
}

// The masks of three sequences: with holes; all padding; padding at the end.
std::vector<int32_t> threeMasks(int32_t length)
{
    std::vector<int32_t> mask(3 * length, 0);
    for (int32_t i = 0; i < length; ++i)
    {
        mask[i] = i % 3 == 0 ? 1 : 0;
        mask[2 * length + i] = i < (length + 1) / 2 ? 1 : 0;
    }
    return mask;
}

template <typename In, typename Out>
void runTypes(std::vector<Kernel> const& kernels)
{
    for (int32_t size : {32, 64, 128})
    {
        // One query; a partial tile; an exact tile; one query more; several chunks of keys, the last one partial.
        for (int32_t length : gFew ? std::vector<int32_t>{200}
                                   : std::vector<int32_t>{1, 33, 64, 65, 128, 200, 300, 385, 512, 513})
        {
            runCase<In, Out>({"single", 1, length, size, {}}, kernels);
        }
        if (!gFew)
        {
            runCase<In, Out>({"single", 3, 70, size, {}}, kernels);
        }
        if (size == 64 && !gFew) // more tiles than are resident at the same time, of 64 and of 192 queries
        {
            runCase<In, Out>({"single", 210, 70, size, {}}, kernels);
            runCase<In, Out>({"single", 150, 192, size, {}}, kernels);
            runCase<In, Out>({"single", 50, 333, size, {}}, kernels); // several chunks of keys each
            runCase<In, Out>({"single", 70, 380, size, {}}, kernels); // the same; the last one is partial
        }
        for (int32_t length : gFew ? std::vector<int32_t>{37, 100, 131}
                                   : std::vector<int32_t>{1, 37, 64, 100, 128, 131, 300, 450})
        {
            runCase<In, Out>({"padded", 3, length, size, threeMasks(length)}, kernels);
        }
        if (size == 64) // numbers of sequences for which the short kernel chooses other blocks
        {
            runCase<In, Out>({"single", 40, 65, size, {}}, kernels);
            runCase<In, Out>({"single", 140, 65, size, {}}, kernels);
            runCase<In, Out>({"single", 40, 131, size, {}}, kernels);
        }
        runCase<In, Out>({"packed", 5, 300, size, {0, 1, 1, 66, 194, 260}}, kernels);
        if (!gFew)
        {
            runCase<In, Out>({"packed", 0, 30, size, {0}}, kernels); // only tokens after the last sequence
            // Kernels are chosen by the average length; some sequences are much longer, by whole chunks of keys or not.
            runCase<In, Out>({"packed", 8, 430, size, {0, 3, 4, 260, 261, 262, 263, 264, 425}}, kernels);
            runCase<In, Out>({"packed", 6, 620, size, {0, 300, 301, 557, 558, 600, 612}}, kernels);
            // Chunks of keys reuse pipeline stages.
            runCase<In, Out>({"packed", 3, 900, size, {0, 500, 520, 890}}, kernels);
        }
    }
}

// NaN in one sequence must not reach its neighbours, whose keys and values TMA loads together with it.
template <typename T>
void runNanNeighbour(std::vector<Kernel> const& kernels)
{
    constexpr int32_t kSIZE = 64;
    constexpr int32_t kWIDTH = kHEADS * kSIZE;
    std::vector<Case> cases{{"packed", 4, 240, kSIZE, {0, 70, 71, 110, 230}}};
    if (!gFew)
    {
        cases.push_back({"packed", 3, 900, kSIZE, {0, 300, 510, 890}});
        cases.push_back({"single", 3, 70, kSIZE, {}});
        cases.push_back({"single", 3, 300, kSIZE, {}});
    }
    for (Case const& c : cases)
    {
        int32_t const tokens = c.tokens();
        auto const range = [&](int32_t sequence)
        {
            return c.isPacked() ? std::pair{c.second[sequence], c.second[sequence + 1]}
                                : std::pair{sequence * c.length, (sequence + 1) * c.length};
        };
        for (int32_t sequence = 0; sequence < c.sequences; ++sequence)
        {
            auto const [begin, end] = range(sequence);
            auto qkv = randomValues<T>(static_cast<size_t>(tokens) * 3 * kWIDTH);
            std::fill(qkv.begin() + static_cast<ptrdiff_t>(begin) * 3 * kWIDTH,
                qkv.begin() + static_cast<ptrdiff_t>(end) * 3 * kWIDTH, fromHost<T>(NAN));
            Tensor<T> const device{qkv};
            Tensor<int32_t> const second{c.second};
            for (Kernel const& kernel : kernels)
            {
                Tensor<T> const context{static_cast<size_t>(tokens) * kWIDTH};
                poison(context.data(), static_cast<size_t>(tokens) * kWIDTH);
                QkvToContextArguments const arguments{device.data(), nullptr,
                    c.isPacked() ? second.data() : nullptr, context.data(), c.sequences, c.length, kHEADS,
                    kSIZE, 1.0F, 1.0F, TypeOf<T>::kVALUE, TypeOf<T>::kVALUE};
                if (!kernel.suits(arguments))
                {
                    continue;
                }
                check(kernel.launch(arguments, nullptr), kernel.name);
                check(cudaDeviceSynchronize(), kernel.name);
                auto const found = context.values();
                int32_t different = 0;
                for (int32_t token = 0; token < tokens; ++token)
                {
                    bool const isNan
                        = std::isnan(static_cast<float>(found[static_cast<size_t>(token) * kWIDTH]));
                    different += isNan == (token >= begin && token < end) ? 0 : 1;
                }
                if (different > 0)
                {
                    std::printf("wrong: %s, %s, %d x %d, NaN in sequence %d: %d tokens\n", kernel.name,
                        c.layout, c.sequences, c.length, sequence, different);
                    ++gWrong;
                }
                ++gRuns;
            }
        }
    }
}

// Invalid cuSeqlens: the kernels must not access memory outside the tensors.
template <typename T>
void runBroken(std::vector<Kernel> const& kernels)
{
    for (std::vector<int32_t> const& starts :
        {std::vector<int32_t>{0, 99999, 100000}, {0, -5, 9}, {-70000, 0, 9}, {0, 9, 4}})
    {
        int32_t const tokens = 9;
        Tensor<T> const qkv{randomValues<T>(static_cast<size_t>(tokens) * 3 * kHEADS * 64)};
        Tensor<int32_t> const cuSeqlens{starts};
        for (Kernel const& kernel : kernels)
        {
            Tensor<T> const context{std::vector<T>(static_cast<size_t>(tokens) * kHEADS * 64)}; // zeros
            QkvToContextArguments const arguments{qkv.data(), nullptr, cuSeqlens.data(), context.data(), 2,
                tokens, kHEADS, 64, 1.0F, 1.0F, TypeOf<T>::kVALUE, TypeOf<T>::kVALUE};
            if (!kernel.suits(arguments))
            {
                continue;
            }
            check(kernel.launch(arguments, nullptr), kernel.name);
            check(cudaDeviceSynchronize(), kernel.name);
            for (T const value : context.values())
            {
                bool const poisoned = std::is_same_v<T, int8_t> ? static_cast<float>(value) == -128.0F
                                                                : std::isnan(static_cast<float>(value));
                gWrong += poisoned ? 0 : 1;
            }
            ++gRuns;
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Many tiles, many launches
// ---------------------------------------------------------------------------------------------------------------

template <typename T>
__global__ void countDifferences(
    T const* found, T const* expected, size_t size, float allowed, uint32_t* count)
{
    size_t const step = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += step)
    {
        if (!(fabsf(static_cast<float>(found[i]) - static_cast<float>(expected[i])) <= allowed))
        {
            atomicAdd(count, 1U);
        }
    }
}

// Persistent kernels reuse their shared memory from tile to tile. If they reuse it too early, only some launches are
// wrong: an early version was wrong in 28 of 400 launches with 64 sequences of 128 tokens. So each kernel is launched
// many times, two launches at a time, and compared with the tensor kernel, whose blocks compute one tile each.
template <typename In, typename Out>
void runOften(Case const& c, Tensor<In> const& qkv, int32_t heads, std::vector<Kernel> const& kernels)
{
    constexpr int kPOISON = std::is_same_v<Out, int8_t> ? 0x80 : 0xFF;     // -128 or NaN
    constexpr float kALLOWED = std::is_same_v<Out, int8_t> ? 1.0F : 4e-3F; // one step of int8
    int const runs = gFew ? 2 : 20;
    size_t const size = static_cast<size_t>(c.tokens()) * heads * c.headSize;
    Tensor<int32_t> const cuSeqlens{c.second};
    Tensor<Out> const expected{size};
    Tensor<Out> const found{size};
    QkvToContextArguments arguments{qkv.data(), nullptr, c.isPacked() ? cuSeqlens.data() : nullptr,
        expected.data(), c.sequences, c.length, heads, c.headSize, std::is_same_v<In, int8_t> ? kSCALE : 1.0F,
        std::is_same_v<Out, int8_t> ? kSCALE / 8 : 1.0F, TypeOf<In>::kVALUE, TypeOf<Out>::kVALUE};
    check(launchQkvToContextTensor(arguments, nullptr), "tensor");
    arguments.context = found.data();
    for (Kernel const& kernel : kernels)
    {
        if (!kernel.suits(arguments))
        {
            continue;
        }
        Tensor<uint32_t> const counts{std::vector<uint32_t>(runs)};
        for (int run = 0; run < runs; ++run)
        {
            check(cudaMemsetAsync(found.data(), kPOISON, size * sizeof(Out)), "cudaMemsetAsync");
            check(kernel.launch(arguments, nullptr), kernel.name);
            check(kernel.launch(arguments, nullptr), kernel.name);
            countDifferences<<<512, 256>>>(
                found.data(), expected.data(), size, kALLOWED, counts.data() + run);
            check(cudaGetLastError(), "countDifferences");
        }
        check(cudaDeviceSynchronize(), kernel.name);
        auto const ofRuns = counts.values();
        auto const right = std::count(ofRuns.begin(), ofRuns.end(), 0U);
        if (right < runs)
        {
            std::printf("wrong: %s, %s, %d x %d, %d heads of %d: %d of %d launches\n", kernel.name, c.layout,
                c.sequences, c.length, heads, c.headSize, runs - static_cast<int>(right), runs);
            ++gWrong;
        }
        ++gRuns;
    }
}

template <typename In, typename Out>
void runManyTiles(std::vector<Kernel> const& kernels)
{
    constexpr int32_t kMANY_HEADS = 12;
    constexpr int32_t kSIZE = 64;
    std::vector<int32_t> starts{0}; // full and partial tiles alternate
    for (int32_t i = 0; i < (gFew ? 20 : 100); ++i)
    {
        starts.push_back(starts.back() + 1 + i * 37 % 200);
    }
    Case const packed{"packed", static_cast<int32_t>(starts.size()) - 1, starts.back(), kSIZE, starts};
    std::vector<Case> cases{{"single", 20, 128, kSIZE, {}}, packed};
    if (!gFew)
    {
        // Nearly all sequences fill two tiles of 192 queries and three chunks of 128 keys; the first one leaves two
        // thirds of its second tile empty.
        starts = {0, 230};
        for (int32_t i = 1; i < 40; ++i)
        {
            starts.push_back(starts.back() + 370 + i * 7 % 15);
        }
        cases = {packed, {"packed", static_cast<int32_t>(starts.size()) - 1, starts.back(), kSIZE, starts}};
        for (auto [sequences, length] :
            {std::pair{64, 128}, {128, 64}, {128, 128}, {210, 70}, {32, 384}, {8, 512}})
        {
            cases.push_back({"single", sequences, length, kSIZE, {}});
        }
    }
    int32_t tokens = 0;
    for (Case const& c : cases)
    {
        tokens = std::max(tokens, c.tokens());
    }
    Tensor<In> const qkv{randomValues<In>(static_cast<size_t>(tokens) * kMANY_HEADS * kSIZE * 3)};
    for (Case const& c : cases)
    {
        runOften<In, Out>(c, qkv, kMANY_HEADS, kernels);
    }
}

// ---------------------------------------------------------------------------------------------------------------
// cuSeqlens of the previous kernel
// ---------------------------------------------------------------------------------------------------------------

// Allows the launch of the next kernel, and writes much later than that kernel begins.
__global__ void writeLate(int32_t* target, int32_t const* source, int32_t count)
{
    waitForPreviousKernel();
    triggerDependentLaunch();
    constexpr unsigned int kNANOSECONDS = 20000;
    __nanosleep(kNANOSECONDS);
    for (int32_t i = 0; i < count; ++i)
    {
        target[i] = source[i];
    }
}

// A kernel may look at cuSeqlens before the previous kernel has written it, but what it has seen there, valid or not,
// must not change its results. Most launches see all of the old values: where one of them does, and a result is wrong,
// so is the kernel.
template <typename T>
void runLateLengths(std::vector<Kernel> const& kernels)
{
    constexpr int32_t kSIZE = 64;
    constexpr int32_t kTOKENS = 300;
    constexpr size_t kCOUNT = static_cast<size_t>(kTOKENS) * kHEADS * kSIZE;
    std::vector<int32_t> const starts{0, 1, 1, 66, 194, 260};
    Tensor<T> const qkv{randomValues<T>(3 * kCOUNT)};
    Tensor<int32_t> const right{starts};
    Tensor<T> const expected{kCOUNT};
    QkvToContextArguments arguments{qkv.data(), nullptr, right.data(), expected.data(),
        static_cast<int32_t>(starts.size()) - 1, kTOKENS, kHEADS, kSIZE, 1.0F, 1.0F, TypeOf<T>::kVALUE,
        TypeOf<T>::kVALUE};
    check(launchQkvToContextTensor(arguments, nullptr), "tensor");
    for (std::vector<int32_t> const& old : {std::vector<int32_t>{0, 60, 128, 130, 131, 131},
             {0, 1, 1, 40, 41, 300}, {INT32_MAX, INT32_MIN, -7, INT32_MAX, 1 << 30, -1}})
    {
        for (Kernel const& kernel : kernels)
        {
            if (!kernel.suits(arguments))
            {
                continue;
            }
            Tensor<int32_t> const cuSeqlens{old};
            Tensor<T> const found{kCOUNT};
            poison(found.data(), kCOUNT);
            Tensor<uint32_t> const different{std::vector<uint32_t>(1)};
            check(cudaDeviceSynchronize(), kernel.name);
            check(launchDependent(writeLate, 1, 1, nullptr, cuSeqlens.data(), right.data(),
                      static_cast<int32_t>(starts.size())),
                "writeLate");
            QkvToContextArguments late = arguments;
            late.cuSeqlens = cuSeqlens.data();
            late.context = found.data();
            check(kernel.launch(late, nullptr), kernel.name);
            countDifferences<<<512, 256>>>(found.data(), expected.data(), kCOUNT,
                static_cast<float>(TypeOf<T>::kTOLERANCE) * 4, different.data());
            check(cudaDeviceSynchronize(), kernel.name);
            if (different.values()[0] != 0)
            {
                std::printf(
                    "wrong: %s, lengths that come late: %u elements\n", kernel.name, different.values()[0]);
                ++gWrong;
            }
            ++gRuns;
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Absurd scales
// ---------------------------------------------------------------------------------------------------------------

// Scales with which one unit of a score is many units of the exponent, or one unit of a value exceeds the int8 range
// of the context: Hopper's kernel leaves those to the tensor kernel. All keys have the same values, -1, 0 or 1, so
// the context equals those.
void runAbsurdScales()
{
    constexpr int32_t kSIZE = 64;
    constexpr int32_t kTOKENS = 70;
    auto qkv = randomValues<int8_t>(static_cast<size_t>(kTOKENS) * 3 * kHEADS * kSIZE);
    for (int32_t token = 0; token < kTOKENS; ++token)
    {
        for (int32_t i = 0; i < kHEADS * kSIZE; ++i)
        {
            qkv[(token * 3 + 2) * kHEADS * kSIZE + i] = static_cast<int8_t>(i % 3 - 1);
        }
    }
    Tensor<int8_t> const device{qkv};
    for (auto [qkvScale, outputScale] : {std::pair{kSCALE, kSCALE}, {1.0F, 1e-5F}, {30.0F, 30.0F}})
    {
        Tensor<int8_t> const context{static_cast<size_t>(kTOKENS) * kHEADS * kSIZE};
        poison(context.data(), static_cast<size_t>(kTOKENS) * kHEADS * kSIZE);
        QkvToContextArguments const arguments{device.data(), nullptr, nullptr, context.data(), 1, kTOKENS,
            kHEADS, kSIZE, qkvScale, outputScale, ElementType::kINT8, ElementType::kINT8};
        check(launchQkvToContext(arguments, nullptr), "launchQkvToContext");
        check(cudaDeviceSynchronize(), "launchQkvToContext");
        auto const found = context.values();
        int different = 0;
        for (size_t i = 0; i < found.size(); ++i)
        {
            float const exact = static_cast<float>(static_cast<int>(i % (kHEADS * kSIZE)) % 3 - 1) * qkvScale;
            different
                += static_cast<float>(found[i]) == std::clamp(exact / outputScale, -128.0F, 127.0F) ? 0 : 1;
        }
        if (different > 0)
        {
            std::printf("wrong: scales %g and %g: %d of %zu elements\n", qkvScale, outputScale, different,
                found.size());
            ++gWrong;
        }
        ++gRuns;
    }
}

} // namespace

int main(int argumentCount, char** arguments)
{
    auto const isGiven = [&](char const* word)
    {
        return std::find(arguments + 1, arguments + argumentCount, std::string{word})
               != arguments + argumentCount;
    };
    gFew = isGiven("few");
    bool const onlyRungs = isGiven("rungs");
    std::vector<Kernel> ordinary;
    std::vector<Kernel> tensor;
    std::vector<Kernel> tensorInt8;
    if (!onlyRungs)
    {
        ordinary = {{"basic", launchQkvToContextBasic}};
        tensor = {{"tensor", launchQkvToContextTensor}};
        tensorInt8 = tensor;
    }
#if defined(BERT_HOPPER)
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
    if (properties.major == 9 && properties.minor == 0 && !onlyRungs)
    {
        tensor.push_back({"hopper", launchQkvToContextHopper});
        tensor.push_back({"short", launchQkvToContextShort, suitsShortKernel});
        tensor.push_back({"short, 128 tokens expected", launchExpectedShort<128>, suitsExpectedShort<128>});
        tensor.push_back({"short, 64 tokens expected", launchExpectedShort<64>, suitsExpectedShort<64>});
        tensorInt8.push_back({"hopper, int8", launchQkvToContextHopperInt8, suitsHopperInt8Kernel});
    }
#endif
    ordinary.push_back({"plain", launchPlain, suitsPlain});
    tensor.push_back({"plain", launchPlain, suitsPlain});
    runTypes<float, float>(ordinary);
    runTypes<float, int8_t>(ordinary);
    runTypes<float, E4m3>(ordinary);
    runTypes<__nv_bfloat16, __nv_bfloat16>(ordinary);
    runTypes<__half, __half>(tensor);
    runTypes<__half, int8_t>(tensor);
    runTypes<__half, E4m3>(tensor);
    runTypes<__nv_bfloat16, __nv_bfloat16>(tensor);
    runTypes<__nv_bfloat16, int8_t>(tensor);
    runTypes<__nv_bfloat16, E4m3>(tensor);
    runTypes<int8_t, float>(tensorInt8);
    runTypes<int8_t, __half>(tensorInt8);
    runTypes<int8_t, __nv_bfloat16>(tensorInt8);
    runTypes<int8_t, int8_t>(tensorInt8);
    runManyTiles<__half, __half>(tensor);
    runManyTiles<__half, int8_t>(tensor);
    runManyTiles<int8_t, __half>(tensorInt8);
    runManyTiles<int8_t, int8_t>(tensorInt8);
    if (!onlyRungs)
    {
        runAbsurdScales();
    }
    if (!onlyRungs)
    {
        runLateLengths<__half>(tensor);
        runLateLengths<__nv_bfloat16>(tensor);
    }
    runNanNeighbour<float>(ordinary);
    runNanNeighbour<__half>(tensor);
    runNanNeighbour<__nv_bfloat16>(tensor);
    runBroken<float>(ordinary);
    runBroken<__half>(tensor);
    runBroken<__nv_bfloat16>(tensor);
    runBroken<int8_t>(tensorInt8);
    std::printf("%d runs, %d wrong\n", gRuns, gWrong);
    return gWrong == 0 ? 0 : 1;
}
